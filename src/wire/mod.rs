//! The wire format: every message of the protocol, decoded and encoded. This
//! module keeps no state and enforces no policy.
//!
//! One file for each chapter of the specification, in its order:
//!
//! | module | chapter |
//! |---|---|
//! | [`greeting`] | handshake: oldstyle and newstyle greetings, client flags, the reply to `NBD_OPT_EXPORT_NAME` |
//! | [`option`] | option haggling, client side: header and data of every option |
//! | [`option_reply`] | option haggling, server side: header and data of every reply |
//! | [`request`] | transmission: compact and extended requests, the block status payload |
//! | [`reply`] | transmission: simple replies, structured and extended chunk headers |
//! | [`chunk`] | structured reply types: the payload of a chunk |
//! | [`extent`] | block status descriptors, narrow and wide |
//! | [`meta_context`] | metadata querying: names and flags of well-known contexts |
//! | [`number`], [`flags`] | values: every constant; unknown values are kept |
//! | [`text`] | strings |
//!
//! # Decoding
//!
//! Messages that arrive from a stream decode from the beginning of a slice:
//!
//! ```text
//! T::decode(&mut &[u8]) -> Result<Option<T>, DecodeError>
//! ```
//!
//! A decoded message is removed from the slice. `Ok(None)` means that the slice
//! ends before the message does; nothing was removed. A wrong magic number is
//! an error as soon as its first wrong byte has arrived.
//!
//! Bodies whose length is in the header (option data, option reply data, chunk
//! payloads) decode from exactly that many bytes:
//!
//! ```text
//! T::decode(kind, &[u8]) -> Result<T, DecodeError>
//! ```
//!
//! # Encoding
//!
//! Headers of fixed size encode into arrays, messages with variable parts into
//! a [`Sink`]. Encoders do not validate: unknown numbers, reserved bits and
//! strings that are too long are written as given. They fail only if a length
//! exceeds its field, or the message does not fit into the sink.
//!
//! # Layout lines
//!
//! The documentation of each message gives its layout, as `name:32` for a field
//! of 32 bits. All fields are big-endian. `C:` is sent by the client, `S:` by
//! the server.

pub mod chunk;
pub mod extent;
pub mod flags;
pub mod greeting;
mod header;
pub(crate) mod list;
pub mod meta_context;
pub mod number;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;
mod sink;
pub mod text;

pub(crate) mod bytes;

pub use sink::{EncodeError, Sink};
pub(crate) use sink::{all_or_nothing, check_room, put_whole};

/// Why bytes do not decode.
///
/// Every variant is final: more bytes do not change the outcome. In every
/// variant `message` names the message, body or chunk that was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A wrong magic number: the peer does not speak NBD, or an earlier length
    /// was wrong and the stream is out of sync.
    #[error("wrong magic number in {message}: not NBD, or the stream is out of sync")]
    Magic {
        /// The message that was expected.
        message: &'static str,
    },
    /// A length that the type of the message or chunk does not allow.
    #[error("invalid length {length} for {message}")]
    Length {
        /// The message or chunk.
        message: &'static str,
        /// The length in bytes.
        length: u64,
    },
    /// A length or count inside a body exceeds the rest of the body.
    #[error("a length inside {message} exceeds its end")]
    Overrun {
        /// The message or chunk.
        message: &'static str,
    },
    /// A body is longer than its fields.
    #[error("trailing bytes in {message}")]
    Trailing {
        /// The message or chunk.
        message: &'static str,
    },
    /// The descriptor count of a wide status chunk contradicts its length.
    #[error("descriptor count {count} contradicts a payload of {length} bytes")]
    Count {
        /// The descriptor count field.
        count: u32,
        /// The length of the payload in bytes.
        length: u64,
    },
    /// A block status extent of length zero.
    #[error("block status extent of length zero")]
    EmptyExtent,
    /// An `OFFSET_HOLE` chunk with a hole of length zero.
    #[error("hole of length zero")]
    EmptyHole,
    /// An error chunk whose error number is zero.
    #[error("error chunk with error number zero")]
    NoError,
}
