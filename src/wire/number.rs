//! Values: every number that the protocol defines (specification, "Values").
//!
//! Each type is a newtype with constants for the defined numbers. An undefined
//! number is kept through decoding and encoding, and is printed as a number.

use core::fmt;

use super::bytes::newtype_fields;

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

            /// The name in the specification; `None` if it is undefined.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some($spec),)*
                    _ => None,
                }
            }

            /// Whether the specification defines the number.
            #[must_use]
            pub const fn is_known(self) -> bool {
                matches!(self, $(Self::$value)|*)
            }
        }

        newtype_fields! { $name }

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
        /// Select an export and start transmission; the server cannot report
        /// an error.
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        /// End the session.
        ABORT = 2, "NBD_OPT_ABORT";
        /// List the exports.
        LIST = 3, "NBD_OPT_LIST";
        /// Withdrawn; the number is reserved.
        PEEK_EXPORT = 4, "NBD_OPT_PEEK_EXPORT";
        /// Upgrade the connection to TLS.
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        /// Describe an export.
        INFO = 6, "NBD_OPT_INFO";
        /// Describe an export and start transmission.
        GO = 7, "NBD_OPT_GO";
        /// Use structured replies.
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        /// List the metadata contexts of an export.
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
        /// The option is accepted, or its list of replies is complete.
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
        /// The server's platform or build does not support the option.
        ERR_PLATFORM = ERROR_REPLY | 4, "NBD_REP_ERR_PLATFORM";
        /// TLS must be started first.
        ERR_TLS_REQD = ERROR_REPLY | 5, "NBD_REP_ERR_TLS_REQD";
        /// There is no such export.
        ERR_UNKNOWN = ERROR_REPLY | 6, "NBD_REP_ERR_UNKNOWN";
        /// The server is shutting down.
        ERR_SHUTDOWN = ERROR_REPLY | 7, "NBD_REP_ERR_SHUTDOWN";
        /// The client must request the block sizes first.
        ERR_BLOCK_SIZE_REQD = ERROR_REPLY | 8, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        /// The request or its reply is too large.
        ERR_TOO_BIG = ERROR_REPLY | 9, "NBD_REP_ERR_TOO_BIG";
        /// Extended headers must be negotiated first, or already are.
        ERR_EXT_HEADER_REQD = ERROR_REPLY | 10, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
}

/// The bit that is set in the type of every error reply.
const ERROR_REPLY: u32 = 1 << 31;

impl OptionReplyType {
    /// Whether the reply is an error (bit 31 is set), defined or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR_REPLY != 0
    }
}

numbers! {
    /// The type of a piece of information about an export (specification,
    /// `NBD_REP_INFO`).
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0, "NBD_INFO_EXPORT";
        /// The canonical name.
        NAME = 1, "NBD_INFO_NAME";
        /// A description for humans.
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
        /// Write data.
        WRITE = 1, "NBD_CMD_WRITE";
        /// Disconnect; has no reply.
        DISC = 2, "NBD_CMD_DISC";
        /// Make all answered writes permanent.
        FLUSH = 3, "NBD_CMD_FLUSH";
        /// Discard data.
        TRIM = 4, "NBD_CMD_TRIM";
        /// Prefetch data.
        CACHE = 5, "NBD_CMD_CACHE";
        /// Write zeroes without sending them.
        WRITE_ZEROES = 6, "NBD_CMD_WRITE_ZEROES";
        /// Report the status of extents.
        BLOCK_STATUS = 7, "NBD_CMD_BLOCK_STATUS";
        /// Change the size of the export (resize extension).
        RESIZE = 8, "NBD_CMD_RESIZE";
    }
}

numbers! {
    /// The type of a structured or extended reply chunk (specification,
    /// "Structured reply types").
    ChunkType(u16) {
        /// No content; always the last chunk.
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        /// Content of a read: data.
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        /// Content of a read: zeroes.
        OFFSET_HOLE = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        /// Narrow extents of one metadata context.
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// Wide extents of one metadata context.
        BLOCK_STATUS_EXT = 6, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
        /// An error.
        ERROR = ERROR_CHUNK | 1, "NBD_REPLY_TYPE_ERROR";
        /// An error with its offset.
        ERROR_OFFSET = ERROR_CHUNK | 2, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
}

/// The bit that is set in the type of every error chunk.
const ERROR_CHUNK: u16 = 1 << 15;

impl ChunkType {
    /// Whether the chunk is an error (bit 15 is set), defined or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR_CHUNK != 0
    }
}

numbers! {
    /// The error of a reply (specification, "Error values").
    ErrorValue(u32) {
        /// Success; only in simple replies.
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

/// For passing on the result of a command with `?`.
impl core::error::Error for ErrorValue {}

impl ErrorValue {
    /// The error that a client acts on: the same if it is zero or the
    /// specification defines it, otherwise `EINVAL`.
    #[must_use]
    pub const fn or_invalid(self) -> Self {
        if self.is_known() { self } else { Self::EINVAL }
    }

    /// The error that a server sends for an `errno` of Linux: `ENOSPC` for
    /// `EDQUOT` (122) and `EFBIG` (27), `EPERM` for `EACCES` (13) and `EROFS`
    /// (30), the same number if it is zero or the specification defines it,
    /// otherwise `EIO`.
    #[must_use]
    pub const fn from_linux_errno(errno: u32) -> Self {
        match errno {
            122 | 27 => Self::ENOSPC,
            13 | 30 => Self::EPERM,
            _ if Self(errno).is_known() => Self(errno),
            _ => Self::EIO,
        }
    }

    /// Whether the number is an error: any number but zero.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 != 0
    }
}

/// A cookie: identifies the request that a reply belongs to (specification,
/// "Transmission"; older versions of it say "handle").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(pub u64);

newtype_fields! { Cookie ContextId }

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({self})")
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// A metadata context ID: the number that the server assigned to a selected
/// context, valid during one connection (specification,
/// `NBD_REP_META_CONTEXT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContextId(pub u32);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
