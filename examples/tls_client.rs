//! A client that requires TLS, with rustls: `STARTTLS` is the first option, and the
//! name of the export is sent only after it. The certificate of the server must be
//! valid for HOST; if the client has a certificate, it is presented.
//!
//! Copies an export to standard output. CERTIFICATES is a folder in the layout of
//! QEMU, libnbd and nbdkit: `ca-cert.pem`, and optionally `client-cert.pem` and
//! `client-key.pem`.
//!
//! ```text
//! cargo run --example tls_client -- HOST:PORT EXPORT CERTIFICATES > disk.img
//! ```

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use nbd_codec::client::{Config, ConnectEvent, Connector};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Limits, Negotiated, SessionError, Step};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, export, folder] = args.as_slice() else {
        return Err("usage: tls_client HOST:PORT EXPORT CERTIFICATES".into());
    };
    let (host, _) = address.rsplit_once(':').ok_or("HOST:PORT is needed")?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let tls = ClientConnection::new(Arc::new(config(Path::new(folder))?), name)?;

    let mut tcp = TcpStream::connect(address)?;
    tcp.set_nodelay(true)?;
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let (mut stream, negotiated) = connect(&mut tcp, tls, &mut inbox, export)?;
    copy(&mut stream, &mut inbox, negotiated, &mut io::stdout())?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}

fn config(folder: &Path) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(folder.join("ca-cert.pem"))? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let own = folder.join("client-cert.pem");
    if !own.exists() {
        return Ok(config.with_no_client_auth());
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(own)?.collect();
    let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem"))?;
    Ok(config.with_client_auth_cert(chain?, key)?)
}

type Tls<'t> = StreamOwned<ClientConnection, &'t mut TcpStream>;

/// The NBD handshake, which the TLS handshake interrupts.
fn connect<'t>(
    tcp: &'t mut TcpStream,
    mut tls: ClientConnection,
    inbox: &mut Inbox<Vec<u8>>,
    export: &str,
) -> io::Result<(Tls<'t>, Negotiated)> {
    let mut connector = Connector::new(Config::new(export).require_tls())?;
    // As TLS is required, this ends with `Step::StartTls` or an error.
    negotiate(&mut connector, inbox, tcp)?;
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(tcp) {
            // The session has failed, even if this succeeds.
            connector.tls_failed();
            return Err(error);
        }
    }
    // The certificate is valid: otherwise rustls has failed the handshake.
    connector.tls_established()?;
    let mut stream = StreamOwned::new(tls, tcp);
    negotiate(&mut connector, inbox, &mut stream)?;
    let negotiated = connector.into_negotiated();
    Ok((stream, negotiated.map_err(|_| SessionError::NotReady)?))
}

/// Continues the handshake, in plain text until TLS is to be started, or under TLS
/// until its end.
fn negotiate(
    connector: &mut Connector<'_>,
    inbox: &mut Inbox<Vec<u8>>,
    stream: &mut (impl Read + Write),
) -> io::Result<()> {
    let (mut out, mut failed) = (Vec::new(), None);
    loop {
        match inbox.receive(connector)? {
            Step::Event(ConnectEvent::Failed { reason, .. }) => failed = Some(reason),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::StartTls | Step::Finished => break,
            other => return Err(other.unexpected().into()),
        }
        send(stream, &mut out)?;
    }
    failed.map_or(Ok(()), |reason| Err(reason.into()))
}

/// Reads the whole export, one command at a time.
fn copy(
    stream: &mut (impl Read + Write),
    inbox: &mut Inbox<Vec<u8>>,
    negotiated: Negotiated,
    to: &mut impl Write,
) -> io::Result<()> {
    let size = negotiated.size;
    let maximum = u64::from(negotiated.constraints().maximum).min(1 << 20);
    let mut session = Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT);
    let mut data = Vec::new();
    let mut start = 0;
    while start < size {
        let length = maximum.min(size - start);
        data.resize(length as usize, 0);
        let header = session.submit(Request::read(start, length))?;
        stream.write_all(header.as_bytes())?;
        stream.flush()?;
        loop {
            match inbox.receive(&mut session)? {
                Step::Event(TransmissionEvent::Done { result, .. }) => {
                    break result.map_err(SessionError::from)?;
                }
                Step::Event(_) => {}
                // The session has checked that it is within the request.
                Step::Content(content) => assert!(content.copy_to(start, &mut data)),
                Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
                Step::ReadPayload { offset, length, .. } => {
                    let place = &mut data[(offset - start) as usize..][..length as usize];
                    stream.read_exact(place)?;
                    session.advance(length)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
        to.write_all(&data)?;
        start += length;
    }
    stream.write_all(session.disconnect()?.as_bytes())
}

/// Sends what is due.
fn send(stream: &mut impl Write, out: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(out)?;
    out.clear();
    stream.flush()
}
