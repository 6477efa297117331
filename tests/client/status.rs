//! Block status, narrow and wide: contexts, extents, widths.

use nbd_codec::Framing::{self, Extended, Simple, Structured};
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Negotiated, SelectedContext, StatusWidth};

use super::machines::{CHUNKED, export, lenient, transmission, with_contexts};

/// A status chunk of either width from `length/flags` pairs.
fn chunk(framing: Framing, kind: &str, context: u32, extents: &[(u64, u64)]) -> String {
    let (name, bits) = match framing {
        Extended => ("BLOCK_STATUS_EXT", 64),
        _ => ("BLOCK_STATUS", 32),
    };
    let mut line = format!("S: {kind} {name} #0 {context}:32");
    if framing == Extended {
        line += &format!(" {}:32", extents.len());
    }
    for (length, flags) in extents {
        line += &format!(" {length}:{bits} {flags}:{bits}");
    }
    line + "\n"
}

/// The event of such a chunk.
fn event(framing: Framing, context: u32, offset: u64, extents: &[(u64, u64)]) -> String {
    let width = if framing == Extended {
        "wide"
    } else {
        "narrow"
    };
    let mut line = format!("E: #0 {width} {context} @{offset}");
    for (length, flags) in extents {
        line += &format!(" {length}/{flags:#x}");
    }
    line + "\n"
}

/// One chunk for each context, in any order, of any number of extents.
#[test]
fn contexts_in_any_order() {
    for framing in CHUNKED {
        let lists: [(u32, &[(u64, u64)]); 3] = [
            (2, &[(1 << 20, 0)]),
            (3, &[(512, 1), (512, 1), (512, 0xffff_ffff)]),
            (1, &[(4096, 3), (4096, 0)]),
        ];
        let mut transcript = "C: STATUS 0 64K\n".to_owned();
        let chunks = lists.map(|(context, list)| chunk(framing, "chunk", context, list));
        transcript += &chunks.concat();
        transcript += "S: last NONE #0\n";
        for (context, list) in lists {
            transcript += &event(framing, context, 0, list);
        }
        transcript += "E: #0 done\n";
        transmission(with_contexts(framing, 3), &transcript);
    }
}

/// Extents that are not aligned to the minimum block size are accepted.
#[test]
fn unaligned_extents() {
    for framing in CHUNKED {
        let mut export = with_contexts(framing, 1);
        export.block_sizes = super::machines::with_block_sizes(framing, 512, 1 << 20).block_sizes;
        let list = [(1, 0), (510, 3), (3, 0), (65_537, 3)];
        let transcript = [
            "C: STATUS 512 64K\n",
            &chunk(framing, "last", 1, &list),
            &event(framing, 1, 512, &list),
            "E: #0 done",
        ];
        transmission(export, &transcript.concat());
    }
}

/// The last extent may end past the end of the request; none may begin there.
/// A reply may cover less than the request.
#[test]
fn the_end_of_the_request() {
    for framing in CHUNKED {
        for (extents, good) in [
            (vec![(1, 0)], true),
            (vec![(65_536, 0)], true),
            (vec![(65_537, 0)], true),
            (vec![(0xffff_ffff, 0)], true),
            (vec![(65_535, 0), (1, 0)], true),
            (vec![(65_535, 0), (0xffff_ffff, 0)], true),
            (vec![(65_536, 0), (1, 0)], false),
            (vec![(65_537, 0), (1, 0)], false),
            (vec![(0xffff_ffff, 0), (0xffff_ffff, 0)], false),
            (vec![(1, 0), (65_535, 0), (1, 0)], false),
        ] {
            let outcome = if good {
                event(framing, 1, 4096, &extents) + "E: #0 done\n"
            } else {
                // What comes before the fault is delivered.
                let before = &extents[..extents.len() - 1];
                event(framing, 1, 4096, before) + "! Violation(ExtentBeyond(#0))"
            };
            let chunk = chunk(framing, "last", 1, &extents);
            let transcript = ["C: STATUS 4K 64K\n", &chunk, &outcome].concat();
            transmission(with_contexts(framing, 1), &transcript);
        }
    }
}

/// Sums that 64 bits cannot hold do not hide where an extent begins.
#[test]
fn sums_beyond_64_bits() {
    for extents in [
        vec![(u64::MAX, 0), (u64::MAX, 0)],
        vec![(u64::MAX, 0), (1, 0)],
        vec![(1 << 63, 0), (1 << 63, 0), (u64::MAX, 0)],
    ] {
        let chunk = chunk(Extended, "last", 1, &extents);
        let before = event(Extended, 1, 0, &extents[..1]);
        let fault = "! Violation(ExtentBeyond(#0))";
        let transcript = ["C: STATUS 0 64K\n", &chunk, &before, fault];
        transmission(with_contexts(Extended, 1), &transcript.concat());
    }
    let long = [(65_535, 0), (u64::MAX, 3)];
    let transcript = [
        "C: STATUS 0 64K\n",
        &chunk(Extended, "last", 1, &long),
        &event(Extended, 1, 0, &long),
        "E: #0 done",
    ];
    transmission(with_contexts(Extended, 1), &transcript.concat());
}

#[test]
fn one_extent_where_one_is_asked_for() {
    for framing in CHUNKED {
        for (extents, good) in [
            (vec![(1, 0)], true),
            (vec![(65_536, 0)], true),
            (vec![(65_537, 0)], false),
            (vec![(4096, 0), (4096, 3)], false),
        ] {
            let outcome = if good {
                event(framing, 1, 0, &extents) + "E: #0 done\n"
            } else {
                "! Violation(NotOne(#0))".to_owned()
            };
            let chunk = chunk(framing, "last", 1, &extents);
            let transcript = ["C: STATUS 0 64K REQ_ONE\n", &chunk, &outcome].concat();
            transmission(with_contexts(framing, 1), &transcript);
        }
    }
}

#[test]
fn contexts_that_were_not_asked_for() {
    for framing in CHUNKED {
        let one = [(4096, 0)];
        let good = |context| chunk(framing, "chunk", context, &one);
        let seen = |context| event(framing, context, 0, &one);
        let status = "C: STATUS 0 64K\n".to_owned();
        let done = "S: last NONE #0\n";
        for (transcript, error) in [
            (status.clone() + &good(7), "UnknownContext(ContextId(7))"),
            (status.clone() + &good(0), "UnknownContext(ContextId(0))"),
            (
                status.clone() + &good(1) + &seen(1) + &good(1),
                "RepeatedContext(ContextId(1))",
            ),
            (
                status.clone() + &good(1) + done + &seen(1),
                "MissingContext(#0)",
            ),
            (status.clone() + done, "MissingContext(#0)"),
        ] {
            // All input in one turn, followed by its events.
            let transcript = reorder(&transcript);
            let whole = format!("{transcript}! Violation({error})");
            transmission(with_contexts(framing, 2), &whole);
        }
    }
}

/// Input first, then the events.
fn reorder(transcript: &str) -> String {
    let lines = || transcript.lines();
    let input = lines().filter(|line| !line.starts_with("E:"));
    let events = lines().filter(|line| line.starts_with("E:"));
    input
        .chain(events)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// An error reply may lack contexts.
#[test]
fn an_error_excuses_contexts() {
    for framing in CHUNKED {
        let one = [(4096, 0)];
        let transcript = [
            "C: STATUS 0 64K\n",
            &chunk(framing, "chunk", 2, &one),
            "S: last ERROR #0 EIO:32 0:16\n",
            &event(framing, 2, 0, &one),
            "E: #0 error NBD_EIO \"\"\nE: #0 done NBD_EIO",
        ];
        transmission(with_contexts(framing, 2), &transcript.concat());
    }
}

/// Where no context was negotiated, every context of a reply is unknown.
#[test]
fn no_context_negotiated() {
    for framing in CHUNKED {
        let transcript = [
            "C: STATUS 0 64K\n",
            &chunk(framing, "chunk", 0, &[(4096, 0)]),
            "! Violation(UnknownContext(ContextId(0)))",
        ];
        lenient(export(framing), &transcript.concat());
    }
}

/// The width is checked with the chunk's type: before its payload arrives, and
/// before its cookie.
#[test]
fn the_other_width() {
    for (framing, chunk, name) in [
        (
            Structured,
            "BLOCK_STATUS_EXT",
            "NBD_REPLY_TYPE_BLOCK_STATUS_EXT",
        ),
        (Extended, "BLOCK_STATUS", "NBD_REPLY_TYPE_BLOCK_STATUS"),
    ] {
        let error = format!("! Violation(OtherWidth {{ chunk: {name}, framing: {framing:?} }})");
        for line in [
            format!("S: chunk {chunk} #0 len=24"),
            format!("S: chunk {chunk} #0 len=12"),
            format!("S: chunk {chunk} #0"),
            format!("S: chunk {chunk} 77:64 len=24 off=0").replace("len=24 off=0", "off=0 len=24"),
        ] {
            let transcript = format!("C: STATUS 0 64K\n{line}\n{error}");
            transmission(with_contexts(framing, 1), &transcript);
        }
    }
}

/// Lengths that a status chunk cannot have, and counts that contradict them.
#[test]
fn impossible_lengths() {
    for (framing, chunk, length) in [
        (Structured, "BLOCK_STATUS", 0),
        (Structured, "BLOCK_STATUS", 4),
        (Structured, "BLOCK_STATUS", 8),
        (Structured, "BLOCK_STATUS", 13),
        (Structured, "BLOCK_STATUS", 0xffff_ffff),
        (Extended, "BLOCK_STATUS_EXT", 0),
        (Extended, "BLOCK_STATUS_EXT", 8),
        (Extended, "BLOCK_STATUS_EXT", 16),
        (Extended, "BLOCK_STATUS_EXT", 23),
        (Extended, "BLOCK_STATUS_EXT", u64::MAX),
    ] {
        let transcript = format!(
            r#"
            C: STATUS 0 64K
            S: chunk {chunk} #0 len={length}
            ! Decode(Length {{ message: "NBD_REPLY_TYPE_{chunk}", length: {length} }})
            "#
        );
        transmission(with_contexts(framing, 1), &transcript);
    }
    for count in [0, 1, 3, 0xffff_ffff_u32] {
        let transcript = format!(
            r#"
            C: STATUS 0 64K
            S: chunk BLOCK_STATUS_EXT #0 len=40 1:32 {count}:32
            ! Decode(Count {{ count: {count}, length: 40 }})
            "#
        );
        transmission(with_contexts(Extended, 1), &transcript);
    }
}

/// More extents than the limit are detected by the length of the chunk.
#[test]
fn too_many_extents() {
    for (framing, chunk, length, count) in [
        (
            Structured,
            "BLOCK_STATUS",
            4 + 8 * ((1 << 20) + 1),
            (1 << 20) + 1,
        ),
        (
            Structured,
            "BLOCK_STATUS",
            0xffff_fffc,
            (0xffff_fffc_u64 - 4) / 8,
        ),
        (
            Extended,
            "BLOCK_STATUS_EXT",
            8 + 16 * ((1 << 20) + 1),
            (1 << 20) + 1,
        ),
        (
            Extended,
            "BLOCK_STATUS_EXT",
            u64::MAX - 7,
            (u64::MAX - 15) / 16,
        ),
    ] {
        let transcript = format!(
            r#"
            C: STATUS 0 64K
            S: chunk {chunk} #0 len={length}
            ! Violation(ChunkTooLong {{ chunk: NBD_REPLY_TYPE_{chunk}, length: {count} }})
            "#
        );
        transmission(with_contexts(framing, 1), &transcript);
    }
}

/// An extent of length zero, at every position.
#[test]
fn empty_extents() {
    for framing in CHUNKED {
        for at in 0..3 {
            let mut extents = [(512, 3), (512, 0), (512, 3)];
            extents[at].0 = 0;
            let before = match at {
                0 => String::new(),
                _ => event(framing, 1, 0, &extents[..at]),
            };
            let transcript = [
                "C: STATUS 0 64K\n",
                &chunk(framing, "last", 1, &extents),
                &before,
                "! Decode(EmptyExtent)",
            ];
            transmission(with_contexts(framing, 1), &transcript.concat());
        }
    }
}

/// A chunk with two faults reports the first one, however it is fragmented: every
/// transcript is played whole, byte by byte and split everywhere.
#[test]
fn the_first_of_two_faults() {
    for framing in CHUNKED {
        for (extents, good, fault) in [
            (
                vec![(512, 0), (3584, 3), (512, 0), (0, 0)],
                2,
                "Violation(ExtentBeyond(#0))",
            ),
            (
                vec![(512, 0), (0, 0), (3584, 3), (512, 0)],
                1,
                "Decode(EmptyExtent)",
            ),
            (vec![(4096, 0), (0, 0)], 1, "Decode(EmptyExtent)"),
        ] {
            let transcript = [
                "C: STATUS 0 4096\n",
                &chunk(framing, "last", 1, &extents),
                &event(framing, 1, 0, &extents[..good]),
                &format!("! {fault}"),
            ];
            transmission(with_contexts(framing, 1), &transcript.concat());
        }
    }
}

fn of_widths(widths: &[StatusWidth]) -> Negotiated {
    let mut export = export(Extended);
    for (id, width) in (1..).zip(widths) {
        let (id, width) = (ContextId(id), *width);
        export.contexts.push(SelectedContext { id, width }).unwrap();
    }
    export
}

/// A narrow context has at most 32 bits of status, also in wide extents.
#[test]
fn wide_status() {
    let export = of_widths(&[StatusWidth::Narrow, StatusWidth::Wide]);
    for (context, flags, good) in [
        (1, 0xffff_ffff, true),
        (1, 1 << 32, false),
        (1, u64::MAX, false),
        (2, 1 << 32, true),
        (2, u64::MAX, true),
    ] {
        // Two equal extents: their flags must not cancel out.
        let extents = [(512, flags), (512, flags)];
        let other = 3 - context;
        let outcome = if good {
            chunk(Extended, "last", other, &[(512, 0)])
                + &event(Extended, context, 0, &extents)
                + &event(Extended, other, 0, &[(512, 0)])
                + "E: #0 done"
        } else {
            format!("! Violation(StatusTooWide(ContextId({context})))")
        };
        let chunk = chunk(Extended, "chunk", context, &extents);
        transmission(export, &["C: STATUS 0 64K\n", &chunk, &outcome].concat());
    }
}

/// Status of some of the contexts (`C:` lines check the bytes of the payload).
#[test]
fn filtered() {
    let one = [(4096, 0)];
    let transcript = [
        "C: STATUS 512 64K of=3,1\n",
        &chunk(Extended, "chunk", 1, &one),
        &chunk(Extended, "last", 3, &one),
        &event(Extended, 1, 512, &one),
        &event(Extended, 3, 512, &one),
        "E: #0 done",
    ];
    transmission(with_contexts(Extended, 3), &transcript.concat());
    let transcript = [
        "C: STATUS 512 64K REQ_ONE of=2\n",
        &chunk(Extended, "last", 2, &one),
        &event(Extended, 2, 512, &one),
        "E: #0 done",
    ];
    transmission(with_contexts(Extended, 3), &transcript.concat());
    // A context that was selected and not asked for.
    let transcript = [
        "C: STATUS 512 64K of=3,1\n",
        &chunk(Extended, "chunk", 2, &one),
        "! Violation(UnknownContext(ContextId(2)))",
    ];
    transmission(with_contexts(Extended, 3), &transcript.concat());
}

/// The most contexts that can be selected.
#[test]
fn every_context() {
    for framing in CHUNKED {
        let one = [(4096, 0)];
        let chunks: String = (1..=32)
            .map(|id| chunk(framing, "chunk", id, &one))
            .collect();
        let events: String = (1..=32).map(|id| event(framing, id, 0, &one)).collect();
        let transcript = ["C: STATUS 0 64K\n", &chunks, "S: last NONE #0\n", &events];
        let whole = transcript.concat() + "E: #0 done";
        transmission(with_contexts(framing, 32), &whole);
        let fewer = transcript
            .concat()
            .replace(&chunk(framing, "chunk", 32, &one), "");
        let fewer = fewer.replace(&event(framing, 32, 0, &one), "");
        let error = "! Violation(MissingContext(#0))";
        transmission(with_contexts(framing, 32), &(fewer + error));
    }
}

/// Only a lenient client can ask for the status of zero bytes.
#[test]
fn status_of_zero_bytes() {
    for framing in CHUNKED {
        let one = [(4096, 0)];
        let transcript = [
            "C: STATUS 512 0\n",
            &chunk(framing, "last", 1, &one),
            &event(framing, 1, 512, &one),
            "E: #0 done",
        ];
        lenient(with_contexts(framing, 1), &transcript.concat());
    }
}

/// A simple reply cannot answer block status.
#[test]
fn simple_replies() {
    for framing in [Simple, Structured] {
        let error = match framing {
            Simple => "MissingContext(#0)",
            _ => "SimpleReply(NBD_CMD_BLOCK_STATUS)",
        };
        lenient(
            with_contexts(framing, 1),
            &format!("C: STATUS 0 64K\nS: simple OK #0\n! Violation({error})"),
        );
    }
}
