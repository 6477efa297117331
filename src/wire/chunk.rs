//! Structured reply types: what the payload of a chunk says (specification,
//! "Structured reply types"). Structured and extended replies share them.
//!
//! A payload is a prefix of fixed size and, for some types, a part of variable
//! length behind it. The rule that joins the header's length to the two is one
//! function for each type; none of them can wrap.

use super::bytes::{Fields, take, take_slice, wide};
use super::extent::{Extent32, Extent64, Extents32, Extents64};
use super::number::{ChunkType, ContextId, ErrorValue};
use super::sink::all_or_nothing;
use super::text::Text;
use super::{DecodeError, EncodeError, Sink};

/// `OFFSET_DATA`: how many bytes of data a payload of `length` bytes holds,
/// `length - 8`, at least one.
///
/// ```text
/// S: offset:64 data
/// ```
///
/// # Errors
///
/// [`DecodeError::Length`].
#[inline]
pub const fn offset_data_length(length: u64) -> Result<u64, DecodeError> {
    match length.checked_sub(8) {
        Some(data) if data > 0 => Ok(data),
        _ => Err(bad_length(ChunkType::OFFSET_DATA, length)),
    }
}

/// `OFFSET_HOLE`: `length` is 12.
///
/// ```text
/// S: offset:64 hole_size:32
/// ```
///
/// # Errors
///
/// [`DecodeError::Length`].
#[inline]
pub const fn offset_hole_length(length: u64) -> Result<(), DecodeError> {
    match length {
        12 => Ok(()),
        _ => Err(bad_length(ChunkType::OFFSET_HOLE, length)),
    }
}

/// `NONE`: `length` is 0.
///
/// # Errors
///
/// [`DecodeError::Length`].
#[inline]
pub const fn none_length(length: u64) -> Result<(), DecodeError> {
    match length {
        0 => Ok(()),
        _ => Err(bad_length(ChunkType::NONE, length)),
    }
}

/// `BLOCK_STATUS`: how many descriptors a payload of `length` bytes holds,
/// `length = 4 + 8n`, `n >= 1`.
///
/// ```text
/// S: context_id:32 (length:32 flags:32)*n
/// ```
///
/// # Errors
///
/// [`DecodeError::Length`].
#[inline]
pub const fn block_status_count(length: u64) -> Result<u64, DecodeError> {
    match length.checked_sub(4) {
        Some(body) if body > 0 && body % 8 == 0 => Ok(body / 8),
        _ => Err(bad_length(ChunkType::BLOCK_STATUS, length)),
    }
}

/// `BLOCK_STATUS_EXT`: how many descriptors a payload of `length` bytes holds,
/// `length = 8 + 16n`, `n >= 1`. The descriptor count field must say the same:
/// [`block_status_ext_agrees`].
///
/// ```text
/// S: context_id:32 count:32 (length:64 flags:64)*n
/// ```
///
/// # Errors
///
/// [`DecodeError::Length`].
#[inline]
pub const fn block_status_ext_count(length: u64) -> Result<u64, DecodeError> {
    match length.checked_sub(8) {
        Some(body) if body > 0 && body % 16 == 0 => Ok(body / 16),
        _ => Err(bad_length(ChunkType::BLOCK_STATUS_EXT, length)),
    }
}

/// `BLOCK_STATUS_EXT`: as [`block_status_ext_count`], with the descriptor
/// count field at hand.
///
/// # Errors
///
/// [`DecodeError::Length`], or [`DecodeError::Count`] where the two disagree.
#[inline]
pub fn block_status_ext_agrees(length: u64, count: u32) -> Result<u32, DecodeError> {
    let n = block_status_ext_count(length)?;
    if n == u64::from(count) {
        Ok(count)
    } else {
        Err(DecodeError::Count { count, length })
    }
}

/// Error chunks, known or not: how many bytes are left behind the message of
/// `message_length` bytes in a payload of `length`.
///
/// ```text
/// S: error:32 message_length:16 message [offset:64]
/// ```
///
/// At least eight must be left for `ERROR_OFFSET`; other types may leave any
/// number, whose meaning is not known.
///
/// # Errors
///
/// [`DecodeError::Length`], or [`DecodeError::Overrun`] where the message does
/// not fit.
#[inline]
pub fn error_rest(chunk: ChunkType, length: u64, message_length: u16) -> Result<u64, DecodeError> {
    error_length(chunk, length)?;
    length
        .checked_sub(error_minimum(chunk))
        .and_then(|body| body.checked_sub(u64::from(message_length)))
        .and_then(|rest| rest.checked_add(error_minimum(chunk).saturating_sub(6)))
        .ok_or(DecodeError::Overrun {
            message: name(chunk),
        })
}

/// Error chunks: `length` is at least 6, for `ERROR_OFFSET` 14.
///
/// # Errors
///
/// [`DecodeError::Length`].
#[inline]
pub const fn error_length(chunk: ChunkType, length: u64) -> Result<(), DecodeError> {
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

/// A whole payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Chunk<'a> {
    /// `NONE`.
    None,
    /// `OFFSET_DATA`.
    OffsetData {
        /// Where the data belongs, in bytes from the start of the export.
        offset: u64,
        /// The data.
        data: &'a [u8],
    },
    /// `OFFSET_HOLE`.
    OffsetHole {
        /// Where the hole begins, in bytes from the start of the export.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// `BLOCK_STATUS`.
    BlockStatus {
        /// Which context it is about.
        context: ContextId,
        /// Its extents, none of them empty.
        extents: Extents32<'a>,
    },
    /// `BLOCK_STATUS_EXT`.
    BlockStatusExt {
        /// Which context it is about.
        context: ContextId,
        /// Its extents, none of them empty.
        extents: Extents64<'a>,
    },
    /// `ERROR`, and error chunks of unknown type.
    Error {
        /// The chunk's type.
        chunk: ChunkType,
        /// What happened; never zero.
        error: ErrorValue,
        /// For people.
        message: Text<'a>,
        /// What stands behind the message.
        rest: &'a [u8],
    },
    /// `ERROR_OFFSET`.
    ErrorOffset {
        /// What happened; never zero.
        error: ErrorValue,
        /// For people.
        message: Text<'a>,
        /// Where, in bytes from the start of the export.
        offset: u64,
        /// What stands behind the offset.
        rest: &'a [u8],
    },
    /// Any payload of a type that is not known.
    Other {
        /// The chunk's type.
        chunk: ChunkType,
        /// The payload.
        data: &'a [u8],
    },
}

impl<'a> Chunk<'a> {
    /// Decodes a payload; `payload` is all of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] where the payload's length or fields break the rules of
    /// its type.
    pub fn decode(chunk: ChunkType, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let length = wide(payload.len());
        match chunk {
            ChunkType::NONE => none_length(length).map(|()| Self::None),
            ChunkType::OFFSET_DATA => {
                offset_data_length(length)?;
                let (offset, data) = prefix::<8>(payload);
                Ok(Self::OffsetData {
                    offset: Fields::new(offset).u64(),
                    data,
                })
            }
            ChunkType::OFFSET_HOLE => {
                offset_hole_length(length)?;
                let mut fields = Fields::new(payload);
                let (offset, length) = (fields.u64(), fields.u32());
                match length {
                    0 => Err(DecodeError::EmptyHole),
                    _ => Ok(Self::OffsetHole { offset, length }),
                }
            }
            ChunkType::BLOCK_STATUS => {
                block_status_count(length)?;
                let (id, descriptors) = prefix::<4>(payload);
                let (extents, _) = Extents32::split(descriptors);
                extents.total()?;
                Ok(Self::BlockStatus {
                    context: ContextId(Fields::new(id).u32()),
                    extents,
                })
            }
            ChunkType::BLOCK_STATUS_EXT => {
                block_status_ext_count(length)?;
                let (fixed, descriptors) = prefix::<8>(payload);
                let mut fields = Fields::new(fixed);
                let (context, count) = (ContextId(fields.u32()), fields.u32());
                block_status_ext_agrees(length, count)?;
                let (extents, _) = Extents64::split(descriptors);
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
        let (fixed, mut body) = prefix::<6>(payload);
        let mut fields = Fields::new(fixed);
        let (error, message_length) = (ErrorValue(fields.u32()), fields.u16());
        error_rest(chunk, length, message_length)?;
        if !error.is_error() {
            return Err(DecodeError::NoError);
        }
        let message =
            Text::new(take_slice(&mut body, usize::from(message_length)).unwrap_or_default());
        if chunk != ChunkType::ERROR_OFFSET {
            return Ok(Self::Error {
                chunk,
                error,
                message,
                rest: body,
            });
        }
        let offset = take::<8>(&mut body).map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Ok(Self::ErrorOffset {
            error,
            message,
            offset,
            rest: body,
        })
    }

    /// The type that goes with it.
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
    /// [`EncodeError`]; nothing was written.
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

/// The first `N` bytes and the rest, of a payload whose length was checked.
fn prefix<const N: usize>(payload: &[u8]) -> (&[u8], &[u8]) {
    payload.split_at_checked(N).unwrap_or((payload, &[]))
}

/// Size of the narrow descriptors' prefix and of the wide ones', in bytes.
const _: () = assert!(Extent32::SIZE == 8 && Extent64::SIZE == 16);
