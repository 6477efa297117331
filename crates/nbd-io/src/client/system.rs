//! What differs between operating systems.

#[cfg(unix)]
use std::ffi::OsStr;
#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::unix::ffi::OsStrExt;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(feature = "tls")]
use std::path::PathBuf;

#[cfg(unix)]
use nbd_codec::uri::Transport;

#[cfg(any(unix, feature = "tls"))]
use super::Error;

/// A path in bytes, as URIs have it.
#[cfg(all(unix, feature = "tls"))]
pub(super) fn path(bytes: &[u8]) -> Result<PathBuf, Error> {
    Ok(OsStr::from_bytes(bytes).into())
}

/// A path in bytes, as URIs have it: of UTF-8 here.
#[cfg(all(not(unix), feature = "tls"))]
pub(super) fn path(bytes: &[u8]) -> Result<PathBuf, Error> {
    let path = str::from_utf8(bytes).map_err(|_| Error::Unsupported("a path that is not UTF-8"))?;
    Ok(path.into())
}

/// Connects to the socket of a URI that is not TCP.
#[cfg(unix)]
pub(super) fn connect(transport: &Transport) -> Result<UnixStream, Error> {
    Ok(match transport {
        Transport::Unix { path } => unix(path)?,
        Transport::Vsock { cid, port } => vsock(*cid, *port)?,
        _ => return Err(Error::Unsupported("the transport of the URI")),
    })
}

#[cfg(unix)]
fn unix(path: &[u8]) -> io::Result<UnixStream> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix(b"\0") {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return UnixStream::connect_addr(&address);
    }
    UnixStream::connect(OsStr::from_bytes(path))
}

/// A vsock connection, between a virtual machine and its host. The result is a stream socket
/// like one of the Unix domain, to the standard library and to tokio.
#[cfg(target_os = "linux")]
fn vsock(cid: u32, port: u32) -> io::Result<UnixStream> {
    use socket2::{Domain, SockAddr, Socket, Type};

    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect(&SockAddr::vsock(cid, port))?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

/// There is no vsock on this system.
#[cfg(all(unix, not(target_os = "linux")))]
fn vsock(_: u32, _: u32) -> io::Result<UnixStream> {
    Err(io::ErrorKind::Unsupported.into())
}
