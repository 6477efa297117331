//! The tokio server with clients of other projects, and with clients that send
//! invalid bytes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nbd_codec::client::{Config, Connector, Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Limits, Negotiated, Step};
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::needs;
use nbd_test_support::program::{example, run};

use crate::place::Example;

fn start() -> Example {
    Example::start("tokio_server", &["127.0.0.1:0", "16777216"])
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    needs!("qemu-io");
    let server = start();
    let mut command = Command::new("qemu-io");
    for step in [
        "write -P 0x5a 1M 6M",
        "write -P 0x11 4k 512",
        "write -z 2M 64k",
        "flush",
        "read -P 0x5a 1M 1M",
        "read -P 0 2M 64k",
        "read -P 0x11 4k 512",
        "read -P 0 8M 8M",
    ] {
        command.args(["-c", step]);
    }
    run(command.args(["-f", "raw", &server.uri])).ok();
}

#[test]
fn qemu_img_keeps_many_in_flight() {
    needs!("qemu-img");
    let server = start();
    let args = [
        "bench",
        "-f",
        "raw",
        "-w",
        "-c",
        "3000",
        "-d",
        "32",
        "-s",
        "8k",
        "--pattern=7",
    ];
    run(Command::new("qemu-img").args(args).arg(&server.uri)).ok();
    run(Command::new("qemu-img")
        .args(["bench", "-f", "raw", "-d", "64"])
        .arg(&server.uri))
    .ok();
    // 3000 times 8 KiB exceed the size of the disk, so every byte was written.
    let pulled = run(example("blocking_client").arg(server.address()))
        .ok()
        .stdout;
    assert!(pulled == vec![7; 16 * MIB as usize]);
}

#[test]
fn nbdcopy_there_and_back() {
    needs!("nbdcopy");
    let server = start();
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let data = noise(3, 16 * MIB as usize);
    fs::write(&input, &data).expect("input");
    run(Command::new("nbdcopy").arg(&input).arg(&server.uri)).ok();
    run(Command::new("nbdcopy").arg(&server.uri).arg(&output)).ok();
    assert!(fs::read(&output).expect("output") == data);
}

#[test]
fn nbdinfo_describes_the_export() {
    needs!("nbdinfo");
    let server = start();
    let info = run(Command::new("nbdinfo").args(["--json", &server.uri])).json();
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "memory");
    assert_eq!(export["export-size"], 16 * MIB);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["block_size_maximum"], 4 * MIB);
}

/// Invalid clients affect only their own connection.
#[test]
fn invalid_clients() {
    let server = start();
    let mut stalled = Vec::new();
    for junk in [
        &b""[..],
        b"\0\0\0\x03",
        b"\0\0\0\x03IHAVEOPT\0\0",
        b"GET / HTTP/1.0\r\n\r\n",
    ] {
        for stays in [true, false] {
            let mut stream = TcpStream::connect(server.address()).expect("a connection");
            stream.write_all(junk).expect("sent");
            if stays {
                stalled.push(stream);
            }
        }
    }
    let pulled = run(example("blocking_client").arg(server.address())).ok();
    assert_eq!(pulled.stdout.len(), 16 * MIB as usize);
}

/// A long request does not delay later short ones. The scheduler decides which is
/// done first, so this is tried a hundred times.
#[test]
fn replies_are_sent_out_of_order() {
    let server = start();
    let mut stream = TcpStream::connect(server.address()).expect("a connection");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a limit");
    let mut inbox = Inbox::new(vec![0; 1 << 16]);
    let negotiated = handshake(&mut stream, &mut inbox);
    let mut session = Transmission::new(negotiated, [Slot::EMPTY; 8], Limits::DEFAULT);
    let overtaken = (0..100).any(|_| {
        let (asked, done) = round(&mut session, &mut inbox, &mut stream);
        thread::sleep(Duration::from_millis(1));
        asked != done
    });
    assert!(overtaken);
}

type Cookies = Vec<nbd_codec::wire::number::Cookie>;

/// One long read and seven short ones: the order in which they were sent, and the
/// order in which they were done.
fn round(
    session: &mut Transmission<[Slot; 8]>,
    inbox: &mut Inbox<Vec<u8>>,
    stream: &mut TcpStream,
) -> (Cookies, Cookies) {
    let (mut asked, mut done, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for length in [4 * MIB, 1, 1, 1, 1, 1, 1, 1] {
        let header = session.submit(Request::read(0, length)).expect("a read");
        out.extend(header.as_bytes());
        asked.push(header.cookie());
    }
    stream.write_all(&out).expect("sent");
    while session.in_flight() > 0 {
        match inbox.receive(session).expect("replies") {
            Step::Event(TransmissionEvent::Done { cookie, result }) => {
                assert_eq!(result, Ok(()));
                done.push(cookie);
            }
            Step::Event(_) | Step::Content(_) => {}
            Step::Read(_) | Step::ReadPayload { .. } => read(stream, inbox),
            other => panic!("{other:?}"),
        }
    }
    (asked, done)
}

fn handshake(stream: &mut TcpStream, inbox: &mut Inbox<Vec<u8>>) -> Negotiated {
    let mut connector = Connector::new(Config::new("memory")).expect("a configuration");
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut connector).expect("a handshake") {
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out).expect("room")),
            Step::Read(_) => read(stream, inbox),
            Step::Finished => return connector.into_negotiated().expect("ready"),
            other => panic!("{other:?}"),
        }
        stream.write_all(&out).expect("sent");
        out.clear();
    }
}

/// Reads what is available. If the server has closed the connection, the next step is
/// an error.
fn read(stream: &mut TcpStream, inbox: &mut Inbox<Vec<u8>>) {
    let n = stream.read(inbox.space()).expect("replies");
    inbox.filled(n).expect("space");
}
