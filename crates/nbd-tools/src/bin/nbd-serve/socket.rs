//! The socket of a connection, TCP or Unix, shared by all who work for it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

/// A client that reads replies makes room within this time. One that does not
/// may want to send first.
const PATIENCE: Duration = Duration::from_millis(10);

/// The system's own choice holds less than the replies to one receive: whoever
/// sends would have to wait for the client to take turns.
const SEND_BUFFER: usize = 256 << 10;

pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Makes an accepted socket what the server wants.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                // A peer that lost its power says nothing for ever.
                rustix::net::sockopt::set_socket_keepalive(stream, true)?;
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                // TCP finds its size itself.
                let _ = rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
            }
        }
        Ok(())
    }

    /// Ends the waiting of everybody who reads or writes.
    pub fn shut_down(&self, how: Shutdown) {
        // It may be gone already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Reading may take as long as it takes. So may writing, but who writes
    /// looks up now and then.
    pub fn set_patient(&self) -> io::Result<()> {
        self.set_timeout(None)?;
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(Some(PATIENCE)),
            Self::Unix(stream) => stream.set_write_timeout(Some(PATIENCE)),
        }
    }

    /// How long reading and writing may take.
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

/// One end of a connection to read from and write to.
#[derive(Clone)]
pub struct End(pub Arc<Socket>);

/// The end that requests come from.
///
/// To sleep and to be woken takes longer than many a client takes for its next
/// request. One that was quick is watched for a moment before the thread sleeps,
/// as long as there is a processor for each of both.
pub struct Watched {
    end: End,
    /// How many clients there are.
    crowd: Arc<AtomicUsize>,
    /// With more of them nobody is watched.
    most: usize,
    quick: bool,
}

/// How long a client is watched.
const WATCH: Duration = Duration::from_micros(20);

/// A client whose requests come this soon, sleep and all, is quick.
const QUICK: Duration = Duration::from_micros(60);

impl Watched {
    pub fn new(end: End, crowd: &Arc<AtomicUsize>) -> Self {
        Self {
            end,
            crowd: Arc::clone(crowd),
            most: available_parallelism().map_or(0, |count| count.get() / 2),
            quick: false,
        }
    }

    /// Receives without sleep; nothing if nothing has come until then.
    fn watch(&self, buffers: &mut [IoSliceMut<'_>], until: Instant) -> Option<io::Result<usize>> {
        let mut control = RecvAncillaryBuffer::default();
        loop {
            match recvmsg(&self.end.0, buffers, &mut control, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) if Instant::now() < until => std::hint::spin_loop(),
                Err(Errno::AGAIN) => return None,
                result => return Some(result.map(|it| it.bytes).map_err(io::Error::from)),
            }
        }
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let began = Instant::now();
        if self.quick
            && self.crowd.load(Ordering::Relaxed) <= self.most
            && let Some(result) = self.watch(buffers, began + WATCH)
        {
            return result;
        }
        let result = self.end.read_vectored(buffers);
        self.quick = began.elapsed() < QUICK;
        result
    }
}

impl Read for End {
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

impl Write for End {
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

/// It took too long, or a signal came in between.
pub fn is_no_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Where replies go.
pub trait Output: Write + Send {
    /// Writes what the other side takes without much delay.
    fn write_soon(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl Output for End {
    fn write_soon(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.write_vectored(bytes) {
            Err(error) if is_no_error(&error) => Ok(0),
            result => result,
        }
    }
}

/// The same in a hurry: all reading and writing together takes until the
/// deadline, and fails then.
pub struct Hurried {
    end: End,
    deadline: Instant,
}

impl Hurried {
    pub fn new(socket: Arc<Socket>, deadline: Instant) -> Self {
        let end = End(socket);
        Self { end, deadline }
    }

    fn timed<T>(&mut self, act: impl FnOnce(&mut End) -> io::Result<T>) -> io::Result<T> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.end.0.set_timeout(Some(left))?;
        act(&mut self.end).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl Read for Hurried {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.timed(|end| end.read(buffer))
    }
}

impl Write for Hurried {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.timed(|end| end.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
