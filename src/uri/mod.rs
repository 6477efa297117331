//! NBD URIs: the server and the export to connect to, as a user types them.
//!
//! A URI has a transport, whether TLS is required, an export name, and query
//! parameters, most of them about TLS. The grammar, in addition to RFC 3986:
//!
//! ```text
//! scheme "://" [ user "@" ] [ host ] [ ":" port ] [ "/" export ] [ "?" key "=" value *( "&" key "=" value ) ]
//! ```
//!
//! | scheme | transport | TLS |
//! |---|---|---|
//! | `nbd`, `nbds` | TCP; the default host is `localhost`, the default port 10809 | `nbds` requires it |
//! | `nbd+unix`, `nbds+unix` | the Unix domain socket in the parameter `socket` | `nbds+unix` requires it |
//! | `nbd+vsock`, `nbds+vsock`, `nbd+ssh`, `nbds+ssh` | vsock and SSH; a program that supports neither can report it | `nbds+vsock`, `nbds+ssh` require it |
//!
//! Schemes are case-insensitive, keys are not. In values `+` is a plus sign, and
//! `;` is not a separator. Parsing takes time linear in the length of the text.
//!
//! ```
//! use nbd_codec::uri::{Host, Transport, Uri};
//!
//! let uri: Uri = "nbds://alice@[::1]:10810/my%20disk?tls-type=psk&x-trace=1".parse()?;
//! assert!(uri.tls_required());
//! assert_eq!(uri.export(), "my disk");
//! assert_eq!(uri.user(), Some("alice"));
//! let Transport::Tcp { host, port } = uri.transport() else {
//!     unreachable!("nbds is TCP")
//! };
//! assert_eq!((host.to_string().as_str(), *port), ("::1", 10810));
//!
//! // A server prints its own URI:
//! let uri = Uri::unix("/run/nbd.sock", "disk")?;
//! assert_eq!(uri.to_string(), "nbd+unix:///disk?socket=/run/nbd.sock");
//!
//! // An error has an offset, and its text says how to fix the URI:
//! let error = Uri::parse("nbd://host/50%").unwrap_err();
//! assert_eq!(error.offset(), 13);
//! # Ok::<(), nbd_codec::uri::UriError>(())
//! ```

mod display;
mod error;
mod host;
mod parse;
mod percent;
mod tls;
mod transport;

use core::str::FromStr;
use std::{string::String, vec::Vec};

pub use error::UriError;
pub use host::Host;
use tls::Tls;
pub use tls::TlsType;
pub use transport::{DEFAULT_PORT, Transport};

/// The prefix of experimental keys.
const EXPERIMENTAL: &str = "x-";

/// A valid NBD URI, split and decoded.
///
/// [`Display`](core::fmt::Display) writes a canonical spelling, which parses to
/// an equal value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    tls_required: bool,
    transport: Transport,
    user: Option<String>,
    export: String,
    tls: Tls,
    others: Vec<(String, String)>,
}

impl Uri {
    /// Parses a URI: a `&str`, or bytes such as those of a command line.
    ///
    /// # Errors
    ///
    /// The first error that is found, with its offset in bytes. Unknown
    /// parameters are not an error: see
    /// [`unknown_parameters`](Self::unknown_parameters).
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, UriError> {
        parse::parse(text.as_ref())
    }

    /// The URI of an export over TCP. A [`Host::Name`] that is an address
    /// becomes that address.
    ///
    /// # Errors
    ///
    /// [`UriError::Host`] or [`UriError::LeadingDash`] if `host` is invalid,
    /// [`UriError::Nul`] or [`UriError::ExportTooLong`] if `export` is invalid;
    /// the offset is into that argument.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::net::Ipv4Addr;
    /// use nbd_codec::uri::{DEFAULT_PORT, Uri};
    ///
    /// let uri = Uri::tcp(Ipv4Addr::LOCALHOST, DEFAULT_PORT, "a b")?;
    /// assert_eq!(uri.to_string(), "nbd://127.0.0.1/a%20b");
    /// # Ok::<(), nbd_codec::uri::UriError>(())
    /// ```
    pub fn tcp(host: impl Into<Host>, port: u16, export: &str) -> Result<Self, UriError> {
        let host = host.into().into_checked()?;
        Self::new(Transport::Tcp { host, port }, export)
    }

    /// The URI of an export over a Unix domain socket. A `path` that begins with
    /// `NUL` is a name in the abstract namespace.
    ///
    /// # Errors
    ///
    /// [`UriError::SocketMissing`] if `path` is empty, [`UriError::Nul`] if it
    /// has a `NUL` after other bytes, [`UriError::Nul`] or
    /// [`UriError::ExportTooLong`] if `export` is invalid; the offset is into
    /// that argument.
    pub fn unix(path: impl Into<Vec<u8>>, export: &str) -> Result<Self, UriError> {
        let path = path.into();
        parse::check_socket(&path, |index| index)?;
        Self::new(Transport::Unix { path }, export)
    }

    fn new(transport: Transport, export: &str) -> Result<Self, UriError> {
        parse::check_export(export.as_bytes(), |index| index)?;
        Ok(Self {
            tls_required: false,
            transport,
            user: None,
            export: String::from(export),
            tls: Tls::default(),
            others: Vec::new(),
        })
    }

    /// The same URI for another export of the same server.
    ///
    /// # Errors
    ///
    /// [`UriError::Nul`] or [`UriError::ExportTooLong`], with an offset into
    /// `export`.
    pub fn with_export(mut self, export: &str) -> Result<Self, UriError> {
        parse::check_export(export.as_bytes(), |index| index)?;
        self.export = String::from(export);
        Ok(self)
    }

    /// The same URI with the scheme that requires TLS.
    #[must_use]
    pub fn require_tls(mut self) -> Self {
        self.tls_required = true;
        self
    }

    /// How the client connects to the server.
    #[must_use]
    pub const fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Whether the scheme requires TLS (`nbds`). If so, a client must not
    /// continue without TLS. Otherwise it may use TLS if the server supports
    /// it; an attacker between client and server can then prevent TLS.
    #[must_use]
    pub const fn tls_required(&self) -> bool {
        self.tls_required
    }

    /// The export name; empty for the default export. It has at most 4096 bytes
    /// and no `NUL`.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The part before the `@`, decoded. NBD has no passwords: a colon is part
    /// of the name.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// `tls-type`: how to authenticate.
    #[must_use]
    pub const fn tls_type(&self) -> Option<TlsType> {
        self.tls.kind
    }

    /// `tls-hostname`: the name to expect in the server's certificate, if it is
    /// not the host.
    #[must_use]
    pub fn tls_hostname(&self) -> Option<&str> {
        self.tls.hostname.as_deref()
    }

    /// `tls-verify-peer`: whether to verify the identity of the server. The
    /// default is true.
    #[must_use]
    pub fn tls_verify_peer(&self) -> bool {
        self.tls.verify_peer.unwrap_or(true)
    }

    /// `tls-certificates`: the path of a directory of certificates, in bytes.
    ///
    /// The author of the URI chose the path: do not open it if the URI is not
    /// trusted.
    #[must_use]
    pub fn tls_certificates(&self) -> Option<&[u8]> {
        self.tls.certificates.as_deref()
    }

    /// `tls-psk-file`: the path of a file of keys, in bytes.
    ///
    /// The author of the URI chose the path: do not open it if the URI is not
    /// trusted.
    #[must_use]
    pub fn tls_psk_file(&self) -> Option<&[u8]> {
        self.tls.psk_file.as_deref()
    }

    /// `tls-username`: the user name for TLS; by default [`user`](Self::user).
    #[must_use]
    pub fn tls_username(&self) -> Option<&str> {
        self.tls.username.as_deref().or(self.user())
    }

    /// `tls-priority`: the algorithms to offer, in the notation of the TLS
    /// library.
    #[must_use]
    pub fn tls_priority(&self) -> Option<&str> {
        self.tls.priority.as_deref()
    }

    /// Unknown parameters, as decoded keys and values in order. A program should
    /// report each to its user, who may have misspelled it.
    pub fn unknown_parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others()
            .filter(|(key, _)| !key.starts_with(EXPERIMENTAL))
    }

    /// Parameters whose key begins with `x-`, as decoded keys and values in
    /// order. A program may ignore them.
    pub fn experimental_parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others()
            .filter(|(key, _)| key.starts_with(EXPERIMENTAL))
    }

    fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl FromStr for Uri {
    type Err = UriError;

    /// The same as [`Uri::parse`].
    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}
