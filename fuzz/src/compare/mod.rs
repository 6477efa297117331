//! Compares a run with another delivery of the same script, and with the
//! reference parsers.

pub mod client;
pub mod server;

use nbd_codec::{Error, Framing, StatusWidth, Violation};

use crate::reference::{Validity, replies, requests};
use crate::script::Setup;

pub fn framing(framing: Framing) -> replies::Framing {
    match framing {
        Framing::Simple => replies::Framing::Simple,
        Framing::Structured => replies::Framing::Structured,
        Framing::Extended => replies::Framing::Extended,
    }
}

fn requests_config(setup: &Setup) -> requests::Config {
    let negotiated = setup.negotiated();
    let sizes = negotiated.constraints();
    let contexts = negotiated.contexts.iter();
    requests::Config {
        framing: framing(negotiated.framing),
        size: negotiated.size,
        flags: negotiated.flags.0.into(),
        minimum: sizes.minimum.into(),
        maximum: sizes.maximum.into(),
        contexts: contexts.map(|context| context.id.0.into()).collect(),
        max_payload: setup.limits.limits().payload.into(),
        max_effect: u64::MAX,
        strict: true,
    }
}

/// Without limits.
fn replies_config(setup: &Setup) -> replies::Config {
    let negotiated = setup.negotiated();
    let contexts = negotiated.contexts.iter();
    replies::Config {
        framing: framing(negotiated.framing),
        contexts: contexts
            .map(|context| (context.id.0, context.width == StatusWidth::Wide))
            .collect(),
        max_message: u64::MAX,
        max_error: u64::MAX,
        max_extents: u64::MAX,
        strict: true,
    }
}

/// A state machine fails if and only if the stream is invalid. It may fail
/// before the last message is complete: then no further bytes can make the
/// message valid.
fn check_validity(
    validity: Validity,
    error: Option<Error>,
    stream: &[u8],
    parse: impl Fn(&[u8]) -> Validity,
    context: &dyn Fn() -> String,
) {
    // The end of the input and a failure of TLS are not in the stream.
    let failed = !matches!(
        error,
        None | Some(Error::Closed | Error::ClosedDuring(_) | Error::TlsFailed)
    );
    match validity {
        Validity::Valid => assert!(!failed, "{}", context()),
        Validity::Invalid(_) => assert!(failed, "{}", context()),
        Validity::Incomplete if !failed => {}
        Validity::Incomplete => {
            for filler in [0, 1, 0x25, 0x49, 0x4e, 0x67, 0xff] {
                let mut longer = stream.to_vec();
                longer.resize(longer.len() + 9000, filler);
                let invalid = matches!(parse(&longer), Validity::Invalid(_));
                assert!(invalid, "failed too early: {}", context());
            }
        }
    }
}

/// Plain text after STARTTLS is an error once it arrives, which may be before or
/// after the acknowledgement is handled.
fn is_plaintext_error(error: Option<Error>) -> bool {
    error == Some(Error::Violation(Violation::PlaintextAfterStartTls))
}
