//! The socket: TCP or Unix. Reading blocks, because a caller that reads has nothing
//! else to do: one system call instead of three with readiness. Sending never
//! blocks, because the server may wait until its replies are read.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::uri::{Transport, Uri};

use crate::os::Stream;

/// The line of a record before what a connection sends.
pub const CONNECTION: &str = "# connection";

/// How connections are made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether the handshake begins with `NBD_OPT_EXPORT_NAME`.
    pub export_name: bool,
    /// How long the server may send nothing.
    pub timeout: Option<Duration>,
    /// The file that the bytes of the session are appended to.
    pub record: Option<PathBuf>,
}

pub struct Socket {
    stream: Stream,
    timeout: Option<Duration>,
    record: Option<File>,
}

impl Socket {
    /// Connects to the server of `uri`.
    pub fn connect(uri: &Uri, settings: &Settings) -> Result<Self> {
        let mut stream = match uri.transport() {
            Transport::Tcp { host, port } => {
                let stream = tcp(&host.to_string(), *port, settings.timeout)?;
                stream.set_nodelay(true)?;
                Stream::try_from(stream)?
            }
            transport @ Transport::Unix { path } => {
                let connected = match transport.abstract_name() {
                    Some(name) => Stream::unix_abstract(name, settings.timeout),
                    None => Stream::unix(path, settings.timeout),
                };
                let shown = String::from_utf8_lossy(path).replace('\0', "@");
                match (connected, settings.timeout) {
                    (Ok(stream), _) => stream,
                    (Err(error), Some(timeout)) if error.kind() == ErrorKind::WouldBlock => bail!(
                        "cannot connect to socket {shown} within {} seconds, the limit set by --timeout: the server accepts no connection",
                        timeout.as_secs_f64()
                    ),
                    (Err(error), _) if error.kind() == ErrorKind::Unsupported => {
                        bail!("cannot connect to socket {shown}: {error}");
                    }
                    (Err(error), _) => {
                        return Err(error).context(format!(
                            "cannot connect to socket {shown}; is the server running?"
                        ));
                    }
                }
            }
            Transport::Vsock { .. } => bail!("vsock is not supported; use TCP or a Unix socket"),
            Transport::Ssh { .. } => bail!(
                "SSH is not supported; forward the server's socket with `ssh -L` and connect to that"
            ),
            _ => bail!("this transport is not supported; use TCP or a Unix socket"),
        };
        stream.set_read_timeout(settings.timeout)?;
        let record = match &settings.record {
            None => None,
            Some(path) => {
                let open = OpenOptions::new().create(true).append(true).open(path);
                let begin = open.and_then(|mut file| {
                    writeln!(file, "{CONNECTION}")?;
                    Ok(file)
                });
                Some(begin.with_context(|| format!("cannot record to {}", path.display()))?)
            }
        };
        Ok(Self {
            stream,
            timeout: settings.timeout,
            record,
        })
    }

    /// Waits for at least one byte, and reads what fits; returns 0 at the end.
    pub fn read(&mut self, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let n = loop {
            match self.stream.read(buffers) {
                Ok(n) => break n,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    // The server closed the connection before it received everything.
                    ErrorKind::ConnectionReset => break 0,
                    ErrorKind::WouldBlock => return Err(self.timed_out()),
                    _ => return Err(error).context("the connection failed"),
                },
            }
        };
        self.record("S", n, buffers.iter().map(|buffer| &**buffer))?;
        Ok(n)
    }

    /// Writes what the socket accepts now; `None` if it accepts nothing.
    pub fn write(&mut self, buffers: &[IoSlice<'_>]) -> Result<Option<usize>> {
        let n = loop {
            match self.stream.write(buffers) {
                Ok(n) => break n,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Ok(None),
                    _ => return Err(error).context("the connection failed while sending"),
                },
            }
        };
        self.record("C", n, buffers.iter().map(|buffer| &**buffer))?;
        Ok(Some(n))
    }

    /// Waits until the socket accepts more or, with `read`, has something to read;
    /// returns whether it has something to read.
    pub fn wait(&self, read: bool) -> Result<bool> {
        loop {
            match self.stream.wait(read, self.timeout) {
                Ok(Some(readable)) => return Ok(readable),
                Ok(None) => return Err(self.timed_out()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn timed_out(&self) -> anyhow::Error {
        anyhow!(
            "the server sent nothing for {} seconds, the limit set by --timeout",
            self.timeout.unwrap_or_default().as_secs_f64()
        )
    }

    /// Appends the first `n` of these bytes to the record.
    fn record<'b>(
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
