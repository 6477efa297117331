//! What can be wrong with a URI.

/// Why a text is not an NBD URI.
///
/// Every variant holds `at`, an offset in bytes from the start of the text
/// that was given: the whole URI when parsing, the argument at fault in
/// [`Uri::tcp`](super::Uri::tcp) and [`Uri::unix`](super::Uri::unix).
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
    /// A character that this part of a URI cannot hold as it is.
    #[error("a character at byte {at} cannot stand there: percent-encode it (a space is %20)")]
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
    /// A part that is text is not UTF-8 once it is decoded.
    #[error("the text at byte {at} does not decode to UTF-8: percent-encode the bytes of UTF-8")]
    Utf8 {
        /// Where the first wrong byte is.
        at: usize,
    },
    /// A `NUL` where none may be.
    #[error("a NUL character at byte {at}: remove it (only an abstract socket begins with %00)")]
    Nul {
        /// Where the `NUL` is.
        at: usize,
    },
    /// A fragment, which NBD URIs do not have.
    #[error("a fragment begins at byte {at}: remove it, or write %23 for a number sign")]
    Fragment {
        /// Where the `#` is.
        at: usize,
    },
    /// A host, or the user of an SSH host, that begins with `-`: a program
    /// that received it as an argument would take it for an option.
    #[error("the name at byte {at} begins with \"-\", like an option: give a real host or user")]
    LeadingDash {
        /// Where the name begins.
        at: usize,
    },
    /// Neither a host name nor an IP address.
    #[error("no valid host at byte {at}: give a name, an IPv4 address or an [IPv6 address]")]
    Host {
        /// Where the host stops being valid, or begins.
        at: usize,
    },
    /// The port is not a number, or too large.
    #[error(
        "no valid port at byte {at}: give a number up to 65535, and put IPv6 addresses in brackets"
    )]
    Port {
        /// Where the port begins.
        at: usize,
    },
    /// The host of a vsock URI is not a context identifier.
    #[error("no vsock context identifier at byte {at}: give a number, such as 2 for the host")]
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
    /// A URI for a Unix domain socket does not say which.
    #[error("a Unix socket needs a path, expected at byte {at}: add ?socket=/path/of/socket")]
    SocketMissing {
        /// The end of the URI, or the place of the empty path.
        at: usize,
    },
    /// `socket` in a URI that does not use a Unix domain socket.
    #[error("the socket parameter at byte {at} needs a Unix scheme: use nbd+unix or nbds+unix")]
    SocketUnexpected {
        /// Where the parameter begins.
        at: usize,
    },
    /// A parameter of which there can be one is there again.
    #[error("the parameter at byte {at} was given before: keep one of the two")]
    Duplicate {
        /// Where the second one begins.
        at: usize,
    },
    /// A kind of TLS that is not known.
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
        /// Where the first byte too many is.
        at: usize,
    },
}

impl UriError {
    /// Where the text is wrong: an offset in bytes from its start.
    ///
    /// It is at most the length of the text, and may be equal to it if
    /// something is missing at the end.
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
