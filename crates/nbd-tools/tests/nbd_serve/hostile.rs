//! Clients that stall, send invalid bytes or disconnect: only their own connection
//! is affected.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie, ErrorValue};
use nbd_codec::wire::request::CompactRequest;
use nbd_test_support::images::noise;

use crate::raw::{Raw, handshake, request};
use crate::running::{Disk, Serve, program, until};

/// A number from `/proc/PID/status` of the server.
fn status(serve: &Serve, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", serve.id())).expect("its state");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

pub fn threads(serve: &Serve) -> u64 {
    status(serve, "Threads")
}

/// The peak of its memory, in MiB.
pub fn memory(serve: &Serve) -> u64 {
    status(serve, "VmHWM") / 1024
}

/// A correct client is served without delay.
#[track_caller]
pub fn assert_serves(serve: &Serve) {
    let start = Instant::now();
    let mut good = Raw::ready(serve);
    good.send(&request(Command::WRITE, 0, 4096));
    good.send(&[7; 4096]);
    assert_eq!(good.reply(), ErrorValue::NONE);
    good.send(&request(Command::READ, 0, 4096));
    assert_eq!(good.reply(), ErrorValue::NONE);
    assert_eq!(good.receive(4096), [7; 4096]);
    good.send(&request(Command::DISC, 0, 0));
    assert_eq!(good.read_to_end(), b"");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_thousand_connections_stall_at_every_byte_of_a_handshake() {
    let serve = Serve::start(&["--memory", "1M", "--handshake-timeout", "3"]);
    let idle = threads(&serve);
    let script = handshake();
    assert!(script.len() > 150);
    let mut stalled = Vec::new();
    for n in 0..1000 {
        let length = n / 2 % script.len();
        let mut client = Raw::connect(&serve);
        // The server may have closed the connection already.
        let _ = client.0.write_all(&script[..length]);
        if n % 2 == 0 {
            stalled.push(client);
        }
    }
    assert_serves(&serve);
    assert!(threads(&serve) > 400, "clients have no threads");
    // The timeout disconnects all of them and ends their threads.
    for client in &mut stalled {
        client.read_to_end();
    }
    until("only the first thread runs", || threads(&serve) == idle);
    assert_serves(&serve);
    let log = serve.stop();
    assert!(log.contains("client 1000 "), "not all of them connected");
    assert!(log.contains("timed out"), "{log}");
}

#[test]
fn more_clients_than_file_descriptors() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let mut command = Program::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$@\"", "sh"]);
    let serve = program();
    command.arg(serve.get_program()).args(serve.get_args());
    command.args(["--memory", "1M", "--unix"]).arg(&socket);
    let serve = Serve::spawn(folder, &mut command);
    let stalled: Vec<_> = (0..60).map(|_| Raw::connect(&serve)).collect();
    serve.has_reported("cannot accept more clients now");
    drop(stalled);
    assert_serves(&serve);
    let log = serve.stop();
    assert!(
        log.lines().count() < 10,
        "the error is reported repeatedly: {log}"
    );
}

#[test]
fn disconnects_in_transmission_are_not_reported() {
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
            // With replies in flight.
            2 => client.send(&[read; 16].concat()),
            // The same, half of one read.
            3 => {
                client.send(&[read; 16].concat());
                client.receive(1 << 19);
            }
            // With bytes that are not a request.
            _ => client.send(&noise(n as u64, 100)),
        }
    }
    assert_serves(&serve);
    until("only the first thread runs", || threads(&serve) == idle);
    assert_eq!(serve.stop(), "");
}

#[test]
fn requests_before_a_half_close_are_answered() {
    let serve = Serve::start(&["--memory", "64M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 1 << 20); 32].concat());
    client.0.shutdown(Shutdown::Write).expect("a half-close");
    assert_eq!(client.read_to_end().len(), 32 * (16 + (1 << 20)));
}

#[test]
fn a_client_that_reads_no_replies_is_limited_in_reads() {
    let serve = Serve::start(&["--memory", "1G"]);
    let mut client = Raw::ready(&serve);
    // Four GiB of replies.
    client.send(&[request(Command::READ, 0, 1 << 20); 4096].concat());
    assert_serves(&serve);
    std::thread::sleep(Duration::from_millis(500));
    assert_serves(&serve);
    assert!(memory(&serve) < 150, "{} MiB", memory(&serve));
    // It still gets replies.
    assert_eq!(client.reply(), ErrorValue::NONE);
    drop(client);
    serve.has_reported("client 1 (unix): disconnected");
}

#[test]
fn a_client_that_reads_no_replies_is_limited_in_writes() {
    let serve = Serve::start(&["--memory", "1G"]);
    let mut client = Raw::ready(&serve);
    let timeout = Some(Duration::from_millis(300));
    client.0.set_write_timeout(timeout).expect("a timeout");
    let one = [&request(Command::WRITE, 0, 1 << 18)[..], &[1; 1 << 18]].concat();
    let taken = (0..20_000)
        .take_while(|_| client.0.write_all(&one).is_ok())
        .count();
    assert!(taken < 20_000, "the server accepts everything");
    assert_serves(&serve);
    assert!(memory(&serve) < 150, "{} MiB", memory(&serve));
    // It is served again once it reads.
    for _ in 0..taken {
        assert_eq!(client.reply(), ErrorValue::NONE);
    }
}

#[test]
fn slow_clients_do_not_delay_others() {
    let serve = Serve::start(&["--memory", "1G"]);
    let mut slow: Vec<_> = (0..20).map(|_| Raw::ready(&serve)).collect();
    let payload = vec![3; 32 << 20];
    let (start, end) = payload.split_at(1 << 20);
    // The first one gets memory for its payload. All stop within their payloads.
    for (n, client) in slow.iter_mut().enumerate() {
        client.send(&request(Command::WRITE, 0, 32 << 20));
        if n == 0 {
            client.send(start);
        }
    }
    assert_serves(&serve);
    for client in &mut slow[1..] {
        client.send(start);
    }
    // There is none for another one.
    let mut late = Raw::ready(&serve);
    late.send(&request(Command::WRITE, 0, 32 << 20));
    late.send(&payload);
    assert_eq!(late.reply(), ErrorValue::ENOMEM);
    slow[0].send(end);
    assert_eq!(slow[0].reply(), ErrorValue::NONE);
    assert_serves(&serve);
    assert!(memory(&serve) < 150, "{} MiB", memory(&serve));
}

#[test]
fn random_bytes_instead_of_a_handshake() {
    let serve = Serve::start(&["--memory", "1M"]);
    for n in 0..100 {
        let mut client = Raw::connect(&serve);
        // The server may close the connection before all of it is sent.
        let _ = client.0.write_all(&noise(n, 4096));
        client.read_to_end();
    }
    assert_serves(&serve);
}

/// Each client leaves 8 MiB of replies unread.
#[test]
fn the_payloads_of_all_clients_have_one_bound() {
    let serve = Disk::File.serve(16, &[]);
    let mut clients: Vec<_> = (0..300).map(|_| Raw::ready(&serve)).collect();
    for client in &mut clients {
        client.send(&[request(Command::READ, 0, 1 << 20); 8].concat());
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_serves(&serve);
    // 160 MiB for payloads, and less than 2 MiB for each client.
    assert!(memory(&serve) < 160 + 2 * 300, "{} MiB", memory(&serve));
    // What gets no memory fails, and the client is served on.
    let mut errors = Vec::new();
    for _ in 0..8 {
        errors.push(clients[0].reply());
        if errors.last() == Some(&ErrorValue::NONE) {
            clients[0].receive(1 << 20);
        }
    }
    let expected = [ErrorValue::NONE, ErrorValue::ENOMEM];
    assert!(
        errors.iter().all(|error| expected.contains(error)),
        "{errors:?}"
    );
    drop(clients);
    assert_serves(&serve);
}

/// A buffer has 4 KiB, also for a payload of one byte.
#[test]
fn short_requests_do_not_take_the_memory_of_others() {
    let serve = Serve::start(&["--memory", "1M", "--buffers", "80M"]);
    let mut clients: Vec<_> = (0..90).map(|_| Raw::ready(&serve)).collect();
    // More than the socket holds, so that later reads are not sent at once.
    for client in &mut clients {
        client.send(&[request(Command::READ, 0, 64 << 10); 26].concat());
    }
    std::thread::sleep(Duration::from_millis(300));
    for client in &mut clients {
        client.send(&[request(Command::READ, 0, 1); 256].concat());
    }
    // With FUA a write of one byte has a buffer, too.
    let write = CompactRequest {
        flags: CommandFlags::FUA,
        command: Command::WRITE,
        cookie: Cookie(1),
        offset: 0,
        length: 1,
    };
    let mut client = Raw::ready(&serve);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        client.send(&write.encode());
        client.send(&[7]);
        assert_eq!(client.reply(), ErrorValue::NONE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// With an address space of 500 MB.
#[test]
fn without_memory_a_client_gets_an_error_and_the_others_are_served() {
    for more in [&[][..], &["--buffers", "4G"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let mut command = Program::new("sh");
        command.args(["-c", "ulimit -v 500000; exec \"$@\"", "sh"]);
        let serve = program();
        command.arg(serve.get_program()).args(serve.get_args());
        command
            .args(["--memory", "1G", "--unix"])
            .arg(&socket)
            .args(more);
        let serve = Serve::spawn(folder, &mut command);
        let mut clients: Vec<_> = (0..20).map(|_| Raw::ready(&serve)).collect();
        let payload = vec![3; 32 << 20];
        for client in &mut clients {
            client.send(&request(Command::WRITE, 0, 32 << 20));
        }
        // They stop within their payloads, when the server has handled the header.
        for client in &mut clients {
            client.send(&payload[..1 << 20]);
        }
        assert_serves(&serve);
        let mut last = Raw::ready(&serve);
        last.send(&request(Command::WRITE, 0, 32 << 20));
        last.send(&payload);
        assert_eq!(last.reply(), ErrorValue::ENOMEM);
        // It is served again.
        last.send(&request(Command::READ, 0, 512));
        assert_eq!(last.reply(), ErrorValue::NONE);
        assert_serves(&serve);
    }
}

#[test]
fn more_clients_than_permitted() {
    let serve = Serve::start(&["--memory", "1M", "--max-clients", "2"]);
    let first = Raw::ready(&serve);
    let _second = Raw::ready(&serve);
    for _ in 0..3 {
        assert_eq!(Raw::connect(&serve).read_to_end(), b"");
    }
    serve.has_reported("2 clients are connected");
    drop(first);
    serve.has_reported("client 1 (unix): disconnected");
    until("a place is free", || {
        let mut client = Raw::connect(&serve);
        client.0.write_all(&handshake()).is_ok() && !client.read_some().is_empty()
    });
}

#[test]
fn clients_that_never_read_cost_no_processor_time() {
    let serve = Disk::File.serve(16, &[]);
    let mut clients: Vec<_> = (0..300).map(|_| Raw::ready(&serve)).collect();
    for client in &mut clients {
        client.send(&[request(Command::READ, 0, 1 << 20); 2].concat());
    }
    // First it answers as much as the sockets hold, for seconds on a busy machine.
    until("less than 30 wake-ups in 300 ms", || {
        let before = wakeups(&serve);
        std::thread::sleep(Duration::from_millis(300));
        wakeups(&serve) - before < 30
    });
}

/// How many times threads of the server have slept.
fn wakeups(serve: &Serve) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", serve.id())).expect("its threads");
    let count = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    tasks.filter_map(count).sum()
}

#[test]
fn a_full_pipe_on_standard_error_stops_no_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let mut command = Program::new("sh");
    // The pipe is open, and is never read.
    let script = "mkfifo pipe; exec 3<>pipe; exec \"$@\" 2>&3";
    command.args(["-c", script, "sh"]);
    let serve = program();
    command.arg(serve.get_program()).args(serve.get_args());
    command
        .args(["--verbose", "--memory", "1M", "--unix"])
        .arg(&socket);
    let mut serve = Serve::spawn(folder, &mut command);
    for _ in 0..500 {
        // Each is at least three lines.
        Raw::ready(&serve);
    }
    assert_serves(&serve);
    serve.signal(rustix::process::Signal::TERM);
    assert_eq!(serve.ended().code(), Some(0));
}

/// More requests than a client may have in flight arrive at once, and all replies
/// are sent before the next one is handled.
#[test]
fn more_requests_at_once_than_are_admitted() {
    let serve = Serve::start(&["--memory", "1M"]);
    let mut client = Raw::ready(&serve);
    client.send(&[request(Command::READ, 0, 512); 2000].concat());
    for _ in 0..2000 {
        assert_eq!(client.reply(), ErrorValue::NONE);
        client.receive(512);
    }
}
