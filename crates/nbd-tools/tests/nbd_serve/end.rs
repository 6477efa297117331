//! How a server begins and ends.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_test_support::needs;
use nbd_test_support::program::run;
use rustix::process::Signal;

use crate::driver::with_rings_too;
use crate::raw::{Raw, handshake, request};
use crate::running::{Serve, program, until};

with_rings_too!(
    a_socket_that_nobody_listens_on_is_replaced,
    what_is_in_use_is_left_alone,
    both_signals_end_it_in_good_order,
    what_is_in_flight_is_finished_and_what_comes_is_refused,
    a_client_that_does_not_read_does_not_keep_it_from_ending,
    the_second_signal_ends_it_at_once,
    once_is_one_connection,
);

#[test]
fn both_signals_end_it_in_good_order() {
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
        assert_eq!(idle.rest(), b"");
        negotiating.rest();
    }
}

#[test]
fn what_is_in_flight_is_finished_and_what_comes_is_refused() {
    let mut serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    // More than the sockets hold: it is under way for as long as nobody reads.
    client.send(&[request(Command::READ, 0, 1 << 20); 8].concat());
    // All of them have been taken when the first reply begins.
    client.receive(1);
    serve.signal(Signal::TERM);
    until("nobody else is let in", || !serve.socket().exists());
    client.receive(8 * (16 + (1 << 20)) - 1);
    client.send(&request(Command::READ, 0, 512));
    assert_eq!(client.reply(), ErrorValue::ESHUTDOWN);
    client.send(&request(Command::DISC, 0, 0));
    assert_eq!(client.rest(), b"");
    assert_eq!(serve.ended().code(), Some(0));
}

#[test]
fn a_client_that_does_not_read_does_not_keep_it_from_ending() {
    let mut serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 1 << 20); 64].concat());
    client.receive(1);
    serve.signal(Signal::TERM);
    assert_eq!(serve.ended().code(), Some(0));
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let mut serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 1 << 20); 64].concat());
    client.receive(1);
    serve.signal(Signal::INT);
    until("the first one is seen", || !serve.socket().exists());
    serve.signal(Signal::INT);
    assert_eq!(serve.ended().code(), Some(1));
}

#[test]
fn once_is_one_connection() {
    // Whatever comes of it.
    let ends: [fn(Raw); 3] = [
        drop,
        |mut client| {
            client.send(&handshake());
            client.send(&request(Command::DISC, 0, 0));
            client.rest();
        },
        |mut client| client.send(b"nonsense"),
    ];
    for end in ends {
        let mut serve = Serve::start(&["--memory", "1M", "--once"]);
        let client = Raw::connect(&serve);
        until("nobody else is let in", || !serve.socket().exists());
        end(client);
        assert_eq!(serve.ended().code(), Some(0), "{}", serve.log());
    }
    // Nobody comes.
    Serve::start(&["--memory", "1M", "--once"]).stop();
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
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
fn what_is_in_use_is_left_alone() {
    let serve = Serve::start(&["--memory", "1M"]);
    let socket = serve.socket();
    let refused = |path: &std::path::Path, texts: &[&str]| {
        let mut command = program();
        run(command.args(["--memory", "1M", "--unix"]).arg(path)).refused(texts);
    };
    refused(&socket, &["socket", "another server"]);
    Raw::ready(&serve);

    let file = serve.folder().join("file");
    fs::write(&file, "precious").expect("a file");
    refused(&file, &["file", "no socket"]);
    assert_eq!(fs::read(&file).expect("the file"), b"precious");

    refused(
        &serve.folder().join("none").join("socket"),
        &["No such file"],
    );
}

/// Without a ring, it depends on who has asked for one.
#[test]
fn where_io_uring_is_not_permitted() {
    needs!("strace");
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let command = |driver: &str| {
        let mut command = Program::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"]);
        command.args(["-e", "inject=io_uring_setup:error=EPERM"]);
        command.arg(program().get_program());
        // Who ends strace does not end what it runs. That ends by itself.
        command.args(["--once", "--memory", "1M", driver, "--unix"]);
        command.arg(&socket);
        command
    };
    run(&mut command("--driver=uring")).refused(&["io_uring", "Operation not permitted"]);
    let mut serve = Serve::spawn(folder, &mut command("--driver=auto"));
    Raw::ready(&serve);
    assert_eq!(serve.ended().code(), Some(0));
    let log = serve.log();
    assert!(log.contains("threads serve"), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}
