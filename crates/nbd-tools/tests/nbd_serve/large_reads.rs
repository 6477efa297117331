//! Large reads of a file: the server moves the data through pipes, or copies it if the
//! system does not let it.

use std::fs;
use std::path::Path;
use std::process::Command as Program;
use std::thread::sleep;
use std::time::Duration;

use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_codec::wire::reply::SimpleReply;
use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::program::run;
use tempfile::TempDir;

use crate::nbd::nbd;
use crate::raw::{Raw, request};
use crate::running::{Serve, program};

const SIZE: usize = 8 << 20;

/// Offsets and lengths, all of which are in the file: within pages and at their bounds,
/// what a pipe holds and what it does not.
const RANGES: [(usize, usize); 7] = [
    (0, 256 << 10),
    (1, 256 << 10),
    (4095, 64 << 10),
    (1 << 20, 1 << 20),
    (12345, 1 << 20),
    (777, (3 << 20) + 1),
    (SIZE - (64 << 10), 64 << 10),
];

/// Folders on file systems of both kinds: in memory, where a read never waits for a
/// device, and others.
fn folders() -> Vec<TempDir> {
    let mut folders = vec![tempfile::tempdir().expect("a folder")];
    if Path::new("/dev/shm").is_dir() {
        folders.push(tempfile::tempdir_in("/dev/shm").expect("a folder"));
    }
    folders
}

/// Sends all requests, waits, then receives all replies.
fn assert_reads(client: &mut Raw, content: &[u8], wait: Duration) {
    for (offset, length) in RANGES {
        client.send(&request(Command::READ, offset as u64, length as u32));
    }
    sleep(wait);
    let mut left = RANGES.to_vec();
    while !left.is_empty() {
        let bytes = client.receive(SimpleReply::SIZE);
        let reply = SimpleReply::decode(&mut &bytes[..]);
        let reply = reply.expect("a reply").expect("all of it");
        assert!(!reply.error.is_error(), "{reply:?}");
        // Replies come in any order. The cookie is the offset.
        let at = left.iter().position(|(at, _)| *at as u64 == reply.cookie.0);
        let (offset, length) = left.swap_remove(at.expect("one of the requests"));
        let data = client.receive(length);
        assert!(data == content[offset..][..length], "{offset} {length}");
    }
}

#[test]
fn the_data_is_that_of_the_file() {
    for folder in folders() {
        let content = noise(1, SIZE);
        fs::write(folder.path().join("disk"), &content).expect("a disk");
        let serve = Serve::start_in(folder, &["disk"]);
        let mut client = Raw::ready(&serve);
        assert_reads(&mut client, &content, Duration::ZERO);
        // The server waits for 10 ms, then keeps the replies and reads on.
        for _ in 0..3 {
            assert_reads(&mut client, &content, Duration::from_millis(100));
        }
        // Structured replies, with pieces of data.
        let copy = serve.folder().join("copy");
        let (uri, to) = (serve.uri(), copy.to_str().expect("UTF-8"));
        run(nbd().args(["copy", uri, to])).ok();
        assert!(fs::read(copy).expect("a copy") == content);
    }
}

/// Clients that never read keep all pipes. The others get copies.
#[test]
fn clients_that_never_read_keep_the_pipes() {
    for folder in folders() {
        let content = noise(1, SIZE);
        fs::write(folder.path().join("disk"), &content).expect("a disk");
        let serve = Serve::start_in(folder, &["disk"]);
        let greedy: Vec<_> = (0..8)
            .map(|_| {
                let mut client = Raw::ready(&serve);
                client.send(&[request(Command::READ, 0, 256 << 10); 16].concat());
                client
            })
            .collect();
        sleep(Duration::from_millis(300));
        assert_reads(&mut Raw::ready(&serve), &content, Duration::ZERO);
        drop(greedy);
        assert_reads(&mut Raw::ready(&serve), &content, Duration::ZERO);
    }
}

#[test]
fn what_the_system_refuses_is_copied() {
    needs!("strace");
    for refused in ["pipe2:error=EMFILE", "splice:error=EINVAL"] {
        for folder in folders() {
            let content = noise(1, SIZE);
            fs::write(folder.path().join("disk"), &content).expect("a disk");
            let (call, _) = refused.split_once(':').expect("a call and an error");
            let mut command = Program::new("strace");
            command.args(["-f", "-qq", "-o", "trace", "-e"]);
            command.args([&format!("trace={call}"), "-e", &format!("inject={refused}")]);
            // Ending strace does not end the server, but with --once it ends itself.
            command.arg(program().get_program());
            command.args(["--once", "--unix", "socket", "disk"]);
            let mut serve = Serve::spawn(folder, &mut command);
            let mut client = Raw::ready(&serve);
            assert_reads(&mut client, &content, Duration::ZERO);
            drop(client);
            assert_eq!(serve.ended().code(), Some(0), "{refused}");
            let trace = fs::read_to_string(serve.folder().join("trace"));
            assert!(trace.expect("a trace").contains("INJECTED"), "{refused}");
        }
    }
}

/// A failure to open a pipe does not last: later reads are not copied. The system refuses
/// each thread its first one.
#[test]
fn a_pipe_that_the_system_refused_is_opened_later() {
    needs!("strace");
    let folder = tempfile::tempdir().expect("a folder");
    let content = noise(1, SIZE);
    fs::write(folder.path().join("disk"), &content).expect("a disk");
    let refused = "inject=pipe2:error=EMFILE:when=1";
    let mut command = Program::new("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "trace",
        "-e",
        "trace=pipe2,splice",
        "-e",
        refused,
    ]);
    command.arg(program().get_program());
    command.args(["--once", "--unix", "socket", "disk"]);
    let mut serve = Serve::spawn(folder, &mut command);
    let mut client = Raw::ready(&serve);
    for _ in 0..10 {
        assert_reads(&mut client, &content, Duration::ZERO);
    }
    drop(client);
    assert_eq!(serve.ended().code(), Some(0));
    let trace = fs::read_to_string(serve.folder().join("trace")).expect("a trace");
    assert!(trace.contains("INJECTED"), "{trace}");
    assert!(trace.contains("splice("), "{trace}");
}

/// An error comes instead of the data, and the connection goes on.
#[test]
fn a_file_that_becomes_shorter_is_an_error_of_the_read() {
    for folder in folders() {
        let content = noise(1, SIZE);
        let disk = folder.path().join("disk");
        fs::write(&disk, &content).expect("a disk");
        let serve = Serve::start_in(folder, &["disk"]);
        let mut client = Raw::ready(&serve);
        assert_reads(&mut client, &content, Duration::ZERO);
        let file = fs::File::options().write(true).open(&disk);
        file.expect("the disk").set_len(1 << 20).expect("its size");
        for (offset, length) in [(1 << 20, 1 << 20), ((1 << 20) - 4096, 128 << 10)] {
            client.send(&request(Command::READ, offset, length));
            assert_eq!(client.reply(), ErrorValue::EIO);
        }
        client.send(&request(Command::READ, 0, 1 << 20));
        assert!(!client.reply().is_error());
        assert!(client.receive(1 << 20) == content[..1 << 20]);
    }
}
