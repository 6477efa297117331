//! Maps of many extents.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use nbd_test_support::images::GIB;
use nbd_test_support::program::{run, start};
use serde_json::Value;

use crate::fake::{BLOCK_STATUS, Export, Fake};
use crate::nbd::nbd;

/// Every other block of 4 KiB is a hole.
fn alternating(length: u32) -> Vec<(u32, u32)> {
    let blocks = length / 4096;
    (0..blocks).map(|block| (4096, block % 2 * 3)).collect()
}

#[test]
fn a_map_of_a_million_extents_takes_little_memory() {
    let server = Fake::start(|peer| {
        peer.handshake(Export::new(4 * GIB))?;
        loop {
            let request = peer.request()?;
            let length = request.length.min(1 << 30);
            peer.status(&request, &alternating(length))?;
        }
    });
    let program = nbd().get_program().to_owned();
    for args in [&["--json"][..], &["--json", "--raw"]] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 153600; exec \"$0\" map \"$@\""]);
        let map = run(command.arg(&program).arg(server.uri()).args(args))
            .ok()
            .stdout;
        let extents = map.iter().filter(|byte| **byte == b'{').count();
        assert_eq!(extents, 1 << 20);
        assert!(map.ends_with(b"\n  }\n]\n"));
    }
}

/// The server waits with its second answer until the first one is printed.
#[test]
fn a_map_is_written_as_it_is_received() {
    let (sender, receiver) = channel();
    let receiver = Mutex::new(receiver);
    let server = Fake::start(move |peer| {
        peer.handshake(Export::new(GIB))?;
        let request = peer.request()?;
        assert_eq!(request.command, BLOCK_STATUS);
        peer.status(&request, &alternating(1 << 24))?;
        let request = peer.request()?;
        let receiver = receiver.lock().expect("the only connection");
        if receiver.recv_timeout(Duration::from_secs(10)).is_err() {
            return Ok(());
        }
        peer.status(&request, &[(request.length, 0)])?;
        peer.request().map(drop)
    });
    let mut child = start(
        nbd()
            .args(["map", &server.uri(), "--json"])
            .stdout(Stdio::piped()),
    );
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut text = String::new();
    for _ in 0..10 {
        stdout.read_line(&mut text).expect("a line");
    }
    assert!(text.contains("\"length\": 4096"), "{text:?}");
    sender.send(()).expect("the server waits");
    stdout
        .read_to_string(&mut text)
        .expect("the remaining lines");
    assert!(child.wait().expect("nbd").success());
    let map: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(map.as_array().expect("an array").len(), 4097);
}
