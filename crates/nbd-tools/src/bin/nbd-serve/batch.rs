//! Outgoing replies: headers and short replies in one buffer, payloads where they
//! are.

use std::io;
use std::ops::Range;

use nbd_codec::server::Reply;

use crate::buffer::check_memory;
use crate::memory::Lent;
use crate::pipe::Pipe;

/// Enough for the data of a batch, and 256 short replies.
const CAPACITY: usize = 512 << 10;

/// The most slices that a system call accepts.
pub const MAX_SLICES: usize = 1024;

#[derive(Default)]
pub struct Batch {
    /// It never shrinks, because growing fills it with zeroes.
    bytes: Vec<u8>,
    /// How much of it is in use.
    end: usize,
    parts: Vec<Part>,
    /// The length of all parts, in bytes.
    size: usize,
    /// How many parts are sent,
    sent: usize,
    /// and how many bytes of the next one.
    sent_bytes: usize,
    /// What follows all parts.
    pub pipe: Option<Pipe>,
}

enum Part {
    Bytes(Range<usize>),
    Lent(Lent),
}

impl Batch {
    /// # Errors
    ///
    /// If there is no memory.
    pub fn new() -> io::Result<Self> {
        check_memory(CAPACITY)?;
        let bytes = Vec::with_capacity(CAPACITY);
        Ok(Self {
            bytes,
            ..Self::default()
        })
    }

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

    /// Space for data, to be filled before the next `put`.
    pub fn space(&mut self, length: usize) -> &mut [u8] {
        let end = self.end + length;
        if end > self.bytes.len() {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        &mut self.bytes[self.end..end]
    }

    /// Adds a header, followed by what was filled into [`space`](Self::space).
    pub fn put_filled(&mut self, header: &[u8], length: usize) {
        let data = self.end..self.end + length;
        self.end = data.end;
        self.size += length;
        self.put(header);
        self.parts.push(Part::Bytes(data));
    }

    /// The number of bytes, and of slices.
    pub fn size(&self) -> (usize, usize) {
        (self.size, self.parts.len())
    }

    pub fn put_reply(&mut self, reply: &Reply<'_>) {
        reply.parts().iter().for_each(|part| self.put(part));
    }

    pub fn put_lent(&mut self, lent: Lent) {
        self.size += lent.len();
        self.parts.push(Part::Lent(lent));
    }

    /// What is not sent yet.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut sent_bytes = self.sent_bytes;
        self.parts[self.sent..].iter().map(move |part| {
            let bytes = &part.bytes(&self.bytes)[sent_bytes..];
            sent_bytes = 0;
            bytes
        })
    }

    /// How many bytes are not sent yet.
    pub fn unsent(&self) -> usize {
        let parts = self.parts().map(<[u8]>::len).sum::<usize>();
        parts + self.pipe.as_ref().map_or(0, Pipe::length)
    }

    /// `n` more bytes were sent; returns whether all are.
    pub fn advance(&mut self, n: usize) -> bool {
        self.sent_bytes += n;
        while let Some(part) = self.parts.get(self.sent) {
            let length = part.bytes(&self.bytes).len();
            if self.sent_bytes < length {
                return false;
            }
            self.sent_bytes -= length;
            self.sent += 1;
        }
        true
    }

    /// Removes everything; its memory is kept.
    pub fn clear(&mut self) {
        (self.end, self.size) = (0, 0);
        self.parts.clear();
        self.pipe = None;
        (self.sent, self.sent_bytes) = (0, 0);
    }
}

impl Part {
    fn bytes<'b>(&'b self, bytes: &'b [u8]) -> &'b [u8] {
        match self {
            Self::Bytes(range) => &bytes[range.clone()],
            Self::Lent(lent) => lent,
        }
    }
}
