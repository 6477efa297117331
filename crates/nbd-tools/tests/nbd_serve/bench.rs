//! What `nbd bench` does; its measurements are not checked.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use serde_json::json;

use crate::nbd::run_nbd;
use crate::running::{DISKS, Disk, FRAMINGS};

#[test]
fn every_mode_in_every_framing() {
    for framing in FRAMINGS {
        let serve = Disk::Memory.serve(8, &["--framing", framing]);
        for (mode, size, depth, connections) in [
            ("randread", 4096, 32, 1),
            ("randread", 512, 1, 3),
            ("randwrite", 4096, 300, 2),
            ("write", 1 << 18, 16, 1),
            ("read", 1 << 18, 16, 2),
            // Longer than what is executed at once.
            ("read", 1 << 20, 4, 1),
        ] {
            let (size, depth, connections) =
                (size.to_string(), depth.to_string(), connections.to_string());
            let load = ["--mode", mode, "--size", &size, "--depth", &depth];
            let args = ["bench", serve.uri(), "--json", "--requests", "500"];
            let more = ["--connections", &connections];
            let found = run_nbd([&args[..], &load, &more].concat()).json();
            let number = |text: &str| text.parse::<u64>().expect("a number");
            assert_eq!(found["requests"], 500 * number(&connections), "{found}");
            assert_eq!(found["size"], number(&size));
            assert_eq!(found["mode"], mode);
            assert_eq!(found["framing"], framing);
            let latency = &found["latency_ns"];
            let times = ["p50", "p90", "p99", "p99.9", "max"].map(|name| &latency[name]);
            let times = times.map(|time| time.as_u64().expect("nanoseconds"));
            assert!(times.is_sorted() && times[0] > 0, "{times:?}");
        }
    }
}

#[test]
fn it_writes_only_in_write_modes() {
    for disk in DISKS {
        let serve = disk.serve(1, &[]);
        let map = || run_nbd(["map", "--json", serve.uri()]).json();
        let empty = json!([
            { "offset": 0, "length": 1 << 20, "type": 3, "description": "hole,zero" },
        ]);
        let bench = ["bench", serve.uri(), "--requests", "600"];
        let reads = run_nbd(bench).ok();
        assert_eq!(reads.stderr, "");
        assert_eq!(map(), empty);
        let writes = run_nbd([&bench[..], &["--mode", "write"]].concat()).ok();
        assert!(writes.stderr.contains("overwrites"), "{}", writes.stderr);
        assert_eq!(map()[0]["description"], "data");
    }
}

/// It once sent a payload after `DISC`, as after a write. If the server had closed
/// the connection by then, that was an error.
#[test]
fn no_payload_follows_disc() {
    let serve = Disk::Memory.serve(8, &["--framing", "simple"]);
    let socket = serve.folder().join("relay");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let peer = serve.socket();
    let sent = thread::spawn(move || relay(&listener, &peer));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let load = ["--mode", "write", "--size", "64K", "--requests", "20"];
    run_nbd([&["bench", &uri], &load[..]].concat()).ok();
    let sent = sent.join().expect("what it sent");
    // A compact request has 28 bytes; DISC is type 2.
    let (before, last) = sent.split_at(sent.len() - 28);
    assert_eq!(last[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
    assert!(before.len() > 20 * (28 + (64 << 10)), "{}", before.len());
}

/// Connects one client to a server; returns all that the client sent.
fn relay(listener: &UnixListener, peer: &Path) -> Vec<u8> {
    let (mut client, _) = listener.accept().expect("a client");
    let mut server = UnixStream::connect(peer).expect("the server");
    let (mut replies, mut back) = (
        server.try_clone().expect("a socket"),
        client.try_clone().expect("a socket"),
    );
    let answers = thread::spawn(move || {
        let _ = std::io::copy(&mut replies, &mut back);
        // The other loop ends when the client closes the connection.
        let _ = back.shutdown(Shutdown::Write);
    });
    let mut sent = Vec::new();
    let mut piece = vec![0; 64 << 10];
    while let Ok(n @ 1..) = client.read(&mut piece) {
        sent.extend_from_slice(&piece[..n]);
        // The server may have closed the connection; what the client sends after
        // that counts, too.
        let _ = server.write_all(&piece[..n]);
    }
    let _ = server.shutdown(Shutdown::Both);
    answers.join().expect("the end of the answers");
    sent
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let serve = Disk::Memory.serve(1, &["--read-only", "--block-size", "512:4096:64K"]);
    for (args, why) in [
        (["--mode", "randwrite"], "read-only"),
        (["--size", "100"], "a multiple of 512"),
        (["--size", "0"], "must not be 0"),
        (["--size", "128K"], "at most 64K"),
    ] {
        run_nbd([&["bench", serve.uri()], &args[..]].concat()).refused(&[why]);
    }
}
