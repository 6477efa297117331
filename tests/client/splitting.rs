//! `Negotiated::split`: long requests as several that the server accepts.

use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::wire::flags::CommandFlags as F;
use nbd_codec::{Framing, Limits, Misuse, Negotiated};
use proptest::prelude::*;

use super::machines::{export, request, with_block_sizes};

/// Offsets and lengths of the requests that one is split into.
fn split(export: &Negotiated, line: &str) -> Vec<(u64, u64)> {
    let pieces = export.split(request(line).0);
    pieces.map(|piece| (piece.offset, piece.length)).collect()
}

/// Reads and writes are split by the maximum payload, with every framing.
#[test]
fn by_the_maximum_payload() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let small = with_block_sizes(framing, 512, 4096);
        for command in ["READ", "WRITE"] {
            for (range, pieces) in [
                ("0 512", vec![(0, 512)]),
                ("512 4K", vec![(512, 4096)]),
                ("512 4608", vec![(512, 4096), (4608, 512)]),
                ("0 8K", vec![(0, 4096), (4096, 4096)]),
            ] {
                assert_eq!(split(&small, &format!("{command} {range}")), pieces);
            }
            // Without block sizes: 32 MiB.
            let default = split(&export(framing), &format!("{command} 0 64M"));
            assert_eq!(default, [(0, 32 << 20), (32 << 20, 32 << 20)]);
        }
    }
}

/// A maximum that is no multiple of the minimum: the pieces are.
#[test]
fn by_whole_blocks() {
    let mut export = with_block_sizes(Framing::Extended, 512, 1_000_000);
    export.size = 1 << 40;
    let pieces = split(&export, "READ 0 2M");
    assert!(pieces.iter().all(|(_, length)| length % 512 == 0));
    assert_eq!(pieces[0], (0, 999_936));
    assert_eq!(pieces.len(), 3);
}

/// Commands without payload are split where 32 bits cannot express the length.
#[test]
fn by_the_width_of_the_length() {
    for command in ["TRIM", "CACHE", "WRITE_ZEROES", "STATUS"] {
        for framing in [Framing::Simple, Framing::Structured] {
            let export = with_block_sizes(framing, 4096, 1 << 20);
            let most = (1 << 32) - 4096;
            assert_eq!(
                split(&export, &format!("{command} 0 5G")),
                [(0, most), (most, (5 << 30) - most)]
            );
        }
        let extended = export(Framing::Extended);
        let whole = split(&extended, &format!("{command} 4096 2^63"));
        assert_eq!(whole, [(4096, 1 << 63)]);
    }
}

/// Flags and command are those of the request; a request without a range is one
/// piece.
#[test]
fn what_each_piece_is() {
    let export = with_block_sizes(Framing::Simple, 1, 4096);
    for (line, count) in [
        ("WRITE 0 1M FUA", 256),
        ("FLUSH", 1),
        ("RESIZE 2M", 1),
        ("READ 0 0", 1),
    ] {
        let (whole, _) = request(line);
        let pieces: Vec<Request> = export.split(whole).collect();
        assert_eq!(pieces.len(), count, "{line}");
        for piece in pieces {
            assert_eq!((piece.command, piece.flags), (whole.command, whole.flags));
        }
    }
    let mut pieces = export.split(Request::flush().with_flags(F::FUA));
    assert_eq!(pieces.next(), Some(Request::flush().with_flags(F::FUA)));
    assert_eq!((pieces.next(), pieces.next()), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// The pieces cover the range in order, without gaps, and the server accepts
    /// each of them.
    #[test]
    fn every_piece_is_accepted(
        framing in prop_oneof![
            Just(Framing::Simple),
            Just(Framing::Structured),
            Just(Framing::Extended),
        ],
        shift in 0u32..16,
        maximum in 65_536u32..1_000_000,
        blocks in (0u64..1 << 12, 1u64..1 << 6),
        scale in 0u32..24,
        command in prop_oneof![
            Just("READ"), Just("WRITE"), Just("TRIM"), Just("CACHE"), Just("WRITE_ZEROES"),
        ],
    ) {
        let minimum = 1 << shift;
        let mut export = with_block_sizes(framing, minimum, maximum);
        export.size = u64::MAX;
        let payload = command == "READ" || command == "WRITE";
        // Long requests for commands without payload.
        let length = if payload { blocks.1 * u64::from(minimum) } else { (blocks.1 * u64::from(minimum)) << scale };
        let offset = blocks.0 * u64::from(minimum);
        let whole = Request { offset, length, ..request(&format!("{command} 0 0")).0 };
        prop_assert_ne!(export.check(&whole), Err(Misuse::Misaligned { minimum }));
        let mut machine = Transmission::new(export, vec![Slot::EMPTY; 1 << 12], Limits::DEFAULT);
        let mut at = offset;
        for piece in export.split(whole) {
            prop_assert_eq!(piece.offset, at);
            prop_assert_eq!(export.check(&piece), Ok(()));
            prop_assert!(machine.submit(piece).is_ok());
            at += piece.length;
        }
        prop_assert_eq!(at, offset + length);
        // A request that is accepted is not split.
        if export.check(&whole) == Ok(()) {
            prop_assert_eq!(export.split(whole).count(), 1);
        }
    }
}
