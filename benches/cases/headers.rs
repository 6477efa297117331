//! Headers of fixed size, one by one.

use super::Case;
use nbd_codec::wire::flags::{CommandFlags, ReplyFlags};
use nbd_codec::wire::number::{ChunkType, Command, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use std::hint::black_box;

const COMPACT: CompactRequest = CompactRequest {
    flags: CommandFlags::NONE,
    command: Command::READ,
    cookie: Cookie(7),
    offset: 1 << 20,
    length: 4096,
};

const EXTENDED: ExtendedRequest = ExtendedRequest {
    flags: CommandFlags::NONE,
    command: Command::READ,
    cookie: Cookie(7),
    offset: 1 << 20,
    length: 4096,
};

const fn case(name: &'static str, run: fn(u64)) -> Case {
    Case {
        name,
        run,
        count: 10_000,
        limit: Some(BARE_32.name),
        other: None,
    }
}

pub const ENCODE_COMPACT: Case = case("request, compact: encode", |n| {
    for _ in 0..n {
        black_box(black_box(COMPACT).encode());
    }
});

pub const ENCODE_EXTENDED: Case = case("request, extended: encode", |n| {
    for _ in 0..n {
        black_box(black_box(EXTENDED).encode());
    }
});

pub const DECODE_COMPACT: Case = case("request, compact: decode", |n| {
    let bytes = COMPACT.encode();
    for _ in 0..n {
        let _ = black_box(CompactRequest::decode(&mut &black_box(&bytes)[..]));
    }
});

pub const DECODE_EXTENDED: Case = case("request, extended: decode", |n| {
    let bytes = EXTENDED.encode();
    for _ in 0..n {
        let _ = black_box(ExtendedRequest::decode(&mut &black_box(&bytes)[..]));
    }
});

pub const DECODE_SIMPLE: Case = case("reply, simple: decode", |n| {
    let reply = SimpleReply {
        error: ErrorValue::NONE,
        cookie: Cookie(7),
    };
    let bytes = reply.encode();
    for _ in 0..n {
        let _ = black_box(SimpleReply::decode(&mut &black_box(&bytes)[..]));
    }
});

pub const DECODE_STRUCTURED: Case = case("reply, structured: decode", |n| {
    let reply = StructuredHeader {
        flags: ReplyFlags::DONE,
        chunk: ChunkType::OFFSET_DATA,
        cookie: Cookie(7),
        length: 4104,
    };
    let bytes = reply.encode();
    for _ in 0..n {
        let _ = black_box(StructuredHeader::decode(&mut &black_box(&bytes)[..]));
    }
});

pub const DECODE_EXTENDED_REPLY: Case = case("reply, extended: decode", |n| {
    let reply = ExtendedHeader {
        flags: ReplyFlags::DONE,
        chunk: ChunkType::OFFSET_DATA,
        cookie: Cookie(7),
        offset: 1 << 20,
        length: 4104,
    };
    let bytes = reply.encode();
    for _ in 0..n {
        let _ = black_box(ExtendedHeader::decode(&mut &black_box(&bytes)[..]));
    }
});

pub const BARE_32: Case = Case {
    name: "(bare) four fields of a header: from_be_bytes",
    run: |n| {
        let bytes = EXTENDED.encode();
        for _ in 0..n {
            let bytes = black_box(&bytes);
            let (words, _) = bytes.as_chunks::<8>();
            let fields = [0, 1, 2, 3].map(|i| u64::from_be_bytes(words[i]));
            black_box(fields);
        }
    },
    count: 10_000,
    limit: None,
    other: None,
};
