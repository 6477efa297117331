//! A device that has everything, servers in this process, and a client.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nbd_codec::client::{Config as ClientConfig, ConnectEvent, Connector};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::wire::number::{Command, Cookie};
use nbd_codec::wire::request::CompactRequest;
use nbd_codec::{Framing, Limits, Negotiated, Step};
use nbd_io::server::{
    Bytes, Config, Device, Export, Exports, Extents, MetaContext, ReadReply, Server, chunks,
};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
const PAGE: u32 = 4096;

/// Sparse memory that offers everything; one context beside `base:allocation`, of
/// 64 bits.
pub struct Disk {
    size: AtomicU64,
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// How many times each was called.
    pub flushes: AtomicU64,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self {
            size: size.into(),
            pages: Mutex::default(),
            flushes: AtomicU64::new(0),
        }
    }

    fn change(&self, offset: u64, length: u64, mut change: impl FnMut(&mut [u8])) {
        let mut pages = self.pages.lock().unwrap();
        for (page, part) in chunks(offset, length, PAGE) {
            let page = pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
            change(&mut page[part]);
        }
    }
}

impl Device for Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        let pages = self.pages.lock().unwrap();
        for (page, part) in chunks(offset, reply.remaining() as u64, PAGE) {
            match pages.get(&page) {
                Some(page) => reply.put(&page[part]),
                None => reply.put_hole(part.len()),
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, mut data: Bytes) -> io::Result<()> {
        self.change(offset, data.len() as u64, |part| {
            part.copy_from_slice(&data.split_to(part.len()));
        });
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut pages = self.pages.lock().unwrap();
        for (page, part) in chunks(offset, length, PAGE) {
            if part.len() == PAGE as usize {
                pages.remove(&page);
            }
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        self.change(offset, length, |part| part.fill(0));
        if may_trim {
            self.trim(offset, length).await
        } else {
            Ok(())
        }
    }

    async fn write_zeroes_fast(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        if may_trim {
            self.write_zeroes(offset, length, true).await
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    async fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    async fn resize(&self, size: u64) -> io::Result<()> {
        self.size.store(size, Ordering::SeqCst);
        let end = size.div_ceil(PAGE.into());
        self.pages.lock().unwrap().split_off(&end);
        Ok(())
    }

    async fn block_status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> io::Result<()> {
        let pages = self.pages.lock().unwrap();
        chunks(offset, length, PAGE).all(|(page, part)| {
            let length = part.len() as u64;
            match (context, pages.contains_key(&page)) {
                ("base:allocation", true) => extents.push_data(length),
                ("base:allocation", false) => extents.push_hole(length),
                (_, data) => extents.push(length, u64::from(data) << 40),
            }
        });
        Ok(())
    }

    fn contexts(&self) -> &[MetaContext<'_>] {
        const {
            &[
                MetaContext::narrow("base:allocation"),
                MetaContext::wide("test:data"),
            ]
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    Tokio,
    Threads,
}

pub const FACES: [Face; 2] = [Face::Tokio, Face::Threads];

/// A server on a Unix socket.
pub struct Running {
    pub server: Server,
    folder: TempDir,
    /// That of its threads.
    name: String,
    listening: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(face: Face, exports: Exports, config: Config) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::new(exports, config);
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let own = server.clone();
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let name = format!("server-{}", STARTED.fetch_add(1, Ordering::SeqCst));
        let threads = name.clone();
        let run = move || match face {
            Face::Tokio => runtime(&threads).block_on(async {
                listener.set_nonblocking(true).expect("a socket");
                let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
                let listening = nbd_io::tokio::listen(listener, &own);
                listening.await.expect("it listens");
            }),
            Face::Threads => nbd_io::blocking::listen(listener, &own).expect("it listens"),
        };
        // Threads that it begins have the same name.
        let listening = thread::Builder::new().name(name.clone()).spawn(run);
        Self {
            server,
            folder,
            name,
            listening: Some(listening.expect("a thread")),
        }
    }

    /// A server with one export, "disk".
    pub fn disk(face: Face, device: impl Device) -> Self {
        let exports = Exports::new().with(Export::new("disk", device));
        Self::start(face, exports, Config::new())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("a connection");
        stream.set_read_timeout(Some(TIME)).expect("a timeout");
        stream
    }

    /// A client of an export, with simple replies.
    pub fn client(&self, export: &str) -> Client<UnixStream> {
        Client::start(self.connect(), export).expect("the export")
    }

    /// The processor time of its threads.
    pub fn processor_time(&self) -> Duration {
        let mut ticks = 0;
        for task in std::fs::read_dir("/proc/self/task").expect("threads") {
            let path = task.expect("a thread").path().join("stat");
            // It may have ended.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let Some((name, fields)) = text.rsplit_once(") ") else {
                continue;
            };
            if name.ends_with(&format!("({}", self.name)) {
                let times = fields.split_whitespace().skip(11).take(2);
                ticks += times
                    .map(|it| it.parse::<u64>().expect("ticks"))
                    .sum::<u64>();
            }
        }
        Duration::from_millis(ticks * 10)
    }

    /// Stops the server, and waits until `listen` returns.
    pub fn stop(mut self) {
        self.server.shut_down();
        self.listening
            .take()
            .expect("it runs")
            .join()
            .expect("it ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.shut_down();
    }
}

/// A runtime whose threads have this name.
pub fn runtime(name: &str) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name(name);
    builder.build().expect("a runtime")
}

/// How long a test waits for anything.
pub const TIME: Duration = Duration::from_secs(30);

/// A client with simple replies that sends what it is told to.
pub struct Client<S> {
    pub stream: S,
    pub negotiated: Negotiated,
    next: u64,
}

impl<S: Read + Write> Client<S> {
    pub fn start(mut stream: S, export: &str) -> io::Result<Self> {
        let config = ClientConfig::new(export).framing(Framing::Simple);
        let negotiated = connect(&mut stream, config)?;
        Ok(Self {
            stream,
            negotiated,
            next: 0,
        })
    }

    /// Sends a request; returns its cookie.
    pub fn send(&mut self, command: Command, offset: u64, length: u32, data: &[u8]) -> Cookie {
        let cookie = self.request(command, CommandFlags::NONE, offset, length);
        self.stream.write_all(data).expect("sent");
        cookie
    }

    /// Sends the header of a request; returns its cookie.
    pub fn request(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u32,
    ) -> Cookie {
        self.next += 1;
        let cookie = Cookie(self.next);
        let request = CompactRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        self.stream.write_all(&request.encode()).expect("sent");
        cookie
    }

    /// Reads a reply, with `data` where there is no error.
    pub fn reply(&mut self, data: &mut [u8]) -> (Cookie, Result<(), ErrorValue>) {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).expect("a reply");
        assert_eq!(header[..4], [0x67, 0x44, 0x66, 0x98]);
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = Cookie(u64::from_be_bytes(header[8..].try_into().unwrap()));
        if error != 0 {
            return (cookie, Err(ErrorValue(error)));
        }
        self.stream.read_exact(data).expect("data");
        (cookie, Ok(()))
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, ErrorValue> {
        let sent = self.send(Command::READ, offset, length, &[]);
        let mut data = vec![0; length as usize];
        let (cookie, result) = self.reply(&mut data);
        assert_eq!(cookie, sent);
        result.map(|()| data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ErrorValue> {
        self.command(Command::WRITE, offset, data.len() as u32, data)
    }

    pub fn command(
        &mut self,
        command: Command,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> Result<(), ErrorValue> {
        let sent = self.send(command, offset, length, data);
        let (cookie, result) = self.reply(&mut []);
        assert_eq!(cookie, sent);
        result
    }

    /// The server sends nothing more, and closes the connection.
    #[track_caller]
    pub fn closed(&mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("the end");
        assert_eq!(rest, b"");
    }
}

/// The handshake.
pub fn connect(
    stream: &mut (impl Read + Write),
    config: ClientConfig<'_>,
) -> io::Result<Negotiated> {
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let mut connector = Connector::new(config)?;
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::Transmit => {
                out.clear();
                connector.transmit(&mut out)?;
                stream.write_all(&out)?;
            }
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            other => return Err(other.unexpected().into()),
        }
    }
    assert!(inbox.held().is_empty());
    let negotiated = connector.into_negotiated();
    Ok(negotiated.map_err(nbd_codec::SessionError::from)?)
}

/// Shares a disk with the test.
pub fn shared(size: u64) -> Arc<Disk> {
    Arc::new(Disk::new(size))
}
