//! Names and flags of well-known metadata contexts (specification, "Metadata
//! querying").
//!
//! | context | flags of an extent |
//! |---|---|
//! | [`BASE_ALLOCATION`] | [`AllocationFlags`] |
//! | [`QEMU_ALLOCATION_DEPTH`] | a number, not flags |
//! | [`DirtyBitmapName`] | [`DirtyBitmapFlags`] |
//!
//! The specification defines the namespace `base:`. The namespace `qemu:` is
//! defined by QEMU, whose programs and other servers support it.
//!
//! ```
//! use nbd_codec::wire::extent::{Extent32, Extent64};
//! use nbd_codec::wire::meta_context::AllocationFlags;
//!
//! let narrow = Extent32 { length: 4096, flags: 3 };
//! let flags = AllocationFlags::from(narrow.flags);
//! assert_eq!(flags, AllocationFlags::HOLE | AllocationFlags::ZERO);
//!
//! // The flags of a wide extent can exceed the 32 bits of the context.
//! let wide = Extent64 { length: 4096, flags: 1 << 32 };
//! assert!(AllocationFlags::try_from(wide.flags).is_err());
//! ```

use core::fmt;

pub use super::flags::{AllocationFlags, DirtyBitmapFlags};
use super::sink::all_or_nothing;
use super::{EncodeError, Sink};

/// Whether ranges are allocated, and whether they read as zeroes
/// (specification, "`base:allocation` metadata context"). The flags of its
/// extents are [`AllocationFlags`].
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Which image of a backing chain a range comes from (QEMU). The flags of its
/// extents are a number: 0 if the range is not allocated in any image, 1 if it
/// is in the top image, `n` if it is `n - 1` images below.
pub const QEMU_ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// How the names of dirty bitmap contexts begin; as a query of
/// `NBD_OPT_LIST_META_CONTEXT`, all of them.
pub const QEMU_DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// The name of the metadata context of a dirty bitmap (QEMU): which ranges
/// changed since the bitmap was created. The flags of its extents are
/// [`DirtyBitmapFlags`].
///
/// ```text
/// qemu:dirty-bitmap:NAME
/// ```
///
/// [`Display`](fmt::Display) prints the full name; [`encode`](Self::encode)
/// needs no allocator:
///
/// ```
/// use nbd_codec::wire::meta_context::DirtyBitmapName;
///
/// let name = DirtyBitmapName::new("backup");
/// assert_eq!(name.to_string(), "qemu:dirty-bitmap:backup");
///
/// let mut buffer = [0; 64];
/// let length = name.encode(&mut &mut buffer[..])?;
/// assert_eq!(&buffer[..length], b"qemu:dirty-bitmap:backup");
///
/// assert_eq!(DirtyBitmapName::parse("qemu:dirty-bitmap:backup"), Some(name));
/// assert_eq!(name.bitmap(), "backup");
/// # Ok::<(), nbd_codec::wire::EncodeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirtyBitmapName<'a>(&'a str);

impl<'a> DirtyBitmapName<'a> {
    /// The name of the context of this bitmap. Not checked: the handshake
    /// rejects a name that is no valid string.
    #[must_use]
    pub const fn new(bitmap: &'a str) -> Self {
        Self(bitmap)
    }

    /// Reads the name of a context; `None` unless it begins with
    /// [`QEMU_DIRTY_BITMAP`].
    #[must_use]
    pub fn parse(context: &'a str) -> Option<Self> {
        context.strip_prefix(QEMU_DIRTY_BITMAP).map(Self)
    }

    /// The name of the bitmap.
    #[must_use]
    pub const fn bitmap(self) -> &'a str {
        self.0
    }

    /// Writes the full name into `sink`, in UTF-8; returns how many bytes were
    /// written.
    ///
    /// # Errors
    ///
    /// [`EncodeError::NoRoom`]; nothing was written.
    pub fn encode(self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        all_or_nothing(sink, &|sink| {
            sink.put(QEMU_DIRTY_BITMAP.as_bytes());
            sink.put(self.0.as_bytes());
        })
    }
}

impl fmt::Display for DirtyBitmapName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(QEMU_DIRTY_BITMAP)?;
        f.write_str(self.0)
    }
}
