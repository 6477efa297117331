//! Block status descriptors, narrow and wide (specification,
//! `NBD_REPLY_TYPE_BLOCK_STATUS` and `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`).
//!
//! Which of the two widths is on the wire is always known: structured replies
//! carry narrow extents, extended headers wide ones. They are different types
//! from the wire to the caller. Widening is explicit and keeps every bit
//! ([`From`]); narrowing is explicit and can be refused ([`TryFrom`]); nothing
//! is ever cut to fit.

use core::iter::FusedIterator;

use super::DecodeError;
use super::bytes::{Fields, Writer};

/// A narrow extent: 32-bit length and flags.
///
/// ```text
/// S: length:32 flags:32
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent32 {
    /// Length in bytes; never zero on the wire.
    pub length: u32,
    /// What its metadata context says of it.
    pub flags: u32,
}

/// A wide extent: 64-bit length and flags.
///
/// ```text
/// S: length:64 flags:64
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent64 {
    /// Length in bytes; never zero on the wire.
    pub length: u64,
    /// What its metadata context says of it.
    pub flags: u64,
}

/// A wide extent that a narrow one cannot hold.
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

/// How many extents the loops take at a time, where code may cost memory: a
/// loop with two ways out is unrolled by hand, or not at all.
const BLOCK: usize = if cfg!(target_pointer_width = "64") {
    8
} else {
    1
};

/// How far a list of extents goes, in bytes; `u64::MAX` stands for more than
/// 64 bits hold.
pub(crate) struct Reach {
    /// Where the last one begins.
    pub(crate) last: u64,
    /// Where it ends.
    pub(crate) total: u64,
}

impl Reach {
    /// Adds an extent. One comparison finds both, one that is empty and a sum
    /// that is too large: the sum does not grow, and nothing has changed.
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

/// The two widths differ in nothing but numbers.
macro_rules! extents {
    (
        $extent:ident, $size:literal, $word:ident,
        $(#[$meta:meta])* $iter:ident
    ) => {
        impl $extent {
            /// Size of a descriptor in bytes.
            pub const SIZE: usize = $size;

            /// Decodes a descriptor; an empty one is decoded too.
            #[must_use]
            #[inline]
            pub fn decode(bytes: &[u8; $size]) -> Self {
                let mut fields = Fields::new(bytes);
                Self {
                    length: fields.$word(),
                    flags: fields.$word(),
                }
            }

            /// Encodes.
            #[must_use]
            #[inline]
            pub fn encode(self) -> [u8; $size] {
                Writer::new().$word(self.length).$word(self.flags).done()
            }
        }

        $(#[$meta])*
        #[derive(Clone, Copy)]
        #[must_use]
        pub struct $iter<'a>(&'a [[u8; $size]]);

        impl<'a> $iter<'a> {
            /// The whole descriptors at the front of `bytes`, and what is left
            /// behind them.
            #[inline]
            pub fn split(bytes: &'a [u8]) -> (Self, &'a [u8]) {
                let (descriptors, rest) = bytes.as_chunks();
                (Self(descriptors), rest)
            }

            /// Their bytes as they are on the wire.
            #[must_use]
            pub fn as_bytes(self) -> &'a [u8] {
                self.0.as_flattened()
            }

            /// How many there are.
            #[must_use]
            #[inline]
            pub fn len(self) -> usize {
                self.0.len()
            }

            /// Whether there is none.
            #[must_use]
            #[inline]
            pub fn is_empty(self) -> bool {
                self.0.is_empty()
            }

            /// The sum of all lengths in bytes; `u64::MAX` if it is larger.
            ///
            /// # Errors
            ///
            /// [`DecodeError::EmptyExtent`] if one has no length.
            #[inline]
            pub fn total(self) -> Result<u64, DecodeError> {
                self.reach().map(|reach| reach.total)
            }

            /// Where the last one begins and ends, if the first one begins at
            /// zero; fails as [`total`](Self::total).
            pub(crate) fn reach(self) -> Result<Reach, DecodeError> {
                let mut reach = Reach { last: 0, total: 0 };
                let (blocks, others) = self.0.as_chunks::<BLOCK>();
                let mut grow = |bytes| reach.grow($extent::decode(bytes).length.into());
                let grown = blocks.iter().all(|block| block.iter().all(&mut grow))
                    && others.iter().all(grow);
                match grown {
                    true => Ok(reach),
                    false => self.reach_beyond(),
                }
            }

            /// As [`reach`](Self::reach), where one is empty or the sum is too
            /// large.
            #[cold]
            fn reach_beyond(self) -> Result<Reach, DecodeError> {
                let mut reach = Reach { last: 0, total: 0 };
                for extent in self {
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
                f.debug_list().entries(*self).finish()
            }
        }
    };
}

extents! {
    Extent32, 8, u32,
    /// Narrow extents as they are on the wire: an iterator that reads them in
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
    Extent64, 16, u64,
    /// Wide extents as they are on the wire: an iterator that reads them in
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

impl Extents64<'_> {
    /// Whether the flags of any need more than 32 bits.
    pub(crate) fn any_wide_flags(self) -> bool {
        self.fold(0, |all, extent| all | extent.flags) > u64::from(u32::MAX)
    }
}
