//! Block status descriptors, narrow and wide.

use std::ops::Range;

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64, ExtentsExt, TooWide};

use crate::support::bytes;

const NARROW: [u32; 6] = [0, 1, 512, 1 << 31, u32::MAX - 1, u32::MAX];
const WIDE: [u64; 6] = [
    1 << 32,
    (1 << 32) + 512,
    1 << 33,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

#[test]
fn widening_keeps_every_bit() {
    for length in NARROW {
        for flags in NARROW {
            let wide = Extent64::from(Extent32 { length, flags });
            assert_eq!((wide.length, wide.flags), (length.into(), flags.into()));
            assert_eq!(Extent32::try_from(wide), Ok(Extent32 { length, flags }));
        }
    }
}

/// A length of 2^32 becomes neither 0 nor 2^32 - 1, and flags above 32 bits are
/// not dropped.
#[test]
fn narrowing_fails_above_32_bits() {
    for wide in WIDE {
        for other in NARROW.map(u64::from).into_iter().chain(WIDE) {
            for (length, flags) in [(wide, other), (other, wide)] {
                let extent = Extent64 { length, flags };
                assert_eq!(Extent32::try_from(extent), Err(TooWide(extent)));
            }
        }
    }
    let refused = TooWide(Extent64 {
        length: 1 << 32,
        flags: 3,
    });
    assert_eq!(
        refused.to_string(),
        "the extent needs 64 bits: length 4294967296, flags 0x3"
    );
}

#[test]
fn narrow_descriptors() {
    for (transcript, length, flags) in [
        ("S: 0000_1000 0000_0003", 4096, 3),
        ("S: 0000_0000 0000_0000", 0, 0),
        ("S: ffff_ffff 8000_0000", u32::MAX, 1 << 31),
    ] {
        let (bytes, extent) = (bytes(transcript), Extent32 { length, flags });
        assert_eq!(Extent32::decode(bytes[..].try_into().unwrap()), extent);
        assert_eq!(extent.encode(), bytes[..]);
    }
    assert_eq!(Extent32::SIZE, 8);
}

#[test]
fn wide_descriptors() {
    for (transcript, length, flags) in [
        ("S: 00000000_00001000 00000000_00000003", 4096, 3),
        ("S: 00000000_00000000 00000000_00000000", 0, 0),
        (
            "S: ffffffff_ffffffff 80000000_00000001",
            u64::MAX,
            (1 << 63) + 1,
        ),
    ] {
        let (bytes, extent) = (bytes(transcript), Extent64 { length, flags });
        assert_eq!(Extent64::decode(bytes[..].try_into().unwrap()), extent);
        assert_eq!(extent.encode(), bytes[..]);
    }
    assert_eq!(Extent64::SIZE, 16);
}

/// The two widths are two types that behave the same.
macro_rules! lists {
    ($module:ident, $extent:ident, $extents:ident, $word:ident) => {
        mod $module {
            use super::*;

            fn wire(extents: &[($word, $word)]) -> Vec<u8> {
                let encode = |&(length, flags)| $extent { length, flags }.encode();
                extents.iter().flat_map(encode).collect()
            }

            fn pairs(extents: impl Iterator<Item = $extent>) -> Vec<($word, $word)> {
                extents.map(|extent| (extent.length, extent.flags)).collect()
            }

            fn total(extents: &[($word, $word)]) -> Result<u64, DecodeError> {
                $extents::split(&wire(extents)).0.total()
            }

            #[test]
            fn split_takes_whole_descriptors() {
                let bytes = wire(&[(1, 10), (2, 20), (3, 30)]);
                for n in 0..=bytes.len() {
                    let (extents, rest) = $extents::split(&bytes[..n]);
                    let whole = n / $extent::SIZE;
                    let end = whole * $extent::SIZE;
                    assert_eq!(extents.len(), whole);
                    assert_eq!(extents.is_empty(), whole == 0);
                    assert!(std::ptr::eq(extents.as_bytes(), &bytes[..end]));
                    assert!(std::ptr::eq(rest, &bytes[end..n]));
                }
            }

            #[test]
            fn the_iterator_knows_its_length() {
                let list = [(1, 10), (2, 20), (3, 30)];
                let bytes = wire(&list);
                let (mut extents, _) = $extents::split(&bytes);
                for (n, (length, flags)) in list.into_iter().enumerate() {
                    let left = list.len() - n;
                    assert_eq!(extents.len(), left);
                    assert_eq!(ExactSizeIterator::len(&extents), left);
                    assert_eq!(extents.size_hint(), (left, Some(left)));
                    let left_bytes = &bytes[n * $extent::SIZE..];
                    assert!(std::ptr::eq(extents.as_bytes(), left_bytes), "in place");
                    assert_eq!(extents.next(), Some($extent { length, flags }));
                }
                assert_eq!(extents.size_hint(), (0, Some(0)));
                assert!(extents.is_empty());
                assert_eq!((extents.next(), extents.next()), (None, None));
            }

            #[test]
            fn fold_equals_next() {
                let bytes = wire(&[(1, 10), (2, 20), (3, 30)]);
                let (mut extents, _) = $extents::split(&bytes);
                extents.next();
                let mut iterated = Vec::new();
                let mut rest = extents.clone();
                while let Some(extent) = rest.next() {
                    iterated.push(extent);
                }
                let mut folded = Vec::new();
                extents.for_each(|extent| folded.push(extent));
                assert_eq!(folded, iterated);
                assert_eq!(folded.len(), 2);
            }

            #[test]
            fn lists_compare_and_show_their_extents() {
                let (one, other) = (wire(&[(1, 10)]), wire(&[(1, 11)]));
                let copy = one.clone();
                let list = |bytes| $extents::split(bytes).0;
                assert_eq!(list(&one), list(&copy));
                assert_ne!(list(&one), list(&other));
                assert_ne!(list(&one), list(&[]));
                assert_eq!(
                    format!("{:?}", list(&one)),
                    concat!("[", stringify!($extent), " { length: 1, flags: 10 }]")
                );
            }

            #[test]
            fn the_total_of_all_lengths() {
                let max = $word::MAX;
                assert_eq!(total(&[]), Ok(0));
                assert_eq!(total(&[(1, 7)]), Ok(1));
                assert_eq!(total(&[(1, 0), (2, 0), (max - 3, 0)]), Ok(max.into()));
                let twice = u64::from(max).saturating_mul(2);
                assert_eq!(total(&[(max, 0), (max, 0)]), Ok(twice));
                assert_eq!(
                    total(&[(max, 0), (1, 0)]),
                    Ok(u64::from(max).saturating_add(1))
                );
            }

            type List<'t> = &'t [($word, $word)];

            #[test]
            #[rustfmt::skip]
            fn coalesce_joins_equal_neighbours() {
                const MAX: $word = $word::MAX;
                let table: [(&str, List<'_>, List<'_>); 9] = [
                    ("no extent", &[], &[]),
                    ("one", &[(5, 1)], &[(5, 1)]),
                    ("equal flags", &[(5, 1), (6, 1), (7, 1)], &[(18, 1)]),
                    ("other flags", &[(5, 1), (6, 2), (7, 1)], &[(5, 1), (6, 2), (7, 1)]),
                    ("two of three", &[(5, 1), (6, 2), (7, 2)], &[(5, 1), (13, 2)]),
                    ("as long as the field holds", &[(MAX - 1, 1), (1, 1)], &[(MAX, 1)]),
                    ("one byte longer", &[(MAX - 1, 1), (2, 1)], &[(MAX - 1, 1), (2, 1)]),
                    ("long ones", &[(MAX, 1), (MAX, 1)], &[(MAX, 1), (MAX, 1)]),
                    ("on after a full one", &[(MAX, 1), (1, 1), (2, 1)], &[(MAX, 1), (3, 1)]),
                ];
                for (name, extents, expected) in table {
                    let bytes = wire(extents);
                    let joined = $extents::split(&bytes).0.coalesce();
                    assert_eq!(pairs(joined), expected, "{name}");
                }
            }

            #[test]
            #[rustfmt::skip]
            fn clip_keeps_the_parts_inside_a_range() {
                const MAX: $word = $word::MAX;
                const END: u64 = u64::MAX;
                // Ranges end at 2^64 - 1, where the longest wide extent ends.
                let after_longest: &[_] = if u64::from(MAX) == END { &[] } else { &[(9, 1), (9, 2)] };
                let three = [(10, 1), (20, 2), (30, 3)]; // bytes 100..110, 110..130, 130..160
                let table: [(&str, List<'_>, u64, Range<u64>, List<'_>); 17] = [
                    ("no extent", &[], 100, 0..1000, &[]),
                    ("all of them", &three, 100, 100..160, &three),
                    ("a larger range", &three, 100, 0..1000, &three),
                    ("an end inside", &three, 100, 100..115, &[(10, 1), (5, 2)]),
                    ("an end between", &three, 100, 100..110, &[(10, 1)]),
                    ("a start inside", &three, 100, 125..160, &[(5, 2), (30, 3)]),
                    ("a start between", &three, 100, 130..160, &[(30, 3)]),
                    ("inside one", &three, 100, 111..112, &[(1, 2)]),
                    ("before", &three, 100, 0..100, &[]),
                    ("after", &three, 100, 160..1000, &[]),
                    ("no byte", &three, 100, 115..115, &[]),
                    ("an empty extent", &[(10, 1), (0, 2), (10, 3)], 0, 0..20, &[(10, 1), (10, 3)]),
                    ("the longest", &[(MAX, 1)], 0, 1..MAX.into(), &[(MAX - 1, 1)]),
                    ("past the longest", &[(MAX, 1), (9, 2)], 9, u64::from(MAX)..END, after_longest),
                    ("up to 2^64 - 1", &[(9, 1)], END - 9, END - 5..END, &[(5, 1)]),
                    ("past 2^64 - 1", &[(9, 1), (9, 2)], END - 5, 0..END, &[(5, 1)]),
                    ("from 2^64 - 1", &[(9, 1)], END, 0..END, &[]),
                ];
                for (name, extents, offset, range, expected) in table {
                    let bytes = wire(extents);
                    let clipped = $extents::split(&bytes).0.clip(offset, range);
                    assert_eq!(pairs(clipped), expected, "{name}");
                }
            }

            #[test]
            fn clip_leaves_extents_after_the_range() {
                let mut extents = [(10, 1), (20, 2), (30, 3)]
                    .map(|(length, flags)| $extent { length, flags })
                    .into_iter();
                assert_eq!(extents.by_ref().clip(0, 0..15).count(), 2);
                assert_eq!(extents.count(), 1);
            }

            /// Lists longer and shorter than a block of the loops, with the
            /// empty extent at every place.
            #[test]
            fn long_lists() {
                for count in 0..40 {
                    let list: Vec<_> = (1..=count).map(|n| (n, n)).collect();
                    let sum = list.iter().map(|(length, _)| u64::from(*length)).sum();
                    assert_eq!(total(&list), Ok(sum));
                    let bytes = wire(&list);
                    let (extents, _) = $extents::split(&bytes);
                    let flags = extents.fold(Vec::new(), |mut flags, extent| {
                        flags.push((extent.length, extent.flags));
                        flags
                    });
                    assert_eq!(flags, list);
                    for n in 0..list.len() {
                        let mut list = list.clone();
                        list[n].0 = 0;
                        assert_eq!(total(&list), Err(DecodeError::EmptyExtent));
                        list[n].0 = $word::MAX;
                        let sum = list.iter().fold(0u64, |sum, (length, _)| {
                            sum.saturating_add(u64::from(*length))
                        });
                        assert_eq!(total(&list), Ok(sum));
                    }
                }
            }

            /// Long lists are added in blocks.
            #[test]
            fn totals_of_long_lists() {
                let largest = [$word::MAX; 4];
                let places = [0xff, 0xff00, 0xff_0000, 0xff00_0000];
                let mixed = [0x0102_0304, 1, 0xfffe_fdfc, 0x8000_0000];
                for lengths in [largest, places, mixed] {
                    for n in [255, 256, 257, 258, 511, 512, 513, 514, 1025] {
                        let lengths = lengths.into_iter().cycle();
                        let mut list: Vec<_> = lengths.zip(0..n).collect();
                        let sum = list.iter().fold(0u64, |sum, (length, _)| {
                            sum.saturating_add(u64::from(*length))
                        });
                        assert_eq!(total(&list), Ok(sum));
                        for place in [0, 1, 254, 255, 256, 257, 511, 512, 1024] {
                            if let Some((length, _)) = list.get_mut(place) {
                                let before = std::mem::replace(length, 0);
                                assert_eq!(total(&list), Err(DecodeError::EmptyExtent));
                                list[place].0 = before;
                            }
                        }
                    }
                }
            }

            #[test]
            fn an_empty_extent_has_no_total() {
                let empty = Err(DecodeError::EmptyExtent);
                assert_eq!(total(&[(0, 0)]), empty);
                assert_eq!(total(&[(0, 3), (1, 0)]), empty);
                assert_eq!(total(&[(1, 0), (0, 3), (1, 0)]), empty);
                assert_eq!(total(&[($word::MAX, 0), ($word::MAX, 0), (0, 0)]), empty);
            }
        }
    };
}

lists!(narrow, Extent32, Extents32, u32);
lists!(wide, Extent64, Extents64, u64);

/// 2^32 - 1 twice exceeds 32 bits; 2^64 - 1 twice saturates.
#[test]
fn totals_are_wide_and_do_not_wrap() {
    let bytes = [0xff; 32];
    assert_eq!(Extents32::split(&bytes[..16]).0.total(), Ok(0x1_ffff_fffe));
    assert_eq!(Extents64::split(&bytes).0.total(), Ok(u64::MAX));
}
