//! The server: 10,000 requests of every kind in every framing.

use nbd_codec::server::{Request, Transmission, TransmissionEvent, narrow};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Content, Framing, Limits, Negotiated, SelectedContext, StatusWidth, Step};

use super::allocations;

const ROUNDS: u64 = 10_000;
const LENGTH: u64 = 4096;

fn export(framing: Framing) -> Negotiated {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut negotiated = Negotiated::new(framing, 1 << 30, all);
    if framing > Framing::Simple {
        let (id, width) = (ContextId(0), StatusWidth::Narrow);
        negotiated
            .contexts
            .push(SelectedContext { id, width })
            .unwrap();
    }
    negotiated
}

/// The command of a round. One in nine is rejected.
fn command(round: u64, framing: Framing) -> (Command, CommandFlags, u64) {
    let offset = round % 1000 * LENGTH;
    match round % 9 {
        0 | 1 => (Command::READ, CommandFlags::NONE, offset),
        2 | 3 => (Command::WRITE, CommandFlags::FUA, offset),
        4 => (Command::TRIM, CommandFlags::NONE, offset),
        5 => (Command::WRITE_ZEROES, CommandFlags::NO_HOLE, offset),
        6 if framing > Framing::Simple => (Command::BLOCK_STATUS, CommandFlags::NONE, offset),
        6 => (Command::CACHE, CommandFlags::NONE, offset),
        7 => (Command::FLUSH, CommandFlags::NONE, 0),
        _ => (Command::WRITE, CommandFlags::NONE, 1 << 30),
    }
}

/// Writes a request with its payload, and returns its size.
fn request(framing: Framing, round: u64, out: &mut [u8]) -> usize {
    let (command, flags, offset) = command(round, framing);
    let cookie = Cookie(round);
    let length = match command {
        Command::FLUSH => 0,
        _ => LENGTH,
    };
    let payload = match command {
        Command::WRITE => LENGTH as usize,
        _ => 0,
    };
    let header = match framing {
        Framing::Extended => {
            let flags = match command {
                Command::WRITE => flags | CommandFlags::PAYLOAD_LEN,
                _ => flags,
            };
            let header = ExtendedRequest {
                flags,
                command,
                cookie,
                offset,
                length,
            };
            out[..32].copy_from_slice(&header.encode());
            32
        }
        _ => {
            let length = length as u32;
            let header = CompactRequest {
                flags,
                command,
                cookie,
                offset,
                length,
            };
            out[..28].copy_from_slice(&header.encode());
            28
        }
    };
    out[header..][..payload].fill(7);
    header + payload
}

/// Answers a request, and returns the bytes of the reply without its data.
fn answer(request: Request, round: u64, out: &mut [u8]) -> usize {
    let mut sink = &mut out[..];
    let failing = round.is_multiple_of(5);
    let reply = match request {
        it if failing => it.fail(ErrorValue::EIO, "the disk failed"),
        Request::Read(read) => match read.into_chunks() {
            Err(read) => return read.data().as_bytes().len(),
            Ok(mut chunks) => {
                let (offset, half) = (chunks.offset(), chunks.length() / 2);
                let header = chunks.data(offset, half).unwrap().as_bytes().len();
                let last = chunks
                    .finish_with_hole(offset + u64::from(half), half)
                    .unwrap();
                return header + last.encode(&mut sink).unwrap();
            }
        },
        Request::Write(it) => it.succeed(),
        Request::Trim(it) => it.succeed(),
        Request::WriteZeroes(it) => it.succeed(),
        Request::Cache(it) => it.succeed(),
        Request::Flush(it) => it.succeed(),
        Request::BlockStatus32(it) => {
            let map = map().flat_map(|extent| narrow::split(extent).unwrap());
            let unanswered = it.reply_truncated(ContextId(0), map, &mut sink).unwrap();
            assert!(unanswered.is_none());
            return 1;
        }
        Request::BlockStatus64(it) => {
            let unanswered = it.reply_truncated(ContextId(0), map(), &mut sink).unwrap();
            assert!(unanswered.is_none());
            return 1;
        }
        other => panic!("{other:?}"),
    };
    reply.encode(&mut sink).unwrap()
}

fn map() -> impl Iterator<Item = Extent64> + Clone {
    (0..32).map(|n| Extent64 {
        length: 512,
        flags: n % 2 * 3,
    })
}

/// Serves every round, and returns the numbers of requests and of reply bytes.
fn serve(framing: Framing, direct: bool) -> (u64, usize) {
    let mut server = Transmission::new(export(framing), Limits::DEFAULT).unwrap();
    let mut bytes = [0; 32 + LENGTH as usize];
    let mut out = [0; 1024];
    let (mut requests, mut written, mut payload) = (0, 0, 0);
    for round in 0..ROUNDS {
        let size = request(framing, round, &mut bytes);
        let mut input = &bytes[..size];
        loop {
            match server.receive(&mut input).unwrap() {
                Step::Event(TransmissionEvent::WritePayload { length, .. }) if direct => {
                    input = &input[length as usize..];
                    server.advance(length.into()).unwrap();
                }
                Step::Event(TransmissionEvent::Request(request)) => {
                    requests += 1;
                    written += answer(request, round, &mut out);
                }
                Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                    written += reply.encode(&mut &mut out[..]).unwrap();
                }
                Step::Event(_) => {}
                Step::Content(Content::Data { data, .. }) => payload += data.len(),
                Step::Read(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(input.is_empty(), "round {round}");
    }
    assert_eq!(payload > 0, !direct);
    (requests, written)
}

#[test]
fn ten_thousand_requests() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        for direct in [false, true] {
            let mut served = (0, 0);
            let count = allocations(|| served = serve(framing, direct));
            assert_eq!(count, 0, "{framing}, direct: {direct}");
            // One in nine is a write past the end of the export.
            assert_eq!(served.0, ROUNDS - ROUNDS / 9, "{framing}");
            assert!(served.1 > 16 * ROUNDS as usize / 2, "{framing}");
        }
    }
}
