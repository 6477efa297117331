//! Bytes that have arrived and were not understood yet.

use std::io::{self, IoSliceMut, Read};

/// Holds every message that a machine wants whole, and many requests; as much
/// as a socket has for its reader, in round figures.
const CAPACITY: usize = 256 << 10;

/// Behind a payload that is read to its place: many requests. Not more: what is
/// in here of the payload of a large write is copied to its place.
const BEHIND: usize = 16 << 10;

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
    }

    /// Reads what there is, and waits for something; zero at the end.
    pub fn fill(&mut self, source: &mut (impl Read + ?Sized)) -> io::Result<usize> {
        self.fill_behind(&mut [], source).map(|(_, inbox)| inbox)
    }

    /// Reads into `place`, and what is behind it into the inbox; returns how
    /// much went to each.
    pub fn fill_behind(
        &mut self,
        place: &mut [u8],
        source: &mut (impl Read + ?Sized),
    ) -> io::Result<(usize, usize)> {
        let room = place.len();
        let behind = self.room(room > 0);
        let mut slices = [IoSliceMut::new(place), IoSliceMut::new(behind)];
        // Not every source knows what to do with an empty slice in front.
        let slices = if room == 0 {
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
        let behind = n.saturating_sub(room);
        self.arrived(behind);
        Ok((n - behind, behind))
    }

    /// Room for bytes, to be read into, and how many came is to be said with
    /// [`arrived`](Self::arrived).
    pub fn room(&mut self, behind_payload: bool) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let end = match behind_payload {
            false => CAPACITY,
            true => CAPACITY.min(self.end + BEHIND),
        };
        &mut self.bytes[self.end..end]
    }

    pub fn arrived(&mut self, n: usize) {
        self.end += n;
    }
}
