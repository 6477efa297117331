//! Outgoing replies: small values, ready to be written.

use crate::negotiated::Framing;
use crate::server::export::cap;
use crate::wire::bytes::HeaderBuffer;
use crate::wire::flags::{CommandFlags, ReplyFlags};
use crate::wire::number::{ChunkType, Cookie, ErrorValue};
use crate::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use crate::wire::text::MAX_TEXT;
use crate::wire::{EncodeError, Sink, check_room};

/// What every request has: the private part of the request types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct RequestInfo {
    pub(in crate::server) framing: Framing,
    pub(in crate::server) flags: CommandFlags,
    /// The constraints in force, in bytes.
    pub(in crate::server) minimum: u32,
    pub(in crate::server) maximum: u32,
    pub(in crate::server) cookie: Cookie,
    pub(in crate::server) offset: u64,
    /// Effect length in bytes.
    pub(in crate::server) length: u64,
}

impl RequestInfo {
    /// Whether a piece of the export is within the request.
    pub(in crate::server) fn holds(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_sub(self.offset)
            .and_then(|from| from.checked_add(length))
            .is_some_and(|to| to <= self.length)
    }

    /// The header of a chunk, or of a simple reply of success.
    pub(in crate::server) fn header(&self, chunk: ChunkType, last: bool, length: u32) -> Front {
        self.header_with(chunk, last, length, [])
    }

    /// The header of a chunk with its first field, or of a simple reply of
    /// success.
    #[inline]
    pub(in crate::server) fn header_with<const N: usize>(
        &self,
        chunk: ChunkType,
        last: bool,
        length: u32,
        field: [u8; N],
    ) -> Front {
        let flags = if last {
            ReplyFlags::DONE
        } else {
            ReplyFlags::NONE
        };
        let cookie = self.cookie;
        match self.framing.compiled() {
            Framing::Simple => {
                let error = ErrorValue::NONE;
                Front::new().put(SimpleReply { error, cookie }.encode())
            }
            Framing::Structured => {
                let header = StructuredHeader {
                    flags,
                    chunk,
                    cookie,
                    length,
                };
                Front::new().put(header.encode()).put(field)
            }
            Framing::Extended => {
                let header = ExtendedHeader {
                    flags,
                    chunk,
                    cookie,
                    offset: self.offset,
                    length: u64::from(length),
                };
                Front::new().put(header.encode()).put(field)
            }
        }
    }

    /// The end of a reply that has nothing more to say.
    pub(in crate::server) fn success<'t>(&self) -> Reply<'t> {
        Reply::new(self.header(ChunkType::NONE, true, 0))
    }

    /// An error, at a place or not. An error number of zero would be none:
    /// `EIO` takes its place.
    pub(in crate::server) fn error<'t>(
        &self,
        error: ErrorValue,
        at: Option<u64>,
        last: bool,
        text: &'t str,
    ) -> Reply<'t> {
        let error = if error.is_error() {
            error
        } else {
            ErrorValue::EIO
        };
        let cookie = self.cookie;
        if self.framing.is_simple() {
            return Reply::new(Front::new().put(SimpleReply { error, cookie }.encode()));
        }
        // No variable part of a chunk is longer than the maximum payload.
        let maximum = usize::try_from(self.maximum).unwrap_or(usize::MAX);
        let text = cap(text, MAX_TEXT.min(maximum));
        let message = u16::try_from(text.len()).unwrap_or(0);
        let (chunk, fixed) = match at {
            None => (ChunkType::ERROR, 6),
            Some(_) => (ChunkType::ERROR_OFFSET, 14),
        };
        let length = u32::from(message).saturating_add(fixed);
        let header = self
            .header(chunk, last, length)
            .put(error.0.to_be_bytes())
            .put(message.to_be_bytes());
        let split = header.length();
        let front = match at {
            None => header,
            Some(offset) => header.put(offset.to_be_bytes()),
        };
        Reply { front, split, text }
    }
}

/// The longest header: an extended header, the fields of an error, an offset.
const LONGEST_FRONT: usize = 46;

pub(in crate::server) type Front = HeaderBuffer<LONGEST_FRONT>;

/// A whole message, ready to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a client waits for the reply until it is written"]
pub struct Reply<'t> {
    front: Front,
    /// Where the text is inserted in it.
    split: u8,
    text: &'t str,
}

impl<'t> Reply<'t> {
    pub(in crate::server) fn new(front: Front) -> Self {
        let split = front.length();
        Self {
            front,
            split,
            text: "",
        }
    }

    /// The bytes to write, in their order: header, text, tail. The last two are
    /// empty but for errors with a text.
    #[must_use]
    pub fn parts(&self) -> [&[u8]; 3] {
        let bytes = self.front.as_bytes();
        let (header, tail) = bytes
            .split_at_checked(usize::from(self.split))
            .unwrap_or((bytes, &[]));
        [header, self.text.as_bytes(), tail]
    }

    /// How many bytes there are to write.
    #[must_use]
    pub fn size(&self) -> usize {
        usize::from(self.front.length()).saturating_add(self.text.len())
    }

    /// Writes it into `sink`; returns how many bytes.
    ///
    /// # Errors
    ///
    /// [`EncodeError::NoRoom`]; nothing was written.
    pub fn encode(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        let needed = self.size();
        check_room(sink, needed)?;
        for part in self.parts() {
            sink.put(part);
        }
        Ok(needed)
    }
}

/// The whole message, copied: at most a header and a text.
#[cfg(feature = "alloc")]
impl From<Reply<'_>> for ::bytes::Bytes {
    fn from(reply: Reply<'_>) -> Self {
        let mut bytes = ::bytes::BytesMut::with_capacity(reply.size());
        for part in reply.parts() {
            bytes.extend_from_slice(part);
        }
        bytes.freeze()
    }
}

/// The front of a message that carries data of the export. The data must be
/// written directly after it: `[header, data]`.
///
/// Whatever happens then, all of it must be written. If the data turns out not
/// to be there in the middle of it, write zeroes for the rest and fail the
/// reply with its next chunk; where there is no next chunk, close the
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a client waits for the reply until it is written"]
pub struct ReplyHeader {
    front: Front,
    payload: u32,
}

impl ReplyHeader {
    pub(in crate::server) fn new(front: Front, payload: u32) -> Self {
        Self { front, payload }
    }

    /// The bytes to write.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.front.as_bytes()
    }

    /// How many bytes of data must follow.
    #[must_use]
    #[inline]
    pub const fn payload_length(&self) -> u32 {
        self.payload
    }
}

impl AsRef<[u8]> for ReplyHeader {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}
