//! No payload byte is copied: what a machine delivers lies in the caller's
//! input, what it makes is headers, and what is read directly never passes it.
//!
//! Nothing is allocated meanwhile, and the sizes of the machines are known
//! (`tests/sizes.rs`): there is no third place for a payload to be.

use nbd_codec::wire::Sink;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Framing, Negotiated};

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// Payloads in bytes, one block and the longest that every server takes; and
/// how much a driver takes from its connection at a time.
const CASES: [(usize, [usize; 3]); 2] = [
    (4 << 10, [13, 1_001, usize::MAX]),
    (32 << 20, [10_007, 64 << 10, usize::MAX]),
];

/// How a payload comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Offered to the machine like everything else.
    Events,
    /// Read directly, as `need` says.
    Direct,
}

const WAYS: [Way; 2] = [Way::Events, Way::Direct];

/// Where the bytes of a command were, as the machine's caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Bytes the machine consumed out of its input.
    pub consumed: usize,
    /// Bytes of payload in events, in place in the input they came with.
    pub in_place: usize,
    /// Bytes of payload in events that are anywhere else.
    pub copied: usize,
    /// Bytes of payload the machine was only told of.
    pub direct: usize,
    /// Bytes the machine made.
    pub made: usize,
}

impl Ledger {
    /// An event of a call that took `consumed` off the front of its input
    /// brought `data`, which is the last of it.
    pub fn deliver(&mut self, data: &[u8], consumed: &[u8]) {
        let place = consumed.len().checked_sub(data.len());
        match place.and_then(|at| consumed.get(at..)) {
            Some(place) if std::ptr::eq(place, data) => self.in_place += data.len(),
            _ => self.copied += data.len(),
        }
    }
}

/// A sink that only counts.
#[derive(Debug, Default)]
pub struct Counting(pub usize);

impl Sink for Counting {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// An export that takes payloads of 32 MiB in one chunk.
pub fn export(framing: Framing) -> Negotiated {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FUA;
    let mut negotiated = Negotiated::new(framing, 1 << 40, flags);
    let mut sizes = negotiated.constraints();
    sizes.maximum = 1 << 26;
    negotiated.block_sizes = Some(sizes);
    negotiated
}

/// Runs `check` for every framing, length, piece and way.
pub fn every(check: impl Fn(Framing, usize, usize, Way)) {
    for framing in FRAMINGS {
        for (length, pieces) in CASES {
            for piece in pieces {
                for way in WAYS {
                    check(framing, length, piece, way);
                }
            }
        }
    }
}

/// The counter tells a copy from the original, and a stray slice from one in
/// its place.
#[test]
fn the_ledger_tells_copies() {
    let input = [7; 32];
    let copy = input.to_vec();
    let mut ledger = Ledger::default();
    ledger.deliver(&input[16..24], &input[..24]);
    ledger.deliver(&copy[16..24], &input[..24]);
    ledger.deliver(&input[8..16], &input[..24]);
    assert_eq!((ledger.in_place, ledger.copied), (8, 16));
}
