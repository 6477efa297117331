//! The lengths that each type of chunk allows, from 0 to 64 bytes. Lengths that
//! no test can allocate are in the unit tests of `wire::chunk`.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::number::ChunkType;

/// A payload whose fields are valid for every type: the error number, the
/// lengths of extents and holes are not zero, `count` is the descriptor count
/// of wide extents, and the message of an error is empty.
fn payload(chunk: ChunkType, length: usize, count: u32) -> Vec<u8> {
    let mut payload = vec![1; length];
    let (at, field) = match chunk {
        ChunkType::BLOCK_STATUS_EXT => (4, &count.to_be_bytes()[..]),
        _ if chunk.is_error() => (4, &[0, 0][..]),
        _ => (0, &[][..]),
    };
    if let Some(place) = payload.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
    payload
}

/// Checks that a chunk is valid with exactly these lengths.
fn check(chunk: ChunkType, valid: impl IntoIterator<Item = usize>) {
    let valid: Vec<_> = valid.into_iter().collect();
    for length in 0..=64_usize {
        let count = u32::try_from(length.saturating_sub(8) / 16).unwrap();
        let payload = payload(chunk, length, count);
        let error = DecodeError::Length {
            message: chunk.name().unwrap_or("unknown chunk"),
            length: length.try_into().unwrap(),
        };
        let expected = (!valid.contains(&length)).then_some(error);
        let decoded = Chunk::decode(chunk, &payload);
        assert_eq!(decoded.err(), expected, "{chunk}, {length} bytes");
    }
}

#[test]
fn none() {
    check(ChunkType::NONE, [0]);
}

#[test]
fn offset_data() {
    check(ChunkType::OFFSET_DATA, 9..=64);
}

#[test]
fn offset_hole() {
    check(ChunkType::OFFSET_HOLE, [12]);
}

#[test]
fn block_status() {
    check(ChunkType::BLOCK_STATUS, [12, 20, 28, 36, 44, 52, 60]);
}

#[test]
fn block_status_ext() {
    check(ChunkType::BLOCK_STATUS_EXT, [24, 40, 56]);
}

#[test]
fn the_descriptor_count_field() {
    for (length, right) in [(24, 1), (40, 2), (56, 3)] {
        for count in [0, 1, 2, 3, 4, 1 << 28, (1 << 28) + right, 1 << 31, u32::MAX] {
            let payload = payload(ChunkType::BLOCK_STATUS_EXT, length, count);
            let length = length.try_into().unwrap();
            let error = DecodeError::Count { count, length };
            let expected = (count != right).then_some(error);
            let decoded = Chunk::decode(ChunkType::BLOCK_STATUS_EXT, &payload);
            assert_eq!(decoded.err(), expected, "{count} in {length} bytes");
        }
    }
}

#[test]
fn errors() {
    check(ChunkType::ERROR, 6..=64);
    check(ChunkType::ERROR_OFFSET, 14..=64);
    for undefined in [0x8000, 0x8003, 0xffff] {
        check(ChunkType(undefined), 6..=64);
    }
}

#[test]
fn other_types_allow_any_length() {
    for undefined in [3, 4, 7, 0x7fff] {
        check(ChunkType(undefined), 0..=64);
    }
}
