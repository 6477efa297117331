//! Bytes that were received and not consumed yet.

use std::io::{self, IoSliceMut, Read};

use crate::buffer::zeroed;

/// Holds every message that a state machine needs whole, and many requests;
/// about as much as the receive buffer of a socket.
const CAPACITY: usize = 256 << 10;

/// What an idle client has. It doubles when one read fills it.
const FIRST: usize = 8 << 10;

/// The most bytes to read after a payload that is read into its own buffer: many
/// requests. Not more, because the payload of a large write that gets in here has
/// to be copied.
const READ_AHEAD: usize = 16 << 10;

pub struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read has filled it.
    full: bool,
}

impl Inbox {
    /// # Errors
    ///
    /// If there is no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            bytes: zeroed(FIRST)?,
            start: 0,
            end: 0,
            full: false,
        })
    }

    /// What no state machine has consumed yet.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops all but the last `left` bytes.
    pub fn keep_last(&mut self, left: usize) {
        self.start = self.end - left;
    }

    /// Reads what is available, waiting for at least one byte; returns zero at the
    /// end.
    pub fn fill(&mut self, source: &mut (impl Read + ?Sized)) -> io::Result<usize> {
        self.fill_after(&mut [], source).map(|(_, inbox)| inbox)
    }

    /// Reads into `place`, and what follows into the inbox; returns how many
    /// bytes went to each.
    pub fn fill_after(
        &mut self,
        place: &mut [u8],
        source: &mut (impl Read + ?Sized),
    ) -> io::Result<(usize, usize)> {
        let length = place.len();
        let space = self.space(length > 0)?;
        let most = space.len();
        let mut slices = [IoSliceMut::new(place), IoSliceMut::new(space)];
        // Not every source handles an empty first slice.
        let slices = if length == 0 {
            &mut slices[1..]
        } else {
            &mut slices
        };
        let n = loop {
            match source.read_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        let after = n.saturating_sub(length);
        self.end += after;
        self.full = after == most;
        Ok((n - after, after))
    }

    /// Free space to read into.
    fn space(&mut self, after_payload: bool) -> io::Result<&mut [u8]> {
        let size = self.bytes.len();
        if self.full && size < CAPACITY {
            let mut bytes = zeroed(2 * size)?;
            let unread = self.unread();
            bytes[..unread.len()].copy_from_slice(unread);
            self.bytes = bytes;
        } else {
            self.bytes.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, self.end - self.start);
        let end = if after_payload {
            self.bytes.len().min(self.end + READ_AHEAD)
        } else {
            self.bytes.len()
        };
        Ok(&mut self.bytes[self.end..end])
    }
}
