//! Whole commands: submitted, replied to, completed.

use super::Case;
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::{ReplyFlags, TransmissionFlags};
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Content, Framing, Limits, Negotiated, Step};
use std::collections::VecDeque;
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

/// Writes the header of the reply to a read, and returns its size.
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

/// A server that replies in the order of the commands.
struct Peer {
    framing: Framing,
    in_flight: VecDeque<(Cookie, u64)>,
    bytes: [u8; 40],
}

impl Peer {
    fn new(framing: Framing, depth: u64) -> Self {
        Self {
            framing,
            in_flight: VecDeque::with_capacity(depth as usize),
            bytes: [0; 40],
        }
    }

    fn reply(&mut self) -> &[u8] {
        let (cookie, offset) = self.in_flight.pop_front().expect("a command in flight");
        let size = reply(self.framing, cookie, offset, LENGTH, &mut self.bytes);
        black_box(&self.bytes[..size])
    }
}

/// A driver that keeps `depth` reads in flight; payloads are read directly.
fn reads(framing: Framing, depth: u64, n: u64) {
    let mut session = session(framing, depth as usize);
    let mut peer = Peer::new(framing, depth);
    let (mut sent, mut done) = (0, 0);
    while done < n {
        if sent < done + depth {
            let offset = sent * LENGTH;
            let header = session.submit(black_box(Request::read(offset, LENGTH)));
            let header = header.expect("a legal read");
            black_box(header.as_bytes());
            peer.in_flight.push_back((header.cookie(), offset));
            sent += 1;
            continue;
        }
        let mut input = peer.reply();
        loop {
            match session.receive(&mut input) {
                Ok(Step::Event(TransmissionEvent::Done { result: Ok(()), .. })) => break,
                Ok(Step::ReadPayload { length, .. }) => {
                    session.advance(length).expect("the payload");
                }
                _ => unreachable!("the header is there, and payloads are read directly"),
            }
        }
        done += 1;
    }
}

/// The same loop without the state machine.
fn bare(framing: Framing, depth: u64, n: u64) {
    let mut peer = Peer::new(framing, depth);
    let (mut sent, mut done) = (0, 0);
    while done < n {
        if sent < done + depth {
            let offset = sent * LENGTH;
            let request = black_box(Request::read(offset, LENGTH));
            peer.in_flight.push_back((Cookie(sent), request.offset));
            sent += 1;
            continue;
        }
        black_box(peer.reply());
        done += 1;
    }
}

const BIG: u64 = 1 << 25;

/// One read of 32 MiB through a buffer of 64 KiB, as content.
fn fragments(n: u64) {
    let mut session = session(Framing::Simple, 1);
    let buffer = vec![0; 64 * 1024];
    for _ in 0..n {
        let header = session.submit(Request::read(0, BIG)).expect("a legal read");
        let mut bytes = [0; 40];
        let size = reply(Framing::Simple, header.cookie(), 0, BIG, &mut bytes);
        let header = session.receive(&mut &bytes[..size]);
        assert!(matches!(header, Ok(Step::ReadPayload { length: BIG, .. })));
        loop {
            let mut input = black_box(&buffer[..]);
            match session.receive(&mut input) {
                Ok(Step::Content(Content::Data { data, .. })) => drop(black_box(data)),
                Ok(Step::Event(TransmissionEvent::Done { .. })) => break,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The same read, straight into its place in pieces of 64 KiB.
fn direct(n: u64) {
    let mut session = session(Framing::Simple, 1);
    for _ in 0..n {
        let header = session.submit(Request::read(0, BIG)).expect("a legal read");
        let mut bytes = [0; 40];
        let size = reply(Framing::Simple, header.cookie(), 0, BIG, &mut bytes);
        let mut input = &bytes[..size];
        loop {
            match session.receive(&mut input) {
                Ok(Step::ReadPayload { mut length, .. }) => {
                    while length > 0 {
                        let piece = length.min(64 * 1024);
                        session.advance(piece).expect("the payload");
                        length -= piece;
                    }
                }
                Ok(Step::Event(TransmissionEvent::Done { .. })) => break,
                _ => unreachable!("the header is there, and payloads are read directly"),
            }
        }
    }
}

const fn case(name: &'static str, run: fn(u64), count: u64) -> Case {
    Case {
        name,
        run,
        count,
        limit: None,
        other: None,
    }
}

/// A case for each framing, and the loop without the state machine.
macro_rules! reads {
    ($($case:ident, $name:literal, $framing:ident, $depth:literal, $bare:ident, $bare_name:literal;)*) => {
        $(pub const $case: Case = Case {
            name: $name,
            run: |n| reads(Framing::$framing, $depth, n),
            count: 10_000,
            limit: Some($bare_name),
            other: None,
        };
        pub const $bare: Case = Case {
            name: $bare_name,
            run: |n| bare(Framing::$framing, $depth, n),
            count: 10_000,
            limit: None,
            other: None,
        };)*
    };
}

reads! {
    SIMPLE_1, "read 4 KiB, simple, 1 in flight", Simple, 1,
    BARE_SIMPLE_1, "(bare) that loop, simple, 1";
    STRUCTURED_1, "read 4 KiB, structured, 1 in flight", Structured, 1,
    BARE_STRUCTURED_1, "(bare) that loop, structured, 1";
    EXTENDED_1, "read 4 KiB, extended, 1 in flight", Extended, 1,
    BARE_EXTENDED_1, "(bare) that loop, extended, 1";
    EXTENDED_32, "read 4 KiB, extended, 32 in flight", Extended, 32,
    BARE_EXTENDED_32, "(bare) that loop, extended, 32";
    EXTENDED_1024, "read 4 KiB, extended, 1,024 in flight", Extended, 1024,
    BARE_EXTENDED_1024, "(bare) that loop, extended, 1,024";
    EXTENDED_65536, "read 4 KiB, extended, 65,536 in flight", Extended, 65_536,
    BARE_EXTENDED_65536, "(bare) that loop, extended, 65,536";
}

pub const FRAGMENTS: Case = case("read 32 MiB as fragments of 64 KiB", fragments, 10);
pub const DIRECT: Case = case("read 32 MiB directly, 64 KiB a time", direct, 10);
