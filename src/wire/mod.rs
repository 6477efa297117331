//! What is on the wire: every message of the protocol, decoded and encoded,
//! with no state and no opinion.
//!
//! One file for each chapter of the specification, in its order:
//!
//! | module | chapter |
//! |---|---|
//! | [`greeting`] | handshake: oldstyle and newstyle greetings, client flags, the answer to `NBD_OPT_EXPORT_NAME` |
//! | [`option`] | option haggling, client side: header and data of every option |
//! | [`option_reply`] | option haggling, server side: header and data of every reply |
//! | [`request`] | transmission: compact and extended requests, the block status payload |
//! | [`reply`] | transmission: simple replies, structured and extended chunk headers |
//! | [`chunk`] | structured reply types: what a chunk's payload says |
//! | [`extent`] | block status descriptors, narrow and wide |
//! | [`number`], [`flags`] | values: every constant, open to the ones not yet known |
//! | [`text`] | strings |
//!
//! # Decoding
//!
//! Messages that arrive from a stream decode from the front of a slice:
//!
//! ```text
//! T::decode(&mut &[u8]) -> Result<Option<T>, DecodeError>
//! ```
//!
//! `Ok(None)` means that the slice ends before the message does; nothing was
//! consumed. A wrong magic number is an error as soon as its first wrong byte
//! is there. Bodies whose length an earlier header gave (option data, option
//! replies, chunk payloads) decode from exactly that many bytes:
//!
//! ```text
//! T::decode(kind, &[u8]) -> Result<T, DecodeError>
//! ```
//!
//! # Encoding
//!
//! Headers of fixed size encode into arrays; messages with variable parts into
//! a [`Sink`]. Encoders can say invalid things: they write what they are given
//! (unknown numbers, reserved bits, texts that are too long), and only refuse
//! what has no encoding at all, a length that its field cannot hold.

/// Lists that stand on the wire or in memory are what they hold, wherever.
macro_rules! list_traits {
    ($list:ident) => {
        impl PartialEq for $list<'_> {
            fn eq(&self, other: &Self) -> bool {
                self.iter().eq(other.iter())
            }
        }

        impl Eq for $list<'_> {}

        impl core::hash::Hash for $list<'_> {
            fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
                self.iter().for_each(|item| item.hash(state));
            }
        }

        impl core::fmt::Debug for $list<'_> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_list().entries(self.iter()).finish()
            }
        }
    };
}
use list_traits;

pub mod chunk;
pub mod extent;
pub mod flags;
pub mod greeting;
pub mod number;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;
mod sink;
pub mod text;

pub(crate) mod bytes;

pub(crate) use sink::all_or_nothing;
pub use sink::{EncodeError, Sink};

/// Why bytes are not the message they should be.
///
/// Every variant is final: more bytes do not mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The magic number is another one: the peer does not speak NBD, or the
    /// stream has lost its place.
    #[error("wrong magic number in {message}: not NBD, or the stream lost its place")]
    Magic {
        /// The message that was expected.
        message: &'static str,
    },
    /// A length field contradicts the type of its message or chunk.
    #[error("length {length} is impossible for {message}")]
    Length {
        /// The message or chunk.
        message: &'static str,
        /// The length it claimed, in bytes.
        length: u64,
    },
    /// A length inside a body runs past the end of that body.
    #[error("a length inside {message} runs past its end")]
    Overrun {
        /// The message or chunk.
        message: &'static str,
    },
    /// Bytes are left over inside a body.
    #[error("bytes left over inside {message}")]
    Trailing {
        /// The message or chunk.
        message: &'static str,
    },
    /// The descriptor count of a wide status chunk disagrees with its length.
    #[error("descriptor count {count} disagrees with a chunk of {length} bytes")]
    Count {
        /// The descriptor count field.
        count: u32,
        /// The chunk's payload length, in bytes.
        length: u64,
    },
    /// An extent of no bytes.
    #[error("block status extent of length zero")]
    EmptyExtent,
    /// An `OFFSET_HOLE` chunk of no bytes.
    #[error("hole of length zero")]
    EmptyHole,
    /// An error chunk whose error is zero.
    #[error("error chunk with error number zero")]
    NoError,
}
