//! Replies on their way out: heads and short replies one behind the other,
//! payloads from where they are.

use std::ops::Range;

use nbd_codec::server::Reply;

use crate::buffer::Buffer;
use crate::memory::Lent;
use crate::outbox::Content;

/// Texts and maps up to so many bytes are copied to the heads.
const SHORT: usize = 1024;

#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// How many parts are sent,
    sent: usize,
    /// and how much of the next one.
    skip: usize,
    /// How many requests it answers, and what room they take.
    pub requests: usize,
    pub room: usize,
}

enum Part {
    Bytes(Range<usize>),
    Long(Vec<u8>),
    Data(Buffer),
    Lent(Lent),
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        match self.parts.last_mut() {
            Some(Part::Bytes(range)) => range.end = end,
            _ => self.parts.push(Part::Bytes(start..end)),
        }
    }

    pub fn put_reply(&mut self, reply: &Reply<'_>) {
        reply.parts().iter().for_each(|part| self.put(part));
    }

    pub fn put_data(&mut self, data: Buffer) {
        self.parts.push(Part::Data(data));
    }

    pub fn put_lent(&mut self, lent: Lent) {
        self.parts.push(Part::Lent(lent));
    }

    /// A part of a reply.
    pub fn put_content(&mut self, content: Content) {
        match content {
            Content::Reply(reply) => self.put_reply(&reply),
            Content::Data(head, data) => {
                self.put(head.as_bytes());
                self.put_data(data);
            }
            Content::Bytes(bytes) | Content::Rest(bytes) if bytes.len() <= SHORT => {
                self.put(&bytes);
            }
            Content::Bytes(bytes) | Content::Rest(bytes) => self.parts.push(Part::Long(bytes)),
        }
    }

    /// The end of a reply, to a request that took so much room.
    pub fn end_reply(&mut self, room: usize) {
        self.requests += 1;
        self.room += room;
    }

    /// What is not sent yet.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.skip;
        self.parts[self.sent..].iter().map(move |part| {
            let bytes = &part.bytes(&self.bytes)[skip..];
            skip = 0;
            bytes
        })
    }

    /// Says that so many bytes more were sent; whether that was all.
    pub fn advance(&mut self, n: usize) -> bool {
        self.skip += n;
        while let Some(part) = self.parts.get(self.sent) {
            let length = part.bytes(&self.bytes).len();
            if self.skip < length {
                return false;
            }
            self.skip -= length;
            self.sent += 1;
        }
        true
    }

    /// As new; its memory is kept.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        (self.sent, self.skip) = (0, 0);
        (self.requests, self.room) = (0, 0);
    }
}

impl Part {
    fn bytes<'b>(&'b self, bytes: &'b [u8]) -> &'b [u8] {
        match self {
            Self::Bytes(range) => &bytes[range.clone()],
            Self::Long(bytes) => bytes,
            Self::Data(data) => data,
            Self::Lent(lent) => lent,
        }
    }
}
