//! Transmission, server side: requests in, as values that make their replies
//! (specification, "Transmission").
//!
//! | file | what it has |
//! |---|---|
//! | `recv` | requests: received, and handed out |
//! | `validate` | requests checked against what was advertised |

mod recv;
mod validate;

use self::validate::{Fault, Header, Rules};
use super::request::{ContextSet, Reply, Request, RequestInfo, ResizeRequest};
use crate::error::{Error, Misuse};
use crate::limits::Limits;
use crate::negotiated::Negotiated;
use crate::step::receive;
use crate::wire::flags::TransmissionFlags;
use crate::wire::number::{Command, Cookie, ErrorValue};
use crate::wire::request::ExtendedRequest;

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransmissionEvent {
    /// A request, all of it: do it, and answer it.
    Request(Request),
    /// The payload of a write begins. It comes as
    /// [`Step::Content`](crate::Step::Content), or is read directly
    /// ([`Step::ReadPayload`](crate::Step::ReadPayload)); after the last byte of it
    /// the write itself comes as [`Request`](Self::Request).
    WritePayload {
        /// The request.
        cookie: Cookie,
        /// Where it belongs, in bytes from the start of the export.
        offset: u64,
        /// How much it is, in bytes; at most the maximum payload.
        length: u32,
    },
    /// A request that the state machine has answered, because there is nothing
    /// to do: it breaks the rules, comes during shutdown, or its length is
    /// zero. Write the reply.
    Answered {
        /// The command.
        command: Command,
        /// What the client is told: success for a length of zero, otherwise an
        /// error.
        result: Result<(), ErrorValue>,
        /// Ready to be written.
        reply: Reply<'static>,
    },
    /// The client sent `DISC`: answer what is in flight and close the
    /// connection. Nothing more is received.
    Disconnect,
}

/// Where in the stream of requests the input is.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Before a header.
    Header,
    /// In the data of a write; `left` and `offset` in bytes.
    Payload {
        info: RequestInfo,
        left: u64,
        offset: u64,
    },
    /// In the payload of a request that is rejected, which is discarded.
    Discard {
        header: Header,
        fault: Fault,
        left: u64,
    },
    /// After `DISC`.
    Disconnected,
    /// The session is over.
    Failed(Error),
}

/// The server's side of the transmission phase.
///
/// Offer what arrives to [`receive`](Self::receive) and take the step that it
/// answers with. The requests it hands out make their own replies; it does not
/// track them.
#[derive(Debug)]
pub struct Transmission {
    rules: Rules,
    state: State,
    /// Bytes of the next header and what must arrive with it, as far as it is
    /// known.
    want: usize,
}

#[cfg(feature = "alloc")]
impl crate::inbox::ReceiveOwned for Transmission {
    type Owned = TransmissionEvent;

    fn detach(event: TransmissionEvent, _: &mut &[u8]) -> TransmissionEvent {
        event
    }

    fn attach(_: &mut TransmissionEvent, _: ::bytes::Bytes) {}
}

receive!([] Transmission, TransmissionEvent, advance);

impl Transmission {
    /// Starts where a handshake ended.
    ///
    /// # Errors
    ///
    /// [`Misuse::NotCompiled`] for a framing that is not compiled;
    /// [`Misuse::Context`] for a context whose id is not below 32, which no
    /// [`Handshake`](super::Handshake) makes; [`Misuse::BufferTooSmall`] if the
    /// export takes block status requests that name their contexts, and
    /// `limits` are for a buffer that such a request does not fit.
    pub fn new(negotiated: Negotiated, limits: Limits) -> Result<Self, Misuse> {
        negotiated.framing.check()?;
        for context in negotiated.contexts.iter() {
            if ContextSet::of(context.id).is_empty() {
                return Err(Misuse::Context(context.id));
            }
        }
        let supported = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        if negotiated.framing.is_extended() && negotiated.flags.contains(supported) {
            let contexts = negotiated.contexts.len().saturating_mul(4);
            let needed = contexts.saturating_add(ExtendedRequest::SIZE + 8);
            if needed > limits.buffer() {
                return Err(Misuse::BufferTooSmall { needed });
            }
        }
        Ok(Self {
            want: recv::header_size(negotiated.framing),
            rules: Rules::new(negotiated, limits),
            state: State::Header,
        })
    }

    /// For testers of clients: from now on what the specification forbids a
    /// client, and what is accepted otherwise, is answered `EINVAL` or ends the
    /// session. [`guide::faults`](crate::guide::faults) lists each case.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.rules.strict = true;
        self
    }

    /// What was agreed on, and what requests are checked against; the size follows a
    /// successful resize.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.rules.export
    }

    /// From now on every request is answered `ESHUTDOWN`. Those handed out
    /// before can be done, or failed with it.
    pub fn shut_down(&mut self) {
        self.rules.shutting_down = true;
    }

    /// Answers a resize that is done: from now on requests are checked
    /// against the new size.
    pub fn resized(&mut self, resize: ResizeRequest) -> Reply<'static> {
        self.rules.export.size = resize.size();
        self.rules.largest = self.rules.largest.max(resize.size());
        resize.info.success()
    }

    /// Reports that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if it did not send `DISC` before. Later calls return
    /// the same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        match self.state {
            State::Failed(error) => Err(error),
            State::Disconnected => Ok(()),
            _ => {
                self.state = State::Failed(Error::Closed);
                Err(Error::Closed)
            }
        }
    }

    /// Reports that `n` bytes of the payload that
    /// [`Step::ReadPayload`](crate::Step::ReadPayload) announced were read into
    /// their place. A payload that is read in pieces may be reported piece by
    /// piece, without a call of [`receive`](Self::receive) in between.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if `n` is more than is left of the payload; nothing has
    /// changed.
    #[inline]
    pub fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        let (left, offset) = match &mut self.state {
            State::Payload { left, offset, .. } => (left, offset),
            State::Failed(error) => return Err(Misuse::Failed(*error)),
            _ if n == 0 => return Ok(()),
            _ => return Err(Misuse::TooMuchPayload { expected: 0 }),
        };
        let Some(rest) = left.checked_sub(n) else {
            return Err(Misuse::TooMuchPayload { expected: *left });
        };
        *left = rest;
        *offset = offset.saturating_add(n);
        Ok(())
    }
}
