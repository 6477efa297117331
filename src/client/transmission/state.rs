//! Where in the stream of replies the input is.

use crate::error::{Error, Misuse, Violation};
use crate::negotiated::StatusWidth;
use crate::wire::bytes::{take_up_to, wide};
use crate::wire::extent::{Extent32, Extent64};
use crate::wire::number::{ContextId, Cookie, ErrorValue};

/// Where in the stream of replies the input is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    /// Before a header.
    Header,
    /// In bytes to discard, at the end of a chunk.
    Discard(Part),
    /// Among the descriptors of a status chunk.
    Extents(Extents),
    /// In the data of a read.
    Data { part: Part, offset: u64 },
    /// After a hole chunk.
    Hole {
        part: Part,
        offset: u64,
        length: u32,
    },
    /// After the header of a chunk with a fault, whose payload is discarded.
    Fault { part: Part, violation: Violation },
    /// Before the message of an error chunk, and what follows it.
    Error(ErrorMessage),
    /// After the last chunk of a reply.
    Done(Cookie),
    /// After a reply that is known to be one of success.
    Success(Cookie),
    /// The session is over.
    Failed(Error),
    /// The server closed the connection, and no command was in flight.
    Ended,
}

/// A part of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) cookie: Cookie,
    /// Bytes left.
    pub(crate) left: u64,
    pub(crate) end: End,
}

/// What is at the end of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Another chunk of the reply follows, perhaps after others.
    More,
    /// The reply ends: with what, is to be found out.
    Last,
    /// The reply ends, and is known to be one of success.
    Success,
}

impl End {
    /// Of a chunk that is the last of its reply or not.
    #[inline]
    pub(super) fn of(last: bool) -> Self {
        if last { Self::Last } else { Self::More }
    }
}

impl Part {
    /// The state after the chunk.
    #[inline]
    pub(super) fn after(self) -> State {
        match self.end {
            End::More => State::Header,
            End::Last => State::Done(self.cookie),
            End::Success => State::Success(self.cookie),
        }
    }

    /// The state before what is left is discarded.
    #[inline]
    pub(super) fn discard(self) -> State {
        match self.left {
            0 => self.after(),
            _ => State::Discard(self),
        }
    }

    /// Takes as much as the input holds; returns the state after that.
    pub(super) fn discard_from(mut self, input: &mut &[u8]) -> State {
        let taken = wide(take_up_to(input, self.left).len());
        self.left = self.left.saturating_sub(taken);
        self.discard()
    }
}

/// The descriptors of a status chunk that are still to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extents {
    pub(crate) cookie: Cookie,
    pub(crate) last: bool,
    /// Of the context. What is narrow has at most 32 bits of status.
    pub(crate) status: StatusWidth,
    /// Of the descriptors.
    pub(crate) width: StatusWidth,
    pub(crate) context: ContextId,
    /// Descriptors left.
    pub(crate) left: u32,
    /// Where the next extent begins, in bytes from the start of the request.
    pub(crate) at: u64,
}

impl Extents {
    /// Size of a descriptor in bytes.
    pub(crate) fn size(&self) -> usize {
        match self.width {
            StatusWidth::Narrow => Extent32::SIZE,
            StatusWidth::Wide => Extent64::SIZE,
        }
    }

    /// What is left of the chunk.
    pub(super) fn part(&self) -> Part {
        Part {
            cookie: self.cookie,
            left: u64::from(self.left).saturating_mul(wide(self.size())),
            end: End::of(self.last),
        }
    }
}

/// An error chunk whose message is still to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorMessage {
    /// The message.
    pub(crate) part: Part,
    /// It is longer than the limit or than its chunk, and is discarded.
    pub(crate) discard: bool,
    pub(crate) error: ErrorValue,
    /// Whether an offset follows the message.
    pub(crate) offset: bool,
    /// Bytes to discard after that.
    pub(crate) trailing: u64,
}

impl ErrorMessage {
    /// Size of what follows the message, in bytes.
    pub(crate) fn offset_size(&self) -> usize {
        if self.offset { 8 } else { 0 }
    }
}

impl State {
    /// The command whose reply is under way.
    pub(super) fn cookie(&self) -> Option<Cookie> {
        match self {
            Self::Discard(part)
            | Self::Data { part, .. }
            | Self::Hole { part, .. }
            | Self::Fault { part, .. } => Some(part.cookie),
            Self::Extents(extents) => Some(extents.cookie),
            Self::Error(message) => Some(message.part.cookie),
            Self::Done(cookie) | Self::Success(cookie) => Some(*cookie),
            Self::Header | Self::Failed(_) | Self::Ended => None,
        }
    }

    #[inline]
    pub(super) fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        let Self::Data { part, offset } = self else {
            return self.no_payload(n);
        };
        let Some(left) = part.left.checked_sub(n) else {
            return Err(Misuse::TooMuchPayload {
                expected: part.left,
            });
        };
        if left == 0 {
            *self = part.after();
        } else {
            part.left = left;
            *offset = offset.saturating_add(n);
        }
        Ok(())
    }

    #[cold]
    fn no_payload(&self, n: u64) -> Result<(), Misuse> {
        match self {
            Self::Failed(error) => Err(Misuse::Failed(*error)),
            _ if n == 0 => Ok(()),
            _ => Err(Misuse::TooMuchPayload { expected: 0 }),
        }
    }
}
