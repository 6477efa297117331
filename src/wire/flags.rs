//! Values: every flag field. Unknown bits are kept.

use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign, Sub};

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
            /// Every flag the specification defines.
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
        }

        impl BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                *self = self.union(other);
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
    /// What the server can do during the handshake (specification,
    /// "Handshake flags"; `NBD_FLAG_*`).
    HandshakeFlags(u16) {
        /// It speaks fixed newstyle.
        FIXED_NEWSTYLE = 0;
        /// It can leave out the 124 zeroes after `EXPORT_NAME`.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What the client agrees to (specification, "Client flags";
    /// `NBD_FLAG_C_*`).
    ClientFlags(u32) {
        /// It speaks fixed newstyle.
        FIXED_NEWSTYLE = 0;
        /// It wants the 124 zeroes after `EXPORT_NAME` left out.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What an export can do (specification, "Transmission flags";
    /// `NBD_FLAG_*`).
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0;
        /// Writing is refused.
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
        /// Several connections see one another's flushed writes.
        CAN_MULTI_CONN = 8;
        /// `RESIZE` is supported (resize extension).
        SEND_RESIZE = 9;
        /// `CACHE` is supported.
        SEND_CACHE = 10;
        /// The command flag `FAST_ZERO` is supported.
        SEND_FAST_ZERO = 11;
        /// `BLOCK_STATUS` takes a payload that names the contexts wanted
        /// (extended headers).
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

flags! {
    /// How a command is to be done (specification, "Command flags";
    /// `NBD_CMD_FLAG_*`).
    CommandFlags(u16) {
        /// Reply only when what was written is permanent.
        FUA = 0;
        /// `WRITE_ZEROES`: make no hole.
        NO_HOLE = 1;
        /// `READ`: at most one content chunk.
        DF = 2;
        /// `BLOCK_STATUS`: one extent for each context.
        REQ_ONE = 3;
        /// `WRITE_ZEROES`: fail at once if it is not faster than writing.
        FAST_ZERO = 4;
        /// The length field is the length of a payload that follows
        /// (extended headers).
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// What a chunk says about its reply (specification, "Structured and
    /// extended header reply flags"; `NBD_REPLY_FLAG_*`).
    ReplyFlags(u16) {
        /// The last chunk of the reply.
        DONE = 0;
    }
}

flags! {
    /// The status flags of the metadata context `base:allocation`
    /// (specification; `NBD_STATE_*`).
    AllocationFlags(u32) {
        /// Not allocated.
        HOLE = 0;
        /// Reads as zeroes.
        ZERO = 1;
    }
}
