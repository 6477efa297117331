//! Transmission: requests, compact and extended (specification, "Request
//! message"), and the payload of a block status request.

use super::bytes::{Fields, HeaderBuffer, decode_header, take, wide};
use super::flags::CommandFlags;
use super::number::{Command, ContextId, Cookie};
use super::sink::all_or_nothing;
use super::{DecodeError, EncodeError, Sink};

/// Magic number of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic number of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// A compact request (specification, "Request message").
///
/// ```text
/// C: magic:32 flags:16 type:16 cookie:64 offset:64 length:32 [payload]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompactRequest {
    /// How the server executes the command.
    pub flags: CommandFlags,
    /// The command.
    pub command: Command,
    /// Identifies the request; the reply repeats it.
    pub cookie: Cookie,
    /// Offset in bytes from the start of the export; for `RESIZE` the new size.
    pub offset: u64,
    /// Effect length in bytes; for `WRITE` also the length of the payload.
    pub length: u32,
}

impl CompactRequest {
    /// Size of the header in bytes.
    pub const SIZE: usize = 28;

    /// Decodes the header; a payload is left in the input.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first wrong byte.
    #[inline]
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        decode_header(input, Self::parse, REQUEST_MAGIC, "compact request")
    }

    /// Decodes the header; `None` if it has another magic number.
    #[inline]
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        (fields.u32() == REQUEST_MAGIC).then(|| Self {
            flags: CommandFlags(fields.u16()),
            command: Command(fields.u16()),
            cookie: Cookie(fields.u64()),
            offset: fields.u64(),
            length: fields.u32(),
        })
    }

    /// Encodes the header.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; Self::SIZE] {
        HeaderBuffer::new()
            .u32(REQUEST_MAGIC)
            .u16(self.flags.0)
            .u16(self.command.0)
            .u64(self.cookie.0)
            .u64(self.offset)
            .u32(self.length)
            .into_array()
    }

    /// Length of the payload after the header, in bytes: zero but for `WRITE`.
    #[must_use]
    #[inline]
    pub const fn payload_length(self) -> u32 {
        if self.command.0 == Command::WRITE.0 {
            self.length
        } else {
            0
        }
    }
}

/// An extended request, for sessions that negotiated extended headers
/// (specification, "Request message").
///
/// ```text
/// C: magic:32 flags:16 type:16 cookie:64 offset:64 length:64 [payload]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExtendedRequest {
    /// How the server executes the command.
    pub flags: CommandFlags,
    /// The command.
    pub command: Command,
    /// Identifies the request; the reply repeats it.
    pub cookie: Cookie,
    /// Offset in bytes from the start of the export; for `RESIZE` the new size.
    pub offset: u64,
    /// The length of the payload if [`CommandFlags::PAYLOAD_LEN`] is set,
    /// otherwise the effect length; in bytes.
    pub length: u64,
}

impl ExtendedRequest {
    /// Size of the header in bytes.
    pub const SIZE: usize = 32;

    /// Decodes the header; a payload is left in the input.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first wrong byte.
    #[inline]
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        decode_header(
            input,
            Self::parse,
            EXTENDED_REQUEST_MAGIC,
            "extended request",
        )
    }

    /// Decodes the header; `None` if it has another magic number.
    #[inline]
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        (fields.u32() == EXTENDED_REQUEST_MAGIC).then(|| Self {
            flags: CommandFlags(fields.u16()),
            command: Command(fields.u16()),
            cookie: Cookie(fields.u64()),
            offset: fields.u64(),
            length: fields.u64(),
        })
    }

    /// Encodes the header.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; Self::SIZE] {
        HeaderBuffer::new()
            .u32(EXTENDED_REQUEST_MAGIC)
            .u16(self.flags.0)
            .u16(self.command.0)
            .u64(self.cookie.0)
            .u64(self.offset)
            .u64(self.length)
            .into_array()
    }

    /// Length of the payload after the header, in bytes: zero unless
    /// [`CommandFlags::PAYLOAD_LEN`] is set.
    #[must_use]
    #[inline]
    pub const fn payload_length(self) -> u64 {
        if self.flags.contains(CommandFlags::PAYLOAD_LEN) {
            self.length
        } else {
            0
        }
    }
}

/// The payload of a block status request for some of the selected contexts
/// (extended headers; specification, `NBD_CMD_BLOCK_STATUS`).
///
/// ```text
/// C: effect_length:64 (context_id:32)*
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockStatusPayload<'a> {
    /// How much of the export to report, in bytes from the request's offset.
    pub effect_length: u64,
    /// The requested contexts.
    pub contexts: ContextIds<'a>,
}

impl<'a> BlockStatusPayload<'a> {
    /// The number of context ids `n` in a payload of `length` bytes,
    /// `length = 8 + 4n`, `n >= 0`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`] for any other length.
    pub fn count(length: u64) -> Result<u64, DecodeError> {
        match length.checked_sub(8) {
            Some(ids) if ids % 4 == 0 => Ok(ids / 4),
            _ => Err(DecodeError::Length {
                message: "block status payload",
                length,
            }),
        }
    }

    /// Decodes a payload; `payload` is the whole of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`] unless its length is `8 + 4n`.
    pub fn decode(mut payload: &'a [u8]) -> Result<Self, DecodeError> {
        Self::count(wide(payload.len()))?;
        let effect_length = take::<8>(&mut payload).map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Ok(Self {
            effect_length,
            contexts: ContextIds(Ids::Wire(payload)),
        })
    }

    /// Encodes into `sink`; returns how many bytes were written.
    ///
    /// # Errors
    ///
    /// [`EncodeError::NoRoom`]; nothing was written.
    pub fn encode(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        all_or_nothing(sink, &|sink| {
            sink.put(&self.effect_length.to_be_bytes());
            for id in self.contexts.iter() {
                sink.put(&id.0.to_be_bytes());
            }
        })
    }
}

/// A list of context ids, on the wire or in memory.
#[derive(Clone, Copy)]
pub struct ContextIds<'a>(Ids<'a>);

#[derive(Clone, Copy)]
enum Ids<'a> {
    Wire(&'a [u8]),
    Memory(&'a [ContextId]),
}

impl<'a> ContextIds<'a> {
    /// The ids in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = ContextId> + Clone + 'a {
        let (wire, memory): (&'a [u8], &'a [ContextId]) = match self.0 {
            Ids::Wire(bytes) => (bytes, &[]),
            Ids::Memory(ids) => (&[], ids),
        };
        wire.as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| ContextId(u32::from_be_bytes(*bytes)))
            .chain(memory.iter().copied())
    }

    /// The number of ids.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Ids::Wire(bytes) => bytes.len() / 4,
            Ids::Memory(ids) => ids.len(),
        }
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [ContextId]> for ContextIds<'a> {
    fn from(ids: &'a [ContextId]) -> Self {
        Self(Ids::Memory(ids))
    }
}

super::list_traits!(ContextIds);

#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for ContextIds<'a> {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        let bytes: &[u8] = u.arbitrary()?;
        let (ids, _) = bytes.as_chunks::<4>();
        Ok(Self(Ids::Wire(ids.as_flattened())))
    }
}
