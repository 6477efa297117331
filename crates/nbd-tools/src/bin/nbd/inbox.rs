//! Bytes that have arrived and were not understood yet.

use std::io::IoSliceMut;

use anyhow::Result;

use crate::socket::Socket;

/// Larger than any message a machine wants whole.
const CAPACITY: usize = 64 << 10;

/// Behind a payload that is read to its place: headers fit, and not much of
/// the next payload must be copied from here to its place.
pub const LITTLE: usize = 512;

pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What a call has brought.
pub struct Received {
    /// So many bytes to the place that was given.
    pub placed: usize,
    /// The connection has ended.
    pub end: bool,
}

impl Inbox {
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into(),
            start: 0,
            end: 0,
        }
    }

    /// As much as that, and what is unread.
    pub fn enlarge(&mut self, capacity: usize) {
        let mut bytes = vec![0; capacity.max(self.bytes.len())];
        let unread = self.unread();
        let length = unread.len();
        bytes[..length].copy_from_slice(unread);
        (self.bytes, self.start, self.end) = (bytes.into(), 0, length);
    }

    /// What no machine has consumed yet.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Says that a machine left only the last `left` bytes.
    #[inline]
    pub fn keep_last(&mut self, left: usize) {
        self.start = self.end - left;
        if left == 0 {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives, and waits for it: first into `place`, which may be empty, and
    /// then up to `most` bytes behind what is unread.
    pub fn receive(
        &mut self,
        socket: &mut Socket,
        place: &mut [u8],
        most: usize,
    ) -> Result<Received> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = place.len();
        let behind = &mut self.bytes[self.end..];
        let most = most.min(behind.len());
        let behind = IoSliceMut::new(&mut behind[..most]);
        let n = match room {
            0 => socket.read(&mut [behind])?,
            _ => socket.read(&mut [IoSliceMut::new(place), behind])?,
        };
        self.end += n.saturating_sub(room);
        Ok(Received {
            placed: n.min(room),
            end: n == 0,
        })
    }
}
