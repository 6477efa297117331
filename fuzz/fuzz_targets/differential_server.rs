//! The server's state machines and the reference parser on the same bytes: equal
//! validity and events. The client's reference parser accepts what the server
//! writes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::server::transmission::script::Action;
use nbd_codec_fuzz::server::{Run, handshake, transmission};
use nbd_codec_fuzz::{compare, format};

fuzz_target!(|bytes: &[u8]| {
    match format::read(bytes) {
        Run::Transmission {
            first, mut script, ..
        } => {
            // The reference parser has no payload that does not exist, and no
            // invalid block sizes.
            let is_real = |action: &Action| !matches!(action, Action::Advance { .. });
            script.actions.0.retain(is_real);
            let sizes = script.setup.common.negotiated().block_sizes;
            if sizes.is_some_and(|sizes| !sizes.is_valid()) {
                script.setup.common.block_sizes = 0;
            }
            if let Some(server) = transmission::run(&script, &first) {
                compare::server::transmission(&server);
            }
        }
        Run::Handshake { first, script, .. } => {
            if let Some(server) = handshake::run(&script, &first) {
                compare::server::handshake(server);
            }
        }
    }
});
