//! Clients against servers of other projects, and against servers that do what no real one
//! should.

/// Returns from a test, which returns a result, if programs are missing.
macro_rules! require {
    ($($program:literal),*) => {
        if !nbd_test_support::program::have(&[$($program),*]) {
            return Ok(());
        }
    };
}

mod calls;
mod cancel;
mod canned;
mod close;
mod disk;
mod embedded;
mod kills;
mod lost;
mod servers;
mod tls;

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use nbd_test_support::peer::Peer;
use tempfile::TempDir;

/// A server of `size` bytes of memory, with options and with parameters of filters.
fn memory(size: &str, filters: &[&str]) -> Peer {
    let (options, parameters): (Vec<_>, Vec<_>) = filters
        .iter()
        .partition(|argument| argument.starts_with('-'));
    Peer::nbdkit(&[&options[..], &["memory", size], &parameters[..]].concat())
}

/// Forwards the connections of a TCP port to a Unix socket. Returns the port.
fn forwarded_port(socket: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let socket = socket.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let other = UnixStream::connect(&socket).expect("the server");
            let (to, from) = (stream.try_clone(), other.try_clone());
            pump(stream, other);
            pump(from.expect("a clone"), to.expect("a clone"));
        }
    });
    port
}

/// Forwards the connections of an abstract name to a Unix socket.
fn forwarded_name(name: &str, socket: &Path) {
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    let socket = socket.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let other = UnixStream::connect(&socket).expect("the server");
            let (to, from) = (stream.try_clone(), other.try_clone());
            pump(stream, other);
            pump(from.expect("a clone"), to.expect("a clone"));
        }
    });
}

fn pump(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) {
    thread::spawn(move || io::copy(&mut from, &mut to));
}

/// A folder with an image of `size` bytes, and its path.
fn image(size: u64) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    nbd_test_support::images::sparse(&path, size, &[]);
    (folder, path)
}
