//! The host of a URI: a name or an address.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use std::string::String;

use super::UriError;

/// The host of a server: a name to resolve, or an address.
///
/// [`FromStr`] and [`Display`](fmt::Display) use the form that resolvers accept:
/// no brackets, no percent-encoding. That is not the form in a URI.
///
/// The host of a parsed URI never begins with `-`. It has no spaces, no control
/// characters, and no punctuation but `-._~`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, percent-decoded; case is kept.
    Name(String),
    /// An IPv4 address, written as four decimal numbers.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6 {
        /// The address.
        address: Ipv6Addr,
        /// The zone, such as `eth0` in `fe80::1%eth0`: the network interface
        /// of a link-local address.
        zone: Option<String>,
    },
}

impl Host {
    /// The host of a URI that has none.
    pub(super) fn localhost() -> Self {
        Self::Name(String::from("localhost"))
    }

    /// Checks that the host is valid in a URI. A name that is an address becomes
    /// that address.
    pub(super) fn into_checked(self) -> Result<Self, UriError> {
        match self {
            Self::Name(name) => name.parse(),
            Self::Ipv6 {
                zone: Some(zone),
                address,
            } => {
                check_name(&zone, |index| index)?;
                let zone = Some(zone);
                Ok(Self::Ipv6 { address, zone })
            }
            host => Ok(host),
        }
    }
}

/// Checks the name of a host or of a zone. `locate` maps an offset in the name
/// to the offset to report.
///
/// A list of valid characters is safer than a list of the characters that are
/// known to mislead a resolver, a shell or an argument parser.
pub(super) fn check_name(name: &str, locate: impl Fn(usize) -> usize) -> Result<(), UriError> {
    match name.chars().next() {
        None => return Err(UriError::Host { at: locate(0) }),
        Some('-') => return Err(UriError::LeadingDash { at: locate(0) }),
        Some(_) => {}
    }
    let invalid = name.char_indices().find(|&(_, c)| match c {
        '-' | '.' | '_' | '~' => false,
        c if c.is_ascii() => !c.is_ascii_alphanumeric(),
        c => c.is_control() || c.is_whitespace(),
    });
    match invalid {
        Some((index, _)) => Err(UriError::Host { at: locate(index) }),
        None => Ok(()),
    }
}

impl FromStr for Host {
    type Err = UriError;

    /// Parses a name, an IPv4 address, or an IPv6 address with or without
    /// `%zone`, without percent-encoding.
    ///
    /// # Errors
    ///
    /// [`UriError::LeadingDash`] or [`UriError::Host`], with an offset into
    /// `text`.
    fn from_str(text: &str) -> Result<Self, UriError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        if let Some((address, zone)) = text.split_once('%')
            && let Ok(address) = address.parse()
        {
            check_name(zone, |index| index)?;
            let zone = Some(String::from(zone));
            return Ok(Self::Ipv6 { address, zone });
        }
        check_name(text, |index| index)?;
        Ok(Self::Name(String::from(text)))
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<Ipv4Addr> for Host {
    fn from(address: Ipv4Addr) -> Self {
        Self::Ipv4(address)
    }
}

impl From<Ipv6Addr> for Host {
    fn from(address: Ipv6Addr) -> Self {
        let zone = None;
        Self::Ipv6 { address, zone }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ipv4(address) => address.fmt(f),
            Self::Ipv6 {
                address,
                zone: None,
            } => address.fmt(f),
            Self::Ipv6 {
                address,
                zone: Some(zone),
            } => write!(f, "{address}%{zone}"),
        }
    }
}
