//! The client: payloads in replies to reads, and after the header of a write.

use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Framing, Limits};

use super::allocations;
use super::copies::{Ledger, Way, every, export, receive};

const OFFSET: u64 = 1 << 20;
/// The cookie of the first command of a session.
const COOKIE: Cookie = Cookie(1 << 32);

/// A simple reply, or the header of a reply's only chunk.
fn reply(framing: Framing, chunk: ChunkType, content: usize) -> Vec<u8> {
    let (flags, cookie) = (ReplyFlags::DONE, COOKIE);
    match framing {
        Framing::Simple => {
            let error = ErrorValue::NONE;
            SimpleReply { error, cookie }.encode().to_vec()
        }
        Framing::Structured => StructuredHeader {
            flags,
            chunk,
            cookie,
            length: u32::try_from(content).unwrap(),
        }
        .encode()
        .to_vec(),
        Framing::Extended => ExtendedHeader {
            flags,
            chunk,
            cookie,
            offset: OFFSET,
            length: content as u64,
        }
        .encode()
        .to_vec(),
    }
}

/// The reply to a read of `length` bytes, and the size of its headers.
fn data(framing: Framing, length: usize) -> (Vec<u8>, usize) {
    let mut bytes = match framing {
        Framing::Simple => reply(framing, ChunkType::NONE, 0),
        _ => reply(framing, ChunkType::OFFSET_DATA, 8 + length),
    };
    if framing > Framing::Simple {
        bytes.extend(OFFSET.to_be_bytes());
    }
    let headers = bytes.len();
    bytes.extend_from_slice(&vec![7; length]);
    (bytes, headers)
}

/// Sends a command and receives its reply.
fn run(framing: Framing, request: Request, wire: &[u8], piece: usize, way: Way) -> Ledger {
    let mut session = Transmission::new(export(framing), [Slot::EMPTY; 1], Limits::DEFAULT);
    let mut ledger = Ledger::default();
    let header = session.submit(request).unwrap();
    assert_eq!(header.cookie(), COOKIE);
    ledger.made += header.as_bytes().len();
    let result = receive(
        &mut session,
        wire,
        piece,
        way,
        &mut ledger,
        |event| match event {
            TransmissionEvent::Done { result, .. } => Some(result),
            other => panic!("{other:?}"),
        },
    );
    assert_eq!(result, Ok(()));
    ledger
}

/// Bytes of a command's header.
fn header(framing: Framing) -> usize {
    match framing {
        Framing::Simple | Framing::Structured => 28,
        Framing::Extended => 32,
    }
}

#[test]
fn reads() {
    every(|framing, length, piece, way| {
        let (wire, headers) = data(framing, length);
        let request = Request::read(OFFSET, length as u64);
        let mut seen = Ledger::default();
        let count = allocations(|| seen = run(framing, request, &wire, piece, way));
        let made = header(framing);
        let due = match way {
            Way::Content | Way::Inbox => Ledger {
                consumed: headers + length,
                in_place: length,
                made,
                ..Ledger::default()
            },
            Way::Direct => Ledger {
                consumed: headers,
                direct: length,
                made,
                ..Ledger::default()
            },
        };
        let name = format!("{framing}, {length} bytes, {piece} at a time, {way:?}");
        assert_eq!((seen, count), (due, 0), "{name}");
    });
}

/// The state machine never sees the payload of a write: it makes the header and
/// says how many bytes must follow.
#[test]
fn writes() {
    every(|framing, length, piece, way| {
        let wire = reply(framing, ChunkType::NONE, 0);
        let request = Request::write(OFFSET, length as u64);
        let mut seen = Ledger::default();
        let count = allocations(|| seen = run(framing, request, &wire, piece, way));
        let due = Ledger {
            consumed: wire.len(),
            made: header(framing),
            ..Ledger::default()
        };
        assert_eq!(
            (seen, count),
            (due, 0),
            "{framing}, {length} bytes, {way:?}"
        );
    });
}
