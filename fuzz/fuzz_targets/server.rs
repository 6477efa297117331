//! The server's machines: any script, any delivery.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::server::script::ServerRun;
use nbd_codec_fuzz::{host, server, tape};

fuzz_target!(|bytes: &[u8]| {
    match tape::read(bytes) {
        ServerRun::Transmission { one, service, .. } => drop(server::run(&service, &one)),
        ServerRun::Handshake { one, reception, .. } => drop(host::run(&reception, &one)),
    }
});
