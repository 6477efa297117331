//! Requests, compact and extended, and the payload of a block status request.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie};
use nbd_codec::wire::request::{
    BlockStatusPayload, CompactRequest, ContextIds, EXTENDED_REQUEST_MAGIC, ExtendedRequest,
    REQUEST_MAGIC,
};

use crate::support::{Body, Cut, Stream, length};

const COMPACT: Stream<CompactRequest> = Stream {
    decode: CompactRequest::decode,
    encode: |request| request.encode().to_vec(),
    magic: 4,
    message: "compact request",
};

const EXTENDED: Stream<ExtendedRequest> = Stream {
    decode: ExtendedRequest::decode,
    encode: |request| request.encode().to_vec(),
    magic: 4,
    message: "extended request",
};

const fn compact(flags: u16, command: Command, offset: u64, length: u32) -> CompactRequest {
    CompactRequest {
        flags: CommandFlags(flags),
        command,
        cookie: Cookie(0x0123_4567_89ab_cdef),
        offset,
        length,
    }
}

const fn extended(flags: u16, command: Command, offset: u64, length: u64) -> ExtendedRequest {
    ExtendedRequest {
        flags: CommandFlags(flags),
        command,
        cookie: Cookie(0x0123_4567_89ab_cdef),
        offset,
        length,
    }
}

#[test]
#[rustfmt::skip]
fn compact_requests() {
    COMPACT.check(&[
        ("read", "C: 25609513 0000 0000 01234567_89abcdef 00000000_00001000 00000200",
            compact(0, Command::READ, 4096, 512)),
        ("read, unfragmented", "C: 25609513 0004 0000 01234567_89abcdef 00000000_00000000 00010000",
            compact(4, Command::READ, 0, 65536)),
        ("write, FUA", "C: 25609513 0001 0001 01234567_89abcdef 00000001_00000000 ffffffff",
            compact(1, Command::WRITE, 1 << 32, u32::MAX)),
        ("disconnect", "C: 25609513 0000 0002 01234567_89abcdef 00000000_00000000 00000000",
            compact(0, Command::DISC, 0, 0)),
        ("flush", "C: 25609513 0000 0003 01234567_89abcdef 00000000_00000000 00000000",
            compact(0, Command::FLUSH, 0, 0)),
        ("trim at the largest offset", "C: 25609513 0001 0004 01234567_89abcdef ffffffff_ffffffff 00000001",
            compact(1, Command::TRIM, u64::MAX, 1)),
        ("cache", "C: 25609513 0000 0005 01234567_89abcdef 7fffffff_ffffffff 80000000",
            compact(0, Command::CACHE, (1 << 63) - 1, 1 << 31)),
        ("write zeroes, no hole, fast", "C: 25609513 0012 0006 01234567_89abcdef 00000000_00000000 00001000",
            compact(0x12, Command::WRITE_ZEROES, 0, 4096)),
        ("block status, one extent", "C: 25609513 0008 0007 01234567_89abcdef 00000000_00000000 fffffe00",
            compact(8, Command::BLOCK_STATUS, 0, 0xffff_fe00)),
        ("resize", "C: 25609513 0000 0008 01234567_89abcdef 00000000_40000000 00000000",
            compact(0, Command::RESIZE, 1 << 30, 0)),
        ("every defined flag", "C: 25609513 003f 0000 01234567_89abcdef 00000000_00000000 00000001",
            compact(0x3f, Command::READ, 0, 1)),
        ("undefined command and flags", "C: 25609513 ffc0 0009 01234567_89abcdef 00000000_00000000 00000001",
            compact(0xffc0, Command(9), 0, 1)),
        ("the last command", "C: 25609513 0000 ffff 01234567_89abcdef 00000000_00000000 00000000",
            compact(0, Command(u16::MAX), 0, 0)),
    ]);
}

#[test]
#[rustfmt::skip]
fn extended_requests() {
    EXTENDED.check(&[
        ("read", "C: 21e41c71 0000 0000 01234567_89abcdef 00000000_00001000 00000000_00000200",
            extended(0, Command::READ, 4096, 512)),
        ("write, with its payload", "C: 21e41c71 0020 0001 01234567_89abcdef 00000001_00000000 00000000_02000000",
            extended(0x20, Command::WRITE, 1 << 32, 1 << 25)),
        ("disconnect", "C: 21e41c71 0000 0002 01234567_89abcdef 00000000_00000000 00000000_00000000",
            extended(0, Command::DISC, 0, 0)),
        ("flush, FUA", "C: 21e41c71 0001 0003 01234567_89abcdef 00000000_00000000 00000000_00000000",
            extended(1, Command::FLUSH, 0, 0)),
        ("trim of 2^64 - 1 bytes", "C: 21e41c71 0000 0004 01234567_89abcdef 00000000_00000000 ffffffff_ffffffff",
            extended(0, Command::TRIM, 0, u64::MAX)),
        ("cache", "C: 21e41c71 0000 0005 01234567_89abcdef ffffffff_ffffffff 00000000_00000001",
            extended(0, Command::CACHE, u64::MAX, 1)),
        ("write zeroes, 4 GiB", "C: 21e41c71 0002 0006 01234567_89abcdef 00000000_00000000 00000001_00000000",
            extended(2, Command::WRITE_ZEROES, 0, 1 << 32)),
        ("block status with a payload", "C: 21e41c71 0028 0007 01234567_89abcdef 00000000_00000000 00000000_0000000c",
            extended(0x28, Command::BLOCK_STATUS, 0, 12)),
        ("resize", "C: 21e41c71 0000 0008 01234567_89abcdef 00000000_40000000 00000000_00000000",
            extended(0, Command::RESIZE, 1 << 30, 0)),
        ("every defined flag", "C: 21e41c71 003f 0006 01234567_89abcdef 00000000_00000000 00000000_00000001",
            extended(0x3f, Command::WRITE_ZEROES, 0, 1)),
        ("undefined command and flags", "C: 21e41c71 ffc0 ffff 01234567_89abcdef 00000000_00000000 7fffffff_ffffffff",
            extended(0xffc0, Command(u16::MAX), 0, (1 << 63) - 1)),
    ]);
}

#[test]
fn the_magic_number_tells_the_style() {
    for (name, magic) in [
        ("compact request", 0x2560_9513_u32),
        ("extended request", 0x21e4_1c71),
        ("before Linux 2.1.116", 0x1256_0953),
        ("the transaction log of nbd-server", 0x2560_9514),
        ("a simple reply", 0x6744_6698),
        ("an option", 0x4948_4156),
    ] {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        for n in 4..bytes.len() {
            let (mut one, mut other) = (&bytes[..n], &bytes[..n]);
            assert_eq!(
                CompactRequest::decode(&mut one).is_ok(),
                magic == REQUEST_MAGIC,
                "{name}: {n} bytes"
            );
            assert_eq!(
                ExtendedRequest::decode(&mut other).is_ok(),
                magic == EXTENDED_REQUEST_MAGIC,
                "{name}: {n} bytes"
            );
        }
    }
}

#[test]
fn only_a_compact_write_has_a_payload() {
    for command in 0..=u16::MAX {
        for flags in [0, 0x20, 0xffff] {
            let request = compact(flags, Command(command), 8, 1234);
            let expected = if command == 1 { 1234 } else { 0 };
            assert_eq!(request.payload_length(), expected, "{request:?}");
        }
    }
    assert_eq!(
        compact(0, Command::WRITE, 0, u32::MAX).payload_length(),
        u32::MAX
    );
}

#[test]
fn an_extended_request_has_a_payload_if_payload_len_is_set() {
    for command in 0..=9 {
        for flags in 0..=u16::MAX {
            let request = extended(flags, Command(command), 8, u64::MAX);
            let expected = if flags & 0x20 != 0 { u64::MAX } else { 0 };
            assert_eq!(request.payload_length(), expected, "{request:?}");
        }
    }
}

#[test]
fn block_status_payloads() {
    let ids: [&[ContextId]; 4] = [
        &[],
        &[ContextId(1)],
        &[ContextId(2), ContextId(1), ContextId(1)],
        &[ContextId(u32::MAX), ContextId(0)],
    ];
    #[rustfmt::skip]
    let vectors = [
        ("no context", "C: 00000000_00001000", 4096, ids[0]),
        ("one context", "C: 00000001_00000000 00000001", 1 << 32, ids[1]),
        ("twice the same", "C: 00000000_00000001 00000002 00000001 00000001", 1, ids[2]),
        ("the limits", "C: ffffffff_ffffffff ffffffff 00000000", u64::MAX, ids[3]),
    ];
    for (name, transcript, effect_length, ids) in vectors {
        let value = BlockStatusPayload {
            effect_length,
            contexts: ids.into(),
        };
        Body::new(name, transcript, 0).check(
            &value,
            BlockStatusPayload::decode,
            |value, sink| value.encode(sink),
            |n| match n {
                8 | 12 | 16 => Cut::Body,
                _ => length("block status payload", n),
            },
        );
        let body = Body::new(name, transcript, 0);
        let contexts = BlockStatusPayload::decode(body.body()).unwrap().contexts;
        for contexts in [contexts, ContextIds::from(ids)] {
            assert_eq!(contexts.len(), ids.len(), "{name}");
            assert_eq!(contexts.is_empty(), ids.is_empty(), "{name}");
            assert_eq!(contexts.iter().collect::<Vec<_>>(), ids, "{name}");
            assert_eq!(format!("{contexts:?}"), format!("{ids:?}"), "{name}");
        }
    }
}

#[test]
fn the_length_of_a_block_status_payload() {
    const LEGAL: [(u64, u64); 9] = [
        (8, 0),
        (12, 1),
        (16, 2),
        (20, 3),
        (24, 4),
        (28, 5),
        (32, 6),
        (36, 7),
        (40, 8),
    ];
    for length in 0..=40 {
        let expected = match LEGAL.iter().find(|(legal, _)| *legal == length) {
            Some((_, count)) => Ok(*count),
            None => Err(DecodeError::Length {
                message: "block status payload",
                length,
            }),
        };
        assert_eq!(BlockStatusPayload::count(length), expected);
        let payload = vec![0; usize::try_from(length).unwrap()];
        let decoded = BlockStatusPayload::decode(&payload);
        assert_eq!(decoded.map(|p| p.contexts.len() as u64), expected);
    }
    for (length, count) in [
        ((1 << 32) - 4, Some((1 << 30) - 3)),
        ((1 << 32) - 1, None),
        (1 << 32, Some((1 << 30) - 2)),
        ((1 << 32) + 1, None),
        (u64::MAX - 3, Some((1 << 62) - 3)),
        (u64::MAX - 1, None),
        (u64::MAX, None),
    ] {
        assert_eq!(BlockStatusPayload::count(length).ok(), count, "{length}");
    }
}

#[test]
fn sizes() {
    assert_eq!((CompactRequest::SIZE, ExtendedRequest::SIZE), (28, 32));
    assert_eq!(REQUEST_MAGIC, 0x2560_9513);
    assert_eq!(EXTENDED_REQUEST_MAGIC, 0x21e4_1c71);
}
