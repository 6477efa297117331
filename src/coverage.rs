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
///
/// Places are bytes from the start of the request.
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
    /// Nothing.
    pub(crate) const NONE: Self = Self {
        received: 0,
        frontier: 0,
        jumps: 0,
    };

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// Adds a chunk of `length` bytes that begins at `from` and lies within
    /// the request of `whole` bytes; false if it cannot but overlap an earlier
    /// one.
    #[must_use]
    #[inline]
    pub(crate) fn add(&mut self, from: u64, length: u64, whole: u64) -> bool {
        self.jump(from);
        self.frontier = from.saturating_add(length);
        match self.received.checked_add(length) {
            Some(received) if received <= whole => {
                self.received = received;
                true
            }
            _ => false,
        }
    }

    /// Adds a chunk, if all came in order so far, and it comes next; otherwise
    /// nothing has changed, and it is for [`add`](Self::add) to judge.
    #[must_use]
    #[inline]
    pub(crate) fn follow(&mut self, from: u64, length: u64, whole: u64) -> bool {
        // The frontier lies within the request, and so does what it is equal to.
        let room = whole.wrapping_sub(from);
        if self.frontier != from || self.received != from || length == 0 || length > room {
            return false;
        }
        self.frontier = from.wrapping_add(length);
        self.received = self.frontier;
        true
    }

    /// Whether all came in order.
    #[inline]
    pub(crate) fn is_straight(&self, whole: u64) -> bool {
        self.received == whole && self.frontier == whole && self.jumps == 0
    }

    /// What a reply that claims to be complete has made of a request of
    /// `whole` bytes.
    #[inline]
    pub(crate) fn judge(mut self, whole: u64) -> Judgement {
        self.jump(whole);
        if self.received < whole {
            Judgement::Incomplete
        } else if self.jumps != 0 {
            Judgement::Overlap
        } else {
            Judgement::Complete
        }
    }

    #[inline]
    fn jump(&mut self, to: u64) {
        if to != self.frontier {
            self.jumps = leap(self.jumps, self.frontier, to);
        }
    }
}

/// Adds a jump to a sum of them.
#[cold]
fn leap(jumps: u64, from: u64, to: u64) -> u64 {
    jumps.wrapping_add(hash(from)).wrapping_sub(hash(to))
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
