//! Windows: TCP alone. It has no call that does not block on a socket that does, so
//! sockets never block, and reading waits first.

use std::fs::{File, FileType};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::windows::fs::FileExt as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A connected socket. Reading blocks, writing never does.
pub struct Stream {
    tcp: TcpStream,
    read_timeout: Option<Duration>,
}

impl Stream {
    /// Fails: the standard library has no Unix sockets here.
    pub fn unix(_: &[u8], _: Option<Duration>) -> io::Result<Self> {
        let text = "Unix sockets are not supported on Windows; use TCP";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    /// Fails, as [`unix`](Self::unix) does.
    pub fn unix_abstract(name: &[u8], timeout: Option<Duration>) -> io::Result<Self> {
        Self::unix(name, timeout)
    }

    /// How long a read waits before it fails with `WouldBlock`.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.read_timeout = timeout;
        Ok(())
    }

    /// Waits for at least one byte, and reads what fits; returns 0 at the end.
    pub fn read(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            match (&self.tcp).read_vectored(buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.poll(PollFlags::IN, self.read_timeout)?.is_none() {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Writes what the socket accepts now; fails with `WouldBlock` if that is nothing.
    pub fn write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.tcp).write_vectored(buffers)
    }

    /// Waits until the socket accepts more or, with `read`, has something to read;
    /// returns whether it has, or `None` after `timeout`.
    pub fn wait(&self, read: bool, timeout: Option<Duration>) -> io::Result<Option<bool>> {
        let mut events = PollFlags::OUT;
        events.set(PollFlags::IN, read);
        let events = self.poll(events, timeout)?;
        Ok(events.map(|events| events != PollFlags::OUT))
    }

    /// Waits for one of `events`; `None` after `timeout`.
    fn poll(&self, events: PollFlags, timeout: Option<Duration>) -> io::Result<Option<PollFlags>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [PollFd::new(&self.tcp, events)];
        let ready = poll(&mut fds, timeout.as_ref())?;
        Ok((ready > 0).then(|| fds[0].revents()))
    }
}

impl TryFrom<TcpStream> for Stream {
    type Error = io::Error;

    fn try_from(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nonblocking(true)?;
        Ok(Self {
            tcp,
            read_timeout: None,
        })
    }
}

/// Positional access, as Unix has it. It moves the position of the file, too.
pub trait FileExt {
    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()>;

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
}

impl FileExt for File {
    fn read_exact_at(&self, mut data: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            match self.seek_read(data, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    data = &mut data[n..];
                    offset = offset.saturating_add(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            match self.seek_write(data, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    data = &data[n..];
                    offset = offset.saturating_add(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether bytes can only be read or written in order.
pub fn is_stream(kind: FileType) -> bool {
    !kind.is_file()
}

/// The first hole at or after `from`: holes are not looked for, everything is data.
pub fn next_hole(_: &File, _from: u64, _size: u64) -> io::Result<Option<Range<u64>>> {
    Ok(None)
}
