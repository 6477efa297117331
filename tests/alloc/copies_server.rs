//! The server: payloads of writes, and after headers of replies.

use nbd_codec::server::{ReadRequest, Reply, Request, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie, ErrorValue};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits};

use super::allocations;
use super::copies::{Counting, Ledger, Way, every, export, receive};

const OFFSET: u64 = 1 << 20;

/// A request with its payload, and the size of its header.
fn request(framing: Framing, command: Command, length: usize) -> (Vec<u8>, usize) {
    let writes = command == Command::WRITE;
    let (cookie, offset) = (Cookie(7), OFFSET);
    let mut bytes = match framing {
        Framing::Extended => ExtendedRequest {
            flags: if writes {
                CommandFlags::PAYLOAD_LEN
            } else {
                CommandFlags::NONE
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

/// Receives one request.
fn take(framing: Framing, wire: &[u8], piece: usize, way: Way) -> (Ledger, Request) {
    let mut server = Transmission::new(export(framing), Limits::DEFAULT).unwrap();
    let mut ledger = Ledger::default();
    let request = receive(
        &mut server,
        wire,
        piece,
        way,
        &mut ledger,
        |event| match event {
            TransmissionEvent::Request(request) => Some(request),
            TransmissionEvent::WritePayload { .. } => None,
            other => panic!("{other:?}"),
        },
    );
    (ledger, request)
}

/// Bytes of a reply without content.
fn reply_size(framing: Framing) -> usize {
    match framing {
        Framing::Simple => 16,
        Framing::Structured => 20,
        Framing::Extended => 32,
    }
}

/// Receives the request and answers it; counts the bytes made.
fn serve(framing: Framing, wire: &[u8], piece: usize, way: Way) -> Ledger {
    let (mut ledger, request) = take(framing, wire, piece, way);
    let mut sink = Counting::default();
    match request {
        Request::Read(read) => {
            let length = read.length();
            let header = read.data();
            assert_eq!(header.payload_length(), length);
            sink.0 += header.as_bytes().len();
        }
        Request::Write(write) => {
            write.succeed().encode(&mut sink).unwrap();
        }
        other => panic!("{other:?}"),
    }
    ledger.made = sink.0;
    ledger
}

/// The state machine never sees the data of a read: it makes the header and says
/// how many bytes must follow.
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
            Way::Content | Way::Inbox => Ledger {
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

/// Answers a read with two chunks, half of it data, half a hole; returns the
/// bytes made.
fn chunks(read: ReadRequest, length: u32) -> usize {
    let half = length / 2;
    let mut sink = Counting::default();
    let mut chunks = read.into_chunks().expect("a framing with chunks");
    let header = chunks.data(OFFSET, half).unwrap();
    assert_eq!(header.payload_length(), half);
    sink.0 += header.as_bytes().len();
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
        // An offset after one header, an offset and a length after the other.
        let due = 2 * reply_size(framing) + 8 + 12;
        assert_eq!((made, count), (due, 0), "{framing}, {length} bytes");
    });
}

/// The message of an error is the caller's slice.
#[test]
fn error_messages_are_not_copied() {
    let text = "x".repeat(4096);
    let text_of = |reply: &Reply<'_>| std::ptr::eq(reply.parts()[1], text.as_bytes());
    for framing in [Framing::Structured, Framing::Extended] {
        let (wire, _) = request(framing, Command::READ, 4096);
        let (_, request) = take(framing, &wire, usize::MAX, Way::Content);
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
