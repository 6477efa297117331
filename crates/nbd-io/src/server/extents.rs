//! What a device reports about its blocks.

use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::AllocationFlags;

/// The extents of a reply to block status, each from the end of the one before it.
#[derive(Debug)]
pub struct Extents {
    list: Vec<Extent64>,
    /// What they must cover, in bytes.
    length: u64,
    covered: u64,
}

impl Extents {
    /// Most extents of a reply; the client asks again for what follows them.
    pub(crate) const MOST: usize = 4096;

    pub(super) fn new(length: u64) -> Self {
        Self {
            list: Vec::new(),
            length,
            covered: 0,
        }
    }

    /// Adds `length` bytes with the status `flags`. Neighbours of the same status
    /// become one extent; zero bytes add nothing. Returns whether more extents are
    /// wanted: once it is `false`, the reply is full or the range is covered, and
    /// what is added is left out.
    pub fn push(&mut self, length: u64, flags: u64) -> bool {
        if length > 0 && self.wants_more() {
            self.covered = self.covered.saturating_add(length);
            match self.list.last_mut() {
                Some(last) if last.flags == flags => {
                    last.length = last.length.saturating_add(length);
                }
                _ => self.list.push(Extent64 { length, flags }),
            }
        }
        self.wants_more()
    }

    /// Adds `length` bytes of data in the context `base:allocation`, as
    /// [`push`](Self::push).
    pub fn push_data(&mut self, length: u64) -> bool {
        self.push(length, 0)
    }

    /// Adds a hole of `length` bytes, which reads as zeroes, in the context
    /// `base:allocation`, as [`push`](Self::push).
    pub fn push_hole(&mut self, length: u64) -> bool {
        let flags = AllocationFlags::HOLE | AllocationFlags::ZERO;
        self.push(length, flags.0.into())
    }

    /// How many bytes the extents cover, from the offset of the request on.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Whether the range is not yet covered, and the reply has room.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.covered < self.length && self.list.len() < Self::MOST
    }

    pub(super) fn list(&self) -> &[Extent64] {
        &self.list
    }
}
