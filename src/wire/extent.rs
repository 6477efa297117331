//! Block status descriptors, narrow and wide (specification,
//! `NBD_REPLY_TYPE_BLOCK_STATUS` and `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`).
//!
//! Structured replies carry narrow extents, extended headers wide ones. The two
//! widths are different types, on the wire and for the caller. Widening is
//! explicit and keeps every bit ([`From`]); narrowing is explicit and can fail
//! ([`TryFrom`]); no length or flag is ever truncated.
//!
//! [`ExtentsExt`] joins and clips the extents of a list.

use core::iter::FusedIterator;
use core::ops::Range;

use super::DecodeError;
use super::bytes::{Fields, HeaderBuffer};

/// A narrow extent: 32-bit length and flags (specification,
/// `NBD_REPLY_TYPE_BLOCK_STATUS`).
///
/// ```text
/// S: length:32 flags:32
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent32 {
    /// Length in bytes; never zero on the wire.
    pub length: u32,
    /// Status flags, as the metadata context defines them.
    pub flags: u32,
}

/// A wide extent: 64-bit length and flags (specification,
/// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`).
///
/// ```text
/// S: length:64 flags:64
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent64 {
    /// Length in bytes; never zero on the wire.
    pub length: u64,
    /// Status flags, as the metadata context defines them.
    pub flags: u64,
}

/// The error of narrowing: the length or the flags exceed 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the extent needs 64 bits: length {}, flags {:#x}", .0.length, .0.flags)]
pub struct TooWide(pub Extent64);

impl From<Extent32> for Extent64 {
    #[inline]
    fn from(narrow: Extent32) -> Self {
        Self {
            length: u64::from(narrow.length),
            flags: u64::from(narrow.flags),
        }
    }
}

impl TryFrom<Extent64> for Extent32 {
    type Error = TooWide;

    fn try_from(wide: Extent64) -> Result<Self, TooWide> {
        match (u32::try_from(wide.length), u32::try_from(wide.flags)) {
            (Ok(length), Ok(flags)) => Ok(Self { length, flags }),
            _ => Err(TooWide(wide)),
        }
    }
}

/// How many extents each pass of a loop decodes. The compiler does not unroll a
/// loop with two exits; firmware prefers small code.
const BLOCK: usize = if cfg!(target_pointer_width = "64") {
    8
} else {
    1
};

/// Where the last extent of a list begins and ends, in bytes from the beginning
/// of the first; saturates at `u64::MAX`.
pub(crate) struct Reach {
    /// Where the last extent begins.
    pub(crate) last: u64,
    /// Where the last extent ends.
    pub(crate) total: u64,
}

impl Reach {
    /// Adds an extent. If it is empty, or the sum exceeds 64 bits, returns
    /// false and changes nothing: in both cases the sum does not grow, so one
    /// comparison is enough.
    #[inline]
    fn grow(&mut self, length: u64) -> bool {
        let total = self.total.wrapping_add(length);
        let grown = total > self.total;
        if grown {
            self.last = self.total;
            self.total = total;
        }
        grown
    }
}

/// The two widths differ only in the size of their fields.
macro_rules! extents {
    (
        $extent:ident, $size:literal,
        $(#[$meta:meta])* $iter:ident
    ) => {
        impl $extent {
            /// Size of a descriptor in bytes.
            pub const SIZE: usize = $size;

            /// Decodes a descriptor; its length may be zero.
            #[must_use]
            #[inline]
            pub fn decode(bytes: &[u8; $size]) -> Self {
                let mut fields = Fields::new(bytes);
                Self {
                    length: fields.get(),
                    flags: fields.get(),
                }
            }

            /// Encodes the descriptor.
            #[must_use]
            #[inline]
            pub fn encode(self) -> [u8; $size] {
                HeaderBuffer::new().field(self.length).field(self.flags).into_array()
            }
        }

        $(#[$meta])*
        #[derive(Clone)]
        #[must_use]
        pub struct $iter<'a>(&'a [[u8; $size]]);

        impl<'a> $iter<'a> {
            /// The whole descriptors at the beginning of `bytes`, and the bytes
            /// after them.
            #[inline]
            pub fn split(bytes: &'a [u8]) -> (Self, &'a [u8]) {
                let (descriptors, rest) = bytes.as_chunks();
                (Self(descriptors), rest)
            }

            /// The remaining descriptors as they are on the wire.
            #[must_use]
            pub fn as_bytes(&self) -> &'a [u8] {
                self.0.as_flattened()
            }

            /// The number of remaining extents.
            #[must_use]
            #[inline]
            pub fn len(&self) -> usize {
                self.0.len()
            }

            /// Whether no extent remains.
            #[must_use]
            #[inline]
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }

            /// The sum of the remaining lengths in bytes; saturates at
            /// `u64::MAX`.
            ///
            /// # Errors
            ///
            /// [`DecodeError::EmptyExtent`] if a length is zero.
            #[inline]
            pub fn total(&self) -> Result<u64, DecodeError> {
                self.reach().map(|reach| reach.total)
            }

            /// Where the last extent begins and ends; fails as
            /// [`total`](Self::total).
            pub(crate) fn reach(&self) -> Result<Reach, DecodeError> {
                let (total, extents) = Self::sum_of_many(self.0);
                let mut reach = Reach { last: 0, total };
                let (blocks, others) = extents.as_chunks::<BLOCK>();
                let mut grow = |bytes| reach.grow($extent::decode(bytes).length.into());
                let grown = blocks.iter().all(|block| block.iter().all(&mut grow))
                    && others.iter().all(grow);
                if grown { Ok(reach) } else { self.reach_slow() }
            }

            /// Slow path of [`reach`](Self::reach): an extent is empty, or the
            /// sum exceeds 64 bits.
            #[cold]
            fn reach_slow(&self) -> Result<Reach, DecodeError> {
                let mut reach = Reach { last: 0, total: 0 };
                for extent in self.clone() {
                    if extent.length == 0 {
                        return Err(DecodeError::EmptyExtent);
                    }
                    reach.last = reach.total;
                    reach.total = reach.total.saturating_add(extent.length.into());
                }
                Ok(reach)
            }
        }

        impl Iterator for $iter<'_> {
            type Item = $extent;

            #[inline]
            fn next(&mut self) -> Option<$extent> {
                let (first, rest) = self.0.split_first()?;
                self.0 = rest;
                Some($extent::decode(first))
            }

            #[inline]
            fn size_hint(&self) -> (usize, Option<usize>) {
                (self.0.len(), Some(self.0.len()))
            }

            #[inline]
            fn fold<B, F: FnMut(B, $extent) -> B>(self, init: B, mut f: F) -> B {
                let mut step = |acc, bytes| f(acc, $extent::decode(bytes));
                let (blocks, others) = self.0.as_chunks::<BLOCK>();
                let acc = blocks
                    .iter()
                    .fold(init, |acc, block| block.iter().fold(acc, &mut step));
                others.iter().fold(acc, step)
            }
        }

        impl ExactSizeIterator for $iter<'_> {}

        impl FusedIterator for $iter<'_> {}

        impl PartialEq for $iter<'_> {
            fn eq(&self, other: &Self) -> bool {
                self.0 == other.0
            }
        }

        impl Eq for $iter<'_> {}

        impl core::fmt::Debug for $iter<'_> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_list().entries(self.clone()).finish()
            }
        }
    };
}

extents! {
    Extent32, 8,
    /// Narrow extents as they are on the wire: an iterator that decodes them in
    /// place.
    ///
    /// ```
    /// use nbd_codec::wire::extent::{Extent32, Extents32};
    ///
    /// let bytes = [0, 0, 16, 0, 0, 0, 0, 3];
    /// let (mut extents, rest) = Extents32::split(&bytes);
    /// assert_eq!(extents.next(), Some(Extent32 { length: 4096, flags: 3 }));
    /// assert!(rest.is_empty());
    /// ```
    Extents32
}

extents! {
    Extent64, 16,
    /// Wide extents as they are on the wire: an iterator that decodes them in
    /// place.
    ///
    /// ```
    /// use nbd_codec::wire::extent::{Extent64, Extents64};
    ///
    /// let bytes = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    /// let (mut extents, rest) = Extents64::split(&bytes);
    /// assert_eq!(extents.next(), Some(Extent64 { length: 1 << 32, flags: 3 }));
    /// assert!(rest.is_empty());
    /// ```
    Extents64
}

/// How many descriptors the compiler checks at once where it has instructions for
/// several numbers. The sum of as many bytes fits 16 bits.
const MANY: usize = 256;

impl Extents32<'_> {
    /// The sum of the first lengths, none of which is zero, and the extents after
    /// them, at least one.
    #[inline]
    fn sum_of_many(extents: &[[u8; 8]]) -> (u64, &[[u8; 8]]) {
        if cfg!(target_pointer_width = "64") && extents.len() > MANY {
            Self::sum_of_blocks(extents)
        } else {
            (0, extents)
        }
    }

    /// As [`sum_of_many`](Self::sum_of_many), where there are blocks.
    #[inline(never)]
    fn sum_of_blocks(mut extents: &[[u8; 8]]) -> (u64, &[[u8; 8]]) {
        let mut total = 0_u64;
        while let Some((block, others)) = extents.split_at_checked(MANY)
            && !others.is_empty()
            && let Some(sum) = sum_of_block(
                block
                    .iter()
                    .map(|[a, b, c, d, ..]| u32::from_le_bytes([*a, *b, *c, *d])),
            )
        {
            total = total.saturating_add(sum);
            extents = others;
        }
        (total, extents)
    }
}

/// The sum of at most [`MANY`] lengths, read with their bytes in the wrong order;
/// `None` if one is zero.
///
/// Adds the bytes of each place, and swaps the sums: that takes fewer instructions
/// than to swap the bytes of each length. Two sums are in one number: those of the
/// odd places, and those of the even places, which are what the others leave of the
/// sum of all.
#[inline]
fn sum_of_block(lengths: impl Iterator<Item = u32>) -> Option<u64> {
    let (mut empty, mut all, mut odd) = (0_u32, 0_u32, 0_u32);
    for length in lengths {
        empty |= if length == 0 { 1 } else { 0 };
        all = all.wrapping_add(length);
        odd = odd.wrapping_add(length.wrapping_shr(8) & 0x00ff_00ff);
    }
    let even = all.wrapping_sub(odd.wrapping_shl(8));
    let bytes = |sums: u32| (u64::from(sums & 0xffff), u64::from(sums.wrapping_shr(16)));
    let ((b0, b2), (b1, b3)) = (bytes(even), bytes(odd));
    let places = [b0, b1, b2, b3].into_iter();
    let sum = places.fold(0_u64, |sum, place| sum.wrapping_shl(8).wrapping_add(place));
    (empty == 0).then_some(sum)
}

impl Extents64<'_> {
    /// None: the compiler has no better instructions for 64-bit numbers.
    #[inline]
    fn sum_of_many(extents: &[[u8; 16]]) -> (u64, &[[u8; 16]]) {
        (0, extents)
    }

    /// Whether the flags of an extent exceed 32 bits.
    pub(crate) fn has_wide_flags(&self) -> bool {
        self.clone().fold(0, |all, extent| all | extent.flags) > u64::from(u32::MAX)
    }
}

mod sealed {
    /// What [`ExtentsExt`](super::ExtentsExt) needs of a width.
    pub trait Width: Copy + Into<super::Extent64> {
        /// The extent over both; `None` if the flags differ or the length does
        /// not fit.
        fn join(self, next: Self) -> Option<Self>;

        /// The same flags over `length` bytes, at most the length of `self`.
        fn shortened(self, length: u64) -> Self;
    }
}
use sealed::Width;

/// An extent of either width: [`Extent32`] or [`Extent64`].
pub trait Extent: Width {}

macro_rules! widths {
    ($($extent:ident)*) => {$(
        impl Width for $extent {
            fn join(self, next: Self) -> Option<Self> {
                let length = self.length.checked_add(next.length)?;
                (self.flags == next.flags).then_some(Self { length, ..self })
            }

            fn shortened(self, length: u64) -> Self {
                let length = length.try_into().unwrap_or(self.length);
                Self { length, ..self }
            }
        }

        impl Extent for $extent {}
    )*};
}

widths! { Extent32 Extent64 }

/// Adapters for every iterator of extents, of either width.
///
/// ```
/// use nbd_codec::wire::extent::{Extent32, ExtentsExt};
///
/// // What a server reported for the bytes from 4096 on.
/// let extents = [
///     Extent32 { length: 4096, flags: 0 },
///     Extent32 { length: 4096, flags: 3 },
///     Extent32 { length: 65536, flags: 3 },
/// ];
/// // What it means for the bytes from 4096 to 16,384.
/// let clipped = extents.into_iter().coalesce().clip(4096, 4096..16384);
/// assert!(clipped.eq([
///     Extent32 { length: 4096, flags: 0 },
///     Extent32 { length: 8192, flags: 3 },
/// ]));
/// ```
pub trait ExtentsExt: Iterator<Item: Extent> + Sized {
    /// Joins neighbours with equal flags. If the joined length exceeds the
    /// field (32 or 64 bits), a new extent begins instead.
    fn coalesce(self) -> Coalesce<Self> {
        Coalesce {
            extents: self,
            next: None,
        }
    }

    /// Only the parts of the extents inside `range`. The first extent begins at
    /// `offset`; `offset` and `range` are in bytes from the start of the export.
    ///
    /// The first part begins at the larger of `offset` and `range.start`, if
    /// there is one. Every part has at least one byte. Extents after
    /// `range.end` are not taken from the iterator.
    fn clip(self, offset: u64, range: Range<u64>) -> Clip<Self> {
        Clip {
            extents: self,
            offset,
            range,
        }
    }
}

impl<I: Iterator<Item: Extent>> ExtentsExt for I {}

/// Extents with equal neighbours joined; see [`ExtentsExt::coalesce`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Coalesce<I: Iterator> {
    extents: I,
    /// Taken from `extents`, and not yet returned.
    next: Option<I::Item>,
}

impl<I: Iterator<Item: Extent>> Iterator for Coalesce<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let mut joined = self.next.take().or_else(|| self.extents.next())?;
        for extent in self.extents.by_ref() {
            match joined.join(extent) {
                Some(longer) => joined = longer,
                None => {
                    self.next = Some(extent);
                    break;
                }
            }
        }
        Some(joined)
    }
}

impl<I: FusedIterator<Item: Extent>> FusedIterator for Coalesce<I> {}

/// The parts of extents inside a range; see [`ExtentsExt::clip`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Clip<I> {
    extents: I,
    /// Where the next extent begins, in bytes; saturates at `u64::MAX`, which
    /// no range includes.
    offset: u64,
    range: Range<u64>,
}

impl<I: Iterator<Item: Extent>> Iterator for Clip<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        while self.offset < self.range.end {
            let extent = self.extents.next()?;
            let start = self.offset.max(self.range.start);
            self.offset = self.offset.saturating_add(extent.into().length);
            let length = self.offset.min(self.range.end).saturating_sub(start);
            if length > 0 {
                return Some(extent.shortened(length));
            }
        }
        None
    }
}

impl<I: FusedIterator<Item: Extent>> FusedIterator for Clip<I> {}
