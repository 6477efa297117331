//! The server's messages that a script asks for.

use nbd_codec::Framing;
use nbd_codec::client::Request;
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::text::Text;

use super::script::Reply;
use crate::script::{Extent, Length};

/// The longest payload to send.
const MAX_PAYLOAD: u64 = 3000;

/// The command to reply to.
#[derive(Debug, Clone)]
pub struct Target {
    pub framing: Framing,
    pub cookie: Cookie,
    pub request: Request,
    /// The contexts it asks for.
    pub contexts: Vec<ContextId>,
}

impl Target {
    /// The bytes of one message.
    pub fn reply(&self, reply: &Reply) -> Vec<u8> {
        let length_of = |measure: &Length| measure.of(self.request.length);
        let at = |skip: &Length| self.request.offset.wrapping_add(length_of(skip));
        let mut scratch = Vec::new();
        match reply {
            Reply::Simple { error, fill } => self.simple(error_value(*error), *fill),
            Reply::Data {
                skip,
                length,
                last,
                fill,
            } => {
                scratch.resize(length_of(length).min(MAX_PAYLOAD) as usize, *fill);
                let offset = at(skip);
                let data = &scratch;
                self.chunk(&Chunk::OffsetData { offset, data }, *last)
            }
            Reply::Hole { skip, length, last } => {
                let (offset, length) = (at(skip), length_of(length) as u32);
                self.chunk(&Chunk::OffsetHole { offset, length }, *last)
            }
            Reply::None { last } => self.chunk(&Chunk::None, *last),
            Reply::Status {
                context,
                extents,
                last,
            } => {
                let asked = self.contexts.get(usize::from(*context)).copied();
                let context = asked.unwrap_or(ContextId((*context).into()));
                self.status(context, &extents.0, *last)
            }
            Reply::Error {
                kind,
                error,
                message,
                skip,
                rest,
                last,
            } => {
                scratch.resize((*message).min(MAX_PAYLOAD) as usize, b'e');
                let (error, message) = (ErrorValue((*error).into()), Text::new(&scratch));
                let chunk = match kind % 4 {
                    0 | 1 => Chunk::ErrorOffset {
                        error,
                        message,
                        offset: at(skip),
                        rest,
                    },
                    2 => Chunk::Error {
                        chunk: ChunkType::ERROR,
                        error,
                        message,
                        rest,
                    },
                    _ => Chunk::Error {
                        chunk: ChunkType(1 << 15 | u16::from(*kind)),
                        error,
                        message,
                        rest,
                    },
                };
                self.chunk(&chunk, *last)
            }
            Reply::Other {
                kind,
                payload,
                last,
            } => {
                let (chunk, data) = (ChunkType(*kind), payload);
                self.chunk(&Chunk::Other { chunk, data }, *last)
            }
        }
    }

    /// The bytes of a whole, valid reply, in a number of messages that depends
    /// on `pieces`.
    pub fn finish(&self, pieces: u8, fail: bool) -> Vec<u8> {
        let command = self.request.command;
        let payload = matches!(command, Command::READ | Command::BLOCK_STATUS);
        if self.framing == Framing::Simple {
            return self.simple(error_value(u8::from(fail) * 5), pieces);
        }
        if self.framing == Framing::Structured && !payload && pieces & 1 == 0 {
            return self.simple(error_value(u8::from(fail) * 22), 0);
        }
        let mut bytes = Vec::new();
        if fail {
            let (kind, error, message) = (pieces, 28, u64::from(pieces));
            let last = pieces & 2 == 0;
            bytes.extend(self.reply(&Reply::Error {
                kind: kind & 2,
                error,
                message,
                skip: bytes_of(0),
                rest: vec![],
                last,
            }));
            if last {
                return bytes;
            }
        } else if command == Command::READ {
            bytes.extend(self.content(pieces));
        } else if command == Command::BLOCK_STATUS {
            let extent = |length, flags| Extent {
                length: bytes_of(length),
                flags,
            };
            let length = self.request.length.clamp(1, u32::MAX.into());
            let half = (length / 2).max(1);
            for context in &self.contexts {
                let extents = if pieces & 1 == 0 || half == length {
                    vec![extent(length, 3)]
                } else {
                    vec![extent(half, 0), extent(length - half, 1)]
                };
                bytes.extend(self.status(*context, &extents, false));
            }
        }
        bytes.extend(self.chunk(&Chunk::None, true));
        bytes
    }

    /// Data and holes that cover a read, in reverse order.
    fn content(&self, pieces: u8) -> Vec<u8> {
        let length = self.request.length;
        let pieces = u64::from(pieces % 5) + 1;
        let size = length.div_ceil(pieces).max(1);
        let mut bytes = Vec::new();
        for piece in (0..pieces).rev() {
            let skip = piece * size;
            let Some(length) = length.checked_sub(skip).filter(|left| *left > 0) else {
                continue;
            };
            let length = length.min(size);
            let last = false;
            // A piece that is longer than `MAX_PAYLOAD` is sent as a hole.
            let hole = length > MAX_PAYLOAD || piece % 2 == 1;
            let (skip, length) = (bytes_of(skip), bytes_of(length));
            let reply = if hole {
                Reply::Hole { skip, length, last }
            } else {
                Reply::Data {
                    skip,
                    length,
                    last,
                    fill: piece as u8,
                }
            };
            bytes.extend(self.reply(&reply));
        }
        bytes
    }

    fn simple(&self, error: ErrorValue, fill: u8) -> Vec<u8> {
        let cookie = self.cookie;
        let mut bytes = SimpleReply { error, cookie }.encode().to_vec();
        if self.request.command == Command::READ && !error.is_error() {
            let length = self.request.length.min(MAX_PAYLOAD) as usize;
            bytes.resize(bytes.len() + length, fill);
        }
        bytes
    }

    fn status(&self, context: ContextId, extents: &[Extent], last: bool) -> Vec<u8> {
        let bytes: Vec<u8>;
        let length_of = |extent: &Extent| extent.length.of(self.request.length);
        let chunk = match self.framing {
            Framing::Extended => {
                let encode = |extent: &Extent| {
                    let (length, flags) = (length_of(extent), extent.flags);
                    Extent64 { length, flags }.encode()
                };
                bytes = extents.iter().flat_map(encode).collect();
                let (extents, _) = Extents64::split(&bytes);
                Chunk::BlockStatusExt { context, extents }
            }
            _ => {
                let encode = |extent: &Extent| {
                    let (length, flags) = (length_of(extent) as u32, extent.flags as u32);
                    Extent32 { length, flags }.encode()
                };
                bytes = extents.iter().flat_map(encode).collect();
                let (extents, _) = Extents32::split(&bytes);
                Chunk::BlockStatus { context, extents }
            }
        };
        self.chunk(&chunk, last)
    }

    fn chunk(&self, chunk: &Chunk, last: bool) -> Vec<u8> {
        let mut payload = Vec::new();
        if chunk.encode(&mut payload).is_err() {
            return payload;
        }
        let flags = if last {
            ReplyFlags::DONE
        } else {
            ReplyFlags::NONE
        };
        let mut bytes = match self.framing {
            Framing::Extended => ExtendedHeader {
                flags,
                chunk: chunk.chunk(),
                cookie: self.cookie,
                offset: self.request.offset,
                length: payload.len() as u64,
            }
            .encode()
            .to_vec(),
            _ => StructuredHeader {
                flags,
                chunk: chunk.chunk(),
                cookie: self.cookie,
                length: payload.len() as u32,
            }
            .encode()
            .to_vec(),
        };
        bytes.extend(payload);
        bytes
    }
}

fn bytes_of(n: u64) -> Length {
    Length::Bytes { n }
}

/// In most cases no error.
fn error_value(byte: u8) -> ErrorValue {
    match byte {
        5 | 12 | 22 | 28 | 75 | 95 | 108 => ErrorValue(byte.into()),
        255 => ErrorValue(u32::MAX),
        _ => ErrorValue::NONE,
    }
}
