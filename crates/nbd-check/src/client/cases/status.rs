//! Block status, wrong in one way each.

use nbd_codec::Framing;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{ChunkType, Command};

use super::{Turn, for_chunks};
use crate::case::Cases;
use crate::client::message::{Chunk, Message};
use crate::client::reply::Reply;
use crate::client::trial::Expect;

const FAILURE: Expect = Expect::Failure;
const EITHER: Expect = Expect::Either;
const DISCONNECT: Expect = Expect::Disconnect;

type Chunks = fn(&Reply<'_>, Chunk) -> Vec<Chunk>;

fn extent(length: u64) -> Extent64 {
    Extent64 { length, flags: 0 }
}

pub(super) fn add(cases: &mut Cases) {
    for_chunks(|framing, dialect| {
        let mut add = |duty, name: &str, sends: &str, expect, chunks: Chunks| {
            let name = format!("{framing}-{name}");
            Turn::correct(duty, name, sends, dialect.clone())
                .expect(expect)
                .answer(Command::BLOCK_STATUS, move |reply, messages| {
                    let Some(Message::Chunk(good)) = messages.first().cloned() else {
                        return false;
                    };
                    let chunks = chunks(reply, good);
                    *messages = chunks.into_iter().map(Message::Chunk).collect();
                    true
                })
                .add(cases);
        };
        contexts(&mut add);
        extents(&mut add);
        match dialect.framing {
            Framing::Extended => wide(&mut add),
            _ => narrow(&mut add),
        }
        let sends = "two extents, the second past the end, with REQ_ONE";
        Turn::correct("R44", format!("{framing}-not-one"), sends, dialect.clone())
            .expect(EITHER)
            .answer(Command::BLOCK_STATUS, |reply, messages| {
                if !reply.request.flags.contains(CommandFlags::REQ_ONE) {
                    return false;
                }
                let length = reply.request.length;
                let chunk = reply.extents(&[extent(length), extent(512)]);
                *messages = vec![Message::Chunk(chunk), Message::Chunk(reply.none())];
                true
            })
            .add(cases);
    });
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, &str, Expect, Chunks);

/// Another context in a status chunk.
fn of_context(mut chunk: Chunk, id: u32) -> Chunk {
    if let Some(place) = chunk.payload.get_mut(..4) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    chunk
}

fn contexts(add: Add<'_>) {
    add("M3", "missing", "NONE only", FAILURE, |reply, _| {
        vec![reply.none()]
    });
    add(
        "M3",
        "other-only",
        "status of a context that was not selected",
        FAILURE,
        |reply, good| vec![of_context(good, 1), reply.none()],
    );
    add(
        "M3",
        "other-too",
        "status of another context too",
        EITHER,
        |reply, good| vec![of_context(good.clone(), 1), good, reply.none()],
    );
    add(
        "M3",
        "twice",
        "status of the context twice",
        EITHER,
        |reply, good| vec![good.clone(), good, reply.none()],
    );
}

fn extents(add: Add<'_>) {
    add(
        "R42",
        "empty-first",
        "an extent of length 0",
        FAILURE,
        |reply, _| vec![reply.extents(&[extent(0)]), reply.none()],
    );
    add(
        "R42",
        "empty-second",
        "an extent of 512 bytes, then one of 0",
        EITHER,
        |reply, _| vec![reply.extents(&[extent(512), extent(0)]), reply.none()],
    );
    add(
        "R46",
        "beyond",
        "an extent that begins past the end of the request",
        EITHER,
        |reply, _| {
            let length = reply.request.length;
            let chunk = reply.extents(&[extent(length), extent(512)]);
            vec![chunk, reply.none()]
        },
    );
    add(
        "R46",
        "far-beyond",
        "extents of 2^32 - 512 bytes, twice",
        EITHER,
        |reply, _| {
            let far = extent((1 << 32) - 512);
            vec![reply.extents(&[far, far]), reply.none()]
        },
    );
    add(
        "R156",
        "unaligned",
        "an extent of 1000 bytes",
        EITHER,
        |reply, _| {
            vec![
                reply.extents(&[extent(1000.min(reply.request.length))]),
                reply.none(),
            ]
        },
    );
    add(
        "R48",
        "many",
        "2^20 + 1 extents of one byte",
        EITHER,
        |reply, _| {
            let list = vec![extent(1); (1 << 20) + 1];
            vec![reply.extents(&list), reply.none()]
        },
    );
}

fn narrow(add: Add<'_>) {
    let lengths: [(&str, &str, Chunks); 5] = [
        ("length-0", "0 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 0), good, reply.none()]
        }),
        ("length-4", "4 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 4), good, reply.none()]
        }),
        ("length-11", "11 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 11), good, reply.none()]
        }),
        ("length-13", "13 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 13), good, reply.none()]
        }),
        ("length-16", "16 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 16), good, reply.none()]
        }),
    ];
    for (name, what, chunks) in lengths {
        let sends = format!("a status chunk of {what}");
        add("R38", name, &sends, DISCONNECT, chunks);
    }
    let sends = "NBD_REPLY_TYPE_BLOCK_STATUS_EXT, then the reply";
    add("R52", "wide", sends, DISCONNECT, |reply, good| {
        let length = reply.request.length;
        vec![reply.wide_extents(&[extent(length)]), good, reply.none()]
    });
}

/// A status chunk of some length.
fn of_length(reply: &Reply<'_>, length: usize) -> Chunk {
    let wide = reply.framing == Framing::Extended;
    let mut chunk = reply.extents(&[extent(512), extent(512)]);
    chunk.chunk = if wide {
        ChunkType::BLOCK_STATUS_EXT
    } else {
        ChunkType::BLOCK_STATUS
    };
    chunk.payload.resize(length, 0);
    chunk
}

fn wide(add: Add<'_>) {
    let lengths: [(&str, &str, Chunks); 4] = [
        ("length-0", "0 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 0), good, reply.none()]
        }),
        ("length-8", "8 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 8), good, reply.none()]
        }),
        ("length-23", "23 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 23), good, reply.none()]
        }),
        ("length-32", "32 bytes, then the reply", |reply, good| {
            vec![of_length(reply, 32), good, reply.none()]
        }),
    ];
    for (name, what, chunks) in lengths {
        let sends = format!("a status chunk of {what}");
        add("R50", name, &sends, DISCONNECT, chunks);
    }
    for (name, count) in [("count-0", 0_u32), ("count-2", 2), ("count-max", u32::MAX)] {
        let sends = format!("the count {count} and one extent, then the reply");
        let chunks: Chunks = match count {
            0 => |reply, good| vec![of_count(reply, 0), good, reply.none()],
            2 => |reply, good| vec![of_count(reply, 2), good, reply.none()],
            _ => |reply, good| vec![of_count(reply, u32::MAX), good, reply.none()],
        };
        add("R54", name, &sends, DISCONNECT, chunks);
    }
    let sends = "NBD_REPLY_TYPE_BLOCK_STATUS, then the reply";
    add("R60", "narrow", sends, DISCONNECT, |reply, good| {
        vec![reply.narrow_extents(&[extent(512)]), good, reply.none()]
    });
    let sends = "status of base:allocation with the bit 2^32";
    add("R62", "upper-bits", sends, EITHER, |reply, _| {
        let (length, flags) = (reply.request.length, 1 << 32);
        vec![reply.extents(&[Extent64 { length, flags }]), reply.none()]
    });
    let sends = "an extent of 2^63 bytes, and one of 2^63";
    add("R46", "wraps", sends, EITHER, |reply, _| {
        let far = extent(1 << 63);
        vec![reply.extents(&[far, far]), reply.none()]
    });
}

/// One wide extent, and another count.
fn of_count(reply: &Reply<'_>, count: u32) -> Chunk {
    let mut chunk = reply.wide_extents(&[extent(512)]);
    if let Some(place) = chunk.payload.get_mut(4..8) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    chunk
}
