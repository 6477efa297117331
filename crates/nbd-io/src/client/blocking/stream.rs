//! Opening connections.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_codec::uri::{Host, Transport, Uri};

use super::super::core::handshake::{Handshake, queries};
use super::super::core::link::Link;
use super::super::core::reader::Reader;
use super::super::core::table::Table;
#[cfg(unix)]
use super::super::system;
use super::super::{Error, Options};
use super::engine::Blocking;
use crate::threads::{Stream, Timed, block_on};

pub(super) type Connection = Result<Arc<Link<Blocking>>, Error>;

/// Connects to the export of a URI.
pub(super) fn connect(uri: &Uri, options: &Options) -> Connection {
    let stream: Arc<dyn Stream> = match uri.transport() {
        Transport::Tcp { host, port } => {
            let stream = tcp(host, *port, options.connect_timeout)?;
            stream.set_nodelay(true)?;
            Arc::new(stream)
        }
        #[cfg(unix)]
        other => Arc::new(system::connect(other)?),
        #[cfg(not(unix))]
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
    let mut stream = timed(stream, options);
    in_time(block_on(handshake.run(&mut stream)))?;
    start(stream.stream, handshake, options)
}

#[cfg(feature = "tls")]
fn secured(
    stream: Arc<dyn Stream>,
    session: super::super::tls::Session,
    export: &str,
    options: &Options,
) -> Connection {
    use crate::threads::tls::TlsStream;

    let contexts = queries(options);
    let mut handshake = Handshake::new(export, &contexts, options, true)?;
    let mut stream = timed(stream, options);
    in_time(block_on(handshake.run(&mut stream)))?;
    let connection = rustls::ClientConnection::new(session.config, session.name);
    let mut connection = connection.map_err(io::Error::other)?;
    while connection.is_handshaking() {
        if let Err(error) = connection.complete_io(&mut stream) {
            handshake.connector.tls_failed();
            return in_time(Err(error.into()));
        }
    }
    handshake.connector.tls_established()?;
    let plain = stream.stream.clone();
    stream.stream = Arc::new(TlsStream::new(plain, connection.into()));
    in_time(block_on(handshake.run(&mut stream)))?;
    start(stream.stream, handshake, options)
}

fn timed(stream: Arc<dyn Stream>, options: &Options) -> Timed {
    let deadline = Instant::now().checked_add(options.connect_timeout);
    Timed { stream, deadline }
}

/// A read that was in vain until the deadline.
fn in_time<T>(result: Result<T, Error>) -> Result<T, Error> {
    match result {
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::TimedOut),
        result => result,
    }
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
    let deadline = Instant::now().checked_add(timeout);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host.to_string().as_str(), port).to_socket_addrs()? {
        let connected = match deadline.map(|it| it.saturating_duration_since(Instant::now())) {
            None => TcpStream::connect(address),
            Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
            Some(left) => TcpStream::connect_timeout(&address, left),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
