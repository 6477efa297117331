//! A read in pieces is complete if and only if each byte came exactly once.

use std::collections::HashMap;

use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::{Error, Framing, Limits, Step, Violation};
use proptest::prelude::*;
use proptest::sample::Index;

use super::machines::export;

const OFFSET: u64 = 4096;

/// A piece of a read: where it begins and how long it is.
type Piece = (u64, u64);

/// Replies to a read of `length` bytes, with a seed for the hash; returns its first
/// fault. Pieces of odd length are holes, the others data.
fn reply(length: u64, pieces: &[Piece], framing: Framing, seed: u64) -> Result<(), Error> {
    let mut export = export(framing);
    export.size = 1 << 30;
    let mut machine = Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT).with_seed(seed);
    let mut fault = None;
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
            Step::Event(TransmissionEvent::Fault { error, .. }) => {
                let _ = fault.get_or_insert(error);
            }
            Step::Event(TransmissionEvent::Done { result, .. }) => {
                assert_eq!(result.is_ok(), fault.is_none());
                assert!(seen == pieces.len() || fault.is_some());
                assert_eq!(machine.in_flight(), 0);
                return fault.map_or(Ok(()), Err);
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

/// A forged read: its length in bytes, and the number of its chunks.
const FORGED: u64 = 1 << 25;
const PIECES: usize = 16;

/// The hash of positions that this crate had at first. Without a seed it is known
/// to everyone.
fn first_hash(position: u64) -> u64 {
    let mix = |word: u64| {
        let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word ^ (word >> 32)
    };
    let key = mix(0x9d1c_53a8_6b0f_27e5);
    mix(mix(position).wrapping_add(key) ^ key.rotate_left(32))
}

/// Where pieces begin less where they end, by the first hash: zero for a read that
/// was taken to be complete.
fn first_sum(pieces: &[Piece]) -> u64 {
    let ends = first_hash(FORGED).wrapping_sub(first_hash(0));
    pieces.iter().fold(ends, |sum, (begin, length)| {
        let piece = first_hash(*begin).wrapping_sub(first_hash(begin + length));
        sum.wrapping_add(piece)
    })
}

/// The lengths of pieces are fixed: odd, as those of holes here, and together as
/// long as the read.
fn length_of(piece: usize) -> u64 {
    let length = FORGED / PIECES as u64;
    if piece.is_multiple_of(2) {
        length - 1
    } else {
        length + 1
    }
}

/// What a server sends that does not know the seed: pieces of the right length
/// anywhere in the read.
fn random_pieces(state: &mut u64) -> Vec<Piece> {
    let piece = |n| (random(state) % (FORGED - length_of(n)), length_of(n));
    (0..PIECES).map(piece).collect()
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ (word >> 31)
}

/// Some of the pieces, by where each begins, and the sum of their hashes.
type Partial = (u64, Vec<u64>);

/// Sums of one from each list whose lowest `bits` are zero.
fn join(left: &[Partial], right: &[Partial], bits: u32) -> Vec<Partial> {
    let mask = u64::MAX >> (64 - bits);
    let mut by_sum: HashMap<u64, Vec<&Partial>> = HashMap::new();
    for partial in right {
        by_sum.entry(partial.0 & mask).or_default().push(partial);
    }
    let mut joined = Vec::new();
    for (sum, begins) in left {
        let fitting = by_sum.get(&(sum.wrapping_neg() & mask));
        for (other, others) in fitting.into_iter().flatten() {
            joined.push((sum.wrapping_add(*other), [&begins[..], others].concat()));
        }
    }
    joined
}

/// The generalised birthday problem: in four rounds, each of which makes 13 more
/// bits of the sums zero, and the last one the rest.
fn search(state: &mut u64) -> Option<Vec<Piece>> {
    const SIZE: usize = 1 << 13;
    let mut lists: Vec<Vec<Partial>> = (0..PIECES)
        .map(|piece| {
            let length = length_of(piece);
            let partial = |_| {
                let begin = random(state) % (FORGED - length);
                let sum = first_hash(begin).wrapping_sub(first_hash(begin + length));
                (sum, vec![begin])
            };
            (0..SIZE).map(partial).collect()
        })
        .collect();
    let ends = first_sum(&[]);
    for (sum, _) in &mut lists[0] {
        *sum = sum.wrapping_add(ends);
    }
    for bits in [13, 26, 39, 64] {
        lists = lists
            .chunks(2)
            .map(|pair| join(&pair[0], &pair[1], bits))
            .collect();
    }
    let (_, begins) = lists.pop()?.pop()?;
    let lengths = (0..PIECES).map(length_of);
    Some(begins.into_iter().zip(lengths).collect())
}

/// A server could compute the first hash, and a search of a second found pieces
/// that leave a part of the read uncovered and hash to zero. The same search does
/// not help a server that does not know the seed, whatever the seed is.
#[test]
fn pieces_that_hash_to_zero_are_not_found_without_the_seed() {
    let mut state = 1;
    let forged = (0..10)
        .find_map(|_| search(&mut state))
        .expect("a sum of zero");
    assert_eq!(first_sum(&forged), 0);
    assert!(!is_partition(FORGED, &forged));
    for seed in 0..100 {
        for framing in [Framing::Structured, Framing::Extended] {
            let got = reply(FORGED, &forged, framing, seed);
            let caught = matches!(got, Err(Error::Violation(Violation::Overlap(_))));
            assert!(caught, "{seed}: {got:?}");
        }
    }
    // As many attempts as the search has numbers in a list.
    for attempt in 0..1 << 13 {
        let pieces = random_pieces(&mut state);
        let got = reply(FORGED, &pieces, Framing::Structured, attempt);
        let caught = matches!(got, Err(Error::Violation(Violation::Overlap(_))));
        assert!(caught, "{attempt}: {got:?}");
    }
}
