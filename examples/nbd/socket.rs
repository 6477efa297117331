//! The socket: TCP or Unix, never blocking; whoever has nothing else to do
//! waits with [`Socket::wait`].

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::uri::{Transport, Uri};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout as SocketTimeout, set_socket_timeout};

/// How connections are made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// How long the server may be silent.
    pub timeout: Option<Duration>,
    /// Where the bytes of the session are written down.
    pub record: Option<PathBuf>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

pub struct Socket {
    stream: Stream,
    timeout: Option<Duration>,
    record: Option<File>,
}

impl Socket {
    /// Connects to the server of `uri`.
    pub fn connect(uri: &Uri, settings: &Settings) -> Result<Self> {
        let stream = match uri.transport() {
            Transport::Tcp { host, port } => {
                tcp(&host.to_string(), *port, settings.timeout).map(Stream::Tcp)?
            }
            transport @ Transport::Unix { path } => {
                let stream = match transport.abstract_name() {
                    Some(name) => abstract_unix(name),
                    None => UnixStream::connect(Path::new(std::ffi::OsStr::from_bytes(path))),
                };
                let shown = String::from_utf8_lossy(path).replace('\0', "@");
                stream.map(Stream::Unix).with_context(|| {
                    format!("cannot connect to socket {shown}; is the server running?")
                })?
            }
            Transport::Vsock { .. } => bail!("vsock is not supported; use TCP or a Unix socket"),
            Transport::Ssh { .. } => bail!(
                "SSH is not supported; forward the server's socket with `ssh -L` and connect to that"
            ),
            _ => bail!("this transport is not supported; use TCP or a Unix socket"),
        };
        match &stream {
            Stream::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
            }
            Stream::Unix(stream) => stream.set_nonblocking(true)?,
        }
        let record = match &settings.record {
            None => None,
            Some(path) => Some(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("cannot record to {}", path.display()))?,
            ),
        };
        Ok(Self {
            stream,
            timeout: settings.timeout,
            record,
        })
    }

    /// Reads what there is, at most what fits; `None` if there is nothing yet,
    /// `Some(0)` at the end.
    pub fn read(&mut self, buffers: &mut [IoSliceMut<'_>]) -> Result<Option<usize>> {
        let result = match &mut self.stream {
            Stream::Tcp(stream) => stream.read_vectored(buffers),
            Stream::Unix(stream) => stream.read_vectored(buffers),
        };
        let Some(n) = done(result).context("the connection broke")? else {
            return Ok(None);
        };
        self.note("S", n, buffers.iter().map(|buffer| &**buffer))?;
        Ok(Some(n))
    }

    /// Writes as much as the socket takes now; `None` if it takes nothing.
    pub fn write(&mut self, buffers: &[IoSlice<'_>]) -> Result<Option<usize>> {
        let result = match &mut self.stream {
            Stream::Tcp(stream) => stream.write_vectored(buffers),
            Stream::Unix(stream) => stream.write_vectored(buffers),
        };
        let Some(n) = done(result).context("the connection broke while sending")? else {
            return Ok(None);
        };
        self.note("C", n, buffers.iter().map(|buffer| &**buffer))?;
        Ok(Some(n))
    }

    /// Waits until there is something to read, or, with `write`, until the
    /// socket takes more.
    pub fn wait(&self, write: bool) -> Result<()> {
        let mut events = PollFlags::IN;
        if write {
            events |= PollFlags::OUT;
        }
        let timeout = self.timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), events)];
        loop {
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => bail!(
                    "the server was silent for {} seconds, the limit set by --timeout",
                    self.timeout.unwrap_or_default().as_secs_f64()
                ),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// From now on reading and writing the descriptor waits. That saves a
    /// system call where there is nothing else to do.
    pub fn into_blocking(self) -> Result<OwnedFd> {
        let fd = match self.stream {
            Stream::Tcp(stream) => OwnedFd::from(stream),
            Stream::Unix(stream) => OwnedFd::from(stream),
        };
        rustix::io::ioctl_fionbio(&fd, false)?;
        set_socket_timeout(&fd, SocketTimeout::Recv, self.timeout)?;
        Ok(fd)
    }

    /// Appends the first `n` of these bytes to the record.
    fn note<'b>(
        &mut self,
        side: &str,
        n: usize,
        buffers: impl Iterator<Item = &'b [u8]>,
    ) -> Result<()> {
        let Some(file) = self.record.as_mut().filter(|_| n > 0) else {
            return Ok(());
        };
        let mut line = format!("{side}: ");
        for byte in buffers.flatten().take(n) {
            line.push_str(&format!("{byte:02x}"));
        }
        line.push('\n');
        file.write_all(line.as_bytes())
            .context("cannot write the record")
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// `None` where the socket is not ready.
fn done(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}

/// Tries each address of a host.
fn tcp(host: &str, port: u16, timeout: Option<Duration>) -> Result<TcpStream> {
    let addresses = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("cannot find host {host}"))?;
    let mut last = anyhow!("host {host} has no address");
    for address in addresses {
        let result = match timeout {
            Some(timeout) => TcpStream::connect_timeout(&address, timeout),
            None => TcpStream::connect(address),
        };
        match result {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                last = anyhow!(error).context(format!(
                    "cannot connect to {address}; is the server running?"
                ));
            }
        }
    }
    Err(last)
}

#[cfg(target_os = "linux")]
fn abstract_unix(name: &[u8]) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn abstract_unix(_: &[u8]) -> io::Result<UnixStream> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "only Linux has abstract sockets",
    ))
}
