//! The server's state machines: any script, any delivery.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::format;
use nbd_codec_fuzz::server::{Run, handshake, transmission};

fuzz_target!(|bytes: &[u8]| {
    match format::read(bytes) {
        Run::Transmission { first, script, .. } => drop(transmission::run(&script, &first)),
        Run::Handshake { first, script, .. } => drop(handshake::run(&script, &first)),
    }
});
