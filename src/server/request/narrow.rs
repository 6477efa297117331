//! From wide extents to narrow ones, on the caller's word.
//!
//! A server that keeps its map in 64 bits answers a narrow request with it
//! only after it said how: nothing in this crate narrows an extent by itself.

use crate::wire::extent::{Extent32, Extent64, TooWide};

/// The longest piece in bytes: 4 GiB less 64 KiB, a multiple of every minimum
/// block size there is.
pub const PIECE: u32 = 0xffff_0000;

/// Splits an extent into narrow ones that say the same: pieces of [`PIECE`]
/// bytes with the flags of the whole, then one with the rest. An extent of no
/// length has no pieces.
///
/// A reply seldom has use for all of them: hand them through
/// [`truncate`](super::BlockStatus32Request::truncate).
///
/// ```
/// use nbd_codec::server::narrow;
/// use nbd_codec::wire::extent::{Extent32, Extent64};
///
/// let hole = Extent64 { length: 5 << 30, flags: 3 };
/// let pieces: Vec<Extent32> = narrow::split(hole).unwrap().collect();
/// assert_eq!(pieces, [
///     Extent32 { length: 0xffff_0000, flags: 3 },
///     Extent32 { length: 0x4001_0000, flags: 3 },
/// ]);
/// ```
///
/// # Errors
///
/// [`TooWide`] if the flags need more than 32 bits: no split changes that.
pub fn split(extent: Extent64) -> Result<Pieces, TooWide> {
    match u32::try_from(extent.flags) {
        Ok(flags) => Ok(Pieces {
            left: extent.length,
            flags,
        }),
        Err(_) => Err(TooWide(extent)),
    }
}

/// The pieces of a [`split`] extent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Pieces {
    left: u64,
    flags: u32,
}

impl Iterator for Pieces {
    type Item = Extent32;

    fn next(&mut self) -> Option<Extent32> {
        let length = u32::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        if length == 0 {
            return None;
        }
        self.left = self.left.saturating_sub(u64::from(length));
        Some(Extent32 {
            length,
            flags: self.flags,
        })
    }
}
