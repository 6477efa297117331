//! Values: every number the protocol gives a meaning to.
//!
//! Each is a newtype with constants, open to numbers that are not known yet:
//! an unknown number keeps its value through decoding and encoding, compares
//! like any other, and shows as its number.

use core::fmt;

/// An open enumeration: a number with named values.
macro_rules! numbers {
    (
        $(#[$meta:meta])*
        $name:ident($repr:ty) {
            $($(#[$value_meta:meta])* $value:ident = $number:expr, $spec:literal;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$value_meta])* pub const $value: Self = Self($number);)*

            /// Its name in the specification, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some($spec),)*
                    _ => None,
                }
            }

            /// Whether the specification defines it.
            #[must_use]
            pub const fn is_known(self) -> bool {
                matches!(self, $(Self::$value)|*)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}({:#x})", stringify!($name), self.0),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

numbers! {
    /// An option's type (specification, "Option types").
    OptionType(u32) {
        /// Choose an export and enter transmission; cannot report an error.
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        /// End the session.
        ABORT = 2, "NBD_OPT_ABORT";
        /// Name the exports.
        LIST = 3, "NBD_OPT_LIST";
        /// Withdrawn; a number only.
        PEEK_EXPORT = 4, "NBD_OPT_PEEK_EXPORT";
        /// Upgrade the connection to TLS.
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        /// Describe an export.
        INFO = 6, "NBD_OPT_INFO";
        /// Describe an export and enter transmission.
        GO = 7, "NBD_OPT_GO";
        /// Use structured replies.
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        /// Name the metadata contexts of an export.
        LIST_META_CONTEXT = 9, "NBD_OPT_LIST_META_CONTEXT";
        /// Select metadata contexts of an export.
        SET_META_CONTEXT = 10, "NBD_OPT_SET_META_CONTEXT";
        /// Use extended headers.
        EXTENDED_HEADERS = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
}

numbers! {
    /// The type of a reply to an option (specification, "Option reply types").
    OptionReplyType(u32) {
        /// The option is accepted, or its list of replies has ended.
        ACK = 1, "NBD_REP_ACK";
        /// One export.
        SERVER = 2, "NBD_REP_SERVER";
        /// One piece of information about an export.
        INFO = 3, "NBD_REP_INFO";
        /// One metadata context.
        META_CONTEXT = 4, "NBD_REP_META_CONTEXT";
        /// The server does not know the option.
        ERR_UNSUP = ERROR_REPLY | 1, "NBD_REP_ERR_UNSUP";
        /// The server's policy forbids the option.
        ERR_POLICY = ERROR_REPLY | 2, "NBD_REP_ERR_POLICY";
        /// The option is malformed, or comes at the wrong time.
        ERR_INVALID = ERROR_REPLY | 3, "NBD_REP_ERR_INVALID";
        /// The server's platform or build cannot do it.
        ERR_PLATFORM = ERROR_REPLY | 4, "NBD_REP_ERR_PLATFORM";
        /// TLS must be started first.
        ERR_TLS_REQD = ERROR_REPLY | 5, "NBD_REP_ERR_TLS_REQD";
        /// There is no such export.
        ERR_UNKNOWN = ERROR_REPLY | 6, "NBD_REP_ERR_UNKNOWN";
        /// The server is shutting down.
        ERR_SHUTDOWN = ERROR_REPLY | 7, "NBD_REP_ERR_SHUTDOWN";
        /// The client must ask for the block sizes first.
        ERR_BLOCK_SIZE_REQD = ERROR_REPLY | 8, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        /// The request or its reply is too large.
        ERR_TOO_BIG = ERROR_REPLY | 9, "NBD_REP_ERR_TOO_BIG";
        /// Extended headers must be negotiated first, or already are.
        ERR_EXT_HEADER_REQD = ERROR_REPLY | 10, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
}

/// Set in the type of every option reply that reports an error.
const ERROR_REPLY: u32 = 1 << 31;

impl OptionReplyType {
    /// Whether it reports an error (bit 31).
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR_REPLY != 0
    }
}

numbers! {
    /// The type of a piece of information (specification, `NBD_REP_INFO`).
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0, "NBD_INFO_EXPORT";
        /// The canonical name.
        NAME = 1, "NBD_INFO_NAME";
        /// A description for people.
        DESCRIPTION = 2, "NBD_INFO_DESCRIPTION";
        /// The block sizes.
        BLOCK_SIZE = 3, "NBD_INFO_BLOCK_SIZE";
    }
}

numbers! {
    /// A request's type (specification, "Request types").
    Command(u16) {
        /// Read data.
        READ = 0, "NBD_CMD_READ";
        /// Write the payload.
        WRITE = 1, "NBD_CMD_WRITE";
        /// Disconnect; has no reply.
        DISC = 2, "NBD_CMD_DISC";
        /// Make finished writes permanent.
        FLUSH = 3, "NBD_CMD_FLUSH";
        /// Data is no longer needed.
        TRIM = 4, "NBD_CMD_TRIM";
        /// Data will be needed soon.
        CACHE = 5, "NBD_CMD_CACHE";
        /// Write zeroes without sending them.
        WRITE_ZEROES = 6, "NBD_CMD_WRITE_ZEROES";
        /// Report extents.
        BLOCK_STATUS = 7, "NBD_CMD_BLOCK_STATUS";
        /// Change the size of the export (resize extension).
        RESIZE = 8, "NBD_CMD_RESIZE";
    }
}

numbers! {
    /// The type of a structured or extended reply chunk (specification,
    /// "Structured reply types").
    ChunkType(u16) {
        /// Nothing more to say; always the last.
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        /// Data of a read.
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        /// Zeroes of a read.
        OFFSET_HOLE = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        /// Narrow extents of one metadata context.
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// Wide extents of one metadata context.
        BLOCK_STATUS_EXT = 6, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
        /// An error.
        ERROR = ERROR_CHUNK | 1, "NBD_REPLY_TYPE_ERROR";
        /// An error at an offset.
        ERROR_OFFSET = ERROR_CHUNK | 2, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
}

/// Set in the type of every chunk that reports an error.
const ERROR_CHUNK: u16 = 1 << 15;

impl ChunkType {
    /// Whether it reports an error (bit 15), known or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR_CHUNK != 0
    }
}

numbers! {
    /// The error of a reply (specification, "Error values").
    ErrorValue(u32) {
        /// No error, in a simple reply.
        NONE = 0, "no error";
        /// Operation not permitted.
        EPERM = 1, "NBD_EPERM";
        /// Input/output error.
        EIO = 5, "NBD_EIO";
        /// Cannot allocate memory.
        ENOMEM = 12, "NBD_ENOMEM";
        /// Invalid argument.
        EINVAL = 22, "NBD_EINVAL";
        /// No space left on device.
        ENOSPC = 28, "NBD_ENOSPC";
        /// Value too large.
        EOVERFLOW = 75, "NBD_EOVERFLOW";
        /// Operation not supported.
        ENOTSUP = 95, "NBD_ENOTSUP";
        /// The server is shutting down.
        ESHUTDOWN = 108, "NBD_ESHUTDOWN";
    }
}

/// So that the result of a command can be passed on with `?`.
impl core::error::Error for ErrorValue {}

impl ErrorValue {
    /// The error a client should act on: itself if the specification defines
    /// it, `EINVAL` for any other number but zero.
    #[must_use]
    pub const fn or_invalid(self) -> Self {
        match self.is_known() {
            true => self,
            false => Self::EINVAL,
        }
    }

    /// The error a server should send for an `errno` of Linux: `EDQUOT` (122)
    /// and `EFBIG` (27) are `ENOSPC`, `EACCES` (13) and `EROFS` (30) are
    /// `EPERM`, `EOPNOTSUPP` is `ENOTSUP` already; what the specification does
    /// not define is `EIO`.
    #[must_use]
    pub const fn from_linux_errno(errno: u32) -> Self {
        match errno {
            122 | 27 => Self::ENOSPC,
            13 | 30 => Self::EPERM,
            _ => match Self(errno).is_known() {
                true => Self(errno),
                false => Self::EIO,
            },
        }
    }

    /// Whether it reports an error at all.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 != 0
    }
}

/// A cookie: what joins a reply to its request (specification,
/// "Transmission"; older texts call it a handle).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(pub u64);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The number a server gave a metadata context for this connection
/// (specification, `NBD_REP_META_CONTEXT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContextId(pub u32);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
