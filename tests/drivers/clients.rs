//! The clients of `examples/`: they read what `nbd` wrote.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::{example, run, tool};
use nbd_test_support::server::Server;
use nbd_test_support::skipped::skip;

use crate::place::{Bridge, blank};

const SIZE: usize = 16 * MIB as usize;

/// Writes with `nbd`, reads with the examples.
pub fn exercise(address: &str, export: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    // Not a multiple of what a client reads at a time.
    let mut disk = noise(7, 3 * MIB as usize + 4096);
    fs::write(&input, &disk).expect("input");
    let uri = format!("nbd://{address}/{export}");
    run(tool("nbd").args(["write", &uri, "--input"]).arg(&input)).ok();

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

fn nbd_serve(args: &[&str]) -> Server {
    Server::start(tool("nbd-serve").arg("--tcp=127.0.0.1:0").args(args))
}

#[test]
fn with_nbd_serve_in_every_framing() {
    for framing in ["simple", "structured", "extended"] {
        let args = ["--memory=16M", "--export-name=disk", "--framing", framing];
        let server = nbd_serve(&args);
        exercise(server.address(), "disk");
        // The default export is the same.
        exercise(server.address(), "");
    }
}

#[test]
fn with_nbd_serve_and_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = blank(folder.path(), SIZE as u64);
    let image = image.to_str().expect("UTF-8");
    // Block sizes that are neither the smallest nor the default.
    let server = nbd_serve(&["--block-size=512:4096:128K", image]);
    exercise(server.address(), "");
}

#[test]
fn with_nbd_serve_in_oldstyle() {
    let server = nbd_serve(&["--memory=16M", "--oldstyle"]);
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
    let server = nbd_serve(&["--memory=64K", "--export-name=disk"]);
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("output");
    let address = server.address();
    let mut ended = vec![
        run(example("blocking_client").args([address, "other"])),
        run(example("direct_reads")
            .args([address, "other"])
            .arg(&output)),
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
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("output");
    let mut clients = vec!["blocking_client", "direct_reads"];
    if uring_is_permitted() {
        clients.push("uring_client");
    }
    for client in clients {
        // A server for each: nbdkit 1.32 aborts if a client closes the connection while
        // it still sends replies (`raw_send_socket: Assertion`).
        let bridge = Bridge::new(Peer::nbdkit(&args));
        let mut command = example(client);
        command.args([&bridge.address(), ""]);
        if client != "blocking_client" {
            command.arg(&output);
        }
        let ended = run(&mut command);
        assert_eq!(ended.code, Some(1), "{client}: {ended:?}");
        assert!(ended.stderr.contains("EIO"), "{client}: {ended:?}");
    }
}
