//! TLS of the tester. It checks the protocol, not the identity of the peer: any
//! certificate of a server is accepted, and none of a client is asked for. Without the
//! feature `tls`, TLS cannot be started.

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

/// The configuration of the scripted server.
#[derive(Debug, Clone)]
pub(crate) struct Acceptor {
    #[cfg(feature = "tls")]
    server: std::sync::Arc<rustls::ServerConfig>,
}

/// The configuration; `certificates` is a folder with `server-cert.pem` and
/// `server-key.pem`.
pub(crate) fn acceptor(certificates: &Path) -> Result<Acceptor> {
    #[cfg(feature = "tls")]
    {
        let server = enabled::server(certificates)?;
        Ok(Acceptor { server })
    }
    #[cfg(not(feature = "tls"))]
    {
        let _ = certificates;
        anyhow::bail!(DISABLED)
    }
}

/// Continues within TLS as the server; runs the handshake.
pub(crate) fn accept(stream: Stream, acceptor: &Acceptor) -> Result<Stream> {
    #[cfg(feature = "tls")]
    {
        enabled::accept(stream, &acceptor.server)
    }
    #[cfg(not(feature = "tls"))]
    {
        let _ = (stream, acceptor);
        anyhow::bail!(DISABLED)
    }
}

/// Continues within TLS as the client; runs the handshake.
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
pub(crate) use enabled::Session;

#[cfg(feature = "tls")]
mod enabled {
    use std::fs;
    use std::io::{self, Read, Write};
    use std::net::Ipv4Addr;
    use std::ops::DerefMut;
    use std::path::Path;
    use std::sync::Arc;

    use anyhow::{Context, Result, bail};
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::{ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, Error};
    use rustls::{ServerConfig, ServerConnection, SideData, SignatureScheme, StreamOwned};

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
        let (chain, key) = read(folder, "client")?;
        Ok(Arc::new(builder.with_client_auth_cert(chain, key)?))
    }

    pub(super) fn server(folder: &Path) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let (chain, key) = read(folder, "server")?;
        Ok(Arc::new(builder.with_single_cert(chain, key)?))
    }

    /// The certificate and the key of a side.
    fn read(
        folder: &Path,
        side: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let read = |what: &str| {
            let path = folder.join(format!("{side}-{what}.pem"));
            let bytes = fs::read(&path);
            bytes.with_context(|| format!("cannot read {}", path.display()))
        };
        let chain: Result<_, _> = CertificateDer::pem_slice_iter(&read("cert")?).collect();
        let chain = chain.with_context(|| format!("{side}-cert.pem"))?;
        let key = PrivateKeyDer::from_pem_slice(&read("key")?);
        Ok((chain, key.with_context(|| format!("{side}-key.pem"))?))
    }

    /// A side of a TLS connection.
    pub(crate) trait Session: Read + Write {
        /// What the records pass through.
        fn transport(&self) -> &Stream;
        /// Sends that nothing follows.
        fn close(&mut self) -> io::Result<()>;
    }

    impl<C, S> Session for StreamOwned<C, Stream>
    where
        C: DerefMut<Target = ConnectionCommon<S>>,
        S: SideData,
    {
        fn transport(&self) -> &Stream {
            &self.sock
        }

        fn close(&mut self) -> io::Result<()> {
            self.conn.send_close_notify();
            self.flush()
        }
    }

    pub(super) fn accept(stream: Stream, config: &Arc<ServerConfig>) -> Result<Stream> {
        handshake(ServerConnection::new(Arc::clone(config))?, stream)
    }

    pub(super) fn start(stream: Stream, config: &Arc<ClientConfig>, name: &str) -> Result<Stream> {
        let name = ServerName::try_from(name.to_owned())
            .unwrap_or(ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()));
        handshake(ClientConnection::new(Arc::clone(config), name)?, stream)
    }

    fn handshake<C, S>(side: C, stream: Stream) -> Result<Stream>
    where
        C: DerefMut<Target = ConnectionCommon<S>> + 'static,
        S: SideData + 'static,
    {
        let mut stream = StreamOwned::new(side, stream);
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
