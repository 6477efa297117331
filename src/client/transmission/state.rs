//! Where in the stream of replies the input is.

use crate::error::{Error, Misuse};
use crate::need::Need;
use crate::negotiated::Width;
use crate::wire::bytes::{clip, take_slice, wide};
use crate::wire::extent::{Extent32, Extent64};
use crate::wire::number::{ContextId, Cookie, ErrorValue};

/// Where in the stream of replies the input is.
#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    /// Before a header.
    Header,
    /// In bytes without a meaning, at the end of a chunk.
    Rest(Part),
    /// In the data of a read.
    Data { part: Part, offset: u64 },
    /// Behind a hole chunk.
    Hole {
        part: Part,
        offset: u64,
        length: u32,
    },
    /// Among the descriptors of a status chunk.
    Extents(Extents),
    /// In front of an error message and what stands behind it.
    Message(Message),
    /// Behind the last chunk of a reply.
    Done(Cookie),
    /// The session is over.
    Failed(Error),
}

/// A part of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) cookie: Cookie,
    /// Bytes left.
    pub(super) left: u64,
    /// The chunk is the last of its reply.
    pub(super) last: bool,
}

impl Part {
    /// The state behind the chunk.
    #[inline]
    pub(super) fn after(self) -> State {
        match self.last {
            true => State::Done(self.cookie),
            false => State::Header,
        }
    }

    /// Takes as much as the input holds.
    #[inline]
    pub(super) fn take<'i>(&mut self, input: &mut &'i [u8]) -> &'i [u8] {
        let n = clip(self.left).min(input.len());
        let bytes = take_slice(input, n).unwrap_or_default();
        self.left = self.left.saturating_sub(wide(bytes.len()));
        bytes
    }
}

/// The descriptors of a status chunk that are still to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub(super) cookie: Cookie,
    pub(super) last: bool,
    /// Of the context. What is narrow has at most 32 bits of status.
    pub(super) status: Width,
    /// Of the descriptors.
    pub(super) width: Width,
    pub(super) context: ContextId,
    /// Descriptors left.
    pub(super) left: u32,
    /// Where the next extent begins, in bytes from the start of the request.
    pub(super) at: u64,
}

impl Extents {
    /// Size of a descriptor in bytes.
    pub(super) fn size(&self) -> usize {
        match self.width {
            Width::Narrow => Extent32::SIZE,
            Width::Wide => Extent64::SIZE,
        }
    }
}

/// An error chunk whose message is still to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    /// The message; what is longer than the limit is skipped.
    pub(super) part: Part,
    pub(super) skip: bool,
    pub(super) error: ErrorValue,
    /// Whether an offset stands behind the message.
    pub(super) offset: bool,
    /// Bytes without a meaning behind that.
    pub(super) rest: u64,
}

impl Message {
    pub(super) fn tail(&self) -> usize {
        match self.offset {
            true => 8,
            false => 0,
        }
    }
}

impl State {
    #[inline]
    pub(super) fn need(&self, want: usize) -> Need {
        Need::Header(match *self {
            Self::Header => want,
            Self::Data { part, offset } => {
                return Need::Payload {
                    cookie: part.cookie,
                    offset,
                    length: part.left,
                };
            }
            Self::Extents(extents) => usize::try_from(extents.left)
                .unwrap_or(usize::MAX)
                .saturating_mul(extents.size()),
            Self::Message(message) => clip(message.part.left).saturating_add(message.tail()),
            Self::Rest(part) => clip(part.left),
            Self::Hole { .. } | Self::Done(_) => 0,
            Self::Failed(_) => return Need::Nothing,
        })
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
        part.left = left;
        *offset = offset.saturating_add(n);
        if left == 0 {
            *self = part.after();
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
