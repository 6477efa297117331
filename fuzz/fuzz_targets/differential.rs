//! The client's state machines and the reference parser on the same bytes: equal
//! validity and events. The server's reference parser accepts what the client
//! writes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::client::transmission::script::Action;
use nbd_codec_fuzz::client::{Run, handshake, transmission};
use nbd_codec_fuzz::{compare, format};

fuzz_target!(|bytes: &[u8]| {
    match format::read(bytes) {
        Run::Transmission {
            first, mut script, ..
        } => {
            // The reference parser has no payload that does not exist.
            let is_real = |action: &Action| !matches!(action, Action::Advance { .. });
            script.actions.0.retain(is_real);
            let client = transmission::run(&script, &first);
            compare::client::transmission(&client, &script.setup);
            compare::client::requests(&client, &script.setup);
        }
        Run::Handshake { first, script, .. } => {
            compare::client::handshake(handshake::run(&script, &first), &script);
        }
        Run::Connector { first, script, .. } => {
            handshake::run_connector(&script, &first, |client| {
                compare::client::handshake(client, &script);
            });
        }
    }
});
