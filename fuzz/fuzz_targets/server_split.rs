//! One script, two deliveries: the same events, calls, errors and bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::server::script::ServerRun;
use nbd_codec_fuzz::{agree, host, server, tape};

fuzz_target!(|bytes: &[u8]| {
    match tape::read(bytes) {
        ServerRun::Transmission {
            one,
            other,
            service,
        } => {
            let one = server::run(&service, &one);
            let other = server::run(&service, &other);
            if let (Some(one), Some(other)) = (one, other) {
                agree::same(&one, &other);
            }
        }
        ServerRun::Handshake {
            one,
            other,
            reception,
        } => {
            let one = host::run(&reception, &one);
            let other = host::run(&reception, &other);
            if let (Some(one), Some(other)) = (one, other) {
                agree::same_talk(one, other);
            }
        }
    }
});
