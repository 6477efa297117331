//! Vsock connections, between a virtual machine and its host.

use std::io;
use std::os::unix::net::UnixStream;

/// Connects. The result is a stream socket like one of the Unix domain, to the standard
/// library and to tokio.
#[cfg(target_os = "linux")]
pub(super) fn connect(cid: u32, port: u32) -> io::Result<UnixStream> {
    use socket2::{Domain, SockAddr, Socket, Type};

    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect(&SockAddr::vsock(cid, port))?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

/// There is no vsock on this system.
#[cfg(not(target_os = "linux"))]
pub(super) fn connect(_: u32, _: u32) -> io::Result<UnixStream> {
    Err(io::ErrorKind::Unsupported.into())
}
