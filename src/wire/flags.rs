//! Values: every flag field (specification, "Flag fields"). Unknown bits are
//! kept.

use core::fmt;
use core::num::TryFromIntError;
use core::ops::{BitAnd, BitOr, BitOrAssign, Not, Sub};

use super::bytes::newtype_fields;

/// A set of flags in a field of fixed width.
macro_rules! flags {
    (
        $(#[$meta:meta])*
        $name:ident($repr:ty) {
            $($(#[$flag_meta:meta])* $flag:ident = $bit:literal;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $repr);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$flag_meta])* pub const $flag: Self = Self(1 << $bit);)*
            /// Every flag that is defined.
            pub const KNOWN: Self = Self(0 $(| (1 << $bit))*);

            /// Whether every flag of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags set in either.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The flags set in both.
            #[must_use]
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            /// The flags set here and not in `other`.
            #[must_use]
            pub const fn difference(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Whether no flag is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Sets every flag of `other`.
            pub const fn insert(&mut self, other: Self) {
                *self = self.union(other);
            }

            /// Clears every flag of `other`.
            pub const fn remove(&mut self, other: Self) {
                *self = self.difference(other);
            }
        }

        newtype_fields! { $name }

        impl BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                self.insert(other);
            }
        }

        impl BitAnd for $name {
            type Output = Self;
            fn bitand(self, other: Self) -> Self {
                self.intersection(other)
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                self.difference(other)
            }
        }

        /// Inverts every bit of the field, unknown ones too.
        impl Not for $name {
            type Output = Self;
            fn not(self) -> Self {
                Self(!self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut rest = *self;
                let mut between = "";
                $(if rest.contains(Self::$flag) {
                    f.write_str(between)?;
                    f.write_str(stringify!($flag))?;
                    between = " | ";
                    rest = rest.difference(Self::$flag);
                })*
                if !rest.is_empty() || between.is_empty() {
                    write!(f, "{between}{:#x}", rest.0)?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

flags! {
    /// What the server supports during the handshake (specification,
    /// "Handshake flags"; `NBD_FLAG_*`).
    HandshakeFlags(u16) {
        /// The server supports fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// The server can omit the 124 zeroes after `EXPORT_NAME`.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What the client accepts of [`HandshakeFlags`] (specification, "Client
    /// flags"; `NBD_FLAG_C_*`).
    ClientFlags(u32) {
        /// The client uses fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// The server must omit the 124 zeroes after `EXPORT_NAME`.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What an export supports (specification, "Transmission flags";
    /// `NBD_FLAG_*`).
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0;
        /// The export is read-only.
        READ_ONLY = 1;
        /// `FLUSH` is supported.
        SEND_FLUSH = 2;
        /// The command flag `FUA` is supported.
        SEND_FUA = 3;
        /// The medium rotates.
        ROTATIONAL = 4;
        /// `TRIM` is supported.
        SEND_TRIM = 5;
        /// `WRITE_ZEROES` and the command flag `NO_HOLE` are supported.
        SEND_WRITE_ZEROES = 6;
        /// The command flag `DF` is supported.
        SEND_DF = 7;
        /// The effects of `FLUSH` and `FUA` are visible across all
        /// connections.
        CAN_MULTI_CONN = 8;
        /// `RESIZE` is supported (resize extension).
        SEND_RESIZE = 9;
        /// `CACHE` is supported.
        SEND_CACHE = 10;
        /// The command flag `FAST_ZERO` is supported.
        SEND_FAST_ZERO = 11;
        /// `BLOCK_STATUS` accepts a payload that selects contexts (extended
        /// headers).
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

flags! {
    /// How the server executes a command (specification, "Command flags";
    /// `NBD_CMD_FLAG_*`).
    CommandFlags(u16) {
        /// Reply only once the written data is permanent.
        FUA = 0;
        /// `WRITE_ZEROES`: do not make a hole.
        NO_HOLE = 1;
        /// `READ`: at most one content chunk.
        DF = 2;
        /// `BLOCK_STATUS`: one extent for each context.
        REQ_ONE = 3;
        /// `WRITE_ZEROES`: fail if it would be no faster than `WRITE`.
        FAST_ZERO = 4;
        /// The length field is the length of a payload that follows
        /// (extended headers).
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// The flags of a reply chunk (specification, "Structured and extended
    /// header reply flags"; `NBD_REPLY_FLAG_*`).
    ReplyFlags(u16) {
        /// This chunk is the last of the reply.
        DONE = 0;
    }
}

flags! {
    /// The status flags of the metadata context
    /// [`base:allocation`](super::meta_context::BASE_ALLOCATION)
    /// (specification, "`base:allocation` metadata context"; `NBD_STATE_*`).
    AllocationFlags(u32) {
        /// Not allocated: a write may fail with `NBD_ENOSPC`. Clear if the
        /// range is allocated, or the server does not know.
        HOLE = 0;
        /// Reads as zeroes. Clear if the content is not known.
        ZERO = 1;
    }
}

flags! {
    /// The status flags of the metadata context of a dirty bitmap of QEMU:
    /// [`DirtyBitmapName`](super::meta_context::DirtyBitmapName).
    DirtyBitmapFlags(u32) {
        /// The bitmap marks the range as changed.
        DIRTY = 0;
    }
}

/// Status flags are built from the flags of an extent: 32 bits of a narrow
/// extent, 64 bits of a wide one.
macro_rules! from_extent_flags {
    ($($name:ident)*) => {$(
        impl From<u32> for $name {
            fn from(flags: u32) -> Self {
                Self(flags)
            }
        }

        /// Fails if one of the upper 32 bits is set: the context defines none.
        impl TryFrom<u64> for $name {
            type Error = TryFromIntError;

            fn try_from(flags: u64) -> Result<Self, TryFromIntError> {
                u32::try_from(flags).map(Self)
            }
        }
    )*};
}

from_extent_flags! { AllocationFlags DirtyBitmapFlags }
