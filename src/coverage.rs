//! Whether the chunks of a read cover it exactly; both roles ask.

use core::fmt;

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
/// The other direction holds only as far as the hash does. To a peer that does
/// not know the seed, the hashes are random numbers below the prime
/// [`MODULUS`], and so is every sum of them that is not zero for all seeds: it
/// is zero with a probability of 2^-61, also where a boundary is counted many
/// times. A peer that knows the seed can search for such a sum.
///
/// Positions are bytes from the start of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Bytes of content so far.
    received: u64,
    /// Where the last content chunk ended.
    frontier: u64,
    /// Hashes of where chunks ended less hashes of where chunks began, modulo
    /// [`MODULUS`].
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
    pub(crate) fn add(&mut self, from: u64, length: u64, whole: u64, seed: &mut Seed) -> bool {
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

    /// Whether a request of `whole` bytes is covered.
    #[inline]
    pub(crate) fn outcome(mut self, whole: u64, seed: &mut Seed) -> Outcome {
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
    fn jump(&mut self, to: u64, seed: &mut Seed) {
        if to != self.frontier {
            self.jumps = add_jump(self.jumps, self.frontier, to, seed);
        }
    }
}

/// The key of the hash. A server must not learn it, so `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    word: u64,
    /// The word was not given, and is drawn for the first hash: most sessions
    /// need none.
    #[cfg(feature = "std")]
    unset: bool,
}

impl Seed {
    /// A seed where the caller gives none: random, from where std has the keys of
    /// its hash maps. Without an operating system there is no randomness to draw
    /// from.
    pub(crate) const fn new() -> Self {
        Self {
            word: 0,
            #[cfg(feature = "std")]
            unset: true,
        }
    }

    pub(crate) const fn given(word: u64) -> Self {
        Self {
            word,
            #[cfg(feature = "std")]
            unset: false,
        }
    }

    pub(crate) fn word(&mut self) -> u64 {
        #[cfg(feature = "std")]
        if self.unset {
            use std::hash::{BuildHasher, RandomState};
            *self = Self::given(RandomState::new().hash_one(()));
        }
        self.word
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// The sums are modulo a prime: no number of chunks below it, counted together,
/// makes a hash disappear from the sum.
const MODULUS: u64 = (1 << 61) - 1;

/// Adds a jump to a sum of them.
#[cold]
fn add_jump(jumps: u64, from: u64, to: u64, seed: &mut Seed) -> u64 {
    let seed = seed.word();
    // Each is at most the modulus, so the sum has 63 bits.
    let sum = jumps.wrapping_add(hash(from, seed));
    let sum = sum.wrapping_add(MODULUS.wrapping_sub(hash(to, seed)));
    let sum = (sum & MODULUS).wrapping_add(sum >> 61);
    match sum.checked_sub(MODULUS) {
        Some(less) => less,
        None => sum,
    }
}

/// How far a read is covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    Incomplete,
    Overlap,
}

/// SipHash-1-3 of one word, without its length, in 61 bits. The key is the seed
/// and a number made of it.
#[inline(never)]
fn hash(position: u64, seed: u64) -> u64 {
    let second = seed.wrapping_mul(0xd6e8_feb8_6659_fd93).swap_bytes();
    // The constants of SipHash.
    let state = [
        seed ^ 0x736f_6d65_7073_6575,
        second ^ 0x646f_7261_6e64_6f6d,
        seed ^ 0x6c79_6765_6e65_7261,
        second ^ 0x7465_6462_7974_6573 ^ position,
    ];
    let [a, b, c, d] = round(state);
    let state = [a ^ position, b, c ^ 0xff, d];
    let [a, b, c, d] = (0..3).fold(state, |state, _| round(state));
    (a ^ b ^ c ^ d) & MODULUS
}

fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}
