//! The client's machines, and a simple reader of the specification, on the same
//! bytes: the same verdict and the same events; and what the client says is
//! what another reader takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::script::{Run, Step};
use nbd_codec_fuzz::{agree, client, compare, handshake, tape};

fuzz_target!(|bytes: &[u8]| {
    match tape::read(bytes) {
        Run::Transmission {
            one, mut session, ..
        } => {
            // The reader reads what is there.
            let real = |step: &Step| !matches!(step, Step::Advance { .. });
            session.steps.0.retain(real);
            let client = client::run(&session, &one);
            compare::agree(&client, &session.setup);
            agree::accept(&client, &session.setup);
        }
        Run::ByHand { one, talk, .. } => {
            compare::agree_talk(handshake::by_hand(&talk, &one), &talk, true);
        }
        Run::ByPolicy { one, talk, .. } => {
            handshake::by_policy(&talk, &one, |client| {
                compare::agree_talk(client, &talk, false)
            });
        }
    }
});
