//! The addresses that users write: URIs, and QEMU's spelling from before there were
//! URIs, `nbd:HOST:PORT[:exportname=NAME]` and `nbd:unix:PATH[:exportname=NAME]`.

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::uri::{Host, Uri};

use crate::stderr;

const EXPORT_NAME: &str = ":exportname=";

/// The forms of a URI, for messages.
const FORMS: &str = "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH";

/// Whether a text is the address of an export rather than a file: whether it
/// begins with a scheme of NBD, or has `://` in it. `./nbd:x` is a file.
pub fn is_address(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let scheme = scheme.to_ascii_lowercase();
    let base = scheme.split('+').next().unwrap_or_default();
    text.contains("://") || base == "nbd" || base == "nbds"
}

/// Parses an address, and warns of unknown parameters.
pub fn parse(text: &str) -> Result<Uri> {
    let uri = match text.split_once(':') {
        Some((scheme, rest)) if is_address(text) && !rest.starts_with("//") => {
            if !scheme.eq_ignore_ascii_case("nbd") || rest.starts_with('/') {
                bail!("{text:?} is not an NBD URI; write {scheme}://.., as in {FORMS}");
            }
            qemu(rest).with_context(|| {
                format!("{text:?} is not an address of an export; write {FORMS}")
            })?
        }
        _ => Uri::parse(text).with_context(|| format!("{text:?} is not an NBD URI"))?,
    };
    for (key, _) in uri.unknown_parameters() {
        stderr::warn(format_args!(
            "unknown parameter {key:?} in the URI is ignored"
        ));
    }
    if uri.tls_required() {
        bail!("{uri}: this tool does not support TLS; use nbd:// if plain text is acceptable");
    }
    Ok(uri)
}

/// What follows `nbd:` in QEMU's spelling.
fn qemu(text: &str) -> Result<Uri> {
    let (place, export) = text.split_once(EXPORT_NAME).unwrap_or((text, ""));
    if let Some(path) = place.strip_prefix("unix:") {
        return Ok(Uri::unix(path, export)?);
    }
    let (host, port) = place
        .rsplit_once(':')
        .ok_or_else(|| anyhow!("the port is missing"))?;
    let port = port
        .parse()
        .with_context(|| format!("{port:?} is not a port"))?;
    let address = host.strip_prefix('[');
    let address = address.and_then(|host| host.strip_suffix(']'));
    let host: Host = address.unwrap_or(host).parse()?;
    Ok(Uri::tcp(host, port, export)?)
}
