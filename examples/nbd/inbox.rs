//! Bytes that have arrived and were not understood yet.

use std::io::IoSliceMut;

use anyhow::Result;

use crate::socket::Socket;

/// Larger than any message a machine wants whole.
const CAPACITY: usize = 64 << 10;

pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into(),
            start: 0,
            end: 0,
        }
    }

    /// What no machine has consumed yet.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Says that a machine left only the last `left` bytes.
    pub fn keep_last(&mut self, left: usize) {
        self.start = self.end - left;
        if left == 0 {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads what there is; `None` if there is nothing yet, `Some(0)` at the
    /// end.
    pub fn fill(&mut self, socket: &mut Socket) -> Result<Option<usize>> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let read = socket.read(&mut [IoSliceMut::new(&mut self.bytes[self.end..])])?;
        self.end += read.unwrap_or(0);
        Ok(read)
    }

    /// Reads into `place`, and what is behind it into the inbox, which must be
    /// empty. Returns how much of `place` was filled.
    pub fn fill_behind(&mut self, place: &mut [u8], socket: &mut Socket) -> Result<Option<usize>> {
        // A little: headers fit, and not much of the next payload must be
        // copied from here to its place.
        let behind = &mut self.bytes[..512];
        let room = place.len();
        let read = socket.read(&mut [IoSliceMut::new(place), IoSliceMut::new(behind)])?;
        (self.start, self.end) = (0, read.unwrap_or(0).saturating_sub(room));
        Ok(read.map(|n| n.min(room)))
    }
}
