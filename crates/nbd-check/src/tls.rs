//! TLS of the tester. It checks the protocol, not the identity of the server: any
//! certificate is accepted. Without the feature `tls`, TLS cannot be started.

use std::path::Path;

use anyhow::Result;

use crate::stream::Stream;

/// The configuration of TLS.
#[derive(Debug, Clone)]
pub struct Config {
    #[cfg(feature = "tls")]
    client: std::sync::Arc<rustls::ClientConfig>,
}

/// The configuration; `certificates` is a folder with `client-cert.pem` and
/// `client-key.pem`.
///
/// # Errors
///
/// A file cannot be read, or there is no feature `tls` to read it for.
pub fn config(certificates: Option<&Path>) -> Result<Config> {
    #[cfg(feature = "tls")]
    {
        let client = enabled::client(certificates)?;
        Ok(Config { client })
    }
    #[cfg(not(feature = "tls"))]
    {
        anyhow::ensure!(certificates.is_none(), DISABLED);
        Ok(Config {})
    }
}

#[cfg(not(feature = "tls"))]
const DISABLED: &str = "this nbd-check has no TLS: install it with --features tls";

/// Continues within TLS; runs the handshake.
pub(crate) fn start(stream: Stream, config: &Config, name: &str) -> Result<Stream> {
    #[cfg(feature = "tls")]
    {
        enabled::start(stream, &config.client, name)
    }
    #[cfg(not(feature = "tls"))]
    {
        let _ = (stream, config, name);
        anyhow::bail!(DISABLED)
    }
}

#[cfg(feature = "tls")]
mod enabled {
    use std::fs;
    use std::net::Ipv4Addr;
    use std::path::Path;
    use std::sync::Arc;

    use anyhow::{Context, Result, bail};
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error};
    use rustls::{SignatureScheme, StreamOwned};

    use crate::stream::Stream;

    pub(super) fn client(certificates: Option<&Path>) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
        let Some(folder) = certificates else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&read("client-cert.pem")?)
            .collect::<Result<_, _>>()
            .context("client-cert.pem")?;
        let key = PrivateKeyDer::from_pem_slice(&read("client-key.pem")?);
        let key = key.context("client-key.pem")?;
        Ok(Arc::new(builder.with_client_auth_cert(chain, key)?))
    }

    pub(super) fn start(stream: Stream, config: &Arc<ClientConfig>, name: &str) -> Result<Stream> {
        let name = ServerName::try_from(name.to_owned())
            .unwrap_or(ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let client = ClientConnection::new(Arc::clone(config), name)?;
        let mut stream = StreamOwned::new(client, stream);
        while stream.conn.is_handshaking() {
            if let (0, 0) = stream.conn.complete_io(&mut stream.sock)? {
                bail!("the connection ended");
            }
        }
        Ok(Stream::Tls(Box::new(stream)))
    }

    #[derive(Debug)]
    struct AnyServer(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyServer {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let supported = &self.0.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, supported)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let supported = &self.0.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, supported)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
