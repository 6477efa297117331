//! The payload of every type of chunk.

use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::number::{ChunkType, ContextId, ErrorValue};
use nbd_codec::wire::text::Text;
use nbd_codec::wire::{DecodeError, EncodeError};

use crate::support::{Body, Cut, bytes, encoded, length, overrun};

/// Runs every check on a payload.
fn check(name: &str, payload: &str, value: Chunk<'_>, cut: impl Fn(usize) -> Cut) {
    Body::new(name, payload, 0).check(
        &value,
        |payload| Chunk::decode(value.chunk(), payload),
        |value, sink| value.encode(sink),
        cut,
    );
}

#[test]
fn none() {
    let value = Chunk::None;
    assert_eq!(value.chunk(), ChunkType::NONE);
    check("none", "S:", value, |n| length("NBD_REPLY_TYPE_NONE", n));
}

#[test]
#[rustfmt::skip]
fn offset_data() {
    for (name, payload, offset, data) in [
        ("one byte", "S: 00000000_00000000 7f", 0, &b"\x7f"[..]),
        ("some bytes", r#"S: 00000001_00000200 "data""#, (1 << 32) + 512, b"data"),
        ("at the largest offset", "S: ffffffff_ffffffff 0000", u64::MAX, b"\0\0"),
    ] {
        let value = Chunk::OffsetData { offset, data };
        assert_eq!(value.chunk(), ChunkType::OFFSET_DATA);
        check(name, payload, value, |n| {
            if n < 9 { length("NBD_REPLY_TYPE_OFFSET_DATA", n) } else { Cut::Body }
        });
    }
}

#[test]
#[rustfmt::skip]
fn offset_hole() {
    for (name, payload, offset, size) in [
        ("one byte", "S: 00000000_00000000 0000_0001", 0, 1),
        ("the longest", "S: 00000001_00000000 ffff_ffff", 1 << 32, u32::MAX),
        ("at the largest offset", "S: ffffffff_ffffffff 8000_0000", u64::MAX, 1 << 31),
    ] {
        let value = Chunk::OffsetHole { offset, length: size };
        assert_eq!(value.chunk(), ChunkType::OFFSET_HOLE);
        check(name, payload, value, |n| length("NBD_REPLY_TYPE_OFFSET_HOLE", n));
    }
    let empty = bytes("S: 00000000_00001000 0000_0000");
    assert_eq!(Chunk::decode(ChunkType::OFFSET_HOLE, &empty), Err(DecodeError::EmptyHole));
}

#[test]
#[rustfmt::skip]
fn block_status() {
    for (name, payload, context, expected) in [
        ("one extent", "S: 0000_0001
                        S: 0000_1000 0000_0003", 1, &[(4096, 3)][..]),
        ("three extents", "S: ffff_ffff
                           S: 0000_0001 0000_0000
                           S: ffff_ffff 0000_0002
                           S: 8000_0000 ffff_ffff", u32::MAX, &[(1, 0), (u32::MAX, 2), (1 << 31, u32::MAX)]),
    ] {
        let whole = bytes(payload);
        let (extents, rest) = Extents32::split(&whole[4..]);
        assert!(rest.is_empty());
        let expected: Vec<_> = expected.iter().map(|&(length, flags)| Extent32 { length, flags }).collect();
        assert_eq!(extents.clone().collect::<Vec<_>>(), expected, "{name}");
        let value = Chunk::BlockStatus { context: ContextId(context), extents };
        assert_eq!(value.chunk(), ChunkType::BLOCK_STATUS);
        check(name, payload, value, |n| match n {
            12 | 20 => Cut::Body,
            _ => length("NBD_REPLY_TYPE_BLOCK_STATUS", n),
        });
    }
}

#[test]
#[rustfmt::skip]
fn block_status_ext() {
    for (name, payload, context, expected) in [
        ("one extent", "S: 0000_0001 0000_0001
                        S: 00000000_00001000 00000000_00000003", 1, &[(4096, 3)][..]),
        ("three extents", "S: ffff_ffff 0000_0003
                           S: 00000000_00000001 00000000_00000000
                           S: 00000001_00000000 00000001_00000002
                           S: ffffffff_ffffffff ffffffff_ffffffff",
            u32::MAX, &[(1, 0), (1 << 32, (1 << 32) + 2), (u64::MAX, u64::MAX)]),
    ] {
        let whole = bytes(payload);
        let (extents, rest) = Extents64::split(&whole[8..]);
        assert!(rest.is_empty());
        let expected: Vec<_> = expected.iter().map(|&(length, flags)| Extent64 { length, flags }).collect();
        assert_eq!(extents.clone().collect::<Vec<_>>(), expected, "{name}");
        let value = Chunk::BlockStatusExt { context: ContextId(context), extents };
        assert_eq!(value.chunk(), ChunkType::BLOCK_STATUS_EXT);
        let count = expected.len() as u32;
        check(name, payload, value, |n| match n {
            24 | 40 => Cut::Error(DecodeError::Count { count, length: n as u64 }),
            _ => length("NBD_REPLY_TYPE_BLOCK_STATUS_EXT", n),
        });
    }
}

#[test]
fn extents_of_length_zero() {
    for (name, chunk, payload) in [
        (
            "narrow, the only",
            ChunkType::BLOCK_STATUS,
            "S: 0000_0001 0000_0000 0000_0003",
        ),
        (
            "narrow, the first",
            ChunkType::BLOCK_STATUS,
            "S: 0000_0001 0000_0000 0000_0003 0000_0001 0000_0000",
        ),
        (
            "narrow, the last",
            ChunkType::BLOCK_STATUS,
            "S: 0000_0001 0000_0001 0000_0003 0000_0000 0000_0000",
        ),
        (
            "wide, the only",
            ChunkType::BLOCK_STATUS_EXT,
            "S: 0000_0001 0000_0001 00000000_00000000 00000000_00000003",
        ),
        (
            "wide, the last, after 2^64 - 1 bytes",
            ChunkType::BLOCK_STATUS_EXT,
            "S: 0000_0001 0000_0002
             S: ffffffff_ffffffff 00000000_00000003
             S: 00000000_00000000 ffffffff_ffffffff",
        ),
    ] {
        let payload = bytes(payload);
        let decoded = Chunk::decode(chunk, &payload);
        assert_eq!(decoded, Err(DecodeError::EmptyExtent), "{name}");
    }
}

#[test]
fn wrong_descriptor_counts() {
    for count in [0, 1, 3, 0x1000_0000, 0x1000_0002, 0x8000_0002, u32::MAX] {
        let payload = bytes(&format!(
            "S: 0000_0001 {count:08x}
             S: 00000000_00001000 00000000_00000000
             S: 00000000_00001000 00000000_00000003"
        ));
        let length = 40;
        assert_eq!(
            Chunk::decode(ChunkType::BLOCK_STATUS_EXT, &payload),
            Err(DecodeError::Count { count, length })
        );
    }
}

#[test]
#[rustfmt::skip]
fn errors() {
    let unknown = ChunkType(0x8003);
    let (last, invalid) = (ErrorValue(u32::MAX), ErrorValue::EINVAL);
    for (name, payload, chunk, error, message, rest, known) in [
        ("no message", "S: 0000_0016 0000", ChunkType::ERROR, invalid, "", &b""[..], 6),
        ("with a message", r#"S: 0000_0016 0003 "no!""#, ChunkType::ERROR, invalid, "no!", b"", 9),
        ("with bytes after the message", r#"S: 0000_0016 0003 "no!" 0102"#, ChunkType::ERROR, invalid, "no!", b"\x01\x02", 9),
        ("with bytes, but no message", "S: 0000_0016 0000 0102", ChunkType::ERROR, invalid, "", b"\x01\x02", 6),
        ("an undefined error", "S: ffff_ffff 0000", ChunkType::ERROR, last, "", b"", 6),
        ("an undefined type", r#"S: 0000_0016 0003 "no!""#, unknown, invalid, "no!", b"", 9),
        ("its fields after the message", r#"S: 0000_0016 0003 "no!" 00000000_00001000 01"#,
            unknown, invalid, "no!", b"\0\0\0\0\0\0\x10\0\x01", 9),
        ("the last type", "S: 0000_0001 0000 ff", ChunkType(0xffff), ErrorValue::EPERM, "", b"\xff", 6),
        ("bit 15 alone", "S: 0000_0001 0001 61", ChunkType(0x8000), ErrorValue::EPERM, "a", b"", 7),
    ] {
        let value = Chunk::Error { chunk, error, message: message.into(), rest };
        assert_eq!(value.chunk(), chunk, "{name}");
        let type_name = chunk.name().unwrap_or("unknown chunk");
        check(name, payload, value, |n| match n {
            0..6 => length(type_name, n),
            _ if n < known => overrun(type_name),
            _ => Cut::Body,
        });
    }
}

#[test]
#[rustfmt::skip]
fn errors_at_an_offset() {
    for (name, payload, message, offset, rest, known) in [
        ("no message", "S: 0000_0005 0000 00000000_00001000", "", 4096, &b""[..], 14),
        ("with a message", r#"S: 0000_0005 0003 "no!" ffffffff_ffffffff"#, "no!", u64::MAX, b"", 17),
        ("with bytes after the offset", r#"S: 0000_0005 0003 "no!" 00000001_00000000 0102"#,
            "no!", 1 << 32, b"\x01\x02", 17),
    ] {
        let value = Chunk::ErrorOffset { error: ErrorValue::EIO, message: message.into(), offset, rest };
        assert_eq!(value.chunk(), ChunkType::ERROR_OFFSET, "{name}");
        check(name, payload, value, |n| match n {
            0..14 => length("NBD_REPLY_TYPE_ERROR_OFFSET", n),
            _ if n < known => overrun("NBD_REPLY_TYPE_ERROR_OFFSET"),
            _ => Cut::Body,
        });
    }
}

#[test]
#[rustfmt::skip]
fn error_messages_that_do_not_fit() {
    for (name, chunk, payload) in [
        ("one byte", ChunkType::ERROR, "S: 0000_0016 0001"),
        ("one too many", ChunkType::ERROR, r#"S: 0000_0016 0004 "no!""#),
        ("65,535 bytes", ChunkType::ERROR, r#"S: 0000_0016 ffff "no!""#),
        ("65,535 bytes, one missing", ChunkType::ERROR, "S: 0000_0016 ffff 61*65534"),
        ("into the offset", ChunkType::ERROR_OFFSET, "S: 0000_0016 0001 00000000_00000000"),
        ("all of the offset", ChunkType::ERROR_OFFSET, "S: 0000_0016 0008 00000000_00000000"),
        ("past the offset", ChunkType::ERROR_OFFSET, "S: 0000_0016 ffff 00000000_00000000"),
        ("of an undefined type", ChunkType(0x8003), "S: 0000_0016 0003 6162"),
    ] {
        let message = chunk.name().unwrap_or("unknown chunk");
        let payload = bytes(payload);
        assert_eq!(Chunk::decode(chunk, &payload), Err(DecodeError::Overrun { message }), "{name}");
    }
}

#[test]
#[rustfmt::skip]
fn error_number_zero() {
    for (chunk, payload) in [
        (ChunkType::ERROR, "S: 0000_0000 0000"),
        (ChunkType::ERROR, r#"S: 0000_0000 0003 "no!""#),
        (ChunkType::ERROR_OFFSET, "S: 0000_0000 0000 00000000_00000000"),
        (ChunkType(0x8003), "S: 0000_0000 0000"),
    ] {
        assert_eq!(Chunk::decode(chunk, &bytes(payload)), Err(DecodeError::NoError), "{chunk}");
    }
}

#[test]
#[rustfmt::skip]
fn undefined_chunks() {
    for (name, payload, chunk, data) in [
        ("number 3", "S:", 3, &b""[..]),
        ("number 4", r#"S: "data""#, 4, b"data"),
        ("number 7", "S: 00", 7, b"\0"),
        ("the last without bit 15", "S: ffff", 0x7fff, b"\xff\xff"),
    ] {
        let value = Chunk::Other { chunk: ChunkType(chunk), data };
        assert_eq!(value.chunk(), ChunkType(chunk));
        check(name, payload, value, |_| Cut::Body);
    }
}

/// A message of 65,535 bytes has an encoding, though it breaks the rule for
/// strings; one of 65,536 has none.
#[test]
fn error_messages_that_are_too_long() {
    let text = "x".repeat(65536);
    let errors = |length: usize| {
        let (error, message) = (ErrorValue::EIO, Text::from(&text[..length]));
        let (chunk, offset, rest) = (ChunkType::ERROR, 4096, &[][..]);
        [
            Chunk::Error {
                chunk,
                error,
                message,
                rest,
            },
            Chunk::ErrorOffset {
                error,
                message,
                offset,
                rest,
            },
        ]
    };
    for (value, fixed) in errors(65535).into_iter().zip([6, 14]) {
        let written = encoded(|sink| value.encode(sink));
        assert_eq!(written.len(), fixed + 65535);
        assert_eq!(Chunk::decode(value.chunk(), &written), Ok(value));
    }
    for value in errors(65536) {
        let mut room = vec![0; 70_000];
        let mut sink = &mut room[..];
        assert_eq!(value.encode(&mut sink), Err(EncodeError::TooLong));
        assert_eq!(sink.len(), 70_000, "nothing was written");
    }
}

#[test]
fn payloads_are_read_in_place() {
    let payload = bytes(r#"S: 00000000_00001000 "data""#);
    let Ok(Chunk::OffsetData { data, .. }) = Chunk::decode(ChunkType::OFFSET_DATA, &payload) else {
        panic!("data")
    };
    assert!(std::ptr::eq(data, &payload[8..]));

    let payload = bytes("S: 0000_0001 0000_1000 0000_0003");
    let decoded = Chunk::decode(ChunkType::BLOCK_STATUS, &payload);
    let Ok(Chunk::BlockStatus { extents, .. }) = decoded else {
        panic!("narrow extents")
    };
    assert!(std::ptr::eq(extents.as_bytes(), &payload[4..]));

    let payload = bytes("S: 0000_0001 0000_0001 00*7 01 00*8");
    let decoded = Chunk::decode(ChunkType::BLOCK_STATUS_EXT, &payload);
    let Ok(Chunk::BlockStatusExt { extents, .. }) = decoded else {
        panic!("wide extents")
    };
    assert!(std::ptr::eq(extents.as_bytes(), &payload[8..]));

    let payload = bytes(r#"S: 0000_0005 0003 "no!" 0102"#);
    let decoded = Chunk::decode(ChunkType::ERROR, &payload);
    let Ok(Chunk::Error { message, rest, .. }) = decoded else {
        panic!("an error")
    };
    assert!(std::ptr::eq(message.as_bytes(), &payload[6..9]));
    assert!(std::ptr::eq(rest, &payload[9..]));
}
