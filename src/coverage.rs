//! Whether the chunks of a read make it whole; both roles ask.

/// Which part of a read has arrived, in constant memory.
///
/// Content chunks may come in any order and any number, so the parts that have
/// arrived cannot be listed in memory of fixed size. They need not be: chunks
/// that lie within the request cover each byte of it exactly once if and only
/// if every boundary at which a chunk begins is one at which another chunk (or
/// nothing, at the start) ends. So each jump, where a chunk does not begin
/// where the one before ended, adds the hash of the one place and subtracts
/// the hash of the other; when all is covered, what was added and subtracted
/// is the same and the sum is zero. Replies in order never hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Bytes of content so far.
    received: u64,
    /// Where the last content chunk ended.
    frontier: u64,
    /// Hashes of where chunks ended less hashes of where chunks began.
    jumps: u64,
}

impl Coverage {
    /// Nothing of a request that begins at `offset`.
    pub(crate) const fn new(offset: u64) -> Self {
        Self {
            received: 0,
            frontier: offset,
            jumps: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// Adds a chunk that lies within the request of `length` bytes; false if
    /// it cannot but overlap an earlier one.
    #[must_use]
    #[inline]
    pub(crate) fn add(&mut self, offset: u64, end: u64, length: u64) -> bool {
        self.jump(offset);
        self.frontier = end;
        self.received = self.received.saturating_add(end.saturating_sub(offset));
        self.received <= length
    }

    /// What a reply that claims to be complete has made of a request that ends
    /// at `end`.
    #[inline]
    pub(crate) fn judge(mut self, end: u64, length: u64) -> Judgement {
        self.jump(end);
        if self.received < length {
            Judgement::Incomplete
        } else if self.jumps != 0 {
            Judgement::Overlap
        } else {
            Judgement::Complete
        }
    }

    fn jump(&mut self, to: u64) {
        if to != self.frontier {
            self.jumps = self
                .jumps
                .wrapping_add(hash(self.frontier))
                .wrapping_sub(hash(to));
        }
    }
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    Complete,
    Incomplete,
    Overlap,
}

/// Spreads a place over 64 bits: two rounds of multiplication and shift, each
/// of which can be undone, so that no two places share a hash.
fn hash(place: u64) -> u64 {
    let place = place ^ 0x9d1c_53a8_6b0f_27e5;
    let place = (place ^ (place >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let place = (place ^ (place >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    place ^ (place >> 32)
}
