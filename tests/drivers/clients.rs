//! The clients: one writes, the others read what it wrote.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::thread;

use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::{Ended, example, run, wait};
use nbd_test_support::skipped::skip;

use crate::place::{Bridge, Example, blank};

const SIZE: usize = 16 * MIB as usize;

/// Writes with the tokio client, reads with the others.
pub fn exercise(address: &str, export: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    // More than is in flight at a time, and not a multiple of the part size.
    let mut disk = noise(7, 3 * MIB as usize + 4096);
    fs::write(&input, &disk).expect("input");
    let text = format!("{} bytes written, read back and equal\n", disk.len());
    let pushed = push(address, export, File::open(&input).expect("input")).ok();
    assert_eq!(String::from_utf8_lossy(&pushed.stdout), text);

    disk.resize(SIZE, 0);
    let pulled = run(example("blocking_client").args([address, export])).ok();
    assert!(
        pulled.stdout == disk,
        "blocking_client reads something else"
    );
    run(example("direct_reads").args([address, export]).arg(&output)).ok();
    let pulled = fs::read(&output).expect("output");
    assert!(pulled == disk, "direct_reads reads something else");
    if uring_is_permitted() {
        run(example("uring_client").args([address, export]).arg(&output)).ok();
        let pulled = fs::read(&output).expect("output");
        assert!(pulled == disk, "uring_client reads something else");
    }
}

/// Whether `io_uring` is permitted: if so, `uring_client` fails later, at the file.
fn uring_is_permitted() -> bool {
    let ended = run(example("uring_client").args(["127.0.0.1:1", "", "/dev/null/file"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let permitted = !ended.stderr.contains("no io_uring");
    if !permitted {
        skip("io_uring");
    }
    permitted
}

fn push(address: &str, export: &str, input: File) -> Ended {
    let mut command = example("tokio_client");
    command.args([address, export]).stdin(input);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    wait(command.spawn().expect("tokio_client"))
}

#[test]
fn with_the_tokio_server() {
    let server = Example::start("tokio_server", &["127.0.0.1:0", "16777216"]);
    exercise(server.address(), "memory");
    // The default export is the same.
    exercise(server.address(), "");
}

#[test]
fn with_nbd_serve_in_every_framing() {
    for framing in ["simple", "structured", "extended"] {
        let args = [
            "--tcp=127.0.0.1:0",
            "--memory=16M",
            "--export-name=disk",
            "--framing",
        ];
        let server = Example::nbd_serve(&[&args[..], &[framing]].concat());
        exercise(server.address(), "disk");
    }
}

#[test]
fn with_nbd_serve_and_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = blank(folder.path(), SIZE as u64);
    let image = image.to_str().expect("UTF-8");
    // Block sizes that are neither the smallest nor the default.
    let args = ["--tcp=127.0.0.1:0", "--block-size=512:4096:128K", image];
    let server = Example::nbd_serve(&args);
    exercise(server.address(), "");
}

#[test]
fn with_nbd_serve_in_oldstyle() {
    let args = ["--tcp=127.0.0.1:0", "--memory=16M", "--oldstyle"];
    let server = Example::nbd_serve(&args);
    exercise(server.address(), "");
}

#[test]
fn with_qemu_nbd() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let image = blank(folder.path(), SIZE as u64);
    let peer = Peer::qemu(&["--format=raw", "--export-name=disk"], &image);
    let bridge = Bridge::new(peer);
    exercise(&bridge.address(), "disk");
}

#[test]
fn with_nbdkit() {
    needs!("nbdkit");
    let bridge = Bridge::new(Peer::nbdkit(&["memory", "16M"]));
    exercise(&bridge.address(), "");
}

#[test]
fn with_nbdkit_without_structured_replies() {
    needs!("nbdkit");
    let bridge = Bridge::new(Peer::nbdkit(&["--no-sr", "memory", "16M"]));
    exercise(&bridge.address(), "");
}

#[test]
fn an_unknown_export() {
    let server = Example::start("tokio_server", &["127.0.0.1:0", "65536"]);
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("output");
    let address = server.address();
    let mut ended = vec![
        run(example("blocking_client").args([address, "other"])),
        run(example("direct_reads")
            .args([address, "other"])
            .arg(&output)),
        push(address, "other", File::open("/dev/null").expect("nothing")),
    ];
    if uring_is_permitted() {
        ended.push(run(example("uring_client")
            .args([address, "other"])
            .arg(&output)));
    }
    for ended in ended {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("UnknownExport"), "{ended:?}");
    }
}

/// The clients fail if the server closes the connection.
#[test]
fn a_server_that_closes_the_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let greeting = b"NBDMAGICIHAVEOPT\0\x03";
    // The thread ends with the process.
    thread::spawn(move || {
        for (number, tcp) in listener.incoming().flatten().enumerate() {
            // Before the greeting, within it, after it.
            let length = [0, 9, greeting.len()][number % 3];
            let _ = (&tcp).write_all(&greeting[..length]);
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("output");
    for _ in 0..3 {
        let ended = [
            run(example("blocking_client").args([&address, ""])),
            run(example("direct_reads").args([&address, ""]).arg(&output)),
            run(example("uring_client").args([&address, ""]).arg(&output)),
            push(&address, "", File::open("/dev/null").expect("nothing")),
            run(example("blocking_client").args([&address, ""])),
        ];
        for ended in ended {
            assert_eq!((ended.code, ended.stdout.len()), (Some(1), 0), "{ended:?}");
        }
    }
}

/// nbdkit's error filter fails every read.
#[test]
fn a_server_that_fails_reads() {
    needs!("nbdkit");
    let args = [
        "--filter=error",
        "memory",
        "1M",
        "error-pread-rate=100%",
        "error=EIO",
    ];
    let bridge = Bridge::new(Peer::nbdkit(&args));
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    fs::write(&input, [1; 4096]).expect("input");
    let address = bridge.address();
    let mut ended = vec![
        run(example("blocking_client").args([&address, ""])),
        run(example("direct_reads").args([&address, ""]).arg(&output)),
        push(&address, "", File::open(&input).expect("input")),
    ];
    if uring_is_permitted() {
        ended.push(run(example("uring_client")
            .args([&address, ""])
            .arg(&output)));
    }
    for ended in ended {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("EIO"), "{ended:?}");
    }
}
