//! One script with two deliveries: equal events, return values and errors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::client::{Run, handshake, transmission};
use nbd_codec_fuzz::compare::client::{handshake_deliveries, transmission_deliveries};
use nbd_codec_fuzz::format;

fuzz_target!(|bytes: &[u8]| {
    match format::read(bytes) {
        Run::Transmission {
            first,
            second,
            script,
        } => {
            let [first, second] = [first, second].map(|delivery| {
                let client = transmission::run(&script, &delivery);
                client.outcome
            });
            transmission_deliveries(&first, &second);
        }
        Run::Handshake {
            first,
            second,
            script,
        } => {
            let first = handshake::run(&script, &first);
            let second = handshake::run(&script, &second);
            handshake_deliveries(first.outcome, second.outcome);
        }
        Run::Connector {
            first,
            second,
            script,
        } => {
            let first = handshake::run_connector(&script, &first, |client| client.outcome);
            let second = handshake::run_connector(&script, &second, |client| client.outcome);
            if let (Some(first), Some(second)) = (first, second) {
                handshake_deliveries(first, second);
            }
        }
    }
});
