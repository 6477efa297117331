//! Servers on TCP: our own programs, and peers through a bridge.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nbd_test_support::peer::Peer;
use nbd_test_support::program::{example, tool};

/// A server of ours, on a port of its own. Dropping the value ends the server.
pub struct Example {
    child: Child,
    /// Its URI, which is its first line of output.
    pub uri: String,
}

impl Example {
    /// Starts an example and waits for its URI.
    #[track_caller]
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::spawn(example(name).args(args))
    }

    /// Starts `nbd-serve`.
    #[track_caller]
    pub fn nbd_serve(args: &[&str]) -> Self {
        Self::spawn(tool("nbd-serve").args(args))
    }

    #[track_caller]
    fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .stderr(Stdio::null())
            .spawn()
            .expect("a server starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = send.send(line);
        });
        let mut this = Self {
            child,
            uri: String::new(),
        };
        let line = receive.recv_timeout(Duration::from_secs(30));
        line.expect("a line within thirty seconds")
            .trim()
            .clone_into(&mut this.uri);
        assert!(
            this.uri.starts_with("nbd"),
            "{command:?} first wrote {:?}",
            this.uri
        );
        this
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its `ADDR:PORT`.
    pub fn address(&self) -> &str {
        let (_, authority) = self.uri.split_once("://").expect("a URI");
        authority.split('/').next().unwrap_or_default()
    }
}

impl Example {
    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        self.kill();
    }
}

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
