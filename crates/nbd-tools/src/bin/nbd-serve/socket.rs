//! The socket of a connection, TCP or Unix, shared by all threads of the
//! connection.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, yield_now};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use crate::pipe::Pipe;

/// How long a write waits before it fails with `WouldBlock`. A client that reads
/// its replies makes space within this time; one that does not may be waiting
/// for the server to read first.
const WRITE_TIMEOUT: Duration = Duration::from_millis(10);

/// The system's default holds less than the replies to one receive, so that the
/// sender would have to wait until the client reads.
const SEND_BUFFER: usize = 256 << 10;

pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Sets the options of an accepted socket.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                // A peer that lost its power never closes the connection.
                rustix::net::sockopt::set_socket_keepalive(stream, true)?;
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                // For TCP the kernel adjusts the size itself.
                let _ = rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
            }
        }
        Ok(())
    }

    /// Ends all pending reads or writes.
    pub fn shut_down(&self, how: Shutdown) {
        // The connection may be closed already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Removes the read timeout, and sets the write timeout to [`WRITE_TIMEOUT`].
    pub fn set_transmission_timeouts(&self) -> io::Result<()> {
        self.set_timeout(None)?;
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(Some(WRITE_TIMEOUT)),
            Self::Unix(stream) => stream.set_write_timeout(Some(WRITE_TIMEOUT)),
        }
    }

    /// Sets both timeouts.
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Reads from and writes to a socket.
#[derive(Clone)]
pub struct Stream(pub Arc<Socket>);

/// Reads requests, busy-polling for low-latency clients.
///
/// A sleep and a wake-up take longer than many clients take to send the next
/// request. If the last request came soon, the thread polls for [`POLL_TIME`]
/// before it sleeps, provided that half of the processors, at least, have no thread
/// that polls. Between two tries it yields its processor, because the client may wait
/// for it. If other programs have the processors, polling delays the client
/// nevertheless; so after a poll in vain the thread sleeps at once for some time.
pub struct BusyPolling {
    stream: Stream,
    /// How many threads poll.
    polling: Arc<AtomicUsize>,
    /// The most threads that may poll.
    max_polling: usize,
    low_latency: bool,
    pause: Pause,
}

/// How long the thread polls before it sleeps. A halted virtual processor, on which
/// the client sleeps, takes 40 us to wake up.
const POLL_TIME: Duration = Duration::from_micros(100);

/// A client whose requests arrive within this time, including the sleep, is a
/// low-latency client.
const LOW_LATENCY: Duration = Duration::from_micros(300);

/// If a poll ends later than this, another program had the processor.
const PREEMPTED: Duration = Duration::from_micros(500);

/// How a poll ended.
enum Poll {
    Successful,
    InVain,
    Preempted,
}

impl BusyPolling {
    pub fn new(stream: Stream, polling: &Arc<AtomicUsize>) -> Self {
        Self {
            stream,
            polling: Arc::clone(polling),
            max_polling: available_parallelism().map_or(0, |count| count.get() / 2),
            low_latency: false,
            pause: Pause::default(),
        }
    }

    /// Polls until the socket has bytes; `None` if it has none until `until`, or too
    /// many threads poll.
    fn poll(
        &mut self,
        buffers: &mut [IoSliceMut<'_>],
        until: Instant,
    ) -> Option<io::Result<usize>> {
        let mut result = None;
        if self.polling.fetch_add(1, Ordering::Relaxed) < self.max_polling {
            let mut control = RecvAncillaryBuffer::default();
            loop {
                match recvmsg(&self.stream.0, buffers, &mut control, RecvFlags::DONTWAIT) {
                    Err(Errno::AGAIN) if Instant::now() < until => yield_now(),
                    Err(Errno::AGAIN) => break,
                    received => {
                        result = Some(received.map(|it| it.bytes).map_err(io::Error::from));
                        break;
                    }
                }
            }
            let late = Instant::now().saturating_duration_since(until);
            self.pause.begin(if late > PREEMPTED {
                Poll::Preempted
            } else if result.is_some() {
                Poll::Successful
            } else {
                Poll::InVain
            });
        }
        self.polling.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

/// Reads without polling after a poll in vain. Their number grows from one such poll to
/// the next.
#[derive(Default)]
struct Pause {
    length: u32,
    left: u32,
}

impl Pause {
    /// After polls in vain, which cost [`POLL_TIME`] each.
    const LONG: u32 = 255;

    /// After another program had the processor, for milliseconds.
    const LONGEST: u32 = 4095;

    /// Whether the next read may poll.
    fn is_over(&mut self) -> bool {
        let over = self.left == 0;
        self.left = self.left.saturating_sub(1);
        over
    }

    fn begin(&mut self, poll: Poll) {
        self.length = match poll {
            Poll::Successful => 0,
            Poll::InVain => (2 * self.length + 1).min(Self::LONG),
            Poll::Preempted => Self::LONGEST,
        };
        self.left = self.length;
    }
}

impl Read for BusyPolling {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let began = Instant::now();
        if self.low_latency
            && self.pause.is_over()
            && let Some(result) = self.poll(buffers, began + POLL_TIME)
        {
            return result;
        }
        let result = self.stream.read_vectored(buffers);
        self.low_latency = began.elapsed() < LOW_LATENCY;
        result
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match &*self.0 {
            Socket::Tcp(stream) => (&mut &*stream).read_vectored(buffers),
            Socket::Unix(stream) => (&mut &*stream).read_vectored(buffers),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match &*self.0 {
            Socket::Tcp(stream) => (&mut &*stream).write_vectored(buffers),
            Socket::Unix(stream) => (&mut &*stream).write_vectored(buffers),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A timeout expired, or a signal interrupted the call: to be tried again.
pub fn is_retryable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// What replies are written to.
pub trait Output: Write + Send {
    /// Writes what the client accepts within [`WRITE_TIMEOUT`], perhaps nothing.
    fn write_soon(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Moves what the client accepts within [`WRITE_TIMEOUT`] out of a pipe, perhaps
    /// nothing.
    fn splice_soon(&mut self, pipe: &mut Pipe) -> io::Result<()>;

    /// Waits until writing does not block, or the connection is closed.
    fn wait(&self) -> io::Result<()>;
}

impl Output for Stream {
    fn write_soon(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.write_vectored(bytes) {
            Err(error) if is_retryable(&error) => Ok(0),
            result => result,
        }
    }

    fn splice_soon(&mut self, pipe: &mut Pipe) -> io::Result<()> {
        match pipe.send(self.0.as_fd()) {
            Err(error) if is_retryable(&error) => Ok(()),
            result => result,
        }
    }

    fn wait(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&*self.0, PollFlags::OUT)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads from and writes to a socket until a deadline; later calls fail with
/// `TimedOut`.
pub struct WithDeadline {
    stream: Stream,
    deadline: Instant,
}

impl WithDeadline {
    pub fn new(socket: Arc<Socket>, deadline: Instant) -> Self {
        let stream = Stream(socket);
        Self { stream, deadline }
    }

    fn timed<T>(&mut self, operation: impl FnOnce(&mut Stream) -> io::Result<T>) -> io::Result<T> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.0.set_timeout(Some(left))?;
        operation(&mut self.stream).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl Read for WithDeadline {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.timed(|stream| stream.read(buffer))
    }
}

impl Write for WithDeadline {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.timed(|stream| stream.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Pause, Poll};

    #[test]
    fn polls_in_vain_become_rare() {
        let mut pause = Pause::default();
        let mut polls = |reads: usize, end: fn() -> Poll| {
            let poll = |_: &usize| {
                let polls = pause.is_over();
                if polls {
                    pause.begin(end());
                }
                polls
            };
            (0..reads).filter(poll).count()
        };
        assert_eq!(polls(1000, || Poll::Successful), 1000);
        assert_eq!(polls(1000, || Poll::InVain), 10);
        // The pause is as long as it was, then it is over.
        let successful = polls(1000, || Poll::Successful);
        assert!((744..1000).contains(&successful), "{successful}");
        assert_eq!(polls(1 + 4096, || Poll::Preempted), 2);
    }
}
