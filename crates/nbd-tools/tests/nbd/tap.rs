//! `nbd tap` between real clients and real servers, and sides that stop reading.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nbd_test_support::images::{MIB, scattered, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;

use super::nbd::nbd;

/// A tap that runs until it is dropped.
struct Tap {
    running: Option<Running>,
    /// What it prints is read while it runs.
    printed: Option<JoinHandle<String>>,
    /// The URI of the tap.
    uri: String,
}

impl Tap {
    fn start(listen: &str, server: &str) -> Self {
        let mut child = nbd()
            .args(["tap", "--listen", listen, "--connect", server])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nbd tap");
        let mut line = String::new();
        let stderr = child.stderr.take().expect("standard error");
        BufReader::new(stderr).read_line(&mut line).expect("a line");
        let uri = line
            .trim()
            .strip_prefix("nbd: listening on ")
            .expect(&line)
            .to_owned();
        let mut stdout = child.stdout.take().expect("standard output");
        let printed = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("text");
            text
        });
        Self {
            running: Some(Running(child)),
            printed: Some(printed),
            uri,
        }
    }

    /// Ends the tap; returns what it printed.
    fn end(mut self) -> String {
        let printed = self.printed.take().expect("a tap that runs");
        self.running = None;
        printed.join().expect("standard output")
    }
}

/// A program that is ended when the value is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs clients one after the other through a tap; no rule is broken.
fn clients(listen: &str, server: &str, clients: &[(&str, &[&str])]) -> String {
    let tap = Tap::start(listen, server);
    for (program, args) in clients {
        let args = args.iter().map(|arg| arg.replace("URI", &tap.uri));
        let mut command = Command::new(program);
        let ended = run(command.args(args));
        assert_eq!(ended.code, Some(0), "{command:?}: {}", ended.stderr);
    }
    // What the last client did is printed before its connection is closed.
    let text = tap.end();
    let broken: Vec<_> = text
        .lines()
        .filter(|line| line.contains("! the "))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}\nin {text}");
    text
}

const WRITES: &[&str] = &[
    "-f",
    "raw",
    "-c",
    "write -P 7 4k 8k",
    "-c",
    "write -z 64k 64k",
    "-c",
    "discard 128k 64k",
    "-c",
    "flush",
    "-c",
    "read -P 7 4k 8k",
    "URI",
];

#[test]
fn qemu_io_and_nbdcopy_with_nbdkit_break_no_rule() {
    needs!("nbdkit", "qemu-io", "nbdcopy", "nbdinfo");
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy").display().to_string();
    let listen = format!(
        "nbd+unix:///?socket={}",
        folder.path().join("tap").display()
    );
    let server = Peer::nbdkit(&["memory", "1M"]);
    let text = clients(
        &listen,
        &server.uri(""),
        &[
            ("qemu-io", WRITES),
            ("nbdcopy", &["URI", &copy]),
            ("nbdinfo", &["URI"]),
            ("nbdinfo", &["--map", "URI"]),
            ("nbdinfo", &["--list", "URI"]),
        ],
    );
    for told in [
        "NBD_CMD_WRITE_ZEROES",
        "NBD_CMD_BLOCK_STATUS",
        "NBD_OPT_LIST",
        "2 C: ",
    ] {
        assert!(text.contains(told), "{told} in {text}");
    }
}

#[test]
fn libnbd_and_qemu_img_with_nbd_serve_break_no_rule() {
    needs!("nbdcopy", "qemu-img");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name| folder.path().join(name);
    sparse(&path("disk"), 4 * MIB, &scattered(4 * MIB));
    let socket = path("server");
    let mut server = Command::new(env!("CARGO_BIN_EXE_nbd-serve"))
        .arg("--unix")
        .arg(&socket)
        .arg(path("disk"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("nbd-serve");
    let stdout = server.stdout.take().expect("standard output");
    let server = Running(server);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let copies = ["one", "two"].map(|name| path(name).display().to_string());
    let text = clients(
        "nbd://127.0.0.1:0",
        &format!("nbd+unix:///?socket={}", socket.display()),
        &[
            ("nbdcopy", &["URI", &copies[0]]),
            (
                "qemu-img",
                &["convert", "-f", "raw", "-O", "raw", "URI", &copies[1]],
            ),
            (env!("CARGO_BIN_EXE_nbd"), &["map", "URI"]),
        ],
    );
    drop(server);
    for copy in copies {
        same(&path("disk"), Path::new(&copy));
    }
    assert!(text.contains("extended request NBD_CMD_READ"), "{text}");
}

#[test]
fn clients_of_qemu_nbd_and_nbd_server_break_no_rule() {
    needs!("qemu-nbd", "nbd-server", "qemu-img", "nbdcopy");
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("disk");
    sparse(&image, 4 * MIB, &scattered(4 * MIB));
    let servers = [
        Peer::qemu(&["-f", "raw", "-x", "disk"], &image),
        Peer::nbd_server(&image),
    ];
    for (n, server) in servers.iter().enumerate() {
        let copies = ["one", "two"].map(|name| folder.path().join(name).display().to_string());
        let tap = folder.path().join(format!("tap{n}")).display().to_string();
        let export = format!("nbd+unix:///disk?socket={tap}");
        clients(
            &format!("nbd+unix:///?socket={tap}"),
            &server.uri("disk"),
            &[
                ("nbdcopy", &[&export, &copies[0]]),
                (
                    "qemu-img",
                    &["convert", "-f", "raw", "-O", "raw", &export, &copies[1]],
                ),
                (env!("CARGO_BIN_EXE_nbd"), &["info", &export]),
            ],
        );
        copies.iter().for_each(|copy| same(&image, Path::new(copy)));
    }
}

fn same(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(|path| std::fs::read(path).expect("a file"));
    assert!(a == b, "the copies differ");
}

/// Each direction is passed on by itself: a client that does not read gets in the way
/// of the replies, and of nothing else.
#[test]
fn a_side_that_does_not_read_stops_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = format!("nbd://{}", listener.local_addr().expect("an address"));
    let tap = Tap::start("nbd://127.0.0.1:0", &server);
    let address = tap
        .uri
        .strip_prefix("nbd://")
        .expect("an address")
        .to_owned();
    let mut client = TcpStream::connect(address).expect("the tap accepts");
    let (mut server, _) = listener.accept().expect("the tap connects");
    const MUCH: usize = 64 << 20;
    let mut sender = server.try_clone().expect("a stream");
    let replies = thread::spawn(move || {
        sender
            .write_all(b"NBDMAGICIHAVEOPT\0\x03")
            .expect("a greeting");
        sender.write_all(&vec![0; MUCH]).expect("junk is passed on");
    });
    // The replies are stuck by then; requests are not.
    thread::sleep(Duration::from_millis(200));
    client.write_all(b"\0\0\0\x03").expect("flags");
    let mut flags = [0; 4];
    server.read_exact(&mut flags).expect("the flags");
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("half of a close");
    assert_eq!(server.read(&mut flags).expect("the end"), 0);
    let mut received = vec![0; 18 + MUCH];
    client
        .read_exact(&mut received)
        .expect("the replies after all");
    replies.join().expect("the server");
    let text = tap.end();
    assert!(
        text.contains("! the server: bytes that nothing was sent for"),
        "{text}"
    );
}

#[test]
fn the_reader_of_the_transcript_may_close_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("tap");
    let listen = format!("nbd+unix:///?socket={}", socket.display());
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("an address");
    let mut tap = nbd()
        .args(["tap", "--listen", &listen, "--connect"])
        .arg(format!("nbd://{address}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nbd tap");
    let mut stderr = BufReader::new(tap.stderr.take().expect("standard error"));
    stderr.read_line(&mut String::new()).expect("a line");
    drop(tap.stdout.take());
    let mut client = UnixStream::connect(&socket).expect("the tap accepts");
    let (mut server, _) = server.accept().expect("the tap connects");
    server.write_all(b"NBDMAGICIHAVEOPT\0\x03").expect("sent");
    // Both sides are disconnected, and the tap ends without a message.
    let limit = Some(Duration::from_secs(20));
    client.set_read_timeout(limit).expect("a timeout");
    server.set_read_timeout(limit).expect("a timeout");
    for read in [client.read(&mut [0]), server.read(&mut [0])] {
        match read {
            Ok(n) => assert_eq!(n, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(tap.wait().expect("the end").code(), Some(1));
    let mut message = String::new();
    stderr.read_to_string(&mut message).expect("text");
    assert_eq!(message, "");
    assert!(!socket.exists());
}

#[test]
fn a_connection_that_cannot_be_passed_on_is_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = |name| format!("nbd+unix:///?socket={}", folder.path().join(name).display());
    let tap = thread::spawn({
        let (listen, connect) = (uri("tap"), uri("nothing"));
        move || run(nbd().args(["tap", "--once", "--listen", &listen, "--connect", &connect]))
    });
    while UnixStream::connect(folder.path().join("tap")).is_err() {
        assert!(!tap.is_finished(), "it ended before a client came");
        thread::sleep(Duration::from_millis(5));
    }
    let ended = tap.join().expect("the tap");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("connection 1: cannot connect to"),
        "{}",
        ended.stderr
    );
}

#[test]
fn the_socket_of_a_tap_that_was_killed_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("nbd+unix:///?socket={}/a%20b%26c", folder.path().display());
    for _ in 0..2 {
        let tap = Tap::start(&listen, "nbd://127.0.0.1");
        assert_eq!(tap.uri, listen);
        // One that runs is not replaced.
        run(nbd().args(["tap", "--listen", &listen, "--connect", "nbd://127.0.0.1"]))
            .refused(&["cannot listen on", "in use"]);
        drop(tap);
    }
}

#[test]
fn colours_are_for_terminals() {
    let ended = run(nbd()
        .args(["decode", "../../tests/sessions/qemu-map-extended.txt"])
        .env_remove("NO_COLOR"));
    assert!(!ended.ok().stdout.contains(&0x1b));
}

#[test]
fn what_is_no_place_to_listen_is_refused() {
    let tap =
        |listen: &str| run(nbd().args(["tap", "--listen", listen, "--connect", "nbd://localhost"]));
    tap("nbd+vsock:///").refused(&["transport is not supported"]);
    tap("nbd+unix:///?socket=/does/not/exist").refused(&["cannot listen on /does/not/exist"]);
}
