//! The byte stream of a connection: TCP or a Unix socket, with or without TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nbd_codec::uri::{Transport, Uri};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp(String, u16),
    /// The path of a socket.
    Unix(PathBuf),
}

impl Address {
    /// The address in a URI.
    ///
    /// # Errors
    ///
    /// A transport other than TCP and Unix sockets.
    pub fn of(uri: &Uri) -> Result<Self> {
        match uri.transport() {
            Transport::Tcp { host, port } => Ok(Self::Tcp(host.to_string(), *port)),
            Transport::Unix { path } => {
                let path = std::str::from_utf8(path).context("the path of the socket")?;
                Ok(Self::Unix(Path::new(path).to_owned()))
            }
            _ => bail!("this transport is not supported; use TCP or a Unix socket"),
        }
    }

    /// Connects.
    pub(crate) fn connect(&self, timeout: Duration) -> Result<Stream> {
        match self {
            Self::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .with_context(|| format!("cannot connect to {host}:{port}"))?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(timeout))?;
                Ok(Stream::Tcp(stream))
            }
            #[cfg(unix)]
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .with_context(|| format!("cannot connect to {}", path.display()))?;
                stream.set_write_timeout(Some(timeout))?;
                Ok(Stream::Unix(stream))
            }
            #[cfg(not(unix))]
            Self::Unix(_) => bail!("this system has no Unix sockets for programs; use TCP"),
        }
    }
}

/// A byte stream of any type.
pub(crate) trait ReadWrite: Read + Write {}

impl<S: Read + Write> ReadWrite for S {}

/// A socket that clients connect to.
pub(crate) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Listener {
    /// Listens; accepting does not wait.
    pub(crate) fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Tcp(host, port) => {
                let listener = TcpListener::bind((host.as_str(), *port))
                    .with_context(|| format!("cannot listen on {host}:{port}"))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("cannot listen on {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
            #[cfg(not(unix))]
            Address::Unix(_) => bail!("this system has no Unix sockets for programs; use TCP"),
        }
    }

    /// The TCP port.
    pub(crate) fn port(&self) -> io::Result<Option<u16>> {
        match self {
            Self::Tcp(listener) => Ok(Some(listener.local_addr()?.port())),
            #[cfg(unix)]
            Self::Unix(_) => Ok(None),
        }
    }

    /// A client that has connected; an error if there is none.
    pub(crate) fn accept(&self, write_timeout: Duration) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(write_timeout))?;
                Ok(Accepted::Tcp(stream))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(write_timeout))?;
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

/// The socket of a client: unlike a stream it can be sent to the thread that serves it.
pub(crate) enum Accepted {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl From<Accepted> for Stream {
    fn from(accepted: Accepted) -> Self {
        match accepted {
            Accepted::Tcp(stream) => Self::Tcp(stream),
            #[cfg(unix)]
            Accepted::Unix(stream) => Self::Unix(stream),
        }
    }
}

/// A connected stream.
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<dyn crate::tls::Session>),
    /// A stream of the caller, which has its own time limit.
    Other(Box<dyn ReadWrite>),
    /// Taken while TLS starts; the connection failed if it stays.
    Gone,
}

impl Stream {
    /// How long the next read may take; not zero.
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            #[cfg(unix)]
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.transport().set_read_timeout(timeout),
            Self::Other(_) => Ok(()),
            Self::Gone => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Sends nothing more; reading is possible.
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            #[cfg(unix)]
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.close(),
            Self::Other(_) | Self::Gone => Ok(()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            #[cfg(unix)]
            Self::Unix(stream) => stream.read(buffer),
            // Many servers close without the closing message of TLS.
            #[cfg(feature = "tls")]
            Self::Tls(stream) => match stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
                result => result,
            },
            Self::Other(stream) => stream.read(buffer),
            Self::Gone => Ok(0),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            #[cfg(unix)]
            Self::Unix(stream) => stream.write(bytes),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.write(bytes),
            Self::Other(stream) => stream.write(bytes),
            Self::Gone => Err(ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.flush(),
            Self::Other(stream) => stream.flush(),
            _ => Ok(()),
        }
    }
}
