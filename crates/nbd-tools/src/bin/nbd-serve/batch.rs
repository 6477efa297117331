//! Replies on their way out: heads and short replies one behind the other,
//! payloads from where they are.

use std::ops::Range;

use nbd_codec::server::Reply;

use crate::buffer::Buffer;
use crate::memory::Lent;
use crate::outbox::Content;

/// Texts and maps up to so many bytes are copied to the heads.
const SHORT: usize = 1024;

/// Most slices of one system call.
pub const MOST_SLICES: usize = 1024;

#[derive(Default)]
pub struct Batch {
    /// It never becomes shorter: to fill it with zeroes takes time.
    bytes: Vec<u8>,
    /// How much of it is in use.
    end: usize,
    parts: Vec<Part>,
    /// In all, in bytes.
    size: usize,
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
        self.space(bytes.len()).copy_from_slice(bytes);
        let start = self.end;
        self.end += bytes.len();
        self.size += bytes.len();
        match self.parts.last_mut() {
            Some(Part::Bytes(range)) if range.end == start => range.end = self.end,
            _ => self.parts.push(Part::Bytes(start..self.end)),
        }
    }

    /// Space for data, to be filled before anything is put here.
    pub fn space(&mut self, length: usize) -> &mut [u8] {
        let end = self.end + length;
        if end > self.bytes.len() {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        &mut self.bytes[self.end..end]
    }

    /// A head, and behind it what was filled into [`space`](Self::space).
    pub fn put_filled(&mut self, head: &[u8], length: usize) {
        let data = self.end..self.end + length;
        self.end = data.end;
        self.size += length;
        self.put(head);
        self.parts.push(Part::Bytes(data));
    }

    /// How many bytes there are, and in how many slices.
    pub fn size(&self) -> (usize, usize) {
        (self.size, self.parts.len())
    }

    pub fn put_reply(&mut self, reply: &Reply<'_>) {
        reply.parts().iter().for_each(|part| self.put(part));
    }

    pub fn put_data(&mut self, data: Buffer) {
        self.size += data.len();
        self.parts.push(Part::Data(data));
    }

    pub fn put_lent(&mut self, lent: Lent) {
        self.size += lent.len();
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
            Content::Bytes(bytes) | Content::Rest(bytes) => {
                self.size += bytes.len();
                self.parts.push(Part::Long(bytes));
            }
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
        (self.end, self.size) = (0, 0);
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
