//! Whether the chunks of a read cover it exactly; both roles ask.

/// Which part of a read has arrived, in constant memory.
///
/// Content chunks may come in any order and any number, so the parts that have
/// arrived cannot be listed in memory of fixed size. Chunks within the request
/// cover each byte of it exactly once if and only if every boundary at which a
/// chunk begins is one at which another chunk (or nothing, at the start) ends.
/// So each jump, where a chunk does not begin where the one before it ended,
/// adds the hash of the one boundary and subtracts the hash of the other. When
/// every byte is covered once, what was added and subtracted is the same, and
/// the sum is zero. Replies in order never hash.
///
/// The other direction holds only as far as the hash does: a peer that can
/// compute it can search for chunks whose sum is zero by chance. The caller's
/// seed keeps a malicious peer from computing it.
///
/// Positions are bytes from the start of the request.
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

    /// Adds a chunk of `length` bytes that begins at `from` and is within the
    /// request of `whole` bytes; false if the chunks so far must overlap.
    #[must_use]
    #[inline]
    pub(crate) fn add(&mut self, from: u64, length: u64, whole: u64, seed: u64) -> bool {
        self.jump(from, seed);
        self.frontier = from.saturating_add(length);
        match self.received.checked_add(length) {
            Some(received) if received <= whole => {
                self.received = received;
                true
            }
            _ => false,
        }
    }

    /// Fast path of [`add`](Self::add): adds a chunk, if all came in order so
    /// far and this one comes next; otherwise nothing has changed.
    #[must_use]
    #[inline]
    pub(crate) fn follow(&mut self, from: u64, length: u64, whole: u64) -> bool {
        // The frontier is within the request, and so is what equals it.
        let room = whole.wrapping_sub(from);
        if self.frontier != from || self.received != from || length == 0 || length > room {
            return false;
        }
        self.frontier = from.wrapping_add(length);
        self.received = self.frontier;
        true
    }

    /// Fast path of [`outcome`](Self::outcome): whether all came, in order.
    #[inline]
    pub(crate) fn is_in_order(&self, whole: u64) -> bool {
        self.received == whole && self.frontier == whole && self.jumps == 0
    }

    /// Whether a request of `whole` bytes is covered.
    #[inline]
    pub(crate) fn outcome(mut self, whole: u64, seed: u64) -> Outcome {
        self.jump(whole, seed);
        if self.received < whole {
            Outcome::Incomplete
        } else if self.jumps != 0 {
            Outcome::Overlap
        } else {
            Outcome::Complete
        }
    }

    #[inline]
    fn jump(&mut self, to: u64, seed: u64) {
        if to != self.frontier {
            self.jumps = add_jump(self.jumps, self.frontier, to, seed);
        }
    }
}

/// Adds a jump to a sum of them.
#[cold]
fn add_jump(jumps: u64, from: u64, to: u64, seed: u64) -> u64 {
    let (from, to) = (hash(from, seed), hash(to, seed));
    jumps.wrapping_add(from).wrapping_sub(to)
}

/// How far a read is covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    Incomplete,
    Overlap,
}

/// Spreads a position over 64 bits: rounds of multiplication and shift, each of
/// which can be undone, so that no two positions share a hash. The seed enters
/// between the rounds as well as before the first.
fn hash(position: u64, seed: u64) -> u64 {
    let key = mix(seed ^ 0x9d1c_53a8_6b0f_27e5);
    mix(mix(position ^ seed).wrapping_add(key) ^ key.rotate_left(32))
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ (word >> 32)
}
