//! How much a state machine takes from its peer at most.

use crate::wire::bytes::clip;

/// Caps on what a peer can make a state machine wait for. The defaults are the
/// specification's own limits.
///
/// A driver with a small receive buffer says how large it is:
///
/// ```
/// use nbd_codec::Limits;
///
/// const LIMITS: Limits = Limits::for_buffer(256);
/// assert!(LIMITS.buffer() <= 256);
/// assert_eq!(Limits::DEFAULT.buffer(), 8216);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Limits {
    /// Longest option data (server) and option reply data (client) that is
    /// taken whole, in bytes. What is longer is discarded and reported without
    /// its content; a server answers `NBD_REP_ERR_TOO_BIG`, but a longer
    /// `EXPORT_NAME`, which has no error reply, ends the session. A client takes
    /// `NBD_REP_INFO` of 14 bytes in any case: size and block sizes; what is
    /// longer than this and than the default ends its session. Default: an
    /// export's name and description, 8196, the longest reply that the
    /// specification defines.
    pub option_data: u32,
    /// Longest message of an error chunk that is delivered, in bytes. What is
    /// longer is discarded. Default 4096.
    pub error_message: u32,
    /// Longest plausible payload in bytes. Default: 32 MiB.
    ///
    /// A client ends the session at a longer error chunk; a server at a longer
    /// option that it would discard, and at a longer `WRITE` with compact
    /// headers that it would refuse.
    pub payload: u32,
    /// Server: most bytes that a command without payload (`TRIM`, `CACHE`,
    /// `WRITE_ZEROES`) may affect; a longer one is answered `EOVERFLOW`.
    /// `WRITE_ZEROES` with `FAST_ZERO`, for which that error is forbidden, may have
    /// any length. Default: no limit.
    pub max_effect_length: u64,
    /// Most extents in one status chunk. Default 2^20.
    pub extents: u32,
}

impl Limits {
    /// The specification's limits.
    pub const DEFAULT: Self = Self {
        option_data: 2 * MAX_TEXT + 4,
        error_message: MAX_TEXT,
        payload: 1 << 25,
        max_effect_length: u64::MAX,
        extents: 1 << 20,
    };

    /// The limits for a receive buffer of `n` bytes: at least
    /// [`LEAST_BUFFER`](Self::LEAST_BUFFER) for transmission, and 256 for a
    /// handshake with short names.
    #[must_use]
    pub const fn for_buffer(n: u32) -> Self {
        Self {
            option_data: least(n.saturating_sub(OPTION_HEADER), Self::DEFAULT.option_data),
            error_message: least(n.saturating_sub(ERROR_OFFSET), MAX_TEXT),
            ..Self::DEFAULT
        }
    }

    /// Fewest bytes of a receive buffer for transmission. A server that
    /// advertises `BLOCK_STATUS_PAYLOAD` needs 168: a request that names 32
    /// contexts.
    pub const LEAST_BUFFER: u32 = 64;

    /// How many bytes a receive buffer holds at least, so that every step can
    /// be taken.
    #[must_use]
    #[inline(never)]
    pub fn buffer(&self) -> usize {
        let option = self.option_data.saturating_add(OPTION_HEADER);
        let error = self.error_message.saturating_add(ERROR_OFFSET);
        clip(option.max(error).max(Self::LEAST_BUFFER).into())
    }
}

/// Longest string, in bytes.
const MAX_TEXT: u32 = 4096;
const _: () = assert!(crate::wire::text::MAX_TEXT == 4096);

/// An option reply's header, in bytes; an option's is shorter.
const OPTION_HEADER: u32 = 20;

/// The offset after the message of an error chunk, in bytes.
const ERROR_OFFSET: u32 = 8;

const fn least(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
