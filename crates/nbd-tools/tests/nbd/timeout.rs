//! The limit set by `--timeout`.

use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::nbd::run_nbd;

/// A server that does not accept connections, and has no space for another.
#[test]
fn the_timeout_covers_connecting() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let address = SocketAddrUnix::new(&path).expect("an address");
    let new = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .expect("a socket")
    };
    let listener = new();
    rustix::net::bind(&listener, &address).expect("bound");
    rustix::net::listen(&listener, 0).expect("listening");
    let mut waiting = Vec::new();
    loop {
        let socket = new();
        match rustix::net::connect(&socket, &address) {
            Ok(()) => waiting.push(UnixStream::from(socket)),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let uri = format!("nbd+unix:///?socket={}", path.display());
    for command in ["info", "list", "map", "read", "bench"] {
        run_nbd([command, &uri, "--timeout", "0.2"]).refused(&["cannot connect", "--timeout"]);
    }
}
