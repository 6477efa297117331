//! The TLS handshake of a client.

use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};

use crate::threads::tls::TlsStream;
use crate::threads::{Stream, Timed};

type Accepted = (Arc<dyn Stream>, Vec<CertificateDer<'static>>);

/// The TLS handshake. Returns the stream, and the certificates of the client.
pub(super) fn accept(link: &mut Timed, config: Arc<ServerConfig>) -> io::Result<Accepted> {
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    session.set_buffer_limit(None);
    while session.is_handshaking() {
        session.complete_io(link)?;
    }
    let certificates = session.peer_certificates().unwrap_or_default().to_vec();
    let stream = TlsStream::new(Arc::clone(&link.stream), session.into());
    Ok((Arc::new(stream), certificates))
}
