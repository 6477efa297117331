//! Start and shutdown of the server.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_codec::wire::option::OptionRequest;
use nbd_test_support::program::run;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::raw::{Raw, handshake, request};
use crate::running::{Serve, program, until};

#[test]
fn both_signals_shut_down_the_server() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut serve = Serve::start(&["--memory", "1M"]);
        let socket = serve.socket();
        let mut idle = Raw::ready(&serve);
        let mut negotiating = Raw::connect(&serve);
        let start = Instant::now();
        serve.signal(signal);
        assert_eq!(serve.ended().code(), Some(0), "{}", serve.log());
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(!socket.exists());
        assert_eq!(idle.read_to_end(), b"");
        negotiating.read_to_end();
    }
}

#[test]
fn what_is_in_flight_is_finished_and_what_comes_is_refused() {
    let mut serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    // More than the socket buffers hold: it stays in flight until it is read.
    client.send(&[request(Command::READ, 0, 1 << 20); 8].concat());
    // The server has received all of them when the first reply begins.
    client.receive(1);
    serve.signal(Signal::TERM);
    until("no more clients are accepted", || !serve.socket().exists());
    client.receive(8 * (16 + (1 << 20)) - 1);
    client.send(&request(Command::READ, 0, 512));
    assert_eq!(client.reply(), ErrorValue::ESHUTDOWN);
    client.send(&request(Command::DISC, 0, 0));
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(serve.ended().code(), Some(0));
}

#[test]
fn a_client_that_does_not_read_does_not_prevent_the_shutdown() {
    let mut serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 1 << 20); 64].concat());
    client.receive(1);
    serve.signal(Signal::TERM);
    assert_eq!(serve.ended().code(), Some(0));
}

#[test]
fn the_second_signal_ends_the_process() {
    let mut serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 1 << 20); 64].concat());
    client.receive(1);
    serve.signal(Signal::INT);
    until("the first signal is handled", || !serve.socket().exists());
    serve.signal(Signal::INT);
    assert_eq!(serve.ended().code(), Some(1));
}

#[test]
fn once_serves_one_connection() {
    // However the connection ends.
    let ends: [fn(Raw); 3] = [
        drop,
        |mut client| {
            client.send(&request(Command::DISC, 0, 0));
            client.read_to_end();
        },
        |mut client| client.send(b"this is not a request of the protocol"),
    ];
    for end in ends {
        let mut serve = Serve::start(&["--memory", "1M", "--once"]);
        let client = Raw::ready(&serve);
        until("no more clients are accepted", || !serve.socket().exists());
        end(client);
        assert_eq!(serve.ended().code(), Some(0), "{}", serve.log());
    }
    // Without a client.
    Serve::start(&["--memory", "1M", "--once"]).stop();
}

/// A port probe, a request of another protocol, and a list of exports.
#[test]
fn once_counts_from_transmission_on() {
    let mut serve = Serve::start(&["--memory", "1M", "--once"]);
    drop(Raw::connect(&serve));
    let mut http = Raw::connect(&serve);
    http.send(b"GET / HTTP/1.1\r\n\r\n");
    http.read_to_end();
    let mut list = Raw::connect(&serve);
    list.send(&ClientFlags::KNOWN.encode());
    let mut options = Vec::new();
    for option in [OptionRequest::List, OptionRequest::Abort] {
        option.encode(&mut options).expect("an option");
    }
    list.send(&options);
    list.read_to_end();
    let mut negotiating = Raw::connect(&serve);
    let mut client = Raw::ready(&serve);
    until("no more clients are accepted", || !serve.socket().exists());
    // It is too late for the handshake that had begun.
    let _ = negotiating.0.write_all(&handshake());
    negotiating.read_to_end();
    client.send(&request(Command::READ, 0, 512));
    assert_eq!(client.reply(), ErrorValue::NONE);
    drop(client);
    assert_eq!(serve.ended().code(), Some(0), "{}", serve.log());
}

#[test]
fn a_socket_without_a_listener_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    drop(UnixListener::bind(&socket).expect("a socket"));
    assert!(socket.exists());
    let serve = Serve::start_in(folder, &["--memory", "1M"]);
    Raw::ready(&serve);
    serve.stop();
    assert!(!socket.exists());
}

#[test]
fn sockets_and_files_in_use_are_kept() {
    let serve = Serve::start(&["--memory", "1M"]);
    let socket = serve.socket();
    let refused = |path: &std::path::Path, texts: &[&str]| {
        let mut command = program();
        run(command.args(["--memory", "1M", "--unix"]).arg(path)).refused(texts);
    };
    refused(&socket, &["socket", "another server"]);
    Raw::ready(&serve);

    let file = serve.folder().join("file");
    fs::write(&file, "content").expect("a file");
    refused(&file, &["file", "not a socket"]);
    assert_eq!(fs::read(&file).expect("the file"), b"content");

    refused(
        &serve.folder().join("none").join("socket"),
        &["No such file"],
    );
}

/// Starting is serialized by a lock on the folder: otherwise two servers could both
/// find the file stale, and the second one would remove the socket of the first.
#[test]
fn one_server_at_a_time_replaces_a_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    drop(UnixListener::bind(&socket).expect("a socket"));
    let is_served = || UnixStream::connect(&socket).is_ok();
    let lock = fs::File::open(folder.path()).expect("the folder");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    let mut child = program()
        .args(["--memory=1M", "--unix"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("nbd-serve starts");
    std::thread::sleep(Duration::from_millis(300));
    let too_early = is_served();
    drop(lock);
    until("it is replaced", is_served);
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!too_early, "replaced without the lock");
}
