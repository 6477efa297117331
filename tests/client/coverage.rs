//! A read in pieces is complete if and only if each byte came exactly once.

use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::{Error, Framing, Limits, Step, Violation};
use proptest::prelude::*;
use proptest::sample::Index;

use super::machines::export;

const OFFSET: u64 = 4096;

/// A piece of a read: where it begins and how long it is.
type Piece = (u64, u64);

/// Replies to a read of `length` bytes, with a seed for the hash. Pieces of odd
/// length are holes, the others data.
fn reply(length: u64, pieces: &[Piece], framing: Framing, seed: u64) -> Result<(), Error> {
    let mut machine =
        Transmission::new(export(framing), [Slot::EMPTY; 1], Limits::DEFAULT).with_seed(seed);
    let header = machine.submit(Request::read(OFFSET, length)).unwrap();
    let mut bytes = Vec::new();
    let mut chunk = |kind: u16, done: u16, payload: &[u8]| {
        bytes.extend(match framing {
            Framing::Extended => 0x6e8a_278c_u32.to_be_bytes(),
            _ => 0x668e_33ef_u32.to_be_bytes(),
        });
        bytes.extend(done.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(header.cookie().0.to_be_bytes());
        if framing == Framing::Extended {
            bytes.extend(OFFSET.to_be_bytes());
            bytes.extend(0u32.to_be_bytes());
        }
        bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
    };
    for (begin, length) in pieces {
        let mut payload = (OFFSET + begin).to_be_bytes().to_vec();
        if length % 2 == 0 {
            payload.resize(payload.len() + usize::try_from(*length).unwrap(), 7);
            chunk(1, 0, &payload);
        } else {
            payload.extend(u32::try_from(*length).unwrap().to_be_bytes());
            chunk(2, 0, &payload);
        }
    }
    chunk(0, 1, &[]);
    let mut input = bytes.as_slice();
    let mut seen = 0;
    loop {
        match machine.receive(&mut input)? {
            Step::Content(_) => seen += 1,
            Step::Event(TransmissionEvent::Done { result, .. }) => {
                assert_eq!(result, Ok(()));
                assert_eq!(seen, pieces.len());
                assert_eq!(machine.in_flight(), 0);
                return Ok(());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A partition of `0..length` in random order.
fn partition() -> impl Strategy<Value = (u64, Vec<Piece>)> {
    let cuts = prop::collection::btree_set(1u64..100_000, 0..40);
    (1u64..100_000, cuts)
        .prop_map(|(length, cuts)| {
            let mut begin = 0;
            let mut pieces = Vec::new();
            for end in cuts.into_iter().filter(|cut| *cut < length).chain([length]) {
                pieces.push((begin, end - begin));
                begin = end;
            }
            (length, pieces)
        })
        .prop_flat_map(|(length, pieces)| (Just(length), Just(pieces).prop_shuffle()))
}

/// One fault of a partition.
#[derive(Debug, Clone)]
enum Fault {
    Missing(Index),
    Twice(Index),
    /// A piece in the place of another one, as far as both lengths allow.
    Moved(Index, u64),
    Longer(Index, u64),
    Shorter(Index, u64),
    /// One piece missing, and another one of the same length twice.
    Instead(Index, Index),
    /// Part of a piece again.
    Again(Index, u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    let at = any::<Index>;
    let by = || 1u64..5000;
    prop_oneof![
        at().prop_map(Fault::Missing),
        at().prop_map(Fault::Twice),
        (at(), by()).prop_map(|(at, by)| Fault::Moved(at, by)),
        (at(), by()).prop_map(|(at, by)| Fault::Longer(at, by)),
        (at(), by()).prop_map(|(at, by)| Fault::Shorter(at, by)),
        (at(), at()).prop_map(|(gone, twice)| Fault::Instead(gone, twice)),
        (at(), by()).prop_map(|(at, by)| Fault::Again(at, by)),
    ]
}

/// Whether each byte is there once, by sorting.
fn is_partition(length: u64, pieces: &[Piece]) -> bool {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable();
    let mut at = 0;
    for (begin, piece) in sorted {
        if begin != at || piece == 0 {
            return false;
        }
        at += piece;
    }
    at == length
}

fn inject(pieces: &mut Vec<Piece>, length: u64, fault: Fault) {
    let n = pieces.len();
    match fault {
        Fault::Missing(at) => {
            pieces.swap_remove(at.index(n));
        }
        Fault::Twice(at) => {
            let piece = pieces[at.index(n)];
            pieces.push(piece);
        }
        Fault::Moved(at, by) => {
            let piece = &mut pieces[at.index(n)];
            piece.0 = (piece.0 + by) % (length - piece.1 + 1);
        }
        Fault::Longer(at, by) => {
            let piece = &mut pieces[at.index(n)];
            piece.1 = (piece.1 + by).min(length - piece.0);
        }
        Fault::Shorter(at, by) => {
            let piece = &mut pieces[at.index(n)];
            piece.1 = piece.1.saturating_sub(by).max(1);
        }
        Fault::Instead(gone, twice) => {
            let (begin, _) = pieces[twice.index(n)];
            let piece = &mut pieces[gone.index(n)];
            piece.0 = begin.min(length - piece.1);
        }
        Fault::Again(at, by) => {
            let (begin, piece) = pieces[at.index(n)];
            pieces.push((begin, by.min(piece)));
        }
    }
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Structured), Just(Framing::Extended)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn any_partition_in_any_order_is_complete(
        (length, pieces) in partition(),
        framing in framing(),
        seed in any::<u64>(),
    ) {
        prop_assert_eq!(reply(length, &pieces, framing, seed), Ok(()));
    }

    #[test]
    fn any_fault_is_caught(
        (length, mut pieces) in partition(),
        faults in prop::collection::vec(fault(), 1..3),
        framing in framing(),
        seed in any::<u64>(),
    ) {
        for fault in faults {
            if !pieces.is_empty() {
                inject(&mut pieces, length, fault);
            }
        }
        let got = reply(length, &pieces, framing, seed);
        let total: u64 = pieces.iter().map(|(_, length)| length).sum();
        if is_partition(length, &pieces) {
            prop_assert_eq!(got, Ok(()));
        } else if total < length {
            let short = matches!(got, Err(Error::Violation(Violation::Incomplete(_))));
            prop_assert!(short, "{:?}", got);
        } else {
            let twice = matches!(got, Err(Error::Violation(Violation::Overlap(_))));
            prop_assert!(twice, "{:?}", got);
        }
    }
}

/// Every reply to a read of four bytes with up to four pieces.
#[test]
fn every_reply_to_a_small_read() {
    const LENGTH: u64 = 4;
    let all: Vec<Piece> = (0..LENGTH)
        .flat_map(|begin| (1..=LENGTH - begin).map(move |length| (begin, length)))
        .collect();
    let mut replies: Vec<Vec<Piece>> = vec![vec![]];
    let (mut complete, mut broken) = (0, 0);
    for _ in 0..=4 {
        for pieces in &replies {
            let good = is_partition(LENGTH, pieces);
            let got = reply(LENGTH, pieces, Framing::Structured, 0);
            assert_eq!(got.is_ok(), good, "{pieces:?}: {got:?}");
            if good {
                complete += 1;
            } else {
                broken += 1;
            }
        }
        let longer = |pieces: &Vec<Piece>| {
            let pieces = pieces.clone();
            all.iter().map(move |piece| {
                let mut pieces = pieces.clone();
                pieces.push(*piece);
                pieces
            })
        };
        replies = replies.iter().flat_map(longer).collect();
    }
    // 1 whole, 3 pairs in 2 orders, 3 triples in 6, 1 of four in 24.
    assert_eq!(complete, 1 + 3 * 2 + 3 * 6 + 24);
    assert_eq!(broken, 1 + 10 + 100 + 1000 + 10_000 - complete);
}
