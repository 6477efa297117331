//! The server's machines, and simple readers of the specification for both
//! directions: the same events, the same verdict, and only legal answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::server::script::{ServerRun, ServiceStep};
use nbd_codec_fuzz::{agree, host, server, tape};

fuzz_target!(|bytes: &[u8]| {
    match tape::read(bytes) {
        ServerRun::Transmission {
            one, mut service, ..
        } => {
            // The reader reads what is there, and knows real block sizes.
            let real = |step: &ServiceStep| !matches!(step, ServiceStep::Advance { .. });
            service.steps.0.retain(real);
            let sizes = service.setup.common.negotiated().block_sizes;
            if sizes.is_some_and(|sizes| !sizes.is_valid()) {
                service.setup.common.block_sizes = 0;
            }
            if let Some(server) = server::run(&service, &one) {
                agree::agree(&server);
            }
        }
        ServerRun::Handshake { one, reception, .. } => {
            if let Some(host) = host::run(&reception, &one) {
                agree::agree_talk(host);
            }
        }
    }
});
