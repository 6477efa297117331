//! The content of reads, wrong in one way each.

use nbd_codec::Framing;
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Command, ErrorValue as Error};

use super::{Turn, for_chunks, halves};
use crate::case::Cases;
use crate::client::message::{Chunk, Message, wide};
use crate::client::reply::Reply;
use crate::client::script::Dialect;
use crate::client::trial::Expect;

const FAILURE: Expect = Expect::Failure;
const EITHER: Expect = Expect::Either;
const DISCONNECT: Expect = Expect::Disconnect;

type Chunks = fn(&Reply<'_>, &[u8]) -> Vec<Chunk>;

pub(super) fn add(cases: &mut Cases) {
    for_chunks(|framing, dialect| {
        let mut add = |duty, name: &str, sends: &str, expect, chunks: Chunks| {
            let name = format!("{framing}-{name}");
            Turn::correct(duty, name, sends, dialect.clone())
                .expect(expect)
                .read(chunks)
                .add(cases);
        };
        gaps(&mut add);
        overlaps(&mut add);
        bounds(&mut add);
        lengths(&mut add);
        let sends = "two content chunks for a read with DF";
        Turn::correct("R103", format!("{framing}-df"), sends, dialect.clone())
            .expect(EITHER)
            .read(|reply, data| {
                let (first, second) = halves(data);
                let start = reply.request.offset;
                let second = reply.data(start + wide(first.len()), second);
                vec![reply.data(start, first), second, reply.none()]
            })
            .only_df()
            .add(cases);
    });
    simple(cases);
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, &str, Expect, Chunks);

fn gaps(add: Add<'_>) {
    add("R94", "nothing", "NONE only", FAILURE, |reply, _| {
        vec![reply.none()]
    });
    add(
        "R94",
        "first-half",
        "the first half, then NONE",
        FAILURE,
        |reply, data| {
            let (first, _) = halves(data);
            vec![reply.data(reply.request.offset, first), reply.none()]
        },
    );
    add(
        "R94",
        "first-half-done",
        "the first half, as the last chunk",
        FAILURE,
        |reply, data| {
            let (first, _) = halves(data);
            let mut chunk = reply.data(reply.request.offset, first);
            chunk.flags = ReplyFlags::DONE;
            vec![chunk]
        },
    );
    add(
        "R94",
        "second-half",
        "the second half, then NONE",
        FAILURE,
        |reply, data| {
            let (first, second) = halves(data);
            let start = reply.request.offset + wide(first.len());
            vec![reply.data(start, second), reply.none()]
        },
    );
    add(
        "R94",
        "last-byte",
        "all but the last byte, then NONE",
        FAILURE,
        |reply, data| {
            let (_, short) = data.split_last().unwrap_or((&0, data));
            vec![reply.data(reply.request.offset, short), reply.none()]
        },
    );
    add(
        "R94",
        "middle",
        "the first and the last quarter, then NONE",
        FAILURE,
        |reply, data| {
            let quarter = data.len() / 4;
            let start = reply.request.offset;
            let (first, rest) = data.split_at(quarter);
            let (gap, last) = rest.split_at(rest.len() - quarter);
            let end = start + wide(first.len() + gap.len());
            vec![
                reply.data(start, first),
                reply.data(end, last),
                reply.none(),
            ]
        },
    );
}

fn overlaps(add: Add<'_>) {
    add("R29", "twice", "all data twice", EITHER, |reply, data| {
        let chunk = reply.data(reply.request.offset, data);
        vec![chunk.clone(), chunk, reply.none()]
    });
    add(
        "R29",
        "one-byte",
        "two halves that share one byte",
        EITHER,
        |reply, data| {
            let (first, _) = halves(data);
            let start = reply.request.offset;
            let at = first.len() - 1;
            let (_, second) = data.split_at(at);
            vec![
                reply.data(start, first),
                reply.data(start + wide(at), second),
                reply.none(),
            ]
        },
    );
    // As many bytes as were requested, and a gap.
    add(
        "R29",
        "with-gap",
        "the first half twice, then NONE",
        FAILURE,
        |reply, data| {
            let (first, _) = halves(data);
            let chunk = reply.data(reply.request.offset, first);
            vec![chunk.clone(), chunk, reply.none()]
        },
    );
    add(
        "R29",
        "hole",
        "all data, then a hole over it",
        EITHER,
        |reply, data| {
            let start = reply.request.offset;
            // The hole is over the last byte, which stays what it was where it is zero.
            let at = start + wide(data.len()) - 1;
            vec![reply.hole(at, 1), reply.data(start, data), reply.none()]
        },
    );
}

fn bounds(add: Add<'_>) {
    add(
        "R27",
        "before",
        "a chunk of data before the request too",
        EITHER,
        |reply, data| {
            let start = reply.request.offset;
            let outside = reply.data(start.wrapping_sub(512), &[7; 512]);
            vec![outside, reply.data(start, data), reply.none()]
        },
    );
    add(
        "R27",
        "after",
        "a chunk of data past the end of the request too",
        EITHER,
        |reply, data| {
            let start = reply.request.offset;
            let outside = reply.data(start + wide(data.len()), &[7; 512]);
            vec![outside, reply.data(start, data), reply.none()]
        },
    );
    add(
        "R27",
        "over-end",
        "all data and 512 bytes more in one chunk",
        EITHER,
        |reply, data| {
            let mut longer = data.to_vec();
            longer.extend([7; 512]);
            vec![reply.data(reply.request.offset, &longer), reply.none()]
        },
    );
    add(
        "R27",
        "wraps",
        "data at offset 2^64 - 256 too",
        EITHER,
        |reply, data| {
            let outside = reply.data(u64::MAX - 255, &[7; 512]);
            vec![
                outside,
                reply.data(reply.request.offset, data),
                reply.none(),
            ]
        },
    );
    add(
        "R27",
        "moved",
        "all data, 2^32 bytes too far",
        FAILURE,
        |reply, data| {
            let start = reply.request.offset + (1 << 32);
            vec![reply.data(start, data), reply.none()]
        },
    );
    add(
        "R33",
        "hole-after",
        "a hole past the end of the request too",
        EITHER,
        |reply, data| {
            let start = reply.request.offset;
            let outside = reply.hole(start + wide(data.len()), 512);
            vec![outside, reply.data(start, data), reply.none()]
        },
    );
    add(
        "R33",
        "hole-too-long",
        "a hole of 2^32 - 1 bytes only",
        FAILURE,
        |reply, _| vec![reply.hole(reply.request.offset, u32::MAX), reply.none()],
    );
}

fn lengths(add: Add<'_>) {
    add(
        "R25",
        "data-8",
        "a data chunk without data, then the reply",
        DISCONNECT,
        |reply, data| {
            let start = reply.request.offset;
            vec![
                reply.data(start, &[]),
                reply.data(start, data),
                reply.none(),
            ]
        },
    );
    add(
        "R25",
        "data-7",
        "a data chunk of 7 bytes, then the reply",
        DISCONNECT,
        |reply, data| {
            let short = reply.chunk(ChunkType::OFFSET_DATA, vec![0; 7]);
            vec![short, reply.data(reply.request.offset, data), reply.none()]
        },
    );
    add(
        "R25",
        "data-0",
        "a data chunk of 0 bytes, then the reply",
        DISCONNECT,
        |reply, data| {
            let short = reply.chunk(ChunkType::OFFSET_DATA, Vec::new());
            vec![short, reply.data(reply.request.offset, data), reply.none()]
        },
    );
    add(
        "R31",
        "hole-11",
        "a hole of 11 bytes, then the reply",
        DISCONNECT,
        |reply, data| {
            let short = reply.chunk(ChunkType::OFFSET_HOLE, vec![0; 11]);
            vec![short, reply.data(reply.request.offset, data), reply.none()]
        },
    );
    add(
        "R31",
        "hole-13",
        "a hole of 13 bytes, then the reply",
        DISCONNECT,
        |reply, data| {
            let start = reply.request.offset;
            let mut long = reply.hole(start, 1);
            long.payload.push(0);
            vec![long, reply.data(start, data), reply.none()]
        },
    );
    add(
        "R35",
        "hole-empty",
        "an empty hole, then the reply",
        DISCONNECT,
        |reply, data| {
            let start = reply.request.offset;
            vec![reply.hole(start, 0), reply.data(start, data), reply.none()]
        },
    );
    add(
        "X7",
        "cut-in-chunk",
        "half of a chunk, then the end",
        FAILURE,
        |reply, data| {
            let (first, _) = halves(data);
            let mut chunk = reply.data(reply.request.offset, first);
            chunk.length = Some(wide(data.len()) + 8);
            chunk.flags = ReplyFlags::DONE;
            vec![chunk]
        },
    );
    add(
        "X3",
        "endless-chunk",
        "a chunk with the length 2^31, then the end",
        FAILURE,
        |reply, data| {
            let mut chunk = reply.data(reply.request.offset, data);
            chunk.length = Some(1 << 31);
            vec![chunk]
        },
    );
    add(
        "X7",
        "length-short",
        "all data, with half of its length in the header",
        FAILURE,
        |reply, data| {
            let mut chunk = reply.data(reply.request.offset, data);
            chunk.length = Some(wide(data.len() / 2));
            vec![chunk, reply.none()]
        },
    );
}

/// Simple replies.
fn simple(cases: &mut Cases) {
    let mut add = |duty, name: &str, sends: &str, twist: fn(&Reply<'_>, &mut Vec<Message>)| {
        let dialect = Dialect::maximal(Framing::Simple);
        Turn::correct(duty, format!("simple-{name}"), sends, dialect)
            .expect(FAILURE)
            .answer(Command::READ, move |reply, messages| {
                twist(reply, messages);
                true
            })
            .add(cases);
    };
    let sends = "success and half of the data, then the end";
    add("X7", "half", sends, |_, messages| {
        if let Some(Message::Simple { data, .. }) = messages.first_mut() {
            data.truncate(data.len() / 2);
        }
        messages.push(Message::Silence);
    });
    let sends = "success without data, then the end";
    add("X7", "no-data", sends, |reply, messages| {
        *messages = vec![reply.simple(Error::NONE), Message::Silence];
    });
    let sends = "EIO with all data";
    add("R99", "error-with-data", sends, |_, messages| {
        if let Some(Message::Simple { error, .. }) = messages.first_mut() {
            *error = Error::EIO;
        }
    });
}
