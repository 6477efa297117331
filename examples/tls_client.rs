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
use nbd_codec::{Limits, Negotiated, Step};
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
    let (mut stream, negotiated) = connect(&mut tcp, tls, export)?;
    copy(&mut stream, negotiated, &mut io::stdout())?;
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
    export: &str,
) -> Result<(Tls<'t>, Negotiated), Error> {
    let mut machine = Connector::new(Config::new(export).require_tls())?;
    // The state machine ensures this: without TLS there is no `Ready`.
    if negotiate(&mut machine, tcp)? != Turn::StartTls {
        return Err("the server has not started TLS".into());
    }
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(tcp) {
            // The session has failed, even if this succeeds.
            machine.tls_failed();
            return Err(error.into());
        }
    }
    // The certificate is valid: otherwise rustls has failed the handshake.
    machine.tls_established()?;
    let mut stream = StreamOwned::new(tls, tcp);
    negotiate(&mut machine, &mut stream)?;
    let negotiated = machine.into_negotiated().map_err(|_| "not ready")?;
    Ok((stream, negotiated))
}

#[derive(PartialEq)]
enum Turn {
    StartTls,
    Ready,
}

/// Continues the handshake, in plain text or under TLS. It reads exactly, so that
/// nothing is left in the inbox at the end.
fn negotiate(machine: &mut Connector<'_>, stream: &mut (impl Read + Write)) -> Result<Turn, Error> {
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let mut out = Vec::new();
    loop {
        match inbox.receive(machine)? {
            Step::Event(ConnectEvent::Ready) => return Ok(Turn::Ready),
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::StartTls => return Ok(Turn::StartTls),
            Step::Transmit => drop(machine.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        stream.flush()?;
        out.clear();
    }
}

/// Reads the whole export, one command at a time.
fn copy(
    stream: &mut (impl Read + Write),
    negotiated: Negotiated,
    to: &mut impl Write,
) -> Result<(), Error> {
    let size = negotiated.size;
    let most = u64::from(negotiated.constraints().maximum).min(1 << 20);
    let mut machine = Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT);
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let mut data = Vec::new();
    let mut start = 0;
    while start < size {
        let length = most.min(size - start);
        data.resize(length as usize, 0);
        let header = machine.submit(Request::read(start, length))?;
        stream.write_all(header.as_bytes())?;
        stream.flush()?;
        loop {
            match inbox.receive(&mut machine)? {
                Step::Event(TransmissionEvent::Done { result, .. }) => break result?,
                Step::Event(_) => {}
                Step::Content(content) => assert!(content.copy_to(start, &mut data)),
                Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
                Step::ReadPayload { offset, length, .. } => {
                    let at = (offset - start) as usize;
                    stream.read_exact(&mut data[at..][..length as usize])?;
                    machine.advance(length)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
        to.write_all(&data)?;
        start += length;
    }
    Ok(stream.write_all(machine.disconnect()?.as_bytes())?)
}
