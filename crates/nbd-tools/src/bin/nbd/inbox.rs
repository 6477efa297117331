//! Bytes that were received and not consumed yet.

use std::io::IoSliceMut;

use anyhow::Result;

use crate::socket::Socket;

/// Larger than any message that a state machine needs whole.
const CAPACITY: usize = 64 << 10;

/// The most bytes to read after a payload that is read into its own buffer: enough
/// for headers, but not much of the next payload, which would have to be copied.
pub const READ_AHEAD: usize = 512;

pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The result of a receive.
pub struct Received {
    /// How many bytes went to the caller's buffer.
    pub placed: usize,
    /// Whether the server has closed the connection.
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

    /// Grows to `capacity`.
    pub fn enlarge(&mut self, capacity: usize) {
        let mut bytes = vec![0; capacity.max(self.bytes.len())];
        let unread = self.unread();
        let length = unread.len();
        bytes[..length].copy_from_slice(unread);
        (self.bytes, self.start, self.end) = (bytes.into(), 0, length);
    }

    /// What no state machine has consumed yet.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops all but the last `left` bytes.
    #[inline]
    pub fn keep_last(&mut self, left: usize) {
        self.start = self.end.saturating_sub(left);
        if left == 0 {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Waits for input and reads it: first into `place`, which may be empty, then
    /// up to `most` bytes into the inbox.
    pub fn receive(
        &mut self,
        socket: &mut Socket,
        place: &mut [u8],
        most: usize,
    ) -> Result<Received> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        let length = place.len();
        let space = &mut self.bytes[self.end..];
        let most = most.min(space.len());
        let space = IoSliceMut::new(&mut space[..most]);
        let n = match length {
            0 => socket.read(&mut [space])?,
            _ => socket.read(&mut [IoSliceMut::new(place), space])?,
        };
        self.end = self.end.saturating_add(n.saturating_sub(length));
        Ok(Received {
            placed: n.min(length),
            end: n == 0,
        })
    }
}
