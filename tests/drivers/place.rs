//! Peers on TCP, through a bridge, and images for servers.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use nbd_test_support::peer::Peer;

/// A peer, which listens on a Unix socket, and a TCP port that leads to it.
pub struct Bridge {
    _peer: Peer,
    address: SocketAddr,
}

impl Bridge {
    pub fn new(peer: Peer) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let socket = peer.socket().to_owned();
        // The thread ends with the process.
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                // If the peer has ended, the connection is closed.
                let _ = join(tcp, &socket);
            }
        });
        Self {
            _peer: peer,
            address,
        }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

fn join(tcp: TcpStream, socket: &Path) -> io::Result<()> {
    let unix = UnixStream::connect(socket)?;
    let (mut from, mut to) = (tcp.try_clone()?, unix.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (unix, tcp);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// An image of `size` zeroes in a folder.
pub fn blank(folder: &Path, size: u64) -> PathBuf {
    let image = folder.join("image");
    nbd_test_support::images::sparse(&image, size, &[]);
    image
}
