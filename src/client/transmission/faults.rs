//! Faults of the server that cost their command alone, and not the session.

use super::chunk::{Header, Taken};
use super::recv::ClientStep;
use super::slots::Slot;
use super::state::{Part, State};
use super::{Transmission, TransmissionEvent};
use crate::error::{Error, Violation};
use crate::step::Step;
use crate::wire::bytes::take_slice;
use crate::wire::number::ErrorValue;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// A chunk with a fault: where the fault costs the command alone, the header
    /// is taken, and its payload is to be discarded.
    #[cold]
    pub(super) fn tolerate(
        &mut self,
        header: &Header,
        error: Error,
        input: &mut &[u8],
    ) -> Result<Taken, Error> {
        let short = header.length <= u64::from(self.limits.payload);
        match tolerated(error) {
            Some(violation) if short && !self.strict => {
                let _ = take_slice(input, header.size);
                let part = header.part(header.length);
                self.state = State::Fault { part, violation };
                Ok(Taken::Yes)
            }
            _ => Err(error),
        }
    }

    /// Reports a fault that its command alone pays for, and discards what is left of
    /// the chunk.
    #[cold]
    pub(super) fn fault<'i>(
        &mut self,
        part: Part,
        error: Error,
        input: &mut &[u8],
    ) -> ClientStep<'i> {
        let cookie = part.cookie;
        if let Some(slot) = self.slots.find(cookie)
            && !slot.error.is_error()
        {
            slot.error = ErrorValue::EIO;
        }
        self.state = part.discard_from(input);
        Step::Event(TransmissionEvent::Fault { cookie, error })
    }
}

/// A fault that costs its command alone: what is faulty can be discarded, and the
/// specification leaves the client the choice.
pub(super) fn tolerated(error: Error) -> Option<Violation> {
    use Violation as V;
    match error {
        Error::Violation(
            violation @ (V::OtherOffset(_)
            | V::OutOfBounds(_)
            | V::Overlap(_)
            | V::Fragmented(_)
            | V::Incomplete(_)
            | V::RepeatedContext(_)
            | V::MissingContext(_)),
        ) => Some(violation),
        _ => None,
    }
}
