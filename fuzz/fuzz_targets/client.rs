//! The client's machines: any script, any delivery.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::script::Run;
use nbd_codec_fuzz::{client, handshake, tape};

fuzz_target!(|bytes: &[u8]| {
    match tape::read(bytes) {
        Run::Transmission { one, session, .. } => drop(client::run(&session, &one)),
        Run::ByHand { one, talk, .. } => drop(handshake::by_hand(&talk, &one)),
        Run::ByPolicy { one, talk, .. } => {
            handshake::by_policy(&talk, &one, |_| ());
        }
    }
});
