//! Structured reply types: the payload of a chunk (specification, "Structured
//! reply types"). Structured and extended replies share them.
//!
//! A payload is a prefix of fixed size, followed for some types by a part of
//! variable length. For each type, one function checks the length in the header
//! against the two; no calculation wraps.

use super::bytes::{Fields, take_slice, wide};
use super::extent::{Extents32, Extents64};
use super::number::{ChunkType, ContextId, ErrorValue};
use super::sink::all_or_nothing;
use super::text::Text;
use super::{DecodeError, EncodeError, Sink};

/// `OFFSET_DATA`: the number of data bytes in a payload of `length` bytes,
/// `length - 8`, at least 1. Otherwise [`DecodeError::Length`].
///
/// ```text
/// S: offset:64 data
/// ```
#[inline]
pub(crate) const fn offset_data_length(length: u64) -> Result<u64, DecodeError> {
    match length.checked_sub(8) {
        Some(data) if data > 0 => Ok(data),
        _ => Err(bad_length(ChunkType::OFFSET_DATA, length)),
    }
}

/// `OFFSET_HOLE`: `length` is 12. Otherwise [`DecodeError::Length`].
///
/// ```text
/// S: offset:64 hole_size:32
/// ```
#[inline]
pub(crate) const fn offset_hole_length(length: u64) -> Result<(), DecodeError> {
    match length {
        12 => Ok(()),
        _ => Err(bad_length(ChunkType::OFFSET_HOLE, length)),
    }
}

/// `NONE`: `length` is 0. Otherwise [`DecodeError::Length`].
#[inline]
pub(crate) const fn none_length(length: u64) -> Result<(), DecodeError> {
    match length {
        0 => Ok(()),
        _ => Err(bad_length(ChunkType::NONE, length)),
    }
}

/// `BLOCK_STATUS`: the number of descriptors `n` in a payload of `length`
/// bytes, `length = 4 + 8n`, `n >= 1`. Otherwise [`DecodeError::Length`].
///
/// ```text
/// S: context_id:32 (length:32 flags:32)*n
/// ```
#[inline]
pub(crate) const fn block_status_count(length: u64) -> Result<u64, DecodeError> {
    match length.checked_sub(4) {
        Some(body) if body > 0 && body % 8 == 0 => Ok(body / 8),
        _ => Err(bad_length(ChunkType::BLOCK_STATUS, length)),
    }
}

/// `BLOCK_STATUS_EXT`: the number of descriptors `n` in a payload of `length`
/// bytes, `length = 8 + 16n`, `n >= 1`. Otherwise [`DecodeError::Length`]. The
/// count field is checked by [`block_status_ext_agrees`].
///
/// ```text
/// S: context_id:32 count:32 (length:64 flags:64)*n
/// ```
#[inline]
pub(crate) const fn block_status_ext_count(length: u64) -> Result<u64, DecodeError> {
    match length.checked_sub(8) {
        Some(body) if body > 0 && body % 16 == 0 => Ok(body / 16),
        _ => Err(bad_length(ChunkType::BLOCK_STATUS_EXT, length)),
    }
}

/// `BLOCK_STATUS_EXT`: as [`block_status_ext_count`], and `count` is the same
/// number. Otherwise [`DecodeError::Count`].
#[inline]
pub(crate) fn block_status_ext_agrees(length: u64, count: u32) -> Result<u32, DecodeError> {
    let n = block_status_ext_count(length)?;
    if n == u64::from(count) {
        Ok(count)
    } else {
        Err(DecodeError::Count { count, length })
    }
}

/// Error chunks, defined or not: the number of bytes after the message, in a
/// payload of `length` bytes with a message of `message_length` bytes.
///
/// ```text
/// S: error:32 message_length:16 message [offset:64]
/// ```
///
/// `ERROR_OFFSET` has at least eight. Other types may have any number, which
/// the specification does not define.
///
/// Otherwise [`DecodeError::Length`], or [`DecodeError::Overrun`] if the message
/// exceeds the payload.
#[inline]
pub(crate) fn error_rest(
    chunk: ChunkType,
    length: u64,
    message_length: u16,
) -> Result<u64, DecodeError> {
    error_length(chunk, length)?;
    length
        .checked_sub(error_minimum(chunk))
        .and_then(|body| body.checked_sub(u64::from(message_length)))
        .and_then(|rest| rest.checked_add(error_minimum(chunk).saturating_sub(6)))
        .ok_or(DecodeError::Overrun {
            message: name(chunk),
        })
}

/// Error chunks: `length` is at least 6, for `ERROR_OFFSET` at least 14.
/// Otherwise [`DecodeError::Length`].
#[inline]
pub(crate) const fn error_length(chunk: ChunkType, length: u64) -> Result<(), DecodeError> {
    if length < error_minimum(chunk) {
        return Err(bad_length(chunk, length));
    }
    Ok(())
}

const fn error_minimum(chunk: ChunkType) -> u64 {
    match chunk {
        ChunkType::ERROR_OFFSET => 14,
        _ => 6,
    }
}

const fn bad_length(chunk: ChunkType, length: u64) -> DecodeError {
    DecodeError::Length {
        message: name(chunk),
        length,
    }
}

const fn name(chunk: ChunkType) -> &'static str {
    match chunk.name() {
        Some(name) => name,
        None => "unknown chunk",
    }
}

/// A whole payload (specification, "Structured reply types").
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Chunk<'a> {
    /// `NONE`: no content, and the end of a successful reply.
    None,
    /// `OFFSET_DATA`: data of a read.
    ///
    /// ```text
    /// S: offset:64 data
    /// ```
    OffsetData {
        /// Offset of the data, in bytes from the start of the export.
        offset: u64,
        /// The data.
        data: &'a [u8],
    },
    /// `OFFSET_HOLE`: zeroes of a read.
    ///
    /// ```text
    /// S: offset:64 hole_size:32
    /// ```
    OffsetHole {
        /// Offset of the hole, in bytes from the start of the export.
        offset: u64,
        /// Length of the hole in bytes; decoded, never zero.
        length: u32,
    },
    /// `BLOCK_STATUS`: narrow extents of one metadata context.
    ///
    /// ```text
    /// S: context_id:32 (length:32 flags:32)*n
    /// ```
    BlockStatus {
        /// The context.
        context: ContextId,
        /// The extents; decoded, none of them is empty.
        extents: Extents32<'a>,
    },
    /// `BLOCK_STATUS_EXT`: wide extents of one metadata context.
    ///
    /// ```text
    /// S: context_id:32 count:32 (length:64 flags:64)*count
    /// ```
    BlockStatusExt {
        /// The context.
        context: ContextId,
        /// The extents; decoded, none of them is empty.
        extents: Extents64<'a>,
    },
    /// `ERROR`, and error chunks of undefined type.
    ///
    /// ```text
    /// S: error:32 message_length:16 message
    /// ```
    Error {
        /// The type of the chunk.
        chunk: ChunkType,
        /// The error; decoded, never zero.
        error: ErrorValue,
        /// A message for humans; often empty.
        message: Text<'a>,
        /// The bytes after the message.
        rest: &'a [u8],
    },
    /// `ERROR_OFFSET`: an error with its offset.
    ///
    /// ```text
    /// S: error:32 message_length:16 message offset:64
    /// ```
    ErrorOffset {
        /// The error; decoded, never zero.
        error: ErrorValue,
        /// A message for humans; often empty.
        message: Text<'a>,
        /// Offset of the error, in bytes from the start of the export.
        offset: u64,
        /// The bytes after the offset.
        rest: &'a [u8],
    },
    /// A payload of undefined type.
    Other {
        /// The type of the chunk.
        chunk: ChunkType,
        /// The payload.
        data: &'a [u8],
    },
}

impl<'a> Chunk<'a> {
    /// Decodes a payload; `payload` is the whole of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`], [`Overrun`](DecodeError::Overrun) or
    /// [`Count`](DecodeError::Count) if a length or count is invalid for the
    /// type; [`EmptyHole`](DecodeError::EmptyHole),
    /// [`EmptyExtent`](DecodeError::EmptyExtent) or
    /// [`NoError`](DecodeError::NoError) if a field must not be zero.
    pub fn decode(chunk: ChunkType, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let length = wide(payload.len());
        let mut fields = Fields::new(payload);
        match chunk {
            ChunkType::NONE => none_length(length).map(|()| Self::None),
            ChunkType::OFFSET_DATA => {
                offset_data_length(length)?;
                Ok(Self::OffsetData {
                    offset: fields.get(),
                    data: fields.rest(),
                })
            }
            ChunkType::OFFSET_HOLE => {
                offset_hole_length(length)?;
                let (offset, length) = (fields.get(), fields.get());
                match length {
                    0 => Err(DecodeError::EmptyHole),
                    _ => Ok(Self::OffsetHole { offset, length }),
                }
            }
            ChunkType::BLOCK_STATUS => {
                block_status_count(length)?;
                let context = fields.get();
                let (extents, _) = Extents32::split(fields.rest());
                extents.total()?;
                Ok(Self::BlockStatus { context, extents })
            }
            ChunkType::BLOCK_STATUS_EXT => {
                block_status_ext_count(length)?;
                let (context, count) = (fields.get(), fields.get());
                block_status_ext_agrees(length, count)?;
                let (extents, _) = Extents64::split(fields.rest());
                extents.total()?;
                Ok(Self::BlockStatusExt { context, extents })
            }
            _ if chunk.is_error() => Self::decode_error(chunk, payload),
            _ => Ok(Self::Other {
                chunk,
                data: payload,
            }),
        }
    }

    fn decode_error(chunk: ChunkType, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let length = wide(payload.len());
        error_length(chunk, length)?;
        let mut fields = Fields::new(payload);
        let (error, message_length): (ErrorValue, u16) = (fields.get(), fields.get());
        error_rest(chunk, length, message_length)?;
        if !error.is_error() {
            return Err(DecodeError::NoError);
        }
        let mut rest = fields.rest();
        let message = take_slice(&mut rest, message_length.into());
        let message = Text::new(message.unwrap_or_default());
        if chunk != ChunkType::ERROR_OFFSET {
            return Ok(Self::Error {
                chunk,
                error,
                message,
                rest,
            });
        }
        let mut fields = Fields::new(rest);
        Ok(Self::ErrorOffset {
            error,
            message,
            offset: fields.get(),
            rest: fields.rest(),
        })
    }

    /// The type of the chunk.
    #[must_use]
    pub const fn chunk(&self) -> ChunkType {
        match self {
            Self::None => ChunkType::NONE,
            Self::OffsetData { .. } => ChunkType::OFFSET_DATA,
            Self::OffsetHole { .. } => ChunkType::OFFSET_HOLE,
            Self::BlockStatus { .. } => ChunkType::BLOCK_STATUS,
            Self::BlockStatusExt { .. } => ChunkType::BLOCK_STATUS_EXT,
            Self::ErrorOffset { .. } => ChunkType::ERROR_OFFSET,
            Self::Error { chunk, .. } | Self::Other { chunk, .. } => *chunk,
        }
    }

    /// Encodes the payload into `sink`; returns how many bytes were written.
    ///
    /// # Errors
    ///
    /// [`EncodeError::TooLong`] if the message of an error exceeds 65,535 bytes,
    /// or [`EncodeError::NoRoom`]; nothing was written.
    pub fn encode(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        if let Self::Error { message, .. } | Self::ErrorOffset { message, .. } = self {
            u16::try_from(message.len()).map_err(|_| EncodeError::TooLong)?;
        }
        if let Self::BlockStatusExt { extents, .. } = self {
            u32::try_from(extents.len()).map_err(|_| EncodeError::TooLong)?;
        }
        all_or_nothing(sink, &|sink| self.put(sink))
    }

    fn put(&self, sink: &mut dyn Sink) {
        match self {
            Self::None => {}
            Self::OffsetData { offset, data } => {
                sink.put(&offset.to_be_bytes());
                sink.put(data);
            }
            Self::OffsetHole { offset, length } => {
                sink.put(&offset.to_be_bytes());
                sink.put(&length.to_be_bytes());
            }
            Self::BlockStatus { context, extents } => {
                sink.put(&context.0.to_be_bytes());
                sink.put(extents.as_bytes());
            }
            Self::BlockStatusExt { context, extents } => {
                let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                sink.put(&context.0.to_be_bytes());
                sink.put(&count.to_be_bytes());
                sink.put(extents.as_bytes());
            }
            Self::Error {
                error,
                message,
                rest,
                ..
            } => {
                put_error(sink, *error, *message);
                sink.put(rest);
            }
            Self::ErrorOffset {
                error,
                message,
                offset,
                rest,
            } => {
                put_error(sink, *error, *message);
                sink.put(&offset.to_be_bytes());
                sink.put(rest);
            }
            Self::Other { data, .. } => sink.put(data),
        }
    }
}

fn put_error(sink: &mut dyn Sink, error: ErrorValue, message: Text<'_>) {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    sink.put(&error.0.to_be_bytes());
    sink.put(&length.to_be_bytes());
    sink.put(message.as_bytes());
}

/// Lengths that no test can allocate; the others are in `tests/wire`.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_up_to_64_bits() {
        const MAX: u64 = u64::MAX;
        for length in [1 << 32, MAX] {
            let wrong = |chunk| Err(bad_length(chunk, length));
            assert_eq!(none_length(length), wrong(ChunkType::NONE));
            assert_eq!(offset_hole_length(length), wrong(ChunkType::OFFSET_HOLE));
            assert_eq!(error_length(ChunkType::ERROR_OFFSET, length), Ok(()));
        }
        let wrap = 1 << 32 | 12;
        let wrong = Err(bad_length(ChunkType::OFFSET_HOLE, wrap));
        assert_eq!(offset_hole_length(wrap), wrong);
        assert_eq!(offset_data_length(1 << 32), Ok(0xffff_fff8));
        assert_eq!(offset_data_length(MAX), Ok(0xffff_ffff_ffff_fff7));
    }

    #[test]
    fn descriptor_counts_up_to_64_bits() {
        for (length, narrow, wide) in [
            (8_388_612, Some(1 << 20), None),
            (16_777_224, None, Some(1 << 20)),
            (0xffff_fff8, None, Some(0x0fff_ffff)),
            (0xffff_fffc, Some(0x1fff_ffff), None),
            (0x1_0000_0000, None, None),
            (0x1_0000_0004, Some(0x2000_0000), None),
            (0x1_0000_0008, None, Some(0x1000_0000)),
            (0xffff_ffff_ffff_fff8, None, Some(0x0fff_ffff_ffff_ffff)),
            (0xffff_ffff_ffff_fffc, Some(0x1fff_ffff_ffff_ffff), None),
            (0xffff_ffff_ffff_ffff, None, None),
        ] {
            let expected = narrow.ok_or(bad_length(ChunkType::BLOCK_STATUS, length));
            assert_eq!(block_status_count(length), expected);
            let expected = wide.ok_or(bad_length(ChunkType::BLOCK_STATUS_EXT, length));
            assert_eq!(block_status_ext_count(length), expected);
        }
    }

    /// 2^32 descriptors do not agree with a count of 0, nor 2^32 + 1 with 1.
    #[test]
    fn descriptor_count_field_does_not_wrap() {
        for (length, count, agrees) in [
            (0xf_ffff_fff8, u32::MAX, true),
            (0x10_0000_0008, 0, false),
            (0x10_0000_0008, u32::MAX, false),
            (0x10_0000_0018, 1, false),
        ] {
            let disagree = DecodeError::Count { count, length };
            let expected = if agrees { Ok(count) } else { Err(disagree) };
            assert_eq!(block_status_ext_agrees(length, count), expected);
        }
    }

    #[test]
    fn error_rest_is_what_follows_the_message() {
        let plain = ChunkType::ERROR;
        let at = ChunkType::ERROR_OFFSET;
        let undefined = ChunkType(0x8003);
        for (chunk, length, message_length, expected) in [
            (plain, 6, 0, Some(0)),
            (plain, 6, 1, None),
            (plain, 6, 0xffff, None),
            (plain, 10, 3, Some(1)),
            (plain, 0x1_0005, 0xffff, Some(0)),
            (plain, 0x1_0004, 0xffff, None),
            (plain, u64::MAX, 0xffff, Some(0xffff_ffff_fffe_fffa)),
            (at, 14, 0, Some(8)),
            (at, 14, 1, None),
            (at, 14, 8, None),
            (at, 0x1_000d, 0xffff, Some(8)),
            (at, 0x1_000c, 0xffff, None),
            (at, u64::MAX, 0, Some(0xffff_ffff_ffff_fff9)),
            (undefined, 6, 0, Some(0)),
            (undefined, 14, 8, Some(0)),
            (undefined, 14, 9, None),
        ] {
            let message = name(chunk);
            let expected = expected.ok_or(DecodeError::Overrun { message });
            let rest = error_rest(chunk, length, message_length);
            assert_eq!(rest, expected, "{chunk}: {message_length} in {length}");
        }
    }
}
