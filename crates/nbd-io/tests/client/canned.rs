//! A server within the test, that does to a request what the test says.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_codec::inbox::Inbox;
use nbd_codec::server::{Config, Export, Handshake, HandshakeEvent};
use nbd_codec::server::{Request, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Limits, SessionError, Step};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What the server does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Answer,
    Fail(ErrorValue),
    /// The header of the answer to a read repeats another offset.
    OtherOffset,
    /// No answer is ever sent.
    Ignore,
    /// The connection is closed instead of an answer.
    Close,
    /// The request is done, and the connection is closed instead of an answer.
    DoAndClose,
    /// A write is done and answered later: when no other request has come for a while.
    Delay,
}

/// Decides by the number of the connection, which counts from zero, and the request.
type Decide = dyn Fn(usize, &Request) -> Act + Send + Sync;

/// A running server. It goes on until the test ends.
pub struct Server {
    folder: TempDir,
    pub disk: Arc<Mutex<Vec<u8>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// A server of `size` bytes.
    pub fn start(
        size: usize,
        decide: impl Fn(usize, &Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::with_blocks(1, size, decide)
    }

    /// A server of `size` bytes in blocks of at least `minimum` bytes.
    pub fn with_blocks(
        minimum: u32,
        size: usize,
        decide: impl Fn(usize, &Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let disk = Arc::new(Mutex::new(vec![0; size]));
        let connections = Arc::new(AtomicUsize::new(0));
        let decide: Arc<Decide> = Arc::new(decide);
        let (shared, count) = (disk.clone(), connections.clone());
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (disk, decide) = (shared.clone(), decide.clone());
                thread::spawn(move || {
                    let _ = serve(&mut stream, minimum, &disk, |request| {
                        decide(number, request)
                    });
                });
            }
        });
        Self {
            folder,
            disk,
            connections,
        }
    }

    pub fn uri(&self) -> String {
        let socket = self.folder.path().join("socket");
        format!("nbd+unix:///?socket={}", socket.display())
    }
}

fn serve(
    stream: &mut UnixStream,
    minimum: u32,
    disk: &Mutex<Vec<u8>>,
    decide: impl Fn(&Request) -> Act,
) -> io::Result<()> {
    let size = disk.lock().expect("a disk").len();
    let flags = TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_RESIZE
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::CAN_MULTI_CONN;
    let mut export = Export::new("", size as u64, flags);
    export.block_sizes.minimum = minimum;
    let mut inbox = Inbox::new(vec![0; 65536]);
    let mut handshake = Handshake::new(Config::new())?;
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut handshake)? {
            Step::Event(HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query)) => {
                handshake.grant(&query, &export, &mut out)?;
            }
            Step::Event(HandshakeEvent::Ready { .. }) => break,
            Step::Event(_) => {}
            Step::Transmit => drop(handshake.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::Finished => return Ok(()),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
    let negotiated = handshake.into_negotiated().map_err(SessionError::from)?;
    let mut session = Transmission::new(negotiated, Limits::DEFAULT)?;
    let (mut start, mut payload) = (0, Vec::new());
    let mut delayed = Vec::new();
    loop {
        match inbox.receive(&mut session)? {
            Step::Event(TransmissionEvent::WritePayload { offset, length, .. }) => {
                (start, payload) = (offset, vec![0; length as usize]);
            }
            Step::Content(data) => assert!(data.copy_to(start, &mut payload)),
            Step::Event(TransmissionEvent::Request(request)) => {
                let act = decide(&request);
                match act {
                    Act::Answer | Act::DoAndClose | Act::OtherOffset => {}
                    Act::Close => return Ok(()),
                    Act::Fail(error) => {
                        request.fail(error, "as the test says").encode(&mut out)?;
                        stream.write_all(&out)?;
                        out.clear();
                        continue;
                    }
                    Act::Ignore => continue,
                    Act::Delay => {
                        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
                        if let Request::Write(write) = request {
                            delayed.push((write, start, payload.clone()));
                        }
                        continue;
                    }
                }
                let mut disk = disk.lock().expect("a disk");
                match request {
                    Request::Read(read) => {
                        let start = read.offset() as usize;
                        let end = start + read.length() as usize;
                        let at = out.len() + 16;
                        out.extend_from_slice(read.data().as_bytes());
                        if act == Act::OtherOffset {
                            out[at] ^= 1;
                        }
                        out.extend_from_slice(&disk[start..end]);
                    }
                    Request::Write(write) => {
                        disk[start as usize..][..payload.len()].copy_from_slice(&payload);
                        write.succeed().encode(&mut out)?;
                    }
                    Request::Flush(flush) => drop(flush.succeed().encode(&mut out)?),
                    Request::Resize(resize) => {
                        disk.resize(resize.size() as usize, 0);
                        session.resized(resize).encode(&mut out)?;
                    }
                    other => drop(other.fail(ErrorValue::EINVAL, "").encode(&mut out)?),
                }
                if act == Act::DoAndClose {
                    return Ok(());
                }
            }
            Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                // The export was resized on another connection.
                if disk.lock().expect("a disk").len() != size {
                    return Ok(());
                }
                reply.encode(&mut out)?;
            }
            Step::Event(_) => {}
            Step::Read(_) | Step::ReadPayload { .. } => match stream.read(inbox.space()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    for (write, start, data) in delayed.drain(..) {
                        let mut disk = disk.lock().expect("a disk");
                        disk[start as usize..][..data.len()].copy_from_slice(&data);
                        write.succeed().encode(&mut out)?;
                    }
                }
                n => inbox.filled(n?)?,
            },
            Step::Finished => return Ok(()),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
}

/// The handshake of a server that does nothing after it.
pub async fn handshake_only(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let export = Export::new("", 1 << 20, TransmissionFlags::SEND_FLUSH);
    let mut inbox = Inbox::new(vec![0; 65536]);
    let mut handshake = Handshake::new(Config::new()).expect("a configuration");
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut handshake).expect("a step") {
            Step::Event(HandshakeEvent::Export(query)) => {
                handshake.grant(&query, &export, &mut out).expect("a grant");
            }
            Step::Event(HandshakeEvent::Ready { .. }) => return,
            Step::Transmit => drop(handshake.transmit(&mut out).expect("a message")),
            Step::Read(_) => {
                let n = stream.read(inbox.space()).await.expect("a message");
                inbox.filled(n).expect("space");
            }
            other => panic!("{other:?}"),
        }
        stream.write_all(&out).await.expect("written");
        out.clear();
    }
}
