//! How much a machine takes from its peer at most.

use crate::wire::text::MAX_TEXT;

/// Caps on what the peer can make a machine wait for. Defaults are the
/// specification's own limits.
///
/// ```
/// use nbd_codec::Limits;
///
/// let mut limits = Limits::default();
/// limits.option_data = 128; // for a receive buffer of 148 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Limits {
    /// Longest option data (server) and option reply data (client) that is
    /// taken whole, in bytes. The receive buffer must hold it and its header,
    /// 20 bytes. What is longer is skipped and reported without its content;
    /// a server answers `NBD_REP_ERR_TOO_BIG`. A client takes `NBD_REP_INFO`
    /// of 14 bytes in any case: size and block sizes. Default: an export's name and
    /// description, 8196.
    pub option_data: u32,
    /// Longest message of an error chunk that is delivered, in bytes. The
    /// receive buffer must hold it and 46 bytes. What is longer is skipped.
    /// Default 4096.
    pub error_message: u16,
    /// Longest payload in bytes that is not taken for an attack. Default: 32
    /// MiB.
    ///
    /// A server draws the same line for the data of an option that it would
    /// skip, and for a `WRITE` with compact headers that it would refuse.
    pub payload: u32,
    /// Server: longest effect in bytes of a command that carries no data
    /// (`TRIM`, `CACHE`, `WRITE_ZEROES`) that is handed over; what is longer is
    /// answered `EOVERFLOW`. Default: no limit.
    pub effect: u64,
    /// Most extents in one status chunk. Default 2^20.
    pub extents: u32,
}

impl Limits {
    /// The specification's limits.
    pub const DEFAULT: Self = Self {
        option_data: 2 * MAX_TEXT_U32 + 4,
        error_message: 4096,
        payload: 1 << 25,
        effect: u64::MAX,
        extents: 1 << 20,
    };
}

const MAX_TEXT_U32: u32 = 4096;
const _: () = assert!(MAX_TEXT == 4096);

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
