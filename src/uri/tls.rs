//! The TLS parameters of a URI.

use std::{string::String, vec::Vec};

/// `tls-type`: how the client and the server authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsType {
    /// No authentication.
    Anon,
    /// X.509 certificates.
    X509,
    /// A pre-shared key.
    Psk,
}

impl TlsType {
    pub(super) const ALL: [Self; 3] = [Self::Anon, Self::X509, Self::Psk];

    /// The value of the parameter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::X509 => "x509",
            Self::Psk => "psk",
        }
    }
}

/// The value of each parameter whose key begins with `tls-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Tls {
    pub(super) kind: Option<TlsType>,
    pub(super) hostname: Option<String>,
    pub(super) verify_peer: Option<bool>,
    pub(super) certificates: Option<Vec<u8>>,
    pub(super) psk_file: Option<Vec<u8>>,
    pub(super) username: Option<String>,
    pub(super) priority: Option<String>,
}
