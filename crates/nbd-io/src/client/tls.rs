//! TLS by rustls: the options, and the parameters of a URI.

use std::path::Path;
use std::sync::Arc;

use nbd_codec::uri::{TlsType, Transport, Uri};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::{Error, Options, system};

/// TLS as the options want it.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// What one connection needs.
pub(crate) struct Session {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

impl Options {
    /// The configuration of TLS for `nbds` URIs, and for streams of the caller, where TLS is
    /// then required.
    ///
    /// `name` is what the certificate of the server has to be valid for. With `None` it is
    /// the parameter `tls-hostname` or the host of the URI. Without this, an `nbds` URI needs
    /// the parameter `tls-certificates` and [`allow_local_files`](Self::allow_local_files).
    pub fn tls(mut self, config: Arc<ClientConfig>, name: Option<ServerName<'static>>) -> Self {
        self.tls = Some(Tls { config, name });
        self
    }
}

impl Tls {
    /// `host` is the name to expect if the options have none.
    pub(crate) fn session(&self, host: Option<&str>) -> Result<Session, Error> {
        let name = match (&self.name, host) {
            (Some(name), _) => name.clone(),
            (None, Some(host)) => server_name(host)?,
            (None, None) => return Err(tls("the name of the server is not known")),
        };
        let config = self.config.clone();
        Ok(Session { config, name })
    }
}

/// What the connection for an `nbds` URI needs.
pub(crate) fn for_uri(uri: &Uri, options: &Options) -> Result<Session, Error> {
    let host = match uri.transport() {
        Transport::Tcp { host, .. } => Some(host.to_string()),
        _ => None,
    };
    let host = uri.tls_hostname().or(host.as_deref());
    if let Some(tls) = &options.tls {
        return tls.session(host);
    }
    match uri.tls_type() {
        None | Some(TlsType::X509) => {}
        Some(_) => return Err(Error::Unsupported("`tls-type` other than x509")),
    }
    if !uri.tls_verify_peer() {
        return Err(Error::Unsupported("`tls-verify-peer=false`"));
    }
    if uri.tls_priority().is_some() {
        return Err(Error::Unsupported("`tls-priority`"));
    }
    let folder = uri.tls_certificates().ok_or_else(|| {
        tls("neither the options nor the URI have certificates; set `Options::tls`")
    })?;
    if !options.local_files {
        return Err(tls(
            "the URI names local files; set `Options::allow_local_files` if it is trusted",
        ));
    }
    let config = from_folder(&system::path(folder)?)?;
    let name = server_name(host.unwrap_or("localhost"))?;
    let config = Arc::new(config);
    Ok(Session { config, name })
}

/// The configuration from a folder in the layout of QEMU, libnbd and nbdkit.
fn from_folder(folder: &Path) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    let path = folder.join("ca-cert.pem");
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(|error| at(&path, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error.to_string()))?
        .with_root_certificates(roots);
    let path = folder.join("client-cert.pem");
    if !path.exists() {
        return Ok(config.with_no_client_auth());
    }
    let chain = certificates(&path)?;
    let path = folder.join("client-key.pem");
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| at(&path, error))?;
    let config = config.with_client_auth_cert(chain, key);
    config.map_err(|error| at(&path, error))
}

/// The certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(at(path, "no certificate")),
        all => all.map_err(|error| at(path, error)),
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.to_owned()).map_err(|error| tls(&format!("{host}: {error}")))
}

fn at(path: &Path, error: impl std::fmt::Display) -> Error {
    tls(&format!("{}: {error}", path.display()))
}

fn tls(text: &str) -> Error {
    Error::Tls(text.into())
}
