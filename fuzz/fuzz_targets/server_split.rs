//! One script with two deliveries: equal events, return values, errors and bytes
//! written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::compare::server::{handshake_deliveries, transmission_deliveries};
use nbd_codec_fuzz::format;
use nbd_codec_fuzz::server::{Run, handshake, transmission};

fuzz_target!(|bytes: &[u8]| {
    match format::read(bytes) {
        Run::Transmission {
            first,
            second,
            script,
        } => {
            let first = transmission::run(&script, &first);
            let second = transmission::run(&script, &second);
            if let (Some(first), Some(second)) = (first, second) {
                transmission_deliveries(&first, &second);
            }
        }
        Run::Handshake {
            first,
            second,
            script,
        } => {
            let first = handshake::run(&script, &first);
            let second = handshake::run(&script, &second);
            if let (Some(first), Some(second)) = (first, second) {
                handshake_deliveries(&first, &second);
            }
        }
    }
});
