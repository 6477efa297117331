//! The host of a URI.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use std::string::String;

use super::UriError;

/// Where a server is: a name to be resolved, or an address.
///
/// [`FromStr`] and [`Display`](fmt::Display) use the plain form, as a resolver
/// takes it: no brackets, no percent-encoding. They are not for URIs.
///
/// A [`Host`] from a parsed URI never begins with `-` and has no blanks,
/// control characters or punctuation other than `-._~`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, in the spelling of the URI, with no percent-encoding left.
    Name(String),
    /// An IPv4 address in four decimal parts.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6 {
        /// The address.
        address: Ipv6Addr,
        /// The zone, such as `eth0` in `fe80::1%eth0`: the interface through
        /// which a link-local address is reached.
        zone: Option<String>,
    },
}

impl Host {
    /// The host of a URI that names none.
    pub(super) fn localhost() -> Self {
        Self::Name(String::from("localhost"))
    }

    /// The same host if a URI can say it. A name that spells an address
    /// becomes that address.
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

/// Checks the name of a host or of a zone; `locate` turns an offset in the
/// name into one to report.
///
/// A short list of what is allowed, rather than a list of what is known to
/// have misled a resolver, a shell or a program's argument parser.
pub(super) fn check_name(name: &str, locate: impl Fn(usize) -> usize) -> Result<(), UriError> {
    match name.chars().next() {
        None => return Err(UriError::Host { at: locate(0) }),
        Some('-') => return Err(UriError::LeadingDash { at: locate(0) }),
        Some(_) => {}
    }
    let fault = name.char_indices().find(|&(_, c)| match c {
        '-' | '.' | '_' | '~' => false,
        c if c.is_ascii() => !c.is_ascii_alphanumeric(),
        c => c.is_control() || c.is_whitespace(),
    });
    match fault {
        Some((index, _)) => Err(UriError::Host { at: locate(index) }),
        None => Ok(()),
    }
}

impl FromStr for Host {
    type Err = UriError;

    /// Takes a name, an IPv4 address, or an IPv6 address with or without
    /// `%zone`, none of them encoded.
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
            let zone = Some(String::from(zone));
            return Self::Ipv6 { address, zone }.into_checked();
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
