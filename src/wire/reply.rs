//! Transmission: simple replies, and the headers of structured and extended
//! reply chunks (specification, "Simple reply message", "Structured reply chunk
//! message", "Extended reply chunk message").

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
