//! What the scripted server is and does.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use nbd_codec::Framing;
use nbd_codec::wire::flags::{HandshakeFlags, TransmissionFlags as Has};
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option_reply::BlockSizes;

use super::message::Message;
use crate::request::Request;

/// The name of the export.
pub(crate) const EXPORT: &str = "disk";
/// The size of the export in bytes.
pub(crate) const SIZE: u64 = 1 << 20;
/// From here to the end the export is a hole.
pub(crate) const HOLE: u64 = SIZE / 4 * 3;

/// How the server greets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Oldstyle,
    Newstyle,
    Fixed,
}

/// In which pieces a read is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// One chunk with all data, the last one.
    One,
    /// Data and holes in order, then `NONE`.
    Ordered,
    /// The same, the last piece first.
    Reversed,
}

/// The extents that block status reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extents {
    /// As long as the request, at most.
    Clipped,
    /// The last one as long as it is, past the end of the request.
    Whole,
    /// The first one only.
    First,
    /// Neighbours of equal status.
    Split,
}

/// A server without faults.
#[derive(Debug, Clone)]
pub(crate) struct Dialect {
    pub(crate) style: Style,
    pub(crate) handshake_flags: HandshakeFlags,
    /// The most capable framing.
    pub(crate) framing: Framing,
    /// `INFO` and `GO`.
    pub(crate) go: bool,
    pub(crate) list: bool,
    pub(crate) contexts: bool,
    pub(crate) sizes: Option<BlockSizes>,
    pub(crate) flags: Has,
    /// Information that is not requested, or not known.
    pub(crate) more_info: bool,
    pub(crate) pieces: Pieces,
    pub(crate) extents: Extents,
    /// Several requests are collected, and answered in the reverse order.
    pub(crate) out_of_order: bool,
    /// The bytes are sent one by one.
    pub(crate) byte_by_byte: bool,
}

impl Dialect {
    /// As little as the specification demands.
    pub(crate) fn minimal(framing: Framing) -> Self {
        Self {
            style: Style::Fixed,
            handshake_flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
            framing,
            go: true,
            list: true,
            contexts: false,
            sizes: None,
            flags: Has::HAS_FLAGS,
            more_info: false,
            pieces: Pieces::One,
            extents: Extents::Clipped,
            out_of_order: false,
            byte_by_byte: false,
        }
    }

    /// All that there is.
    pub(crate) fn maximal(framing: Framing) -> Self {
        Self {
            contexts: true,
            sizes: Some(BlockSizes::DEFAULT),
            flags: Has::HAS_FLAGS
                | Has::SEND_FLUSH
                | Has::SEND_FUA
                | Has::SEND_TRIM
                | Has::SEND_WRITE_ZEROES
                | Has::SEND_FAST_ZERO
                | Has::SEND_CACHE
                | Has::SEND_DF,
            pieces: Pieces::Ordered,
            ..Self::minimal(framing)
        }
    }
}

/// What the server answers to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    /// A connection: the greeting.
    Connection,
    Option(OptionType),
    Request(&'a Request, Framing),
}

/// Changes the messages of an answer; false if it does not concern them.
pub(crate) type Twist = Arc<dyn Fn(Asked<'_>, &mut Vec<Message>) -> bool + Send + Sync>;

/// What the server does on every connection.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) dialect: Dialect,
    pub(crate) twist: Option<Twist>,
    /// The server closes when it has sent this many bytes.
    pub(crate) cut: Option<u64>,
    /// The content of the export is its complement.
    pub(crate) inverted: bool,
}

impl Script {
    pub(crate) fn correct(dialect: Dialect) -> Self {
        Self {
            dialect,
            twist: None,
            cut: None,
            inverted: false,
        }
    }

    pub(crate) fn twisted(
        dialect: Dialect,
        twist: impl Fn(Asked<'_>, &mut Vec<Message>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            twist: Some(Arc::new(twist)),
            ..Self::correct(dialect)
        }
    }

    /// The content of the export at the beginning: no part of the data is zero, and no
    /// two blocks are equal.
    pub(crate) fn disk(&self) -> Vec<u8> {
        let mut disk = pattern(self.inverted).to_vec();
        disk.truncate(usize::try_from(HOLE).unwrap_or(0));
        disk.resize(usize::try_from(SIZE).unwrap_or(0), 0);
        disk
    }
}

/// As many bytes as the export has, none of them zero.
pub(crate) fn pattern(inverted: bool) -> &'static [u8] {
    static PATTERNS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
        [1, 0x81].map(|bits| {
            let byte = |at: u64| {
                let byte = ((at >> 9).wrapping_mul(13) ^ at.wrapping_mul(3)) & 0x7e;
                u8::try_from(byte).unwrap_or(0) | bits
            };
            (0..SIZE).map(byte).collect()
        })
    });
    let [plain, complement] = &*PATTERNS;
    if inverted { complement } else { plain }
}

/// How long the server waits for a client after it has broken a rule, before it closes.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);
/// How much a flood sends at most, in bytes.
pub(crate) const FLOOD: usize = 24 << 20;
