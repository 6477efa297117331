//! Simple replies, and the headers of structured and extended reply chunks.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};

use crate::support::Stream;

const COOKIE: Cookie = Cookie(0x0123_4567_89ab_cdef);

#[test]
#[rustfmt::skip]
fn simple_replies() {
    let simple = Stream {
        decode: SimpleReply::decode,
        encode: |reply: &SimpleReply| reply.encode().to_vec(),
        magic: 4,
        message: "simple reply",
    };
    let value = |error| SimpleReply { error: ErrorValue(error), cookie: COOKIE };
    simple.check(&[
        ("success", "S: 67446698 00000000 01234567_89abcdef", value(0)),
        ("not permitted", "S: 67446698 00000001 01234567_89abcdef", value(1)),
        ("input/output error", "S: 67446698 00000005 01234567_89abcdef", value(5)),
        ("no memory", "S: 67446698 0000000c 01234567_89abcdef", value(12)),
        ("invalid", "S: 67446698 00000016 01234567_89abcdef", value(22)),
        ("no space", "S: 67446698 0000001c 01234567_89abcdef", value(28)),
        ("too large", "S: 67446698 0000004b 01234567_89abcdef", value(75)),
        ("not supported", "S: 67446698 0000005f 01234567_89abcdef", value(95)),
        ("shutting down", "S: 67446698 0000006c 01234567_89abcdef", value(108)),
        ("an undefined error", "S: 67446698 ffffffff 01234567_89abcdef", value(u32::MAX)),
        ("the last cookie", "S: 67446698 00000000 ffffffff_ffffffff",
            SimpleReply { error: ErrorValue::NONE, cookie: Cookie(u64::MAX) }),
    ]);
}

#[test]
#[rustfmt::skip]
fn structured_headers() {
    let structured = Stream {
        decode: StructuredHeader::decode,
        encode: |header: &StructuredHeader| header.encode().to_vec(),
        magic: 4,
        message: "structured reply chunk",
    };
    let value = |flags, chunk, length| StructuredHeader {
        flags: ReplyFlags(flags), chunk, cookie: COOKIE, length,
    };
    structured.check(&[
        ("no content", "S: 668e33ef 0001 0000 01234567_89abcdef 00000000",
            value(1, ChunkType::NONE, 0)),
        ("data", "S: 668e33ef 0000 0001 01234567_89abcdef 00000208",
            value(0, ChunkType::OFFSET_DATA, 520)),
        ("a hole, the last chunk", "S: 668e33ef 0001 0002 01234567_89abcdef 0000000c",
            value(1, ChunkType::OFFSET_HOLE, 12)),
        ("extents", "S: 668e33ef 0000 0005 01234567_89abcdef 0000000c",
            value(0, ChunkType::BLOCK_STATUS, 12)),
        ("wide extents", "S: 668e33ef 0000 0006 01234567_89abcdef 00000018",
            value(0, ChunkType::BLOCK_STATUS_EXT, 24)),
        ("an error", "S: 668e33ef 0001 8001 01234567_89abcdef 00000006",
            value(1, ChunkType::ERROR, 6)),
        ("an error somewhere", "S: 668e33ef 0000 8002 01234567_89abcdef 0000000e",
            value(0, ChunkType::ERROR_OFFSET, 14)),
        ("undefined chunk and flags", "S: 668e33ef fffe 7fff 01234567_89abcdef ffffffff",
            value(0xfffe, ChunkType(0x7fff), u32::MAX)),
        ("an undefined error", "S: 668e33ef 0001 ffff 01234567_89abcdef 00000000",
            value(1, ChunkType(0xffff), 0)),
    ]);
}

#[test]
#[rustfmt::skip]
fn extended_headers() {
    let extended = Stream {
        decode: ExtendedHeader::decode,
        encode: |header: &ExtendedHeader| header.encode().to_vec(),
        magic: 4,
        message: "extended reply chunk",
    };
    let value = |flags, chunk, offset, length| ExtendedHeader {
        flags: ReplyFlags(flags), chunk, cookie: COOKIE, offset, length,
    };
    extended.check(&[
        ("no content", "S: 6e8a278c 0001 0000 01234567_89abcdef 00000000_00000000 00000000_00000000",
            value(1, ChunkType::NONE, 0, 0)),
        ("data", "S: 6e8a278c 0000 0001 01234567_89abcdef 00000000_00001000 00000000_00000208",
            value(0, ChunkType::OFFSET_DATA, 4096, 520)),
        ("a hole", "S: 6e8a278c 0000 0002 01234567_89abcdef 00000001_00000000 00000000_0000000c",
            value(0, ChunkType::OFFSET_HOLE, 1 << 32, 12)),
        ("narrow extents", "S: 6e8a278c 0000 0005 01234567_89abcdef 00000000_00000000 00000000_0000000c",
            value(0, ChunkType::BLOCK_STATUS, 0, 12)),
        ("extents, the last chunk", "S: 6e8a278c 0001 0006 01234567_89abcdef 00000000_00000000 00000000_00000018",
            value(1, ChunkType::BLOCK_STATUS_EXT, 0, 24)),
        ("an error", "S: 6e8a278c 0001 8001 01234567_89abcdef ffffffff_ffffffff 00000000_00000006",
            value(1, ChunkType::ERROR, u64::MAX, 6)),
        ("an error somewhere", "S: 6e8a278c 0000 8002 01234567_89abcdef 00000000_00000000 00000000_0000000e",
            value(0, ChunkType::ERROR_OFFSET, 0, 14)),
        ("undefined chunk and flags", "S: 6e8a278c fffe 0003 01234567_89abcdef 00000000_00000000 ffffffff_ffffffff",
            value(0xfffe, ChunkType(3), 0, u64::MAX)),
        ("an undefined error", "S: 6e8a278c 0001 8003 01234567_89abcdef 00000000_00000000 00000001_00000000",
            value(1, ChunkType(0x8003), 0, 1 << 32)),
    ]);
}

/// Whether a decoder accepts a message.
type Accepts = fn(&[u8]) -> Result<bool, DecodeError>;

/// A client that waits for a long header while the server sends a short one
/// waits for ever, unless it checks the magic number as soon as it arrives.
#[test]
fn the_magic_number_tells_the_style() {
    let styles: [(&str, u32, usize, Accepts); 3] = [
        ("simple reply", 0x6744_6698, 16, |mut input| {
            SimpleReply::decode(&mut input).map(|reply| reply.is_some())
        }),
        ("structured reply chunk", 0x668e_33ef, 20, |mut input| {
            StructuredHeader::decode(&mut input).map(|header| header.is_some())
        }),
        ("extended reply chunk", 0x6e8a_278c, 32, |mut input| {
            ExtendedHeader::decode(&mut input).map(|header| header.is_some())
        }),
    ];
    let others = [0x9674_4668, 0x2560_9513, 0x21e4_1c71, 0, u32::MAX];
    let magics = styles.map(|(_, magic, ..)| magic).into_iter().chain(others);
    for sent in magics {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&sent.to_be_bytes());
        for (message, magic, size, accepts) in styles {
            for n in 4..=bytes.len() {
                let expected = if sent == magic {
                    Ok(n >= size)
                } else {
                    Err(DecodeError::Magic { message })
                };
                assert_eq!(accepts(&bytes[..n]), expected, "{sent:#x}, {n} bytes");
            }
        }
    }
}

#[test]
fn sizes() {
    assert_eq!(SimpleReply::SIZE, 16);
    assert_eq!(StructuredHeader::SIZE, 20);
    assert_eq!(ExtendedHeader::SIZE, 32);
}
