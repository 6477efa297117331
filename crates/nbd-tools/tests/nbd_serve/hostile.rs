//! Clients that stall, lie or leave: each costs its own connection, and
//! nothing else.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_test_support::images::noise;

use crate::driver::{self, with_rings_too};
use crate::raw::{Raw, handshake, request};
use crate::running::{Serve, server, until};

with_rings_too!(
    a_thousand_connections_that_stop_at_every_byte_of_a_handshake,
    more_clients_than_the_system_has_room_for,
    clients_that_leave_in_transmission_are_no_news,
    what_follows_a_half_close_is_still_answered,
    who_asks_and_never_reads_is_held_back,
    who_writes_and_never_reads_is_held_back,
    a_client_that_is_slow_does_not_keep_others_waiting,
    junk_in_the_place_of_a_handshake,
);

/// A number in the state of the server's process.
fn status(serve: &Serve, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", serve.id())).expect("its state");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

fn threads(serve: &Serve) -> u64 {
    status(serve, "Threads")
}

/// Most memory it ever had, in MiB.
fn memory(serve: &Serve) -> u64 {
    status(serve, "VmHWM") / 1024
}

/// A good client is served, and at once.
#[track_caller]
fn assert_serves(serve: &Serve) {
    let start = Instant::now();
    let mut good = Raw::ready(serve);
    good.send(&request(Command::WRITE, 0, 4096));
    good.send(&[7; 4096]);
    assert_eq!(good.reply(), ErrorValue::NONE);
    good.send(&request(Command::READ, 0, 4096));
    assert_eq!(good.reply(), ErrorValue::NONE);
    assert_eq!(good.receive(4096), [7; 4096]);
    good.send(&request(Command::DISC, 0, 0));
    assert_eq!(good.rest(), b"");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_thousand_connections_that_stop_at_every_byte_of_a_handshake() {
    let serve = Serve::start(&["--memory", "1M", "--handshake-timeout", "3"]);
    let idle = threads(&serve);
    let script = handshake();
    assert!(script.len() > 150);
    let mut stalled = Vec::new();
    for n in 0..1000 {
        let length = n / 2 % script.len();
        let mut client = Raw::connect(&serve);
        // It may have been told that this is enough already.
        let _ = client.0.write_all(&script[..length]);
        if n % 2 == 0 {
            stalled.push(client);
        }
    }
    assert_serves(&serve);
    match driver::rings() {
        true => assert_eq!(threads(&serve), idle, "they have threads"),
        false => assert!(threads(&serve) > 400, "they do not wait"),
    }
    // Every one of them is let go in time, and nothing is left of them.
    for client in &mut stalled {
        client.rest();
    }
    until("only the first thread is left", || threads(&serve) == idle);
    assert_serves(&serve);
    let log = serve.stop();
    assert!(log.contains("client 1000 "), "not all of them came");
    assert!(log.contains("timed out"), "{log}");
}

#[test]
fn more_clients_than_the_system_has_room_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let mut command = Program::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$@\"", "sh"]);
    let serve = server();
    command.arg(serve.get_program()).args(serve.get_args());
    command.args(["--memory", "1M", "--unix"]).arg(&socket);
    let serve = Serve::spawn(folder, &mut command);
    let stalled: Vec<_> = (0..60).map(|_| Raw::connect(&serve)).collect();
    serve.has_said("cannot accept more clients now");
    drop(stalled);
    assert_serves(&serve);
    let log = serve.stop();
    assert!(log.lines().count() < 10, "it goes on about it: {log}");
}

#[test]
fn clients_that_leave_in_transmission_are_no_news() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let socket = socket.to_str().expect("UTF-8").to_owned();
    // Not verbose.
    let serve = Serve::run(folder, &["--memory", "64M", "--unix", &socket]);
    let idle = threads(&serve);
    let read = request(Command::READ, 0, 1 << 20);
    let write = request(Command::WRITE, 0, 1 << 20);
    for n in 0..200 {
        let mut client = Raw::ready(&serve);
        match n % 5 {
            // In the middle of a header.
            0 => client.send(&read[..n % 28]),
            // In the middle of a payload.
            1 => client.send(&[&write[..], &[1; 1000]].concat()),
            // With replies under way.
            2 => client.send(&[read; 16].concat()),
            // The same, half of one read.
            3 => {
                client.send(&[read; 16].concat());
                client.receive(1 << 19);
            }
            // With bytes that are no request.
            _ => client.send(&noise(n as u64, 100)),
        }
    }
    assert_serves(&serve);
    until("only the first thread is left", || threads(&serve) == idle);
    assert_eq!(serve.stop(), "");
}

#[test]
fn what_follows_a_half_close_is_still_answered() {
    let serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 1 << 20); 32].concat());
    client.0.shutdown(Shutdown::Write).expect("half a close");
    assert_eq!(client.rest().len(), 32 * (16 + (1 << 20)));
}

#[test]
fn who_asks_and_never_reads_is_held_back() {
    let serve = Serve::start(&["--memory", "1G"]);
    let mut client = Raw::ready(&serve);
    // Four GiB of replies.
    client.send(&[request(Command::READ, 0, 1 << 20); 4096].concat());
    assert_serves(&serve);
    std::thread::sleep(Duration::from_millis(500));
    assert_serves(&serve);
    assert!(memory(&serve) < 150, "{} MiB", memory(&serve));
    // The first thing it reads is what it asked for first or next.
    assert_eq!(client.reply(), ErrorValue::NONE);
    drop(client);
    serve.has_said("client 1 (unix): left");
}

#[test]
fn who_writes_and_never_reads_is_held_back() {
    let serve = Serve::start(&["--memory", "1G"]);
    let mut client = Raw::ready(&serve);
    let timeout = Some(Duration::from_millis(300));
    client.0.set_write_timeout(timeout).expect("a timeout");
    let one = [&request(Command::WRITE, 0, 1 << 18)[..], &[1; 1 << 18]].concat();
    let taken = (0..20_000)
        .take_while(|_| client.0.write_all(&one).is_ok())
        .count();
    assert!(taken < 20_000, "it takes everything");
    assert_serves(&serve);
    assert!(memory(&serve) < 150, "{} MiB", memory(&serve));
    // Even so it can go on, once it reads.
    for _ in 0..taken {
        assert_eq!(client.reply(), ErrorValue::NONE);
    }
}

#[test]
fn a_client_that_is_slow_does_not_keep_others_waiting() {
    let serve = Serve::start(&["--memory", "1G"]);
    let mut slow: Vec<_> = (0..20).map(|_| Raw::ready(&serve)).collect();
    for client in &mut slow {
        // The beginning of a write, for a long time.
        client.send(&request(Command::WRITE, 0, 32 << 20));
    }
    assert_serves(&serve);
    // All of it, at last.
    let last = slow.last_mut().expect("a client");
    last.send(&vec![3; 32 << 20]);
    assert_eq!(last.reply(), ErrorValue::NONE);
    assert!(memory(&serve) < 150, "{} MiB", memory(&serve));
}

#[test]
fn junk_in_the_place_of_a_handshake() {
    let serve = Serve::start(&["--memory", "1M"]);
    for n in 0..100 {
        let mut client = Raw::connect(&serve);
        // What is wrong may be known before all of it is there.
        let _ = client.0.write_all(&noise(n, 4096));
        client.rest();
    }
    assert_serves(&serve);
}
