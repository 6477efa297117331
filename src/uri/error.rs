//! Errors of parsing a URI.

/// Why a text is not an NBD URI.
///
/// `at` is an offset in bytes from the start of the text: of the URI when
/// parsing, of the invalid argument in [`Uri::tcp`](super::Uri::tcp),
/// [`Uri::unix`](super::Uri::unix) and
/// [`Uri::with_export`](super::Uri::with_export).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// The text does not begin with a scheme of the NBD family.
    #[error(
        "no NBD scheme at byte {at}: begin with nbd://, nbds://, nbd+unix:/// or nbds+unix:///"
    )]
    Scheme {
        /// Where the scheme should be.
        at: usize,
    },
    /// The scheme is not followed by `//`.
    #[error(
        "the scheme is not followed by \"//\" at byte {at}: add both slashes, as in nbd://host"
    )]
    Slashes {
        /// Where the slashes should be.
        at: usize,
    },
    /// A character that must be percent-encoded in this part of a URI.
    #[error("invalid character at byte {at}: percent-encode it (a space is %20)")]
    Character {
        /// Where the character begins.
        at: usize,
    },
    /// A percent sign without two hexadecimal digits.
    #[error(
        "the percent sign at byte {at} lacks two hexadecimal digits: write %25 for a percent sign"
    )]
    Escape {
        /// Where the percent sign is.
        at: usize,
    },
    /// A part that must be text is not UTF-8 after decoding.
    #[error("the text at byte {at} does not decode to UTF-8: percent-encode the bytes of UTF-8")]
    Utf8 {
        /// Where the first wrong byte is.
        at: usize,
    },
    /// A `NUL` in a part that must not have one.
    #[error("a NUL character at byte {at}: remove it (only an abstract socket begins with %00)")]
    Nul {
        /// Where the `NUL` is.
        at: usize,
    },
    /// A fragment. NBD URIs have none.
    #[error("a fragment begins at byte {at}: remove it, or write %23 for a number sign")]
    Fragment {
        /// Where the `#` is.
        at: usize,
    },
    /// A host, or the user of an SSH host, that begins with `-`: as an argument
    /// of a program it would be an option.
    #[error("the name at byte {at} begins with \"-\", like an option: use a real host or user")]
    LeadingDash {
        /// Where the name begins.
        at: usize,
    },
    /// Neither a host name nor an IP address.
    #[error("invalid host at byte {at}: use a name, an IPv4 address or an [IPv6 address]")]
    Host {
        /// Where the first invalid character is, or where the host begins.
        at: usize,
    },
    /// The port is not a number, or too large.
    #[error(
        "invalid port at byte {at}: use a number up to 65535, and put IPv6 addresses in brackets"
    )]
    Port {
        /// Where the port begins.
        at: usize,
    },
    /// The host of a vsock URI is not a context identifier.
    #[error("invalid context identifier at byte {at}: use a number, such as 2 for the host")]
    Cid {
        /// Where the identifier begins.
        at: usize,
    },
    /// A host or a port in a URI for a Unix domain socket.
    #[error("a Unix socket has no host or port, but there is one at byte {at}: use three slashes")]
    UnixAuthority {
        /// Where the host or port begins.
        at: usize,
    },
    /// A URI for a Unix domain socket without a path.
    #[error("a Unix socket needs a path, expected at byte {at}: add ?socket=/path/of/socket")]
    SocketMissing {
        /// The end of the URI, or where the empty path is.
        at: usize,
    },
    /// `socket` in a URI for another transport.
    #[error("the socket parameter at byte {at} needs a Unix scheme: use nbd+unix or nbds+unix")]
    SocketUnexpected {
        /// Where the parameter begins.
        at: usize,
    },
    /// A parameter is given twice.
    #[error("the parameter at byte {at} is given twice: remove one of the two")]
    Duplicate {
        /// Where the second one begins.
        at: usize,
    },
    /// The value of `tls-type` is unknown.
    #[error("unknown tls-type at byte {at}: use anon, x509 or psk")]
    TlsType {
        /// Where the value begins.
        at: usize,
    },
    /// `tls-verify-peer` is neither true nor false.
    #[error("tls-verify-peer at byte {at} is neither true nor false: use 1 or 0")]
    VerifyPeer {
        /// Where the value begins.
        at: usize,
    },
    /// The export name is longer than the protocol allows.
    #[error("the export name exceeds 4096 bytes at byte {at}: use a shorter name")]
    ExportTooLong {
        /// Where the first excess byte is.
        at: usize,
    },
}

impl UriError {
    /// The offset of the error, in bytes from the start of the text. It is the
    /// length of the text if something is missing at the end.
    #[must_use]
    pub const fn offset(self) -> usize {
        match self {
            Self::Scheme { at }
            | Self::Slashes { at }
            | Self::Character { at }
            | Self::Escape { at }
            | Self::Utf8 { at }
            | Self::Nul { at }
            | Self::Fragment { at }
            | Self::LeadingDash { at }
            | Self::Host { at }
            | Self::Port { at }
            | Self::Cid { at }
            | Self::UnixAuthority { at }
            | Self::SocketMissing { at }
            | Self::SocketUnexpected { at }
            | Self::Duplicate { at }
            | Self::TlsType { at }
            | Self::VerifyPeer { at }
            | Self::ExportTooLong { at } => at,
        }
    }
}
