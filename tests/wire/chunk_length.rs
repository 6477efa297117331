//! The rules that join a chunk's length to its fields, against other ways to
//! say the same.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::chunk::{
    Chunk, block_status_count, block_status_ext_agrees, block_status_ext_count, error_length,
    error_rest, none_length, offset_data_length, offset_hole_length,
};
use nbd_codec::wire::number::ChunkType;

/// Every short length, and what lies around the limits of every width.
fn lengths() -> impl Iterator<Item = u64> {
    let around = |n: u64| n - 40..=n + 40;
    (0..=64)
        .chain(around(1 << 16))
        .chain(around(1 << 31))
        .chain(around(1 << 32))
        .chain(around(1 << 36))
        .chain(around(1 << 63))
        .chain(u64::MAX - 40..=u64::MAX)
}

fn wrong(message: &'static str, length: u64) -> DecodeError {
    DecodeError::Length { message, length }
}

/// The `n` from 1 for which `fixed + n * each` is `length`.
fn descriptors(length: u64, fixed: u128, each: u128) -> Option<u64> {
    let n = u128::from(length).saturating_sub(fixed) / each;
    let whole = n >= 1 && fixed + n * each == u128::from(length);
    whole.then(|| n.try_into().unwrap())
}

#[test]
fn none() {
    for length in lengths() {
        let expected = [0].contains(&length).then_some(());
        let expected = expected.ok_or(wrong("NBD_REPLY_TYPE_NONE", length));
        assert_eq!(none_length(length), expected);
    }
}

#[test]
fn offset_hole() {
    for length in lengths() {
        let expected = [12].contains(&length).then_some(());
        let expected = expected.ok_or(wrong("NBD_REPLY_TYPE_OFFSET_HOLE", length));
        assert_eq!(offset_hole_length(length), expected);
    }
}

#[test]
fn offset_data() {
    for length in lengths() {
        let expected = (length >= 9).then(|| length - 8);
        let expected = expected.ok_or(wrong("NBD_REPLY_TYPE_OFFSET_DATA", length));
        assert_eq!(offset_data_length(length), expected);
    }
}

#[test]
fn block_status() {
    const LEGAL: [u64; 7] = [12, 20, 28, 36, 44, 52, 60];
    for length in lengths() {
        let expected = descriptors(length, 4, 8);
        if length <= 64 {
            assert_eq!(expected.is_some(), LEGAL.contains(&length), "{length}");
        }
        let expected = expected.ok_or(wrong("NBD_REPLY_TYPE_BLOCK_STATUS", length));
        assert_eq!(block_status_count(length), expected);
    }
    assert_eq!(block_status_count(8_388_612), Ok(1 << 20));
    assert_eq!(block_status_count(u64::MAX - 3), Ok((1 << 61) - 1));
}

#[test]
fn block_status_ext() {
    const LEGAL: [u64; 3] = [24, 40, 56];
    for length in lengths() {
        let expected = descriptors(length, 8, 16);
        if length <= 64 {
            assert_eq!(expected.is_some(), LEGAL.contains(&length), "{length}");
        }
        let expected = expected.ok_or(wrong("NBD_REPLY_TYPE_BLOCK_STATUS_EXT", length));
        assert_eq!(block_status_ext_count(length), expected);
    }
    assert_eq!(block_status_ext_count(16_777_224), Ok(1 << 20));
    assert_eq!(block_status_ext_count(u64::MAX - 7), Ok((1 << 60) - 1));
}

#[test]
fn the_descriptor_count_field() {
    for length in lengths() {
        let real = descriptors(length, 8, 16);
        let low = real.map(|n| n as u32).unwrap_or_default();
        let counts = [0, 1, 2, 3, low, low.wrapping_add(1), low.wrapping_sub(1)];
        for count in counts.into_iter().chain([1 << 28, 1 << 31, u32::MAX]) {
            let expected = match real {
                None => Err(wrong("NBD_REPLY_TYPE_BLOCK_STATUS_EXT", length)),
                Some(n) if n == count.into() => Ok(count),
                Some(_) => Err(DecodeError::Count { count, length }),
            };
            let agreed = block_status_ext_agrees(length, count);
            assert_eq!(agreed, expected, "{count} in {length} bytes");
        }
    }
}

/// 2^32 descriptors do not agree with a count of zero, nor one more with one.
#[test]
fn the_descriptor_count_does_not_wrap() {
    let most = 8 + 16 * u64::from(u32::MAX);
    assert_eq!(block_status_ext_agrees(most, u32::MAX), Ok(u32::MAX));
    for count in [0, 1, u32::MAX] {
        let length = most + 16 * (1 + u64::from(count.min(1)));
        assert_eq!(
            block_status_ext_agrees(length, count),
            Err(DecodeError::Count { count, length })
        );
    }
}

const ERRORS: [(ChunkType, &str, u64, u64); 5] = [
    (ChunkType::ERROR, "NBD_REPLY_TYPE_ERROR", 6, 0),
    (
        ChunkType::ERROR_OFFSET,
        "NBD_REPLY_TYPE_ERROR_OFFSET",
        14,
        8,
    ),
    (ChunkType(0x8003), "unknown chunk", 6, 0),
    (ChunkType(0x8000), "unknown chunk", 6, 0),
    (ChunkType(0xffff), "unknown chunk", 6, 0),
];

#[test]
fn errors() {
    for (chunk, message, least, _) in ERRORS {
        for length in lengths() {
            let expected = (length >= least)
                .then_some(())
                .ok_or(wrong(message, length));
            assert_eq!(error_length(chunk, length), expected, "{chunk}");
        }
    }
}

#[test]
fn what_is_behind_an_error_message() {
    let messages = (0..=64).chain([4096, 4097, 0x7fff, 0x8000, 0xfff0, 0xffff]);
    for message_length in messages {
        for (chunk, message, least, behind) in ERRORS {
            for length in lengths() {
                let rest = i128::from(length) - 6 - i128::from(message_length);
                let expected = if length < least {
                    Err(wrong(message, length))
                } else if rest < i128::from(behind) {
                    Err(DecodeError::Overrun { message })
                } else {
                    Ok(u64::try_from(rest).unwrap())
                };
                assert_eq!(
                    error_rest(chunk, length, message_length),
                    expected,
                    "{chunk}: {message_length} in {length}"
                );
            }
        }
    }
}

/// The decoder judges lengths as the rules do.
#[test]
fn payloads_keep_the_rules() {
    for length in 0..=64_u64 {
        let payload = vec![1; length.try_into().unwrap()];
        for (chunk, rule) in [
            (ChunkType::NONE, none_length(length).err()),
            (ChunkType::OFFSET_DATA, offset_data_length(length).err()),
            (ChunkType::OFFSET_HOLE, offset_hole_length(length).err()),
            (ChunkType::BLOCK_STATUS, block_status_count(length).err()),
            (
                ChunkType::BLOCK_STATUS_EXT,
                block_status_ext_agrees(length, 0x0101_0101).err(),
            ),
            (
                ChunkType::ERROR,
                error_rest(ChunkType::ERROR, length, 257).err(),
            ),
            (
                ChunkType::ERROR_OFFSET,
                error_rest(ChunkType::ERROR_OFFSET, length, 257).err(),
            ),
            (
                ChunkType(0x9999),
                error_rest(ChunkType(0x9999), length, 257).err(),
            ),
            (ChunkType(0x1111), None),
        ] {
            let decoded = Chunk::decode(chunk, &payload).err();
            assert_eq!(decoded, rule, "{chunk}, {length} bytes");
        }
    }
}
