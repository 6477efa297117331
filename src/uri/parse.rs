//! From text to [`Uri`], in one pass over each part.

use core::net::Ipv6Addr;
use std::{string::String, vec::Vec};

use super::host::check_name;
use super::percent::{Decoded, Part, in_name, in_path, in_query, in_user, unreserved};
use super::tls::{Tls, TlsType};
use super::transport::{DEFAULT_PORT, HOST_CID, Transport};
use super::{Host, Uri, UriError};
use crate::wire::text::MAX_TEXT;

/// The transport of a scheme, after the `+`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Vsock,
    Ssh,
}

pub(super) fn parse(text: &[u8]) -> Result<Uri, UriError> {
    let (scheme, rest) = Part::whole(text).cut(b':');
    let missing = UriError::Scheme { at: scheme.at };
    let (tls_required, kind) = parse_scheme(scheme).ok_or(missing)?;
    let rest = rest.ok_or(missing)?;
    // A `#` always begins a fragment, so this error comes before all others.
    if let (before, Some(_)) = rest.cut(b'#') {
        let at = before.skip(before.text.len()).at;
        return Err(UriError::Fragment { at });
    }
    if !rest.text.starts_with(b"//") {
        return Err(UriError::Slashes { at: rest.at });
    }
    let (hierarchy, query) = rest.skip(2).cut(b'?');
    let (authority, _) = hierarchy.cut(b'/');
    let path = hierarchy.skip(authority.text.len()).skip(1);

    let (user, host) = match authority.cut(b'@') {
        (user, Some(host)) => (parse_user(user, kind)?, host),
        (host, None) => (None, host),
    };
    // Only the query of a Unix URI says where the socket is.
    let transport = parse_transport(host, kind)?;
    let export = path.decode(in_path)?;
    check_export(&export.bytes, |index| export.locate(index))?;
    let mut uri = Uri {
        tls_required,
        transport,
        user,
        export: export.into_text()?,
        tls: Tls::default(),
        others: Vec::new(),
    };
    let socket = parse_query(&mut uri, query, kind)?;
    if let Transport::Unix { path } = &mut uri.transport {
        *path = socket.ok_or(UriError::SocketMissing { at: text.len() })?;
    }
    Ok(uri)
}

fn parse_scheme(scheme: Part<'_>) -> Option<(bool, Kind)> {
    let (base, suffix) = scheme.cut(b'+');
    let tls = if base.text.eq_ignore_ascii_case(b"nbd") {
        false
    } else if base.text.eq_ignore_ascii_case(b"nbds") {
        true
    } else {
        return None;
    };
    let kind = match suffix {
        None => Kind::Tcp,
        Some(suffix) if suffix.text.eq_ignore_ascii_case(b"unix") => Kind::Unix,
        Some(suffix) if suffix.text.eq_ignore_ascii_case(b"vsock") => Kind::Vsock,
        Some(suffix) if suffix.text.eq_ignore_ascii_case(b"ssh") => Kind::Ssh,
        Some(_) => return None,
    };
    Some((tls, kind))
}

/// An empty user name is the same as none.
fn parse_user(part: Part<'_>, kind: Kind) -> Result<Option<String>, UriError> {
    let user = part.decode(in_user)?.into_text()?;
    if kind == Kind::Ssh && user.starts_with('-') {
        // On a command line, `-x@host` is an option, like `-x`.
        return Err(UriError::LeadingDash { at: part.at });
    }
    Ok(Some(user).filter(|user| !user.is_empty()))
}

fn parse_transport(authority: Part<'_>, kind: Kind) -> Result<Transport, UriError> {
    Ok(match kind {
        Kind::Tcp => {
            let (host, port) = parse_host_port(authority)?;
            let port = port.unwrap_or(DEFAULT_PORT);
            Transport::Tcp { host, port }
        }
        Kind::Ssh => {
            let (host, port) = parse_host_port(authority)?;
            Transport::Ssh { host, port }
        }
        Kind::Vsock => {
            let (cid, port) = authority.cut(b':');
            let cid = parse_number(cid, UriError::Cid { at: cid.at })?;
            Transport::Vsock {
                cid: cid.unwrap_or(HOST_CID),
                port: parse_port(port)?.unwrap_or(DEFAULT_PORT.into()),
            }
        }
        Kind::Unix if authority.is_empty() => Transport::Unix { path: Vec::new() },
        Kind::Unix => return Err(UriError::UnixAuthority { at: authority.at }),
    })
}

fn parse_host_port(authority: Part<'_>) -> Result<(Host, Option<u16>), UriError> {
    let (host, port) = if authority.text.starts_with(b"[") {
        let (literal, after) = authority.skip(1).cut(b']');
        let after = after.ok_or(UriError::Host { at: authority.at })?;
        let port = match after.cut(b':') {
            (between, port) if between.is_empty() => port,
            (between, _) => return Err(UriError::Host { at: between.at }),
        };
        (parse_ipv6(literal)?, port)
    } else {
        let (name, port) = authority.cut(b':');
        (parse_name(name)?, port)
    };
    let at = port.map_or(authority.at, |port| port.at);
    let port = parse_port(port)?.map(u16::try_from);
    let port = port.transpose().map_err(|_| UriError::Port { at })?;
    Ok((host, port))
}

/// The inside of the brackets: an address, and perhaps `%25` and a zone.
fn parse_ipv6(literal: Part<'_>) -> Result<Host, UriError> {
    let (address, zone) = literal.cut(b'%');
    let address: Ipv6Addr = core::str::from_utf8(address.text)
        .ok()
        .and_then(|address| address.parse().ok())
        .ok_or(UriError::Host { at: literal.at })?;
    let Some(zone) = zone else {
        return Ok(address.into());
    };
    // The percent sign before the zone is itself percent-encoded. Otherwise
    // `%ea` could be an encoded byte or a zone.
    let at = zone.at.saturating_sub(1);
    if !zone.text.starts_with(b"25") {
        return Err(UriError::Escape { at });
    }
    let zone = parse_checked_name(zone.skip(2), unreserved)?;
    let zone = Some(zone);
    Ok(Host::Ipv6 { address, zone })
}

fn parse_name(part: Part<'_>) -> Result<Host, UriError> {
    if part.is_empty() {
        return Ok(Host::localhost());
    }
    let name = parse_checked_name(part, in_name)?;
    Ok(match name.parse() {
        Ok(address) => Host::Ipv4(address),
        Err(_) => Host::Name(name),
    })
}

/// Checks the name after decoding, so that percent-encoding hides no character.
fn parse_checked_name(part: Part<'_>, plain: fn(u8) -> bool) -> Result<String, UriError> {
    let decoded = part.decode(plain)?;
    let valid = core::str::from_utf8(&decoded.bytes);
    if let Ok(name) = valid {
        check_name(name, |index| decoded.locate(index))?;
    }
    decoded.into_text()
}

fn parse_port(part: Option<Part<'_>>) -> Result<Option<u32>, UriError> {
    match part {
        Some(part) => parse_number(part, UriError::Port { at: part.at }),
        None => Ok(None),
    }
}

/// A decimal number; `None` if it is empty, which RFC 3986 allows for a port.
fn parse_number(part: Part<'_>, error: UriError) -> Result<Option<u32>, UriError> {
    if part.is_empty() {
        return Ok(None);
    }
    let number = part.text.iter().try_fold(0_u32, |number, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit)
    });
    number.map(Some).ok_or(error)
}

/// Checks the protocol's rules for an export name but UTF-8. `locate` maps an
/// offset in the name to the offset to report.
pub(super) fn check_export(name: &[u8], locate: impl Fn(usize) -> usize) -> Result<(), UriError> {
    if name.len() > MAX_TEXT {
        let at = locate(MAX_TEXT);
        return Err(UriError::ExportTooLong { at });
    }
    match name.iter().position(|&byte| byte == 0) {
        Some(index) => Err(UriError::Nul { at: locate(index) }),
        None => Ok(()),
    }
}

/// Checks the path of a socket in the same way. An abstract name, after a
/// leading `NUL`, may have any bytes.
pub(super) fn check_socket(path: &[u8], locate: impl Fn(usize) -> usize) -> Result<(), UriError> {
    match path.iter().position(|&byte| byte == 0) {
        _ if path.is_empty() => Err(UriError::SocketMissing { at: locate(0) }),
        None | Some(0) => Ok(()),
        Some(index) => Err(UriError::Nul { at: locate(index) }),
    }
}

/// Parses the parameters into `uri`, except `socket`, which is returned.
fn parse_query(
    uri: &mut Uri,
    query: Option<Part<'_>>,
    kind: Kind,
) -> Result<Option<Vec<u8>>, UriError> {
    let mut socket = None;
    let mut rest = query;
    while let Some(part) = rest {
        let (pair, next) = part.cut(b'&');
        rest = next;
        if pair.is_empty() {
            continue;
        }
        let (key, value) = pair.cut(b'=');
        let value = value.unwrap_or(pair.skip(pair.text.len()));
        let at = key.at;
        let key = key.decode(in_query)?.into_text()?;
        let decoded = value.decode(in_query)?;
        let tls = &mut uri.tls;
        match key.as_str() {
            "socket" if kind == Kind::Unix => {
                check_socket(&decoded.bytes, |index| decoded.locate(index))?;
                set(&mut socket, decoded.bytes, at)?;
            }
            // A client that ignored it would connect to another server. For
            // SSH the caller decides what it means.
            "socket" if kind != Kind::Ssh => return Err(UriError::SocketUnexpected { at }),
            "tls-type" => set(&mut tls.kind, parse_tls_type(&decoded, value.at)?, at)?,
            "tls-hostname" => set(&mut tls.hostname, decoded.into_text()?, at)?,
            "tls-verify-peer" => {
                let verify = parse_bool(&decoded.bytes);
                let verify = verify.ok_or(UriError::VerifyPeer { at: value.at })?;
                set(&mut tls.verify_peer, verify, at)?;
            }
            "tls-certificates" => set(&mut tls.certificates, decoded.into_path()?, at)?,
            "tls-psk-file" => set(&mut tls.psk_file, decoded.into_path()?, at)?,
            "tls-username" => set(&mut tls.username, decoded.into_text()?, at)?,
            "tls-priority" => set(&mut tls.priority, decoded.into_text()?, at)?,
            _ => uri.others.push((key, decoded.into_text()?)),
        }
    }
    Ok(socket)
}

fn set<T>(slot: &mut Option<T>, value: T, at: usize) -> Result<(), UriError> {
    match slot.replace(value) {
        Some(_) => Err(UriError::Duplicate { at }),
        None => Ok(()),
    }
}

fn parse_tls_type(value: &Decoded<'_>, at: usize) -> Result<TlsType, UriError> {
    TlsType::ALL
        .into_iter()
        .find(|kind| kind.as_str().as_bytes() == value.bytes)
        .ok_or(UriError::TlsType { at })
}

/// The specification has 0 and 1. Other usual words are not ambiguous.
fn parse_bool(value: &[u8]) -> Option<bool> {
    const TRUE: [&[u8]; 6] = [b"1", b"true", b"t", b"yes", b"y", b"on"];
    const FALSE: [&[u8]; 6] = [b"0", b"false", b"f", b"no", b"n", b"off"];
    let is = |word: &&[u8]| value.eq_ignore_ascii_case(word);
    if TRUE.iter().any(is) {
        Some(true)
    } else if FALSE.iter().any(is) {
        Some(false)
    } else {
        None
    }
}
