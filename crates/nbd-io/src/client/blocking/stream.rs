//! Streams, and opening connections.

use std::ffi::OsStr;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_codec::uri::{Host, Transport, Uri};

use super::super::core::handshake::{Handshake, Wire, queries};
use super::super::core::link::Link;
use super::super::core::reader::Reader;
use super::super::core::table::Table;
use super::super::{Error, Options, vsock};
use super::block_on;
use super::engine::Blocking;
use crate::server::blocking::Stream;

pub(super) type Connection = Result<Arc<Link<Blocking>>, Error>;

/// Connects to the export of a URI.
pub(super) fn connect(uri: &Uri, options: &Options) -> Connection {
    let stream: Arc<dyn Stream> = match uri.transport() {
        Transport::Tcp { host, port } => {
            let stream = tcp(host, *port, options.connect_timeout)?;
            stream.set_nodelay(true)?;
            Arc::new(stream)
        }
        Transport::Unix { path } => Arc::new(unix(path)?),
        Transport::Vsock { cid, port } => Arc::new(vsock::connect(*cid, *port)?),
        _ => return Err(Error::Unsupported("the transport of the URI")),
    };
    if !uri.tls_required() {
        return plain(stream, uri.export(), options);
    }
    #[cfg(feature = "tls")]
    {
        let session = super::super::tls::for_uri(uri, options)?;
        secured(stream, session, uri.export(), options)
    }
    #[cfg(not(feature = "tls"))]
    Err(Error::Unsupported("TLS: the feature `tls` is off"))
}

/// Negotiates over any stream; under TLS if the options say so.
pub(super) fn over(stream: Arc<dyn Stream>, export: &str, options: &Options) -> Connection {
    #[cfg(feature = "tls")]
    if let Some(tls) = &options.tls {
        return secured(stream, tls.session(None)?, export, options);
    }
    plain(stream, export, options)
}

fn plain(stream: Arc<dyn Stream>, export: &str, options: &Options) -> Connection {
    let contexts = queries(options);
    let mut handshake = Handshake::new(export, &contexts, options, false)?;
    let mut wire = Timed::new(&*stream, options.connect_timeout);
    block_on(handshake.run(&mut wire))?;
    start(stream, handshake, options)
}

#[cfg(feature = "tls")]
fn secured(
    stream: Arc<dyn Stream>,
    session: super::super::tls::Session,
    export: &str,
    options: &Options,
) -> Connection {
    let contexts = queries(options);
    let mut handshake = Handshake::new(export, &contexts, options, true)?;
    let mut wire = Timed::new(&*stream, options.connect_timeout);
    block_on(handshake.run(&mut wire))?;
    let stream = match super::tls::TlsStream::connect(stream.clone(), session, &mut wire) {
        Ok(stream) => stream,
        Err(error) => {
            handshake.connector.tls_failed();
            return Err(error.into());
        }
    };
    handshake.connector.tls_established()?;
    let stream: Arc<dyn Stream> = Arc::new(stream);
    let mut wire = Timed {
        stream: &*stream,
        ..wire
    };
    block_on(handshake.run(&mut wire))?;
    start(stream, handshake, options)
}

/// Starts the transmission phase.
fn start(stream: Arc<dyn Stream>, handshake: Handshake<'_>, options: &Options) -> Connection {
    let opened = handshake.finish()?;
    // How often the threads that read and write look whether a command is late.
    let tick = options.timeout.map(|timeout| timeout / 8);
    let tick = tick.map(|tick| tick.max(Duration::from_millis(1)));
    stream.set_timeouts(tick, tick)?;
    let table = Table::new(opened.negotiated, options.in_flight, options.timeout);
    let engine = Blocking::new(stream, Reader::new(opened.inbox));
    let link = Link::new(table, engine, opened.negotiated, opened.contexts);
    Ok(Arc::new(link))
}

/// Tries each address of a host.
fn tcp(host: &Host, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host.to_string().as_str(), port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn unix(path: &[u8]) -> io::Result<UnixStream> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix(b"\0") {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return UnixStream::connect_addr(&address);
    }
    UnixStream::connect(OsStr::from_bytes(path))
}

/// A stream during the handshake, which has a deadline.
pub(super) struct Timed<'s> {
    pub(super) stream: &'s dyn Stream,
    deadline: Option<Instant>,
}

impl<'s> Timed<'s> {
    fn new(stream: &'s dyn Stream, timeout: Duration) -> Self {
        Self {
            stream,
            deadline: Instant::now().checked_add(timeout),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_timeouts(Some(left), Some(left))?;
        }
        self.stream
            .read(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                _ => error,
            })
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write_vectored(&[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Timed<'_> {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }
}
