//! One script, two deliveries: the same events, calls and errors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::script::Run;
use nbd_codec_fuzz::{client, compare, handshake, tape};

fuzz_target!(|bytes: &[u8]| {
    match tape::read(bytes) {
        Run::Transmission {
            one,
            other,
            session,
        } => {
            let one = client::run(&session, &one);
            let other = client::run(&session, &other);
            compare::same(&one.outcome, &other.outcome);
        }
        Run::ByHand { one, other, talk } => {
            let one = handshake::by_hand(&talk, &one);
            let other = handshake::by_hand(&talk, &other);
            compare::same_talk(one.outcome, other.outcome);
        }
        Run::ByPolicy { one, other, talk } => {
            let one = handshake::by_policy(&talk, &one, |client| client.outcome);
            let other = handshake::by_policy(&talk, &other, |client| client.outcome);
            if let (Some(one), Some(other)) = (one, other) {
                compare::same_talk(one, other);
            }
        }
    }
});
