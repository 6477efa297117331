//! The answers of the scripted server to a request, as they should be.

use nbd_codec::Framing;
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::{CommandFlags as Flag, ReplyFlags};
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue as Error};

use super::handshake::CONTEXT;
use super::message::{Chunk, Message, wide};
use super::script::{Extents, HOLE, Pieces, SIZE};
use crate::request::Request;

/// The answers to a request.
#[derive(Clone, Copy)]
pub(crate) struct Reply<'a> {
    pub(crate) framing: Framing,
    pub(crate) request: &'a Request,
}

impl Reply<'_> {
    pub(crate) fn cookie(&self) -> Cookie {
        self.request.cookie.unwrap_or_default()
    }

    /// A chunk, not the last one.
    pub(crate) fn chunk(&self, chunk: ChunkType, payload: Vec<u8>) -> Chunk {
        Chunk {
            framing: self.framing,
            flags: ReplyFlags::NONE,
            chunk,
            cookie: self.cookie(),
            offset: self.request.offset,
            payload,
            length: None,
        }
    }

    /// The chunk that only ends the reply.
    pub(crate) fn none(&self) -> Chunk {
        Chunk {
            flags: ReplyFlags::DONE,
            ..self.chunk(ChunkType::NONE, Vec::new())
        }
    }

    /// A chunk of data at an offset in the export.
    pub(crate) fn data(&self, offset: u64, data: &[u8]) -> Chunk {
        let mut payload = offset.to_be_bytes().to_vec();
        payload.extend(data);
        self.chunk(ChunkType::OFFSET_DATA, payload)
    }

    pub(crate) fn hole(&self, offset: u64, length: u32) -> Chunk {
        let mut payload = offset.to_be_bytes().to_vec();
        payload.extend(length.to_be_bytes());
        self.chunk(ChunkType::OFFSET_HOLE, payload)
    }

    /// An error chunk, not the last one.
    pub(crate) fn error_chunk(&self, error: Error) -> Chunk {
        let message = b"refused by nbd-check";
        let mut payload = error.0.to_be_bytes().to_vec();
        payload.extend(u16::try_from(message.len()).unwrap_or(0).to_be_bytes());
        payload.extend(message);
        self.chunk(ChunkType::ERROR, payload)
    }

    pub(crate) fn error(&self, error: Error) -> Vec<Message> {
        if self.framing == Framing::Simple {
            return vec![self.simple(error)];
        }
        let mut chunk = self.error_chunk(error);
        chunk.flags = ReplyFlags::DONE;
        vec![Message::Chunk(chunk)]
    }

    pub(crate) fn simple(&self, error: Error) -> Message {
        Message::Simple {
            error,
            cookie: self.cookie(),
            data: Vec::new(),
        }
    }

    pub(super) fn success(&self) -> Vec<Message> {
        if self.framing == Framing::Extended {
            vec![Message::Chunk(self.none())]
        } else {
            vec![self.simple(Error::NONE)]
        }
    }

    pub(super) fn read(&self, data: &[u8], pieces: Pieces) -> Vec<Message> {
        if self.framing == Framing::Simple {
            return vec![Message::Simple {
                error: Error::NONE,
                cookie: self.cookie(),
                data: data.to_vec(),
            }];
        }
        let start = self.request.offset;
        let whole = pieces == Pieces::One || self.request.flags.contains(Flag::DF);
        if whole {
            let mut chunk = self.data(start, data);
            chunk.flags = ReplyFlags::DONE;
            return vec![Message::Chunk(chunk)];
        }
        let cut = HOLE.saturating_sub(start).min(wide(data.len()));
        let (content, zeroes) = data.split_at(usize::try_from(cut).unwrap_or(0));
        let mut chunks = Vec::new();
        // Two pieces of data, so that there is an order.
        let half = (content.len() / 2).next_multiple_of(512).min(content.len());
        let (first, second) = content.split_at(half);
        for (offset, part) in [(start, first), (start + wide(half), second)] {
            if !part.is_empty() {
                chunks.push(self.data(offset, part));
            }
        }
        match u32::try_from(zeroes.len()) {
            Ok(0) => {}
            // What was written there is no hole.
            Ok(length) if zeroes.iter().all(|byte| *byte == 0) => {
                chunks.push(self.hole(start + cut, length));
            }
            _ => chunks.push(self.data(start + cut, zeroes)),
        }
        if pieces == Pieces::Reversed {
            chunks.reverse();
        }
        chunks.push(self.none());
        chunks.into_iter().map(Message::Chunk).collect()
    }

    pub(super) fn status(&self, extents: Extents) -> Vec<Message> {
        let Request { offset, length, .. } = *self.request;
        let end = offset.saturating_add(length).min(SIZE);
        let mut list = Vec::new();
        if offset < HOLE {
            list.push((HOLE - offset, 0));
        }
        list.push((SIZE.saturating_sub(offset.max(HOLE)), HOLE_AND_ZERO));
        let end = match extents {
            Extents::Whole => SIZE,
            _ => end,
        };
        let mut at = offset;
        list.retain_mut(|(length, _)| {
            *length = (*length).min(end.saturating_sub(at));
            at += *length;
            *length > 0
        });
        if extents == Extents::First || self.request.flags.contains(Flag::REQ_ONE) {
            list.truncate(1);
        }
        if self.request.flags.contains(Flag::REQ_ONE)
            && let Some((first, _)) = list.first_mut()
        {
            *first = (*first).min(length);
        }
        if extents == Extents::Split
            && !self.request.flags.contains(Flag::REQ_ONE)
            && let Some((first, flags)) = list.first_mut()
            && *first >= 1024
        {
            let flags = *flags;
            *first -= 512;
            list.insert(0, (512, flags));
        }
        let list: Vec<_> = list
            .into_iter()
            .map(|(length, flags)| Extent64 { length, flags })
            .collect();
        let mut chunks = vec![self.extents(&list)];
        chunks.push(self.none());
        chunks.into_iter().map(Message::Chunk).collect()
    }

    /// A status chunk of the framing's width, not the last one.
    pub(crate) fn extents(&self, list: &[Extent64]) -> Chunk {
        if self.framing == Framing::Extended {
            self.wide_extents(list)
        } else {
            self.narrow_extents(list)
        }
    }

    pub(crate) fn narrow_extents(&self, list: &[Extent64]) -> Chunk {
        let mut payload = CONTEXT.0.to_be_bytes().to_vec();
        for extent in list {
            let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
            let flags = u32::try_from(extent.flags).unwrap_or(u32::MAX);
            payload.extend(Extent32 { length, flags }.encode());
        }
        self.chunk(ChunkType::BLOCK_STATUS, payload)
    }

    pub(crate) fn wide_extents(&self, list: &[Extent64]) -> Chunk {
        let mut payload = CONTEXT.0.to_be_bytes().to_vec();
        payload.extend(u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes());
        for extent in list {
            payload.extend(extent.encode());
        }
        self.chunk(ChunkType::BLOCK_STATUS_EXT, payload)
    }
}

/// `NBD_STATE_HOLE` and `NBD_STATE_ZERO`.
pub(crate) const HOLE_AND_ZERO: u64 = 3;
