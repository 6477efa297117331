//! From [`Uri`] to text.

use core::fmt;

use super::percent::{Encoded, EncodedPath};
use super::{DEFAULT_PORT, Host, Transport, Uri};

/// A valid URI in ASCII. The default port is omitted. More characters are
/// percent-encoded than the grammar requires, because some programs split
/// values at `;` or decode `+` as a space.
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

impl Uri {
    /// Every parameter in the order of the canonical spelling.
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
