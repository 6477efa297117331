//! Transmission: simple replies, and the headers of structured and extended
//! reply chunks (specification, "Simple reply message", "Structured reply chunk
//! message", "Extended reply chunk message").

use super::DecodeError;
use super::bytes::{Fields, HeaderBuffer, decode_header};
use super::flags::ReplyFlags;
use super::number::{ChunkType, Cookie, ErrorValue};

/// Magic number of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic number of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Magic number of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// A simple reply (specification, "Simple reply message").
///
/// ```text
/// S: magic:32 error:32 cookie:64 [data]
/// ```
///
/// Data follows only for a successful `READ`: as many bytes as the request's
/// length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SimpleReply {
    /// Zero for success.
    pub error: ErrorValue,
    /// The cookie of the request.
    pub cookie: Cookie,
}

impl SimpleReply {
    /// Size of the header in bytes.
    pub const SIZE: usize = 16;

    /// Decodes the header; data is left in the input.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first wrong byte.
    #[inline]
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        decode_header(input, Self::parse, SIMPLE_REPLY_MAGIC, "simple reply")
    }

    /// Decodes the header; `None` if it has another magic number.
    #[inline]
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        (fields.u32() == SIMPLE_REPLY_MAGIC).then(|| Self {
            error: ErrorValue(fields.u32()),
            cookie: Cookie(fields.u64()),
        })
    }

    /// Encodes the header.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; Self::SIZE] {
        HeaderBuffer::new()
            .u32(SIMPLE_REPLY_MAGIC)
            .u32(self.error.0)
            .u64(self.cookie.0)
            .into_array()
    }
}

/// The header of a structured reply chunk (specification, "Structured reply
/// chunk message").
///
/// ```text
/// S: magic:32 flags:16 type:16 cookie:64 length:32 [payload]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StructuredHeader {
    /// Whether it is the last chunk of the reply.
    pub flags: ReplyFlags,
    /// The type of the payload.
    pub chunk: ChunkType,
    /// The cookie of the request.
    pub cookie: Cookie,
    /// Length of the payload in bytes.
    pub length: u32,
}

impl StructuredHeader {
    /// Size of the header in bytes.
    pub const SIZE: usize = 20;

    /// Decodes the header; the payload is left in the input.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first wrong byte.
    #[inline]
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        decode_header(
            input,
            Self::parse,
            STRUCTURED_REPLY_MAGIC,
            "structured reply chunk",
        )
    }

    /// Decodes the header; `None` if it has another magic number.
    #[inline]
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        (fields.u32() == STRUCTURED_REPLY_MAGIC).then(|| Self {
            flags: ReplyFlags(fields.u16()),
            chunk: ChunkType(fields.u16()),
            cookie: Cookie(fields.u64()),
            length: fields.u32(),
        })
    }

    /// Encodes the header.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; Self::SIZE] {
        HeaderBuffer::new()
            .u32(STRUCTURED_REPLY_MAGIC)
            .u16(self.flags.0)
            .u16(self.chunk.0)
            .u64(self.cookie.0)
            .u32(self.length)
            .into_array()
    }
}

/// The header of an extended reply chunk (specification, "Extended reply chunk
/// message").
///
/// ```text
/// S: magic:32 flags:16 type:16 cookie:64 offset:64 length:64 [payload]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExtendedHeader {
    /// Whether it is the last chunk of the reply.
    pub flags: ReplyFlags,
    /// The type of the payload.
    pub chunk: ChunkType,
    /// The cookie of the request.
    pub cookie: Cookie,
    /// The offset of the request, in bytes from the start of the export.
    pub offset: u64,
    /// Length of the payload in bytes.
    pub length: u64,
}

impl ExtendedHeader {
    /// Size of the header in bytes.
    pub const SIZE: usize = 32;

    /// Decodes the header; the payload is left in the input.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first wrong byte.
    #[inline]
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        decode_header(
            input,
            Self::parse,
            EXTENDED_REPLY_MAGIC,
            "extended reply chunk",
        )
    }

    /// Decodes the header; `None` if it has another magic number.
    #[inline]
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        (fields.u32() == EXTENDED_REPLY_MAGIC).then(|| Self {
            flags: ReplyFlags(fields.u16()),
            chunk: ChunkType(fields.u16()),
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
            .u32(EXTENDED_REPLY_MAGIC)
            .u16(self.flags.0)
            .u16(self.chunk.0)
            .u64(self.cookie.0)
            .u64(self.offset)
            .u64(self.length)
            .into_array()
    }
}
