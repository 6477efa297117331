//! Status chunks, against a loop that only sums the lengths.

use super::Case;
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::{CommandFlags, ReplyFlags, TransmissionFlags};
use nbd_codec::wire::number::{ChunkType, ContextId, Cookie};
use nbd_codec::wire::reply::{ExtendedHeader, StructuredHeader};
use nbd_codec::{Framing, Limits, Negotiated, SelectedContext, StatusWidth, Step};
use std::hint::black_box;

const MANY: usize = 1 << 20;
/// Size of a driver's receive buffer.
const BUFFER: usize = 64 * 1024;

fn narrow_chunk(extents: usize) -> Vec<u8> {
    let header = StructuredHeader {
        flags: ReplyFlags::DONE,
        chunk: ChunkType::BLOCK_STATUS,
        cookie: Cookie(1 << 32),
        length: (4 + 8 * extents) as u32,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(1u32.to_be_bytes());
    for i in 0..extents {
        let extent = Extent32 {
            length: 4096,
            flags: (i & 1) as u32 * 3,
        };
        bytes.extend(extent.encode());
    }
    bytes
}

fn wide_chunk(extents: usize) -> Vec<u8> {
    let header = ExtendedHeader {
        flags: ReplyFlags::DONE,
        chunk: ChunkType::BLOCK_STATUS_EXT,
        cookie: Cookie(1 << 32),
        offset: 0,
        length: (8 + 16 * extents) as u64,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(1u32.to_be_bytes());
    bytes.extend((extents as u32).to_be_bytes());
    for i in 0..extents {
        let extent = Extent64 {
            length: 4096,
            flags: (i & 1) as u64 * 3,
        };
        bytes.extend(extent.encode());
    }
    bytes
}

/// Sends block status, and receives the chunk as a driver with a buffer does.
fn status(framing: Framing, chunk: &[u8], n: u64) {
    let negotiated = negotiated(framing);
    for _ in 0..n {
        let slots = [Slot::EMPTY; 1];
        let mut session = Transmission::new(negotiated, slots, Limits::DEFAULT);
        let request = Request::block_status(0, 1 << 33);
        let request = match framing {
            Framing::Extended => request,
            _ => Request::block_status(0, u64::from(u32::MAX)),
        };
        let _ = black_box(session.submit(request).expect("a legal request"));
        let mut total = 0;
        let mut from = 0;
        while from < chunk.len() {
            let to = chunk.len().min(from + BUFFER);
            let mut input = &chunk[from..to];
            total += lengths(&mut session, &mut input);
            from = to - input.len();
        }
        black_box(total);
    }
}

/// The sum of the lengths in `input`.
#[inline(always)]
fn lengths(session: &mut Transmission<[Slot; 1]>, input: &mut &[u8]) -> u64 {
    use TransmissionEvent as E;
    let mut total = 0;
    loop {
        match session.receive(input) {
            Ok(Step::Event(E::Extents32 { extents, .. })) => {
                total += extents.map(|extent| u64::from(extent.length)).sum::<u64>();
            }
            Ok(Step::Event(E::Extents64 { extents, .. })) => {
                total += extents.map(|extent| extent.length).sum::<u64>();
            }
            Ok(Step::Event(E::Done { .. }) | Step::Read(_)) => return total,
            other => panic!("{other:?}"),
        }
    }
}

/// Many commands in one session, each answered with one extent: what a client does
/// that asks for one extent at a time.
fn statuses(framing: Framing, chunk: &[u8], n: u64) {
    let mut session = Transmission::new(negotiated(framing), [Slot::EMPTY; 1], Limits::DEFAULT);
    let mut chunk = chunk.to_vec();
    for _ in 0..n {
        let request = Request::block_status(0, 1 << 20).with_flags(CommandFlags::REQ_ONE);
        let header = session.submit(black_box(request)).expect("a legal request");
        black_box(header.as_bytes());
        chunk[8..16].copy_from_slice(&header.cookie().0.to_be_bytes());
        let mut input = black_box(&chunk[..]);
        let total = lengths(&mut session, &mut input);
        black_box(total);
    }
}

fn negotiated(framing: Framing) -> Negotiated {
    let mut negotiated = Negotiated::new(framing, 1 << 40, TransmissionFlags::HAS_FLAGS);
    let context = SelectedContext {
        id: ContextId(1),
        width: StatusWidth::Wide,
    };
    negotiated.contexts.push(context).expect("room for one");
    negotiated
}

fn bare_narrow(extents: usize, n: u64) {
    let chunk = narrow_chunk(extents);
    for _ in 0..n {
        let (descriptors, _) = black_box(&chunk[24..]).as_chunks::<8>();
        let mut total = 0;
        for bytes in descriptors {
            let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            total += u64::from(length);
        }
        black_box(total);
    }
}

fn bare_wide(extents: usize, n: u64) {
    let chunk = wide_chunk(extents);
    for _ in 0..n {
        let (words, _) = black_box(&chunk[40..]).as_chunks::<8>();
        let mut total = 0u64;
        for bytes in words.iter().step_by(2) {
            total += u64::from_be_bytes(*bytes);
        }
        black_box(total);
    }
}

const fn case(name: &'static str, run: fn(u64), count: u64, limit: &Case) -> Case {
    Case {
        name,
        run,
        count,
        limit: Some(limit.name),
        other: None,
    }
}

const fn bare(name: &'static str, run: fn(u64), count: u64) -> Case {
    Case {
        name,
        run,
        count,
        limit: None,
        other: None,
    }
}

pub const NARROW_1: Case = case(
    "status, narrow: 1 extent",
    |n| status(Framing::Structured, &narrow_chunk(1), n),
    1000,
    &BARE_NARROW_1,
);
pub const NARROW_EACH: Case = case(
    "status, narrow: 1 extent, without the session",
    |n| statuses(Framing::Structured, &narrow_chunk(1), n),
    1000,
    &BARE_NARROW_1,
);
pub const NARROW_1000: Case = case(
    "status, narrow: 1,000 extents",
    |n| status(Framing::Structured, &narrow_chunk(1000), n),
    100,
    &BARE_NARROW_1000,
);
pub const NARROW_MANY: Case = case(
    "status, narrow: 2^20 extents",
    |n| status(Framing::Structured, &narrow_chunk(MANY), n),
    1,
    &BARE_NARROW_MANY,
);
pub const WIDE_1: Case = case(
    "status, wide: 1 extent",
    |n| status(Framing::Extended, &wide_chunk(1), n),
    1000,
    &BARE_WIDE_1,
);
pub const WIDE_EACH: Case = case(
    "status, wide: 1 extent, without the session",
    |n| statuses(Framing::Extended, &wide_chunk(1), n),
    1000,
    &BARE_WIDE_1,
);
pub const WIDE_1000: Case = case(
    "status, wide: 1,000 extents",
    |n| status(Framing::Extended, &wide_chunk(1000), n),
    100,
    &BARE_WIDE_1000,
);
pub const WIDE_MANY: Case = case(
    "status, wide: 2^20 extents",
    |n| status(Framing::Extended, &wide_chunk(MANY), n),
    1,
    &BARE_WIDE_MANY,
);
pub const BARE_NARROW_1: Case = bare("(bare) narrow: 1 extent", |n| bare_narrow(1, n), 1000);
pub const BARE_NARROW_1000: Case = bare(
    "(bare) narrow: 1,000 extents",
    |n| bare_narrow(1000, n),
    100,
);
pub const BARE_NARROW_MANY: Case = bare("(bare) narrow: 2^20 extents", |n| bare_narrow(MANY, n), 1);
pub const BARE_WIDE_1: Case = bare("(bare) wide: 1 extent", |n| bare_wide(1, n), 1000);
pub const BARE_WIDE_1000: Case = bare("(bare) wide: 1,000 extents", |n| bare_wide(1000, n), 100);
pub const BARE_WIDE_MANY: Case = bare("(bare) wide: 2^20 extents", |n| bare_wide(MANY, n), 1);
