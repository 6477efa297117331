//! `nbd tap`: passes connections on to a server, and prints what both sides say.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::ffi::OsStrExt as _;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{process, thread};

use anyhow::{Context, Result, bail};
use nbd_codec::monitor::Side;
use nbd_codec::uri::{Transport, Uri};

use crate::args::Tap;
use crate::decode::transcript::{Transcript, colours, outcome};
use crate::{address, stderr, stdout};

pub fn run(args: &Tap) -> Result<()> {
    let server = Arc::new(address::parse(&args.connect)?);
    let listener = Arc::new(Listener::bind(&address::parse(&args.listen)?)?);
    let broken = Arc::new(AtomicU64::new(0));
    let (style, colours) = (args.style, colours());
    stderr::line(format_args!("nbd: listening on {}", listener.name()?));
    for number in 1.. {
        let client = listener.accept().context("cannot accept a connection")?;
        let tap = Connection {
            server: Arc::clone(&server),
            transcript: Arc::new(Mutex::new(Transcript::new(number, style, colours))),
            broken: Arc::clone(&broken),
        };
        let pass_on = move || {
            let result = tap.run(client);
            result.with_context(|| format!("connection {number}"))
        };
        if args.once {
            pass_on()?;
            break;
        }
        let listener = Arc::clone(&listener);
        thread::spawn(move || match pass_on() {
            Err(error) if error.is::<stdout::Closed>() => {
                // Nobody reads what is printed.
                listener.remove_file();
                process::exit(1);
            }
            Err(error) => stderr::line(format_args!("nbd: {error:#}")),
            Ok(()) => {}
        });
    }
    outcome(broken.load(Ordering::Relaxed))
}

/// A client, its server, and what they say.
struct Connection {
    server: Arc<Uri>,
    transcript: Arc<Mutex<Transcript>>,
    broken: Arc<AtomicU64>,
}

impl Connection {
    fn run(self, client: Stream) -> Result<()> {
        let server = Stream::connect(&self.server)?;
        let (to_server, to_client) = (server.try_clone()?, client.try_clone()?);
        let requests = Arc::clone(&self.transcript);
        // One thread for each direction: a side that does not read stops only what is
        // sent to it.
        let requests = thread::spawn(move || forward(Side::Client, client, to_server, &requests));
        let replies = forward(Side::Server, server, to_client, &self.transcript);
        let requests = requests.join().unwrap_or(Ok(()));
        let transcript = self
            .transcript
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.broken
            .fetch_add(transcript.broken(), Ordering::Relaxed);
        replies.and(requests)
    }
}

/// Passes on what a side sends until it closes its direction. If that cannot be printed,
/// the connection ends: neither side waits for the other.
fn forward(
    side: Side,
    mut from: Stream,
    mut to: Stream,
    transcript: &Mutex<Transcript>,
) -> Result<()> {
    let result = pass_on(side, &mut from, &mut to, transcript);
    if result.is_err() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
    result
}

fn pass_on(
    side: Side,
    from: &mut Stream,
    to: &mut Stream,
    transcript: &Mutex<Transcript>,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The side has closed the connection before it received everything.
            Err(_) => 0,
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        {
            // Before it is passed on: the other side answers after that, so the
            // transcript has the order in which things happened.
            let mut transcript = transcript.lock().unwrap_or_else(PoisonError::into_inner);
            match n {
                0 => transcript.end(side),
                _ => transcript.offer(side, bytes),
            }
            stdout::write(transcript.take().as_bytes())?;
        }
        if n == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return Ok(());
        }
        if to.write_all(bytes).is_err() {
            // The other side has gone: nothing more is read from this one.
            let _ = from.shutdown(Shutdown::Both);
            return Ok(());
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, std::path::PathBuf),
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

impl Listener {
    fn bind(uri: &Uri) -> Result<Self> {
        match uri.transport() {
            Transport::Tcp { host, port } => {
                let host = host.to_string();
                let listener = TcpListener::bind((host.as_str(), *port));
                let listener = listener.with_context(|| format!("cannot listen on {host}:{port}"));
                Ok(Self::Tcp(listener?))
            }
            #[cfg(unix)]
            Transport::Unix { path } => {
                let path = unix_path(path);
                let mut listener = UnixListener::bind(&path);
                let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
                // The file of a program that has ended is replaced.
                if listener.as_ref().is_err_and(in_use)
                    && UnixStream::connect(&path).is_err_and(is_refused)
                {
                    std::fs::remove_file(&path)?;
                    listener = UnixListener::bind(&path);
                }
                let listener =
                    listener.with_context(|| format!("cannot listen on {}", path.display()))?;
                Ok(Self::Unix(listener, path))
            }
            _ => bail!("this transport is not supported; use TCP or a Unix socket"),
        }
    }

    /// Where clients connect.
    fn name(&self) -> Result<String> {
        Ok(match self {
            Self::Tcp(listener) => format!("nbd://{}", listener.local_addr()?),
            #[cfg(unix)]
            Self::Unix(_, path) => Uri::unix(path.as_os_str().as_bytes(), "")?.to_string(),
        })
    }

    /// Removes the file of the socket.
    fn remove_file(&self) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(unix)]
            Self::Unix(_, path) => {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            #[cfg(unix)]
            Self::Unix(listener, _) => Stream::Unix(listener.accept()?.0),
        })
    }
}

#[cfg(unix)]
fn is_refused(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

#[cfg(unix)]
fn unix_path(path: &[u8]) -> std::path::PathBuf {
    std::path::Path::new(std::ffi::OsStr::from_bytes(path)).to_owned()
}

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// The same call for each kind of stream.
macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            #[cfg(unix)]
            Stream::Unix($inner) => $call,
        }
    };
}

impl Stream {
    fn connect(uri: &Uri) -> Result<Self> {
        match uri.transport() {
            Transport::Tcp { host, port } => {
                let host = host.to_string();
                let stream = TcpStream::connect((host.as_str(), *port));
                let stream = stream.with_context(|| format!("cannot connect to {host}:{port}"))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            #[cfg(unix)]
            Transport::Unix { path } => {
                let path = unix_path(path);
                let stream = UnixStream::connect(&path);
                let stream =
                    stream.with_context(|| format!("cannot connect to {}", path.display()))?;
                Ok(Self::Unix(stream))
            }
            _ => bail!("this transport is not supported; use TCP or a Unix socket"),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            #[cfg(unix)]
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        each!(self, stream => stream.shutdown(how))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => stream.read(buffer))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        each!(self, stream => stream.flush())
    }
}
