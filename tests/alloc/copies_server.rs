//! The server: payloads behind requests to write, and behind heads of replies.

use nbd_codec::server::{Event, Read, Reply, Request, Transmission};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie, ErrorValue};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits, Need};

use super::allocations;
use super::copies::{Counting, Ledger, Way, every, export};

const OFFSET: u64 = 1 << 20;

/// A request with the payload it has; and how much of it is header.
fn request(framing: Framing, command: Command, length: usize) -> (Vec<u8>, usize) {
    let writes = command == Command::WRITE;
    let (cookie, offset) = (Cookie(7), OFFSET);
    let mut bytes = match framing {
        Framing::Extended => ExtendedRequest {
            flags: match writes {
                true => CommandFlags::PAYLOAD_LEN,
                false => CommandFlags::NONE,
            },
            command,
            cookie,
            offset,
            length: length as u64,
        }
        .encode()
        .to_vec(),
        _ => CompactRequest {
            flags: CommandFlags::NONE,
            command,
            cookie,
            offset,
            length: u32::try_from(length).unwrap(),
        }
        .encode()
        .to_vec(),
    };
    let header = bytes.len();
    if writes {
        bytes.extend_from_slice(&vec![7; length]);
    }
    (bytes, header)
}

/// Takes one request out of `wire`, at most `piece` bytes at a time (but a
/// whole header, where that is more).
fn take(framing: Framing, wire: &[u8], piece: usize, way: Way) -> (Ledger, Request) {
    let mut server = Transmission::new(export(framing), Limits::DEFAULT).unwrap();
    let mut ledger = Ledger::default();
    let mut at = 0;
    loop {
        let due = match server.need() {
            Need::Payload { length, .. } if way == Way::Direct => {
                let taken = piece.min(usize::try_from(length).unwrap());
                server.advance(taken as u64).unwrap();
                ledger.direct += taken;
                at += taken;
                continue;
            }
            // No more than the header: the payload is the driver's to read.
            Need::Header(n) if way == Way::Direct => n,
            Need::Header(n) => n.max(piece),
            _ => piece,
        };
        let offered = &wire[at..][..due.min(wire.len() - at)];
        let mut input = offered;
        let event = server.receive(&mut input).unwrap();
        let consumed = &offered[..offered.len() - input.len()];
        ledger.consumed += consumed.len();
        at += consumed.len();
        match event {
            Some(Event::Data { data, .. }) => ledger.deliver(data, consumed),
            Some(Event::Request(request)) => {
                assert_eq!(at, wire.len());
                return (ledger, request);
            }
            Some(Event::Payload { .. }) | None => {}
            Some(other) => panic!("{other:?}"),
        }
    }
}

/// Bytes that a reply without content has.
fn reply_size(framing: Framing) -> usize {
    match framing {
        Framing::Simple => 16,
        Framing::Structured => 20,
        Framing::Extended => 32,
    }
}

/// Takes the request of `wire` and answers it; the bytes made for that count.
fn serve(framing: Framing, wire: &[u8], piece: usize, way: Way) -> Ledger {
    let (mut ledger, request) = take(framing, wire, piece, way);
    let mut sink = Counting::default();
    match request {
        Request::Read(read) => {
            let length = read.length();
            let head = read.data();
            assert_eq!(head.payload_length(), length);
            sink.0 += head.as_bytes().len();
        }
        Request::Write(write) => {
            write.succeed().encode(&mut sink).unwrap();
        }
        other => panic!("{other:?}"),
    }
    ledger.made = sink.0;
    ledger
}

/// The data of a read is never handed to the machine: it makes the head and
/// says how much must follow.
#[test]
fn reads() {
    every(|framing, length, piece, way| {
        let (wire, header) = request(framing, Command::READ, length);
        let mut seen = Ledger::default();
        let count = allocations(|| seen = serve(framing, &wire, piece, way));
        let offset = match framing {
            Framing::Simple => 0,
            _ => 8,
        };
        let due = Ledger {
            consumed: header,
            made: reply_size(framing) + offset,
            ..Ledger::default()
        };
        let name = format!("{framing}, {length} bytes, {piece} at a time, {way:?}");
        assert_eq!((seen, count), (due, 0), "{name}");
    });
}

#[test]
fn writes() {
    every(|framing, length, piece, way| {
        let (wire, header) = request(framing, Command::WRITE, length);
        let mut seen = Ledger::default();
        let count = allocations(|| seen = serve(framing, &wire, piece, way));
        let made = reply_size(framing);
        let due = match way {
            Way::Events => Ledger {
                consumed: header + length,
                in_place: length,
                made,
                ..Ledger::default()
            },
            Way::Direct => Ledger {
                consumed: header,
                direct: length,
                made,
                ..Ledger::default()
            },
        };
        let name = format!("{framing}, {length} bytes, {piece} at a time, {way:?}");
        assert_eq!((seen, count), (due, 0), "{name}");
    });
}

/// A read in chunks: half of it data, half a hole. Bytes made.
fn chunks(read: Read, length: u32) -> usize {
    let half = length / 2;
    let mut sink = Counting::default();
    let mut chunks = read.into_chunks().expect("a framing with chunks");
    let head = chunks.data(OFFSET, half).unwrap();
    assert_eq!(head.payload_length(), half);
    sink.0 += head.as_bytes().len();
    let hole = chunks.finish_with_hole(OFFSET + u64::from(half), half);
    hole.unwrap().encode(&mut sink).unwrap();
    sink.0
}

#[test]
fn reads_in_chunks() {
    every(|framing, length, piece, way| {
        let (wire, _) = request(framing, Command::READ, length);
        let (_, request) = take(framing, &wire, piece, way);
        let (Request::Read(read), true) = (request, framing > Framing::Simple) else {
            return;
        };
        let mut made = 0;
        let length = u32::try_from(length).unwrap();
        let count = allocations(|| made = chunks(read, length));
        // An offset behind one header, an offset and a length behind the other.
        let due = 2 * reply_size(framing) + 8 + 12;
        assert_eq!((made, count), (due, 0), "{framing}, {length} bytes");
    });
}

/// The text of an error is the caller's own, as it is.
#[test]
fn texts_of_errors() {
    let text = "x".repeat(4096);
    let text_of = |reply: &Reply<'_>| std::ptr::eq(reply.parts()[1], text.as_bytes());
    for framing in [Framing::Structured, Framing::Extended] {
        let (wire, _) = request(framing, Command::READ, 4096);
        let (_, request) = take(framing, &wire, usize::MAX, Way::Events);
        let Request::Read(read) = request else {
            panic!("{request:?}");
        };
        let mut same = false;
        let count = allocations(|| {
            let reply = read.fail_at(ErrorValue::EIO, OFFSET, &text).unwrap();
            let made = reply.size() - text.len();
            same = text_of(&reply) && made == reply_size(framing) + 14;
        });
        assert_eq!((same, count), (true, 0), "{framing}");
    }
}
