//! Transmission: simple replies, and the headers of structured and extended
//! reply chunks (specification, "Simple reply message", "Structured reply chunk
//! message", "Extended reply chunk message").

use super::bytes::Fields;
use super::flags::ReplyFlags;
use super::header::header;
use super::number::{ChunkType, Cookie, ErrorValue};

/// Magic number of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic number of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Magic number of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

header! {
    /// A simple reply (specification, "Simple reply message").
    ///
    /// ```text
    /// S: magic:32 error:32 cookie:64 [data]
    /// ```
    ///
    /// Data follows only for a successful `READ`: as many bytes as the request's
    /// length.
    SimpleReply(16, SIMPLE_REPLY_MAGIC, "simple reply") {
        /// Zero for success.
        error: ErrorValue,
        /// The cookie of the request.
        cookie: Cookie,
    }
}

header! {
    /// The header of a structured reply chunk (specification, "Structured reply
    /// chunk message").
    ///
    /// ```text
    /// S: magic:32 flags:16 type:16 cookie:64 length:32 [payload]
    /// ```
    StructuredHeader(20, STRUCTURED_REPLY_MAGIC, "structured reply chunk") {
        /// Whether it is the last chunk of the reply.
        flags: ReplyFlags,
        /// The type of the payload.
        chunk: ChunkType,
        /// The cookie of the request.
        cookie: Cookie,
        /// Length of the payload in bytes.
        length: u32,
    }
}

header! {
    /// The header of an extended reply chunk (specification, "Extended reply chunk
    /// message").
    ///
    /// ```text
    /// S: magic:32 flags:16 type:16 cookie:64 offset:64 length:64 [payload]
    /// ```
    ExtendedHeader(32, EXTENDED_REPLY_MAGIC, "extended reply chunk") {
        /// Whether it is the last chunk of the reply.
        flags: ReplyFlags,
        /// The type of the payload.
        chunk: ChunkType,
        /// The cookie of the request.
        cookie: Cookie,
        /// The offset of the request, in bytes from the start of the export.
        offset: u64,
        /// Length of the payload in bytes.
        length: u64,
    }
}

// For fast paths: the magic number and the fields next to it are compared as one
// number.

/// How a chunk of data begins that ends its reply and has no other flag.
#[inline]
fn last_data(magic: u32) -> u64 {
    let flags = u64::from(ReplyFlags::DONE.0).wrapping_shl(16);
    u64::from(magic).wrapping_shl(32) | flags | u64::from(ChunkType::OFFSET_DATA.0)
}

/// A chunk of data that ends its reply.
pub(crate) struct LastData {
    pub(crate) cookie: Cookie,
    /// Of the payload, in bytes.
    pub(crate) length: u64,
    /// Where the data belongs, in bytes from the start of the export.
    pub(crate) offset: u64,
}

impl SimpleReply {
    /// The cookie of a reply without an error.
    #[inline]
    pub(crate) fn parse_success(bytes: &[u8; Self::SIZE]) -> Option<Cookie> {
        let mut fields = Fields::new(bytes);
        let success = u64::from(SIMPLE_REPLY_MAGIC).wrapping_shl(32);
        fields.next_is(success).then(|| fields.get())
    }
}

impl StructuredHeader {
    /// A chunk of data that ends its reply.
    #[inline]
    pub(crate) fn parse_last_data(bytes: &[u8; Self::SIZE + 8]) -> Option<LastData> {
        let mut fields = Fields::new(bytes);
        let magic = last_data(STRUCTURED_REPLY_MAGIC);
        fields.next_is(magic).then(|| LastData {
            cookie: fields.get(),
            length: fields.u32().into(),
            offset: fields.get(),
        })
    }
}

impl ExtendedHeader {
    /// A chunk of data that ends its reply and begins where its request does.
    #[inline]
    pub(crate) fn parse_last_data(bytes: &[u8; Self::SIZE + 8]) -> Option<LastData> {
        let mut fields = Fields::new(bytes);
        if !fields.next_is(last_data(EXTENDED_REPLY_MAGIC)) {
            return None;
        }
        let (cookie, request) = (fields.get(), fields.u64());
        let (length, offset) = (fields.get(), fields.get());
        (offset == request).then_some(LastData {
            cookie,
            length,
            offset,
        })
    }
}
