//! No payload byte is copied: the state machine delivers slices of the caller's
//! input and makes headers, and payload that is read directly never passes it.
//!
//! It does not allocate either, and its size is known (`tests/sizes.rs`): a copy
//! of the payload would have no place.

use nbd_codec::inbox::Inbox;
use nbd_codec::wire::Sink;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Content, Framing, Negotiated, Receive, Step};

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// Payloads in bytes, one block and the longest that every server accepts; and
/// how many bytes a driver reads at a time.
const CASES: [(usize, [usize; 3]); 2] = [
    (4 << 10, [13, 1_001, usize::MAX]),
    (32 << 20, [10_007, 64 << 10, usize::MAX]),
];

/// How a payload is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Offered to the state machine, which delivers it.
    Content,
    /// The same, through an `Inbox`.
    Inbox,
    /// Read directly, as `Step::ReadPayload` says.
    Direct,
}

const WAYS: [Way; 3] = [Way::Content, Way::Inbox, Way::Direct];

/// Where the bytes of a command were, from the caller's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Bytes that the state machine consumed from its input.
    pub consumed: usize,
    /// Bytes of content that are slices of the input.
    pub in_place: usize,
    /// Bytes of content that are anywhere else.
    pub copied: usize,
    /// Bytes of payload that were read directly.
    pub direct: usize,
    /// Bytes that the state machine made.
    pub made: usize,
}

impl Ledger {
    /// Notes `data` from a call that consumed `consumed`, which ends with it.
    pub fn deliver(&mut self, data: &[u8], consumed: &[u8]) {
        let place = consumed.len().checked_sub(data.len());
        match place.and_then(|at| consumed.get(at..)) {
            Some(place) if std::ptr::eq(place, data) => self.in_place += data.len(),
            _ => self.copied += data.len(),
        }
    }
}

/// A sink that only counts bytes.
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

/// Receives `wire`, at most `piece` bytes at a time (but a whole header, if that
/// is longer), until `act` returns a result for an event, which is the last.
pub fn receive<M: Receive, T>(
    machine: &mut M,
    wire: &[u8],
    piece: usize,
    way: Way,
    ledger: &mut Ledger,
    mut act: impl FnMut(M::Event<'_>) -> Option<T>,
) -> T {
    if way == Way::Inbox {
        return receive_through_inbox(machine, wire, piece, ledger, act);
    }
    let (mut at, mut n) = (0, 0);
    loop {
        let offered = &wire[at..][..n.min(wire.len() - at)];
        let mut input = offered;
        let step = machine.receive(&mut input).unwrap();
        let consumed = &offered[..offered.len() - input.len()];
        ledger.consumed += consumed.len();
        at += consumed.len();
        n = match step {
            Step::Event(event) => match act(event) {
                Some(result) => {
                    assert_eq!(at, wire.len());
                    return result;
                }
                None => 0,
            },
            Step::Content(Content::Data { data, .. }) => {
                ledger.deliver(data, consumed);
                0
            }
            // No more than the header: the driver reads the payload.
            Step::Read(n) if way == Way::Direct => input.len() + n.get(),
            Step::Read(n) => piece.max(input.len() + n.get()),
            Step::ReadPayload { length, .. } if way == Way::Direct => {
                let taken = piece.min(usize::try_from(length).unwrap());
                machine.advance(taken as u64).unwrap();
                ledger.direct += taken;
                at += taken;
                0
            }
            Step::ReadPayload { .. } => piece,
            _ => panic!("at {at} of {}", wire.len()),
        };
    }
}

/// The same with an `Inbox`: content is slices of its buffer.
fn receive_through_inbox<M: Receive, T>(
    machine: &mut M,
    mut wire: &[u8],
    piece: usize,
    ledger: &mut Ledger,
    mut act: impl FnMut(M::Event<'_>) -> Option<T>,
) -> T {
    let mut inbox = Inbox::new([0; 16 << 10]);
    loop {
        let missing = {
            let held = inbox.held();
            let step = inbox.receive(machine).unwrap();
            let consumed = &held[..held.len() - inbox.held().len()];
            ledger.consumed += consumed.len();
            let missing = step.read_limit();
            match step {
                Step::Event(event) => {
                    if let Some(result) = act(event) {
                        assert!(wire.is_empty() && inbox.held().is_empty());
                        return result;
                    }
                }
                Step::Content(Content::Data { data, .. }) => ledger.deliver(data, consumed),
                _ => assert!(missing.is_some(), "{} bytes left", wire.len()),
            }
            missing
        };
        if let Some(missing) = missing {
            let space = inbox.space();
            let n = space.len().min(piece.max(missing.get().min(32)));
            let n = n.min(wire.len());
            let (read, after) = wire.split_at(n);
            space[..n].copy_from_slice(read);
            inbox.filled(n).unwrap();
            wire = after;
        }
    }
}

/// The ledger tells a copy from the original, and another slice of the input
/// from the right one.
#[test]
fn ledger_detects_copies() {
    let input = [7; 32];
    let copy = input.to_vec();
    let mut ledger = Ledger::default();
    ledger.deliver(&input[16..24], &input[..24]);
    ledger.deliver(&copy[16..24], &input[..24]);
    ledger.deliver(&input[8..16], &input[..24]);
    assert_eq!((ledger.in_place, ledger.copied), (8, 16));
}
