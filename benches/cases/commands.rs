//! Whole commands: submit, reply, complete.

use super::Case;
use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::flags::{ReplyFlags, TransmissionFlags};
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Framing, Limits, Need, Negotiated};
use std::hint::black_box;

const LENGTH: u64 = 4096;

fn session(framing: Framing, slots: usize) -> Transmission<Vec<Slot>> {
    let flags = TransmissionFlags::HAS_FLAGS;
    let mut negotiated = Negotiated::new(framing, 1 << 40, flags);
    let mut sizes = negotiated.constraints();
    sizes.maximum = 1 << 26;
    negotiated.block_sizes = Some(sizes);
    Transmission::new(negotiated, vec![Slot::EMPTY; slots], Limits::DEFAULT)
}

/// The header of the reply to a read, in place; returns its size.
fn reply(framing: Framing, cookie: Cookie, offset: u64, length: u64, out: &mut [u8; 40]) -> usize {
    match framing {
        Framing::Simple => {
            let error = ErrorValue::NONE;
            out[..16].copy_from_slice(&SimpleReply { error, cookie }.encode());
            16
        }
        Framing::Structured => {
            let header = StructuredHeader {
                flags: ReplyFlags::DONE,
                chunk: ChunkType::OFFSET_DATA,
                cookie,
                length: (length + 8) as u32,
            };
            out[..20].copy_from_slice(&header.encode());
            out[20..28].copy_from_slice(&offset.to_be_bytes());
            28
        }
        Framing::Extended => {
            let header = ExtendedHeader {
                flags: ReplyFlags::DONE,
                chunk: ChunkType::OFFSET_DATA,
                cookie,
                offset,
                length: length + 8,
            };
            out[..32].copy_from_slice(&header.encode());
            out[32..].copy_from_slice(&offset.to_be_bytes());
            40
        }
    }
}

/// Keeps `depth` reads in flight; payloads are read directly. Includes making
/// the reply, which the bare case below is.
fn reads(framing: Framing, depth: u64, n: u64) {
    let mut session = session(framing, depth as usize);
    let mut flight = std::collections::VecDeque::with_capacity(depth as usize);
    for i in 0..depth {
        let head = session.submit(Request::read(i * LENGTH, LENGTH));
        flight.push_back(head.expect("a legal read").cookie());
    }
    for i in 0..n {
        let cookie = flight.pop_front().expect("one is in flight");
        let offset = i * LENGTH;
        let mut bytes = [0; 40];
        let size = reply(framing, cookie, offset, LENGTH, &mut bytes);
        let mut input = black_box(&bytes[..size]);
        assert_eq!(session.receive(&mut input), Ok(None));
        if let Need::Payload { length, .. } = session.need() {
            session.advance(length).expect("the payload");
        }
        let done = session.receive(&mut input).expect("a legal reply");
        assert!(matches!(done, Some(Event::Done { .. })));
        let head = session.submit(black_box(Request::read((i + depth) * LENGTH, LENGTH)));
        let head = head.expect("a legal read");
        black_box(head.as_bytes());
        flight.push_back(head.cookie());
    }
}

/// What the loop above costs without the machine.
fn bare(framing: Framing, n: u64) {
    let mut flight = std::collections::VecDeque::with_capacity(1);
    flight.push_back(Cookie(0));
    for i in 0..n {
        let cookie = flight.pop_front().expect("one is in flight");
        let mut bytes = [0; 40];
        let size = reply(framing, cookie, i * LENGTH, LENGTH, &mut bytes);
        black_box(&bytes[..size]);
        black_box(Request::read((i + 1) * LENGTH, LENGTH));
        flight.push_back(Cookie(i));
    }
}

const BIG: u64 = 1 << 25;

/// One read of 32 MiB through a buffer of 64 KiB, as fragments.
fn fragments(n: u64) {
    let mut session = session(Framing::Simple, 1);
    let buffer = vec![0; 64 * 1024];
    for _ in 0..n {
        let head = session.submit(Request::read(0, BIG)).expect("a legal read");
        let mut bytes = [0; 40];
        let size = reply(Framing::Simple, head.cookie(), 0, BIG, &mut bytes);
        assert_eq!(session.receive(&mut &bytes[..size]), Ok(None));
        loop {
            let mut input = black_box(&buffer[..]);
            match session.receive(&mut input).expect("a legal reply") {
                Some(Event::Done { .. }) => break,
                event => drop(black_box(event)),
            }
        }
    }
}

/// The same read, directly into its place in pieces of 64 KiB.
fn direct(n: u64) {
    let mut session = session(Framing::Simple, 1);
    for _ in 0..n {
        let head = session.submit(Request::read(0, BIG)).expect("a legal read");
        let mut bytes = [0; 40];
        let size = reply(Framing::Simple, head.cookie(), 0, BIG, &mut bytes);
        assert_eq!(session.receive(&mut &bytes[..size]), Ok(None));
        while let Need::Payload { length, .. } = session.need() {
            session.advance(length.min(64 * 1024)).expect("the payload");
        }
        let done = session.receive(&mut &[][..]).expect("a legal reply");
        assert!(matches!(done, Some(Event::Done { .. })));
    }
}

const fn case(name: &'static str, run: fn(u64), count: u64) -> Case {
    Case {
        name,
        run,
        count,
        limit: None,
    }
}

pub const BARE: Case = case(
    "(bare) the loop and the replies of the above",
    |n| bare(Framing::Extended, n),
    10_000,
);

pub const SIMPLE_1: Case = case(
    "read 4 KiB, simple, 1 in flight",
    |n| reads(Framing::Simple, 1, n),
    10_000,
);
pub const STRUCTURED_1: Case = case(
    "read 4 KiB, structured, 1 in flight",
    |n| reads(Framing::Structured, 1, n),
    10_000,
);
pub const EXTENDED_1: Case = case(
    "read 4 KiB, extended, 1 in flight",
    |n| reads(Framing::Extended, 1, n),
    10_000,
);
pub const EXTENDED_32: Case = case(
    "read 4 KiB, extended, 32 in flight",
    |n| reads(Framing::Extended, 32, n),
    10_000,
);
pub const EXTENDED_1024: Case = case(
    "read 4 KiB, extended, 1,024 in flight",
    |n| reads(Framing::Extended, 1024, n),
    10_000,
);
pub const EXTENDED_65536: Case = case(
    "read 4 KiB, extended, 65,536 in flight",
    |n| reads(Framing::Extended, 65_536, n),
    10_000,
);
pub const FRAGMENTS: Case = case("read 32 MiB as fragments of 64 KiB", fragments, 10);
pub const DIRECT: Case = case("read 32 MiB directly, 64 KiB a time", direct, 10);
