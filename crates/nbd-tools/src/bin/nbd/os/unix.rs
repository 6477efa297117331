//! Unix: TCP and Unix sockets. Abstract names of the latter need Linux.

use std::ffi::OsStr;
use std::fs::{File, FileType};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
pub use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, FdFlags, fcntl_setfd, readv};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketType, connect, sendmsg,
    socket,
};

/// A connected socket. Reading blocks, writing never does.
pub struct Stream(OwnedFd);

impl Stream {
    /// Connects to the socket of a file, within `timeout`; then the error is
    /// `WouldBlock`.
    pub fn unix(path: &[u8], timeout: Option<Duration>) -> io::Result<Self> {
        Self::connect(&SocketAddrUnix::new(OsStr::from_bytes(path))?, timeout)
    }

    /// Connects to a socket whose name is not that of a file.
    pub fn unix_abstract(name: &[u8], timeout: Option<Duration>) -> io::Result<Self> {
        Self::connect(&abstract_address(name)?, timeout)
    }

    fn connect(address: &SocketAddrUnix, timeout: Option<Duration>) -> io::Result<Self> {
        let fd = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        // A server that does not accept connections has space for a few; then the
        // kernel waits until there is more, or for as long as sending may take.
        set_socket_timeout(&fd, Timeout::Send, timeout)?;
        loop {
            match connect(&fd, address) {
                Err(Errno::INTR) => {}
                result => return Ok(result.map(|()| Self(fd))?),
            }
        }
    }

    /// How long a read waits before it fails with `WouldBlock`.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, timeout)?)
    }

    /// Waits for at least one byte, and reads what fits; returns 0 at the end.
    pub fn read(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(readv(&self.0, buffers)?)
    }

    /// Writes what the socket accepts now; fails with `WouldBlock` if that is nothing.
    pub fn write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        // The runtime of Rust ignores the signal for closed connections.
        let mut control = SendAncillaryBuffer::default();
        Ok(sendmsg(
            &self.0,
            buffers,
            &mut control,
            SendFlags::DONTWAIT,
        )?)
    }

    /// Waits until the socket accepts more or, with `read`, has something to read;
    /// returns whether it has, or `None` after `timeout`.
    pub fn wait(&self, read: bool, timeout: Option<Duration>) -> io::Result<Option<bool>> {
        let mut events = PollFlags::OUT;
        events.set(PollFlags::IN, read);
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [PollFd::new(&self.0, events)];
        let ready = poll(&mut fds, timeout.as_ref())?;
        Ok((ready > 0).then(|| fds[0].revents() != PollFlags::OUT))
    }
}

impl TryFrom<TcpStream> for Stream {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Self> {
        Ok(Self(stream.into()))
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddrUnix> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "abstract sockets need Linux; use the path of a socket",
    ))
}

/// Whether bytes can only be read or written in order.
pub fn is_stream(kind: FileType) -> bool {
    kind.is_fifo() || kind.is_socket() || kind.is_char_device()
}

/// The first hole at or after `from`, in a file of `size` bytes.
pub fn next_hole(file: &File, from: u64, size: u64) -> io::Result<Option<Range<u64>>> {
    if from >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Hole(from)) {
        Ok(start) if start < size => start,
        // The end of a file counts as a hole. Without support for SEEK_HOLE,
        // everything is data.
        Ok(_) | Err(Errno::INVAL | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Data(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..end))
}
