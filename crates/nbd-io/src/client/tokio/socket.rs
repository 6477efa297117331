//! Unix sockets that wake their task for replies only.
//!
//! The sockets of tokio wait for both directions at once. Whenever the server reads a command
//! from a Unix socket, the kernel reports that more can be written, and the thread wakes for
//! nothing, once for each command. (A TCP socket reports it only after a write had to wait.)

use std::ffi::OsStr;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use ::tokio::net as tokio_net;
use ::tokio::runtime::Handle;
use nbd_codec::uri::Transport;

use super::super::{Error, system};

/// Connects to the socket of a URI that is not TCP.
pub(super) async fn connect(transport: &Transport) -> Result<tokio_net::UnixStream, Error> {
    if let Transport::Unix { path } = transport {
        // A path that begins with NUL is an abstract name, for tokio too.
        return Ok(tokio_net::UnixStream::connect(OsStr::from_bytes(path)).await?);
    }
    // tokio has no such sockets, and to connect to a virtual machine can take long.
    let transport = transport.clone();
    let connecting = ::tokio::task::spawn_blocking(move || system::connect(&transport));
    let stream = connecting.await.map_err(io::Error::from)??;
    stream.set_nonblocking(true)?;
    Ok(tokio_net::UnixStream::from_std(stream)?)
}

/// The receiving half.
pub(super) struct Receiver(AsyncFd<Arc<UnixStream>>);

/// The sending half.
pub(super) struct Sender {
    stream: Arc<UnixStream>,
    /// While a write waits.
    waiting: Option<AsyncFd<UnixStream>>,
    runtime: Handle,
}

/// The halves of a stream that does not block.
pub(super) fn split(stream: UnixStream) -> io::Result<(Receiver, Sender)> {
    let stream = Arc::new(stream);
    let receiver = register(stream.clone(), Interest::READABLE)?;
    let sender = Sender {
        stream,
        waiting: None,
        runtime: Handle::current(),
    };
    Ok((Receiver(receiver), sender))
}

#[allow(
    deprecated,
    reason = "its replacement is unsafe: the type could return another descriptor each time, \
              or close it. A stream, also in an `Arc`, does neither"
)]
fn register<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncRead for Receiver {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            let room = space.len();
            match Read::read(&mut &**self.0.get_ref(), space) {
                Ok(n) => {
                    if n > 0 && n < room {
                        // All that has arrived: what arrives from now on is reported.
                        ready.clear_ready();
                    }
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => ready.clear_ready(),
                    io::ErrorKind::Interrupted => {}
                    _ => return Poll::Ready(Err(error)),
                },
            }
        }
    }
}

impl AsyncWrite for Sender {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let written = match buffers {
                [one] => Write::write(&mut &*self.stream, one),
                _ => Write::write_vectored(&mut &*self.stream, buffers),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                written => return Poll::Ready(written),
            }
            let Self {
                stream,
                waiting,
                runtime,
            } = &mut *self;
            let waiting = match waiting {
                Some(waiting) => waiting,
                None => {
                    // One socket cannot be registered twice, but a duplicate can.
                    let _runtime = runtime.enter();
                    let duplicate = stream.try_clone()?;
                    waiting.insert(register(duplicate, Interest::WRITABLE)?)
                }
            };
            ready!(waiting.poll_write_ready(cx))?.clear_ready();
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Called when all is written.
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}
