//! A server that requires TLS, with rustls and a thread for each client: in plain
//! text it accepts only `STARTTLS`. Clients must present a certificate of the same
//! authority.
//!
//! CERTIFICATES is a folder in the layout of QEMU and nbdkit: `ca-cert.pem`,
//! `server-cert.pem` and `server-key.pem`. SIZE is in bytes.
//!
//! ```text
//! cargo run --example tls_server -- 127.0.0.1:10809 67108864 CERTIFICATES
//! ```

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nbd_codec::inbox::Inbox;
use nbd_codec::server::{Config, Export, Handshake, HandshakeEvent, Request, TlsMode};
use nbd_codec::server::{Transmission, TransmissionEvent};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ErrorValue, OptionReplyType};
use nbd_codec::{Content, Limits, Misuse, Negotiated, Step};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

type Error = Box<dyn std::error::Error>;
type Disk = RwLock<Vec<u8>>;

const EXPORT: &str = "memory";
/// How long the handshake of a client may take, in all.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long to wait if no client can be accepted, for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// How much is read at a time.
const BUFFER: usize = 64 << 10;

fn main() -> Result<(), Error> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, size, folder] = args.as_slice() else {
        return Err("usage: tls_server ADDR:PORT SIZE CERTIFICATES".into());
    };
    let config = Arc::new(config(Path::new(folder))?);
    let disk = Arc::new(Disk::new(vec![0; size.parse()?]));
    let listener = TcpListener::bind(address)?;
    println!("nbds://{}/{EXPORT}", listener.local_addr()?);
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // The client has disconnected already, or there are too many.
            thread::sleep(PAUSE);
            continue;
        };
        let (config, disk) = (Arc::clone(&config), Arc::clone(&disk));
        let served = thread::Builder::new().spawn(move || {
            if let Err(error) = serve(stream, config, &disk) {
                eprintln!("{error}");
            }
        });
        if let Err(error) = served {
            // This client is disconnected, and the others are served.
            eprintln!("cannot start a thread: {error}");
        }
    }
    Ok(())
}

fn config(folder: &Path) -> Result<ServerConfig, Error> {
    // An error names the file.
    let certificates = |name: &str| {
        let path = folder.join(name);
        let read =
            CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(found) if found.is_empty() => Err(format!("{}: no certificate", path.display())),
            Ok(found) => Ok(found),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca-cert.pem")? {
        roots.add(certificate)?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let chain = certificates("server-cert.pem")?;
    let path = folder.join("server-key.pem");
    let key = PrivateKeyDer::from_pem_file(&path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let config = ServerConfig::builder().with_client_cert_verifier(verifier);
    Ok(config.with_single_cert(chain, key)?)
}

/// The NBD handshake, which the TLS handshake interrupts; then transmission.
fn serve(tcp: TcpStream, config: Arc<ServerConfig>, disk: &Disk) -> Result<(), Error> {
    tcp.set_nodelay(true)?;
    let mut tcp = Timed {
        deadline: Some(Instant::now() + HANDSHAKE_TIME),
        tcp,
    };
    let size = disk.read().unwrap_or_else(PoisonError::into_inner).len();
    // Memory needs no flush, so that FUA is kept by every write.
    let flags =
        TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_DF;
    let export = Export::new(
        EXPORT,
        size as u64,
        flags | TransmissionFlags::CAN_MULTI_CONN,
    );
    let mut handshake = Handshake::new(Config::new().tls(TlsMode::Forced))?;
    let mut inbox = Inbox::new(vec![0; BUFFER]);

    if !negotiate(&mut handshake, &mut inbox, &mut tcp, &export)? {
        return Ok(());
    }
    // The inbox is empty here; otherwise the state machine would have failed: plain
    // text after STARTTLS, which an attacker may have injected, must not be handled as
    // if it were protected.
    let mut tls = ServerConnection::new(config)?;
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(&mut tcp) {
            handshake.tls_failed();
            return Err(error.into());
        }
    }
    handshake.tls_established()?;
    let mut stream = StreamOwned::new(tls, tcp);
    negotiate(&mut handshake, &mut inbox, &mut stream, &export)?;
    // The client may have ended the handshake without entering transmission.
    if let Ok(negotiated) = handshake.into_negotiated() {
        stream.sock.deadline = None;
        stream.sock.tcp.set_read_timeout(None)?;
        stream.sock.tcp.set_write_timeout(None)?;
        transmit(&mut stream, &mut inbox, negotiated, disk)?;
    }
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}

/// A socket with a deadline: it is one for the whole handshake, so that a client
/// cannot extend it by sending a byte now and then.
struct Timed {
    tcp: TcpStream,
    deadline: Option<Instant>,
}

impl Timed {
    fn in_time(&self) -> io::Result<&TcpStream> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.tcp.set_read_timeout(Some(left))?;
            self.tcp.set_write_timeout(Some(left))?;
        }
        Ok(&self.tcp)
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.in_time()?.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.in_time()?.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Continues the handshake. Returns whether TLS is to be started; otherwise the
/// handshake is finished.
fn negotiate(
    handshake: &mut Handshake,
    inbox: &mut Inbox<Vec<u8>>,
    stream: &mut (impl Read + Write),
    export: &Export<'_>,
) -> io::Result<bool> {
    let mut out = Vec::new();
    loop {
        match inbox.receive(handshake)? {
            Step::Event(event) => react(handshake, event, export, &mut out)?,
            Step::Transmit => drop(handshake.transmit(&mut out)?),
            Step::Read(_) => read_more(stream, inbox)?,
            Step::StartTls => return Ok(true),
            Step::Finished => return Ok(false),
            other => return Err(other.unexpected().into()),
        }
        send(stream, &mut out)?;
    }
}

/// Answers what the client asks about exports.
fn react(
    handshake: &mut Handshake,
    event: HandshakeEvent<'_>,
    export: &Export<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Misuse> {
    match event {
        HandshakeEvent::List => {
            handshake.list(export, out)?;
            handshake.finish_list(out)?;
        }
        HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
            match query.export() {
                "" | EXPORT => drop(handshake.grant(&query, export, out)?),
                _ => drop(handshake.refuse(OptionReplyType::ERR_UNKNOWN, "no such export", out)?),
            }
        }
        // Ready or aborted: `Step::Finished` follows.
        _ => {}
    }
    Ok(())
}

/// Executes requests, one at a time.
fn transmit(
    stream: &mut (impl Read + Write),
    inbox: &mut Inbox<Vec<u8>>,
    negotiated: Negotiated,
    disk: &Disk,
) -> io::Result<()> {
    let mut session = Transmission::new(negotiated, Limits::DEFAULT)?;
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    loop {
        match inbox.receive(&mut session)? {
            Step::Event(TransmissionEvent::WritePayload { .. }) => payload.clear(),
            Step::Content(Content::Data { data, .. }) => payload.extend(data),
            Step::Event(TransmissionEvent::Request(request)) => {
                answer(request, &payload, disk, &mut out);
            }
            Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                out.extend(reply.parts().concat());
            }
            Step::Event(_) => {} // Disconnect: `Step::Finished` follows.
            // The payload of a write arrives in the inbox, like all else.
            Step::Read(_) | Step::ReadPayload { .. } => {
                stream.flush()?;
                read_more(stream, inbox)?;
            }
            Step::Finished => return Ok(()),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
}

fn answer(request: Request, payload: &[u8], disk: &Disk, out: &mut Vec<u8>) {
    let place = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
    let reply = match request {
        Request::Read(read) => {
            let place = place(read.offset(), read.length().into());
            let disk = disk.read().unwrap_or_else(PoisonError::into_inner);
            out.extend(read.data().as_bytes());
            return out.extend(&disk[place]);
        }
        Request::Write(write) => {
            let place = place(write.offset(), write.length());
            let mut disk = disk.write().unwrap_or_else(PoisonError::into_inner);
            disk[place].copy_from_slice(payload);
            write.succeed()
        }
        Request::Flush(flush) => flush.succeed(),
        // No other command is advertised.
        other => other.fail(ErrorValue::EINVAL, "not advertised"),
    };
    out.extend(reply.parts().concat());
}

/// Reads what is available.
fn read_more(stream: &mut impl Read, inbox: &mut Inbox<Vec<u8>>) -> io::Result<()> {
    let n = stream.read(inbox.space())?;
    Ok(inbox.filled(n)?)
}

/// Sends what is due.
fn send(stream: &mut impl Write, out: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(out)?;
    out.clear();
    stream.flush()
}
