//! NBD URIs: what a user types to say which export of which server.
//!
//! A URI names a transport, whether TLS is required, an export, and with query
//! parameters the details of TLS. The grammar, on top of RFC 3986:
//!
//! ```text
//! scheme "://" [ user "@" ] [ host ] [ ":" port ] [ "/" export ] [ "?" key "=" value *( "&" key "=" value ) ]
//! ```
//!
//! | scheme | transport | TLS |
//! |---|---|---|
//! | `nbd`, `nbds` | TCP, to `localhost` and port 10809 unless it says others | `nbds` requires it |
//! | `nbd+unix`, `nbds+unix` | the Unix domain socket of the parameter `socket` | `nbds+unix` requires it |
//! | `nbd+vsock`, `nbds+vsock`, `nbd+ssh`, `nbds+ssh` | parsed, so that a program without them can say so | likewise |
//!
//! Schemes ignore case; keys do not. In values `+` is a plus sign and `;`
//! separates nothing. Parsing takes time linear in the length of the text.
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
//! // What to tell people who want to connect to this server:
//! let uri = Uri::unix("/run/nbd.sock", "disk")?;
//! assert_eq!(uri.to_string(), "nbd+unix:///disk?socket=/run/nbd.sock");
//!
//! // What is wrong, where, and what to do about it:
//! let error = Uri::parse("nbd://host/50%").unwrap_err();
//! assert_eq!(error.offset(), 13);
//! # Ok::<(), nbd_codec::uri::UriError>(())
//! ```

mod error;
mod host;
mod parse;
mod percent;

use core::fmt;
use core::str::FromStr;
use std::{string::String, vec::Vec};

pub use error::UriError;
pub use host::Host;
use percent::{Encoded, EncodedPath};

/// The port of an NBD server where a URI gives none.
pub const DEFAULT_PORT: u16 = 10809;

/// The context identifier by which a virtual machine reaches its host.
const HOST_CID: u32 = 2;

/// Keys that begin so are experimental.
const EXPERIMENTAL: &str = "x-";

/// A valid NBD URI, taken apart and decoded.
///
/// [`Display`](fmt::Display) writes it in a canonical spelling, which parses
/// to an equal value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    tls_required: bool,
    transport: Transport,
    user: Option<String>,
    export: String,
    tls: Tls,
    others: Vec<(String, String)>,
}

/// How a URI's server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// A TCP connection.
    Tcp {
        /// The server.
        host: Host,
        /// Its port. 0 is let through, although no server listens there.
        port: u16,
    },
    /// A Unix domain socket.
    Unix {
        /// Its path, never empty. With a `NUL` in front it is a name in
        /// Linux's abstract namespace: see
        /// [`abstract_name`](Self::abstract_name).
        path: Vec<u8>,
    },
    /// A socket between a virtual machine and its host.
    Vsock {
        /// The context identifier of the machine; 2, the host, by default.
        cid: u32,
        /// Its port.
        port: u32,
    },
    /// A tunnel through SSH. What its parameters mean is not standardized:
    /// they are among [`Uri::unknown_parameters`].
    Ssh {
        /// The host to log in to.
        host: Host,
        /// The port, if the URI gives one.
        port: Option<u16>,
    },
}

impl Transport {
    /// The name of a Unix domain socket in the abstract namespace, without the
    /// `NUL` in front; `None` for a socket in the file system and for every
    /// other transport.
    #[must_use]
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match self {
            Self::Unix { path } => path.strip_prefix(b"\0"),
            _ => None,
        }
    }
}

/// How the two sides of a TLS connection authenticate, as in `tls-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsType {
    /// Not at all.
    Anon,
    /// With X.509 certificates.
    X509,
    /// With a key that both sides have.
    Psk,
}

impl TlsType {
    const ALL: [Self; 3] = [Self::Anon, Self::X509, Self::Psk];

    /// The spelling in a URI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::X509 => "x509",
            Self::Psk => "psk",
        }
    }
}

/// What the parameters say of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Tls {
    kind: Option<TlsType>,
    hostname: Option<String>,
    verify_peer: Option<bool>,
    certificates: Option<Vec<u8>>,
    psk_file: Option<Vec<u8>>,
    username: Option<String>,
    priority: Option<String>,
}

impl Uri {
    /// Parses a URI: a `&str`, or bytes such as those of a command line.
    ///
    /// # Errors
    ///
    /// The first thing that is found wrong, and its offset in bytes. URIs with
    /// parameters that are not known are valid: see
    /// [`unknown_parameters`](Self::unknown_parameters).
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, UriError> {
        parse::parse(text.as_ref())
    }

    /// The URI of an export over TCP. A [`Host::Name`] that spells an address
    /// becomes that address.
    ///
    /// # Errors
    ///
    /// If `host` is not valid ([`UriError::Host`], [`UriError::LeadingDash`]),
    /// or `export` has a `NUL` or more than 4096 bytes ([`UriError::Nul`],
    /// [`UriError::ExportTooLong`]); with an offset into that argument.
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

    /// The URI of an export over a Unix domain socket. `path` is in bytes; a
    /// `NUL` in front puts it in the abstract namespace.
    ///
    /// # Errors
    ///
    /// If `path` is empty ([`UriError::SocketMissing`]) or has a `NUL` after
    /// other bytes, or `export` has a `NUL` or more than 4096 bytes
    /// ([`UriError::Nul`], [`UriError::ExportTooLong`]); with an offset into
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
    /// If `export` has a `NUL` or more than 4096 bytes ([`UriError::Nul`],
    /// [`UriError::ExportTooLong`]); with an offset into it.
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

    /// How the server is reached.
    #[must_use]
    pub const fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Whether the scheme requires TLS (`nbds`). If so, a client that cannot
    /// have it has to give up; otherwise it may use TLS if the server offers
    /// it, which does not protect from an attacker who hides the offer.
    #[must_use]
    pub const fn tls_required(&self) -> bool {
        self.tls_required
    }

    /// The export name; empty for the default export. At most 4096 bytes, no
    /// `NUL`.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The part before the `@`, all of it, decoded. NBD has no passwords: a
    /// colon is part of the name.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// `tls-type`: how to authenticate.
    #[must_use]
    pub const fn tls_type(&self) -> Option<TlsType> {
        self.tls.kind
    }

    /// `tls-hostname`: the name to expect in the server's certificate, where it
    /// is not the host.
    #[must_use]
    pub fn tls_hostname(&self) -> Option<&str> {
        self.tls.hostname.as_deref()
    }

    /// `tls-verify-peer`: whether to verify who the server is. True unless the
    /// URI says otherwise.
    #[must_use]
    pub fn tls_verify_peer(&self) -> bool {
        self.tls.verify_peer.unwrap_or(true)
    }

    /// `tls-certificates`: the path of a directory of certificates, in bytes.
    ///
    /// Like [`tls_psk_file`](Self::tls_psk_file) it is a file that whoever
    /// wrote the URI chose: it may be unwise to open it.
    #[must_use]
    pub fn tls_certificates(&self) -> Option<&[u8]> {
        self.tls.certificates.as_deref()
    }

    /// `tls-psk-file`: the path of a file of keys, in bytes.
    #[must_use]
    pub fn tls_psk_file(&self) -> Option<&[u8]> {
        self.tls.psk_file.as_deref()
    }

    /// The user name for TLS: `tls-username`, or else [`user`](Self::user).
    #[must_use]
    pub fn tls_username(&self) -> Option<&str> {
        self.tls.username.as_deref().or(self.user())
    }

    /// `tls-priority`: which algorithms to offer, in the notation of the TLS
    /// library.
    #[must_use]
    pub fn tls_priority(&self) -> Option<&str> {
        self.tls.priority.as_deref()
    }

    /// Parameters that mean nothing here, as decoded keys and values in their
    /// order. A program should tell its user of each: a misspelled parameter
    /// would otherwise go unnoticed.
    pub fn unknown_parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others()
            .filter(|(key, _)| !key.starts_with(EXPERIMENTAL))
    }

    /// Parameters whose key begins with `x-`, as decoded keys and values in
    /// their order. A program may ignore them.
    pub fn experimental_parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others()
            .filter(|(key, _)| key.starts_with(EXPERIMENTAL))
    }

    fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Every parameter, in the order in which they are written.
    fn parameters(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let socket = match &self.transport {
            Transport::Unix { path } => Some(path.as_slice()),
            _ => None,
        };
        let tls = &self.tls;
        let verify = tls.verify_peer.map(|verify| if verify { "1" } else { "0" });
        let known = [
            ("socket", socket),
            ("tls-type", tls.kind.map(|kind| kind.as_str().as_bytes())),
            ("tls-hostname", tls.hostname.as_deref().map(str::as_bytes)),
            ("tls-verify-peer", verify.map(str::as_bytes)),
            ("tls-certificates", tls.certificates.as_deref()),
            ("tls-psk-file", tls.psk_file.as_deref()),
            ("tls-username", tls.username.as_deref().map(str::as_bytes)),
            ("tls-priority", tls.priority.as_deref().map(str::as_bytes)),
        ];
        let known = known
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        known.chain(self.others().map(|(key, value)| (key, value.as_bytes())))
    }
}

impl FromStr for Uri {
    type Err = UriError;

    /// The same as [`Uri::parse`].
    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

/// A valid URI in ASCII. It leaves out a port that is the default, and encodes
/// more than it has to, for readers that split values at `;` or take `+` for a
/// blank.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = if self.tls_required { "nbds" } else { "nbd" };
        let suffix = match self.transport {
            Transport::Tcp { .. } => "",
            Transport::Unix { .. } => "+unix",
            Transport::Vsock { .. } => "+vsock",
            Transport::Ssh { .. } => "+ssh",
        };
        write!(f, "{base}{suffix}://")?;
        if let Some(user) = &self.user {
            write!(f, "{}@", Encoded(user.as_bytes()))?;
        }
        match &self.transport {
            Transport::Tcp { host, port } => {
                write_host(f, host)?;
                write_port(f, Some(*port).filter(|&port| port != DEFAULT_PORT))?;
            }
            Transport::Unix { .. } => {}
            Transport::Vsock { cid, port } => {
                write!(f, "{cid}")?;
                write_port(f, Some(*port).filter(|&port| port != DEFAULT_PORT.into()))?;
            }
            Transport::Ssh { host, port } => {
                write_host(f, host)?;
                write_port(f, *port)?;
            }
        }
        write!(f, "/{}", EncodedPath(self.export.as_bytes()))?;
        for (index, (key, value)) in self.parameters().enumerate() {
            f.write_str(if index == 0 { "?" } else { "&" })?;
            write!(f, "{}={}", EncodedPath(key.as_bytes()), EncodedPath(value))?;
        }
        Ok(())
    }
}

fn write_host(f: &mut fmt::Formatter<'_>, host: &Host) -> fmt::Result {
    match host {
        Host::Name(name) => write!(f, "{}", Encoded(name.as_bytes())),
        Host::Ipv4(address) => write!(f, "{address}"),
        Host::Ipv6 { address, zone } => {
            write!(f, "[{address}")?;
            if let Some(zone) = zone {
                write!(f, "%25{}", Encoded(zone.as_bytes()))?;
            }
            f.write_str("]")
        }
    }
}

fn write_port(f: &mut fmt::Formatter<'_>, port: Option<impl fmt::Display>) -> fmt::Result {
    match port {
        Some(port) => write!(f, ":{port}"),
        None => Ok(()),
    }
}
