//! Beside the crate `nbd` 0.3.1, which drives a stream itself: the same
//! messages over the same stream in memory, once by it, once by a loop around
//! this crate's machines. Simple replies and `EXPORT_NAME` are all it has.
//!
//! The stream moves headers as any other does, but no payload: that costs both
//! crates the same.

use super::Case;
use nbd::client::NbdClient;
use nbd_codec::client::handshake::{Event as Word, Handshake as Greeted};
use nbd_codec::client::{Event as Answer, Request as Question, Slot, Transmission as Client};
use nbd_codec::server::handshake::{Event as Wish, Handshake};
use nbd_codec::server::{Event, Export, Offer, Request, Transmission};
use nbd_codec::wire::flags::{ClientFlags, CommandFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting};
use nbd_codec::wire::number::{Command, Cookie, ErrorValue};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::reply::SimpleReply;
use nbd_codec::wire::request::CompactRequest;
use nbd_codec::{Framing, Limits, Need, Negotiated};
use std::hint::black_box;
use std::io::{Read, Result, Seek, SeekFrom, Write};

const SIZE: u64 = 1 << 30;
const PAYLOAD: usize = 4096;
const OFFSET: u64 = 1 << 20;

/// A connection in memory. What the peer says stands ready, so many times;
/// what it is told it keeps until the next flush.
struct Wire<'a> {
    said: &'a mut [u8],
    at: usize,
    times: u64,
    told: [u8; 256],
    end: usize,
    /// The peer answers each request with the cookie it had.
    echo: bool,
}

impl<'a> Wire<'a> {
    fn new(said: &'a mut [u8], times: u64, echo: bool) -> Self {
        Self {
            said,
            at: 0,
            times,
            told: [0; 256],
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
        if self.at == self.said.len() && self.times > 1 {
            (self.at, self.times) = (0, self.times - 1);
        }
        let left = &self.said[self.at..];
        let n = left.len().min(buffer.len());
        buffer[..n].copy_from_slice(&left[..n]);
        self.at += n;
        Ok(n)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if bytes.len() < PAYLOAD {
            self.told[self.end..][..bytes.len()].copy_from_slice(bytes);
            self.end += bytes.len();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        if self.echo {
            self.said[8..16].copy_from_slice(&self.told[8..16]);
        }
        black_box(&self.told[..self.end]);
        self.end = 0;
        Ok(())
    }
}

/// A disk whose data is wherever it is wanted.
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

/// What was read and not yet consumed.
struct Inbox {
    bytes: [u8; 256],
    held: usize,
}

impl Inbox {
    const fn new() -> Self {
        Self {
            bytes: [0; 256],
            held: 0,
        }
    }

    fn held(&self) -> &[u8] {
        &self.bytes[..self.held]
    }

    /// Drops all but the last `left` bytes.
    fn keep(&mut self, left: usize) {
        if left > 0 {
            self.bytes.copy_within(self.held - left..self.held, 0);
        }
        self.held = left;
    }

    /// Reads until `need` bytes are held.
    fn fill(&mut self, wire: &mut Wire<'_>, need: Need) {
        let Need::Header(n) = need else {
            panic!("{need:?}");
        };
        let room = &mut self.bytes[self.held..n];
        wire.read_exact(room).expect("a peer that speaks");
        self.held = n;
    }
}

fn success() -> [u8; 16] {
    let (error, cookie) = (ErrorValue::NONE, Cookie(0));
    SimpleReply { error, cookie }.encode()
}

fn client_reads(n: u64) {
    let mut said = success();
    let mut wire = Wire::new(&mut said, u64::MAX, true);
    let negotiated = Negotiated::new(Framing::Simple, SIZE, TransmissionFlags::HAS_FLAGS);
    let mut session = Client::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
    let mut inbox = Inbox::new();
    let mut buffer = vec![0; PAYLOAD];
    for _ in 0..n {
        let request = Question::read(black_box(OFFSET), PAYLOAD as u64);
        let head = session.submit(request).expect("a legal read");
        wire.write_all(head.as_bytes()).expect("room");
        wire.flush().expect("room");
        loop {
            let mut input = inbox.held();
            let event = session.receive(&mut input).expect("a legal reply");
            let left = input.len();
            let done = match event {
                Some(Answer::Done { result, .. }) => Some(result),
                Some(other) => panic!("{other:?}"),
                None => None,
            };
            inbox.keep(left);
            if let Some(result) = done {
                break result.expect("no error");
            }
            match session.need() {
                Need::Payload { length, .. } => {
                    let place = &mut buffer[..length as usize];
                    wire.read_exact(place).expect("the payload");
                    session.advance(length).expect("the payload");
                }
                need => inbox.fill(&mut wire, need),
            }
        }
        black_box(&buffer);
    }
}

fn other_client_reads(n: u64) {
    let mut said = success();
    let wire = Wire::new(&mut said, u64::MAX, true);
    let export = nbd::Export {
        size: SIZE,
        ..nbd::Export::default()
    };
    let mut client = NbdClient::new(wire, &export);
    let mut buffer = vec![0; PAYLOAD];
    for _ in 0..n {
        let offset = SeekFrom::Start(black_box(OFFSET));
        client.seek(offset).expect("a place");
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
    let mut said = read_request();
    let mut wire = Wire::new(&mut said, n, false);
    let negotiated = Negotiated::new(Framing::Simple, SIZE, TransmissionFlags::HAS_FLAGS);
    let mut server = Transmission::new(negotiated, Limits::DEFAULT).expect("a server");
    let mut inbox = Inbox::new();
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..n {
        inbox.fill(&mut wire, server.need());
        let mut input = inbox.held();
        let event = server.receive(&mut input).expect("a lawful request");
        let left = input.len();
        let Some(Event::Request(Request::Read(read))) = event else {
            panic!("{event:?}");
        };
        inbox.keep(left);
        let data = &mut buffer[..read.length() as usize];
        Disk.seek(SeekFrom::Start(read.offset())).expect("a place");
        Disk.read_exact(data).expect("the data");
        wire.write_all(read.data().as_bytes()).expect("room");
        wire.write_all(data).expect("room");
        wire.flush().expect("room");
    }
}

fn other_server_reads(n: u64) {
    let mut said = read_request();
    let wire = Wire::new(&mut said, n, false);
    // It ends where the requests end.
    let end = nbd::server::transmission(wire, Disk).expect_err("no goodbye");
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
}

/// What a server says to a client that asks by `EXPORT_NAME`.
fn server_words() -> Vec<u8> {
    let flags = HandshakeFlags::FIXED_NEWSTYLE;
    let mut said = NewstyleGreeting { flags }.encode().to_vec();
    let flags = TransmissionFlags::HAS_FLAGS;
    said.extend(ExportNameReply { size: SIZE, flags }.encode());
    said.extend([0; 124]);
    said
}

fn client_handshakes(n: u64) {
    let mut said = server_words();
    let mut wire = Wire::new(&mut said, n, false);
    for _ in 0..n {
        let mut handshake = Greeted::new(false, Limits::DEFAULT);
        let mut inbox = Inbox::new();
        loop {
            let mut input = inbox.held();
            let event = handshake.receive(&mut input).expect("a lawful server");
            let left = input.len();
            match event {
                Some(Word::Greeting(_)) => {
                    let mut out = [0; 64];
                    let mut room = &mut out[..];
                    let flags = ClientFlags::FIXED_NEWSTYLE;
                    let name = OptionRequest::ExportName("disk".into());
                    let mut size = handshake.send_client_flags(flags, &mut room);
                    size = size.and_then(|a| Ok(a + handshake.send(&name, &mut room)?));
                    let size = size.expect("room");
                    wire.write_all(&out[..size]).expect("room");
                    wire.flush().expect("room");
                    inbox.keep(left);
                }
                Some(Word::Ready) => break,
                Some(other) => panic!("{other:?}"),
                None => {
                    inbox.keep(left);
                    inbox.fill(&mut wire, handshake.need());
                }
            }
        }
        black_box(handshake.agreed());
    }
}

fn other_client_handshakes(n: u64) {
    let mut said = server_words();
    let mut wire = Wire::new(&mut said, n, false);
    for _ in 0..n {
        let export = nbd::client::handshake(&mut wire, b"disk");
        black_box(export.expect("a lawful server"));
    }
}

/// What a client says that asks by `EXPORT_NAME`.
fn client_words() -> Vec<u8> {
    let mut said = ClientFlags::FIXED_NEWSTYLE.encode().to_vec();
    let name = OptionRequest::ExportName("disk".into());
    name.encode(&mut said).expect("room");
    said
}

fn server_handshakes(n: u64) {
    let mut said = client_words();
    let mut wire = Wire::new(&mut said, n, false);
    let export = Export::new("disk", SIZE, TransmissionFlags::HAS_FLAGS);
    for _ in 0..n {
        let mut handshake = Handshake::new(Offer::default()).expect("an offer");
        let mut inbox = Inbox::new();
        let mut out = [0; 256];
        let mut size = handshake.transmit(&mut &mut out[..]).expect("room");
        loop {
            wire.write_all(&out[..size]).expect("room");
            wire.flush().expect("room");
            size = 0;
            let mut input = inbox.held();
            let event = handshake.receive(&mut input).expect("a lawful client");
            let left = input.len();
            match event {
                Some(Wish::Export(inquiry)) => {
                    let granted = handshake.grant(&inquiry, &export, &mut &mut out[..]);
                    size = granted.expect("room");
                    inbox.keep(left);
                }
                Some(Wish::Ready) => break,
                Some(other) => panic!("{other:?}"),
                None => {
                    inbox.keep(left);
                    inbox.fill(&mut wire, handshake.need());
                }
            }
        }
        black_box(handshake.agreed());
    }
}

fn other_server_handshakes(n: u64) {
    let mut said = client_words();
    let mut wire = Wire::new(&mut said, n, false);
    for _ in 0..n {
        let size = SIZE;
        let agreed = nbd::server::handshake(&mut wire, |name| {
            assert_eq!(black_box(name), "disk");
            Ok(nbd::Export::<()> {
                size,
                ..nbd::Export::default()
            })
        });
        agreed.expect("a lawful client");
    }
}

/// A case of each crate, the other's beside ours.
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
