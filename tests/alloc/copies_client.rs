//! The client: payloads in replies to reads, and behind the head of a write.

use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Framing, Limits, Need};

use super::allocations;
use super::copies::{Ledger, Way, every, export};

const OFFSET: u64 = 1 << 20;
/// What the first command of a session has.
const COOKIE: Cookie = Cookie(1 << 32);

/// The last chunk of a reply, or all of a simple one, before its content.
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

/// The reply to a read of `length` bytes, all of it; and how much of it is
/// headers.
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

/// Sends a command and takes its reply out of `wire`, at most `piece` bytes at
/// a time (but a whole header, where that is more).
fn run(framing: Framing, request: Request, wire: &[u8], piece: usize, way: Way) -> Ledger {
    let mut session = Transmission::new(export(framing), [Slot::EMPTY; 1], Limits::DEFAULT);
    let mut ledger = Ledger::default();
    let head = session.submit(request).unwrap();
    assert_eq!(head.cookie(), COOKIE);
    ledger.made += head.as_bytes().len();
    let mut at = 0;
    loop {
        let due = match session.need() {
            Need::Payload { length, .. } if way == Way::Direct => {
                let taken = piece.min(usize::try_from(length).unwrap());
                session.advance(taken as u64).unwrap();
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
        let event = session.receive(&mut input).unwrap();
        let consumed = &offered[..offered.len() - input.len()];
        ledger.consumed += consumed.len();
        at += consumed.len();
        match event {
            Some(Event::Data { data, .. }) => ledger.deliver(data, consumed),
            Some(Event::Done { result, .. }) => {
                assert_eq!((result, at), (Ok(()), wire.len()));
                return ledger;
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
}

/// Bytes of a command's header.
fn head(framing: Framing) -> usize {
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
        let made = head(framing);
        let due = match way {
            Way::Events => Ledger {
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

/// The payload of a write is never handed to the machine: it makes the header
/// and says how much must follow.
#[test]
fn writes() {
    every(|framing, length, piece, way| {
        let wire = reply(framing, ChunkType::NONE, 0);
        let request = Request::write(OFFSET, length as u64);
        let mut seen = Ledger::default();
        let count = allocations(|| seen = run(framing, request, &wire, piece, way));
        let due = Ledger {
            consumed: wire.len(),
            made: head(framing),
            ..Ledger::default()
        };
        assert_eq!(
            (seen, count),
            (due, 0),
            "{framing}, {length} bytes, {way:?}"
        );
    });
}
