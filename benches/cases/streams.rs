//! Compared with the crate `nbd` 0.3.1, which drives a stream itself: the same
//! messages over the same stream in memory, by that crate, and by a loop around
//! this crate's state machines. `nbd` has only simple replies and `EXPORT_NAME`.
//!
//! The stream copies headers but no payload, whose copy costs both crates the
//! same.

use super::Case;
use nbd::client::NbdClient;
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::flags::{ClientFlags, CommandFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting};
use nbd_codec::wire::number::{Command, Cookie, ErrorValue};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::reply::SimpleReply;
use nbd_codec::wire::request::CompactRequest;
use nbd_codec::{Framing, Limits, Negotiated, Step, client, server};
use std::hint::black_box;
use std::io::{Read, Result, Seek, SeekFrom, Write};

const SIZE: u64 = 1 << 30;
const PAYLOAD: usize = 4096;
const OFFSET: u64 = 1 << 20;

/// A connection in memory. The bytes of the peer are ready from the start, and
/// repeat `times` times; the bytes written are kept until the next flush.
struct Wire<'a> {
    incoming: &'a mut [u8],
    at: usize,
    times: u64,
    written: [u8; 256],
    end: usize,
    /// The peer repeats the cookie of each request in its reply.
    echo: bool,
}

impl<'a> Wire<'a> {
    fn new(incoming: &'a mut [u8], times: u64, echo: bool) -> Self {
        Self {
            incoming,
            at: 0,
            times,
            written: [0; 256],
            end: 0,
            echo,
        }
    }
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if buffer.len() >= PAYLOAD {
            return Ok(buffer.len());
        }
        if self.at == self.incoming.len() && self.times > 1 {
            (self.at, self.times) = (0, self.times - 1);
        }
        let left = &self.incoming[self.at..];
        let n = left.len().min(buffer.len());
        buffer[..n].copy_from_slice(&left[..n]);
        self.at += n;
        Ok(n)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if bytes.len() < PAYLOAD {
            self.written[self.end..][..bytes.len()].copy_from_slice(bytes);
            self.end += bytes.len();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        if self.echo {
            self.incoming[8..16].copy_from_slice(&self.written[8..16]);
        }
        black_box(&self.written[..self.end]);
        self.end = 0;
        Ok(())
    }
}

/// A disk that copies no data.
struct Disk;

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        Ok(black_box(buffer).len())
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        Ok(black_box(bytes).len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        match black_box(to) {
            SeekFrom::Start(offset) => Ok(offset),
            other => panic!("{other:?}"),
        }
    }
}

fn success() -> [u8; 16] {
    let (error, cookie) = (ErrorValue::NONE, Cookie(0));
    SimpleReply { error, cookie }.encode()
}

fn client_reads(n: u64) {
    use client::{Request, Slot, Transmission, TransmissionEvent};
    let mut replies = success();
    let mut wire = Wire::new(&mut replies, u64::MAX, true);
    let negotiated = Negotiated::new(Framing::Simple, SIZE, TransmissionFlags::HAS_FLAGS);
    let mut session = Transmission::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
    let mut inbox = Inbox::new([0; 256]);
    let mut buffer = vec![0; PAYLOAD];
    for _ in 0..n {
        let request = Request::read(black_box(OFFSET), PAYLOAD as u64);
        let header = session.submit(request).expect("a legal read");
        wire.write_all(header.as_bytes()).expect("room");
        wire.flush().expect("room");
        loop {
            match inbox.receive(&mut session) {
                Ok(Step::Event(TransmissionEvent::Done { result: Ok(()), .. })) => break,
                Ok(Step::Read(n)) => drop(inbox.fill(n, |space| wire.read(space))),
                Ok(Step::ReadPayload { length, .. }) => {
                    let place = &mut buffer[..length as usize];
                    wire.read_exact(place).expect("the payload");
                    session.advance(length).expect("the payload");
                }
                other => panic!("{other:?}"),
            }
        }
        black_box(&buffer);
    }
}

fn other_client_reads(n: u64) {
    let mut replies = success();
    let wire = Wire::new(&mut replies, u64::MAX, true);
    let export = nbd::Export {
        size: SIZE,
        ..nbd::Export::default()
    };
    let mut client = NbdClient::new(wire, &export);
    let mut buffer = vec![0; PAYLOAD];
    for _ in 0..n {
        let offset = SeekFrom::Start(black_box(OFFSET));
        client.seek(offset).expect("an offset");
        client.read_exact(&mut buffer).expect("a legal reply");
        black_box(&buffer);
    }
}

fn read_request() -> [u8; CompactRequest::SIZE] {
    CompactRequest {
        flags: CommandFlags::NONE,
        command: Command::READ,
        cookie: Cookie(7),
        offset: OFFSET,
        length: PAYLOAD as u32,
    }
    .encode()
}

fn server_reads(n: u64) {
    use server::{Request, Transmission, TransmissionEvent};
    let mut requests = read_request();
    let mut wire = Wire::new(&mut requests, n, false);
    let negotiated = Negotiated::new(Framing::Simple, SIZE, TransmissionFlags::HAS_FLAGS);
    let mut session = Transmission::new(negotiated, Limits::DEFAULT).expect("a server");
    let mut inbox = Inbox::new([0; 256]);
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..n {
        let read = loop {
            match inbox.receive(&mut session) {
                Ok(Step::Event(TransmissionEvent::Request(Request::Read(read)))) => break read,
                Ok(Step::Read(n)) => drop(inbox.fill(n, |space| wire.read(space))),
                other => panic!("{other:?}"),
            }
        };
        let data = &mut buffer[..read.length() as usize];
        Disk.seek(SeekFrom::Start(read.offset()))
            .expect("an offset");
        Disk.read_exact(data).expect("the data");
        wire.write_all(read.data().as_bytes()).expect("room");
        wire.write_all(data).expect("room");
        wire.flush().expect("room");
    }
}

fn other_server_reads(n: u64) {
    let mut requests = read_request();
    let wire = Wire::new(&mut requests, n, false);
    // It returns an error at the end of the requests.
    let end = nbd::server::transmission(wire, Disk).expect_err("no DISC");
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
}

/// The messages of a server to a client that sends `EXPORT_NAME`.
fn server_messages() -> Vec<u8> {
    let flags = HandshakeFlags::FIXED_NEWSTYLE;
    let mut bytes = NewstyleGreeting { flags }.encode().to_vec();
    let flags = TransmissionFlags::HAS_FLAGS;
    bytes.extend(ExportNameReply { size: SIZE, flags }.encode());
    bytes.extend([0; 124]);
    bytes
}

fn client_handshakes(n: u64) {
    use client::{Config, Handshake, HandshakeEvent};
    let mut replies = server_messages();
    let mut wire = Wire::new(&mut replies, n, false);
    for _ in 0..n {
        let mut handshake = Handshake::new(&Config::new("disk"));
        let mut inbox = Inbox::new([0; 256]);
        loop {
            match inbox.receive(&mut handshake) {
                Ok(Step::Event(HandshakeEvent::Greeting(_))) => {
                    let mut out = [0; 64];
                    let mut room = &mut out[..];
                    let flags = ClientFlags::FIXED_NEWSTYLE;
                    let name = OptionRequest::ExportName("disk".into());
                    let mut size = handshake.send_client_flags(flags, &mut room);
                    size = size.and_then(|a| Ok(a + handshake.send(&name, &mut room)?));
                    let size = size.expect("room");
                    wire.write_all(&out[..size]).expect("room");
                    wire.flush().expect("room");
                }
                Ok(Step::Event(HandshakeEvent::Ready)) => break,
                Ok(Step::Read(n)) => drop(inbox.fill(n, |space| wire.read(space))),
                other => panic!("{other:?}"),
            }
        }
        black_box(handshake.agreed());
    }
}

fn other_client_handshakes(n: u64) {
    let mut replies = server_messages();
    let mut wire = Wire::new(&mut replies, n, false);
    for _ in 0..n {
        let export = nbd::client::handshake(&mut wire, b"disk");
        black_box(export.expect("a legal message"));
    }
}

/// The messages of a client that sends `EXPORT_NAME`.
fn client_messages() -> Vec<u8> {
    let mut bytes = ClientFlags::FIXED_NEWSTYLE.encode().to_vec();
    let name = OptionRequest::ExportName("disk".into());
    name.encode(&mut bytes).expect("room");
    bytes
}

fn server_handshakes(n: u64) {
    use server::{Config, Export, Handshake, HandshakeEvent};
    let mut requests = client_messages();
    let mut wire = Wire::new(&mut requests, n, false);
    let export = Export::new("disk", SIZE, TransmissionFlags::HAS_FLAGS);
    for _ in 0..n {
        let mut handshake = Handshake::new(Config::new()).expect("a config");
        let mut inbox = Inbox::new([0; 256]);
        let mut out = [0; 256];
        loop {
            let size = match inbox.receive(&mut handshake) {
                Ok(Step::Transmit) => handshake.transmit(&mut &mut out[..]).expect("room"),
                Ok(Step::Event(HandshakeEvent::Export(query))) => {
                    let granted = handshake.grant(&query, &export, &mut &mut out[..]);
                    granted.expect("room").written
                }
                Ok(Step::Event(HandshakeEvent::Ready { .. })) => break,
                Ok(Step::Read(n)) => {
                    inbox.fill(n, |space| wire.read(space)).expect("a message");
                    continue;
                }
                other => panic!("{other:?}"),
            };
            wire.write_all(&out[..size]).expect("room");
            wire.flush().expect("room");
        }
        black_box(handshake.agreed());
    }
}

fn other_server_handshakes(n: u64) {
    let mut requests = client_messages();
    let mut wire = Wire::new(&mut requests, n, false);
    for _ in 0..n {
        let size = SIZE;
        let agreed = nbd::server::handshake(&mut wire, |name| {
            assert_eq!(black_box(name), "disk");
            Ok(nbd::Export::<()> {
                size,
                ..nbd::Export::default()
            })
        });
        agreed.expect("a legal message");
    }
}

/// A case of this crate, and the same case of the other crate.
macro_rules! beside {
    ($($case:ident, $name:literal, $run:ident, $other:ident, $other_name:literal, $other_run:ident;)*) => {
        $(pub const $case: Case = Case {
            name: $name,
            run: $run,
            count: 1_000,
            limit: None,
            other: Some($other_name),
        };
        pub const $other: Case = Case {
            name: $other_name,
            run: $other_run,
            count: 1_000,
            limit: None,
            other: None,
        };)*
    };
}

beside! {
    CLIENT_READ, "over a stream: client, read 4 KiB", client_reads,
    OTHER_CLIENT_READ, "(nbd 0.3.1) client, read 4 KiB", other_client_reads;
    SERVER_READ, "over a stream: server, read 4 KiB", server_reads,
    OTHER_SERVER_READ, "(nbd 0.3.1) server, read 4 KiB", other_server_reads;
    CLIENT_HANDSHAKE, "over a stream: client, handshake", client_handshakes,
    OTHER_CLIENT_HANDSHAKE, "(nbd 0.3.1) client, handshake", other_client_handshakes;
    SERVER_HANDSHAKE, "over a stream: server, handshake", server_handshakes,
    OTHER_SERVER_HANDSHAKE, "(nbd 0.3.1) server, handshake", other_server_handshakes;
}
