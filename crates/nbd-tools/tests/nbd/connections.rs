//! Copies over several connections, or over one if the server does not permit more.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use nbd_test_support::images::{MIB, assert_as_sparse, assert_same, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use tempfile::TempDir;

use crate::nbd::{nbd, run_nbd};

/// Enough data and holes for several connections.
const SIZE: u64 = 64 * MIB;
const DATA: [(u64, u64); 3] = [
    (0, 10 * MIB),
    (15 * MIB + 4096, 20 * MIB),
    (50 * MIB, 14 * MIB),
];

struct Fixture {
    folder: TempDir,
    image: PathBuf,
    log: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (image, log) = (folder.path().join("image"), folder.path().join("log"));
        sparse(&image, SIZE, &DATA);
        Self { folder, image, log }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// nbdkit with the file, slow enough that every connection gets requests. It
    /// logs connections and requests.
    fn serve(&self, file: &Path, filters: &[&str], settings: &[&str]) -> Peer {
        let file = format!("file={}", file.to_str().expect("UTF-8"));
        let log = format!("logfile={}", self.log.to_str().expect("UTF-8"));
        let slow = ["file", &file, &log, "rdelay=20ms", "wdelay=20ms"];
        let args = [&["--filter=log"], filters, &["--filter=delay"], &slow];
        Peer::nbdkit(&[&args.concat()[..], settings].concat())
    }

    /// The number of connections with a log entry `what`.
    fn connections(&self, what: &str) -> usize {
        let log = fs::read_to_string(&self.log).expect("a log");
        let mut numbers: Vec<_> = log
            .lines()
            .filter(|line| line.contains(&format!(" {what} ")))
            .filter_map(|line| line.split("connection=").nth(1)?.split(' ').next())
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    }
}

/// The number of processors, at most four.
fn expected() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(4))
}

#[test]
fn reads_use_several_connections() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let peer = fixture.serve(&fixture.image, &[], &[]);
    let copied = fixture.path("copied");
    run_nbd(["copy".as_ref(), peer.uri("").as_ref(), copied.as_os_str()]).ok();
    assert_same(&fixture.image, &copied);
    assert_as_sparse(&fixture.image, &copied);
    assert_eq!(fixture.connections("Read"), expected());
}

#[test]
fn writes_use_several_connections() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let served = fixture.path("served");
    sparse(&served, SIZE, &[(MIB, 16 * MIB)]);
    {
        let peer = fixture.serve(&served, &[], &[]);
        let uri = peer.uri("");
        run_nbd(["copy".as_ref(), fixture.image.as_os_str(), uri.as_ref()]).ok();
    }
    assert_same(&fixture.image, &served);
    assert_eq!(fixture.connections("Write"), expected());
    // Every connection flushes what it wrote.
    assert_eq!(fixture.connections("Flush"), expected());
}

#[test]
fn without_multi_conn_there_is_one_connection() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let (filter, mode) = ("--filter=multi-conn", "multi-conn-mode=disable");
    let copied = fixture.path("copied");
    {
        let peer = fixture.serve(&fixture.image, &[filter], &[mode]);
        run_nbd(["copy".as_ref(), peer.uri("").as_ref(), copied.as_os_str()]).ok();
    }
    assert_same(&fixture.image, &copied);
    assert_eq!(fixture.connections("Connect"), 1);

    fs::remove_file(&fixture.log).expect("a log");
    let served = fixture.path("served");
    sparse(&served, SIZE, &[]);
    {
        let peer = fixture.serve(&served, &[filter], &[mode]);
        let uri = peer.uri("");
        run_nbd(["copy".as_ref(), fixture.image.as_os_str(), uri.as_ref()]).ok();
    }
    assert_same(&fixture.image, &served);
    assert_eq!(fixture.connections("Connect"), 1);
}

/// The server advertises CAN_MULTI_CONN, but accepts only one connection.
#[test]
fn one_connection_is_enough() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let peer = fixture.serve(&fixture.image, &["--filter=limit"], &["limit=1"]);
    let copied = fixture.path("copied");
    run_nbd(["copy".as_ref(), peer.uri("").as_ref(), copied.as_os_str()]).ok();
    assert_same(&fixture.image, &copied);
    assert_eq!(fixture.connections("Read"), 1);
}

/// The second connection gets no greeting; the first one does not wait for it.
#[test]
fn a_pending_connection_does_not_delay_the_copy() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let peer = fixture.serve(&fixture.image, &[], &[]);
    let relay = Relay::start(&peer, &fixture.path("relay"), &[None, Some(0)]);
    let copied = fixture.path("copied");
    run_nbd(["copy".as_ref(), relay.uri().as_ref(), copied.as_os_str()]).ok();
    assert_same(&fixture.image, &copied);
    assert_eq!(fixture.connections("Read"), 1);
}

/// One of two connections is closed during the copy: the data of its requests is
/// missing, which is an error.
#[test]
fn a_lost_connection_fails_the_copy() {
    needs!("nbdkit");
    let fixture = Fixture::new();
    let cases = [
        ("first", [Some(5 * MIB), None]),
        ("second", [None, Some(MIB)]),
    ];
    // With one processor there is no second connection.
    for (name, limits) in cases.into_iter().take(expected()) {
        // A new server for each case: nbdkit 1.32 may end when a connection is lost.
        let peer = fixture.serve(&fixture.image, &[], &[]);
        let relay = Relay::start(&peer, &fixture.path(name), &limits);
        let copied = fixture.path("copied");
        let mut command = nbd();
        command.args(["copy".as_ref(), relay.uri().as_ref(), copied.as_os_str()]);
        run(&mut command).refused(&["connection", name]);
    }
}

/// Relays between a client and a server, and closes connections.
struct Relay {
    socket: PathBuf,
}

impl Relay {
    /// `limits` are the numbers of bytes that each connection relays from the server
    /// before it is closed. With zero, the connection stays open without a server.
    fn start(peer: &Peer, socket: &Path, limits: &[Option<u64>]) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        let server = peer.socket().to_owned();
        let limits = limits.to_vec();
        thread::spawn(move || {
            let mut kept = Vec::new();
            for (client, number) in listener.incoming().zip(0..) {
                let client = client.expect("a client");
                let limit = limits.get(number).copied().flatten();
                if limit == Some(0) {
                    kept.push(client);
                    continue;
                }
                let server = UnixStream::connect(&server).expect("a server");
                let up = (client.try_clone(), server.try_clone());
                let (from, to) = (up.0.expect("a socket"), up.1.expect("a socket"));
                thread::spawn(move || relay(from, to, u64::MAX));
                thread::spawn(move || relay(server, client, limit.unwrap_or(u64::MAX)));
            }
        });
        Self {
            socket: socket.to_owned(),
        }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

/// Relays at most `limit` bytes.
fn relay(mut from: UnixStream, mut to: UnixStream, limit: u64) {
    let mut bytes = vec![0; 64 << 10];
    let mut left = limit;
    while left > 0 {
        let length = bytes.len().min(left as usize);
        let Ok(n @ 1..) = from.read(&mut bytes[..length]) else {
            break;
        };
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
        left -= n as u64;
    }
    for stream in [from, to] {
        // The other thread may have closed it already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
