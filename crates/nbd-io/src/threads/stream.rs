//! Streams that several threads use at the same time.

use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::duplex::Duplex;

/// A connection that several threads use at the same time.
pub trait Stream: Send + Sync + 'static {
    /// Reads, as `std::io::Read`. One thread at a time calls it.
    ///
    /// # Errors
    ///
    /// Those of the connection; `WouldBlock` or `TimedOut` after the timeout.
    fn read(&self, space: &mut [u8]) -> io::Result<usize>;

    /// Writes, as `std::io::Write`. One thread at a time calls it. After an error it is
    /// called with the same data again, or no more.
    ///
    /// # Errors
    ///
    /// Those of the connection; `WouldBlock` or `TimedOut` after the timeout.
    fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// How long a read and a write may take at most.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()>;

    /// Shuts the connection down: reads that wait return zero.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    fn shut_down(&self, how: Shutdown) -> io::Result<()>;
}

macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn read(&self, space: &mut [u8]) -> io::Result<usize> {
                io::Read::read(&mut &*self, space)
            }

            fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                match slices {
                    [one] => io::Write::write(&mut &*self, one),
                    _ => io::Write::write_vectored(&mut &*self, slices),
                }
            }

            fn set_timeouts(
                &self,
                read: Option<Duration>,
                write: Option<Duration>,
            ) -> io::Result<()> {
                self.set_read_timeout(read)?;
                self.set_write_timeout(write)
            }

            fn shut_down(&self, how: Shutdown) -> io::Result<()> {
                self.shutdown(how)
            }
        }
    };
}
stream!(TcpStream);
#[cfg(unix)]
stream!(std::os::unix::net::UnixStream);

/// A stream with one deadline for the whole handshake, so that a peer cannot extend it by
/// sending a byte now and then.
pub(crate) struct Timed {
    pub(crate) stream: Arc<dyn Stream>,
    pub(crate) deadline: Option<Instant>,
}

impl Timed {
    fn in_time(&self) -> io::Result<&dyn Stream> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_timeouts(Some(left), Some(left))?;
        }
        Ok(&*self.stream)
    }
}

impl io::Read for Timed {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.in_time()?.read(space)
    }
}

impl io::Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.in_time()?.write_vectored(&[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for Timed {
    async fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        io::Read::read(self, space)
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(self, bytes)
    }
}
