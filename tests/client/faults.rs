//! Faults of a server that do not end the session: what a client makes of them, and
//! that a strict client ends the session with their violation. The table is
//! `src/guide/faults.md`.

use nbd_codec::Framing::{self, Extended, Simple, Structured};
use nbd_codec::client::Config;
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Negotiated, SelectedContext, StatusWidth};

use super::machines::{
    Automatic, CHUNKED, FIXED_NEWSTYLE, LIMITS, export, fixed_newstyle, tolerant, tolerant_manual,
    transmission, with_contexts,
};
use super::options::negotiated_after;
use super::transcript::{once, play};

/// What is sent, and what is then due of a client that is not strict, and of a strict
/// one.
fn tolerated(export: Negotiated, sent: &str, due: &str, strict: &str) {
    tolerant(export, &format!("{sent}\n{due}"));
    transmission(export, &format!("{sent}\n{strict}"));
}

/// A line for each framing that has chunks: `STATUS`, `:W` and the number of extents
/// are those of the framing.
fn of(framing: Framing, line: &str) -> String {
    match framing {
        Extended => line
            .replace("STATUS_CHUNK", "BLOCK_STATUS_EXT")
            .replace(":W", ":64")
            .replace("WIDTH", "wide"),
        _ => {
            let words = line
                .replace("STATUS_CHUNK", "BLOCK_STATUS")
                .replace(":W", ":32");
            let words = words.replace("WIDTH", "narrow");
            let lines = words.lines().map(|line| {
                let is_count = |word: &&str| !word.starts_with("n=");
                line.split(' ')
                    .filter(is_count)
                    .collect::<Vec<_>>()
                    .join(" ")
            });
            lines.collect::<Vec<_>>().join("\n")
        }
    }
    .replace("n=", "")
}

/// A server may know more than it is asked (nbdkit's `eval` plugin sends an extent
/// that begins at the end of the request): what the request covers is delivered. Other
/// commands are not affected.
#[test]
fn extents_past_the_request_are_discarded() {
    for framing in CHUNKED {
        for more in ["131072:W 3:W", "131072:W 3:W 917504:W 0:W 1:W 0:W"] {
            let count = 1 + more.split(' ').count() / 2;
            for kind in ["last", "chunk"] {
                let mut sent = of(
                    framing,
                    &format!(
                        "C: STATUS 0 64K
                        C: READ 0 512
                        S: {kind} STATUS_CHUNK #0 1:32 n={count}:32 65536:W 0:W {more}"
                    ),
                );
                if kind == "chunk" {
                    sent += "\nS: last NONE #0";
                }
                sent += "\nS: last OFFSET_DATA #1 0:64 07*512";
                let extents = of(framing, "E: #0 WIDTH 1 @0 65536/0x0");
                tolerated(
                    with_contexts(framing, 1),
                    &sent,
                    &format!("{extents}\nE: #0 done\nE: #1 data 0 07*512\nE: #1 done"),
                    &format!("{extents}\n! Violation(ExtentBeyond(#0))"),
                );
            }
        }
    }
}

/// The last extent that is delivered may reach past the request, and past 2^64.
#[test]
fn the_last_extent_reaches_past_the_request() {
    let sent = "C: STATUS 512K 64K
        S: last BLOCK_STATUS_EXT #0 1:32 3:32 512:64 0:64 2^64-1:64 3:64 512:64 0:64";
    let extents = "E: #0 wide 1 @524288 512/0x0 18446744073709551615/0x3";
    tolerated(
        with_contexts(Extended, 1),
        sent,
        &format!("{extents}\nE: #0 done"),
        &format!("{extents}\n! Violation(ExtentBeyond(#0))"),
    );
}

/// `REQ_ONE`: the first extent is delivered, as long as it is.
#[test]
fn more_than_one_extent_where_one_is_asked_for() {
    for framing in CHUNKED {
        for (extents, first) in [
            ("n=1:32 131072:W 3:W", "131072/0x3"),
            ("n=2:32 4096:W 3:W 4096:W 0:W", "4096/0x3"),
            ("n=3:32 131072:W 3:W 0:W 0:W 1:W 0:W", "131072/0x3"),
        ] {
            let sent = format!(
                "C: STATUS 0 64K REQ_ONE\nC: FLUSH
                S: last STATUS_CHUNK #0 1:32 {extents}\nS: last NONE #1"
            );
            let due = format!("E: #0 WIDTH 1 @0 {first}\nE: #0 done\nE: #1 done");
            tolerated(
                with_contexts(framing, 1),
                &of(framing, &sent),
                &of(framing, &due),
                "! Violation(NotOne(#0))",
            );
        }
    }
}

/// An extent of no bytes, or with more bits of status than its context has, ends the
/// list: a client asks for the others again. Without any before it there is no
/// progress, and the command fails.
#[test]
fn a_faulty_extent_ends_the_list() {
    let good = |count| format!("S: last STATUS_CHUNK #0 1:32 n={count}:32");
    for framing in CHUNKED {
        let mut faults = vec![("0:W 3:W", "Decode(EmptyExtent)")];
        if framing == Extended {
            faults.push(("512:64 2^32:64", "Violation(StatusTooWide(ContextId(1)))"));
        }
        for (faulty, error) in faults {
            let sent = format!(
                "C: STATUS 0 64K\n{} 512:W 1:W 1024:W 2:W {faulty} 512:W 0:W",
                good(4)
            );
            let extents = of(framing, "E: #0 WIDTH 1 @0 512/0x1 1024/0x2");
            tolerated(
                with_contexts(framing, 1),
                &of(framing, &sent),
                &format!("{extents}\nE: #0 done"),
                &format!("{extents}\n! {error}"),
            );
            let sent = format!("C: STATUS 0 64K\n{} {faulty} 512:W 0:W", good(2));
            tolerated(
                with_contexts(framing, 1),
                &of(framing, &sent),
                &format!("E: #0 fault {error}\nE: #0 done NBD_EIO"),
                &format!("! {error}"),
            );
        }
    }
}

/// Status of a context that was not asked for is discarded.
#[test]
fn unknown_contexts_are_discarded() {
    for framing in CHUNKED {
        let sent = of(
            framing,
            "C: STATUS 0 64K
            S: chunk STATUS_CHUNK #0 7:32 n=2:32 512:W 0:W 512:W 1:W
            S: chunk STATUS_CHUNK #0 8:32 n=1:32 512:W 0:W
            S: last STATUS_CHUNK #0 1:32 n=1:32 4096:W 3:W",
        );
        tolerated(
            with_contexts(framing, 1),
            &sent,
            &of(framing, "E: #0 WIDTH 1 @0 4096/0x3\nE: #0 done"),
            "! Violation(UnknownContext(ContextId(7)))",
        );
    }
}

/// A context that is answered twice, or not at all, costs its command.
#[test]
fn repeated_and_missing_contexts() {
    for framing in CHUNKED {
        let chunk = |kind, id| {
            of(
                framing,
                &format!("\nS: {kind} STATUS_CHUNK #0 {id}:32 n=1:32 512:W 0:W"),
            )
        };
        let seen = |id| of(framing, &format!("E: #0 WIDTH {id} @0 512/0x0")) + "\n";
        let status = "C: STATUS 0 64K";
        let sent = [
            status,
            &chunk("chunk", 1),
            &chunk("chunk", 1),
            &chunk("last", 2),
        ];
        tolerated(
            with_contexts(framing, 2),
            &sent.concat(),
            &format!(
                "{}E: #0 fault Violation(RepeatedContext(ContextId(1)))\n{}E: #0 done NBD_EIO",
                seen(1),
                seen(2)
            ),
            &format!("{}! Violation(RepeatedContext(ContextId(1)))", seen(1)),
        );
        let sent = [status, &chunk("last", 2)].concat();
        tolerated(
            with_contexts(framing, 2),
            &sent,
            &format!(
                "{}E: #0 fault Violation(MissingContext(#0))\nE: #0 done NBD_EIO",
                seen(2)
            ),
            &format!("{}! Violation(MissingContext(#0))", seen(2)),
        );
    }
}

/// The length of the message does not fit in the chunk (nbd-server sends it in the
/// other byte order): the chunk's own length keeps the place in the stream.
#[test]
fn error_messages_that_do_not_fit_their_chunk() {
    for framing in CHUNKED {
        for (chunk, name, done) in [
            (
                "ERROR #0 EIO:32 0c00 78*12",
                "NBD_REPLY_TYPE_ERROR",
                "NBD_EIO",
            ),
            (
                "ERROR #0 ENOSPC:32 1:16",
                "NBD_REPLY_TYPE_ERROR",
                "NBD_ENOSPC",
            ),
            (
                "ERROR_OFFSET #0 EIO:32 0c00 78*12 4K:64",
                "NBD_REPLY_TYPE_ERROR_OFFSET",
                "NBD_EIO",
            ),
            (
                "0x8003 #0 EPERM:32 0xffff:16 78*70",
                "unknown chunk",
                "NBD_EPERM",
            ),
        ] {
            let sent = format!(
                "C: WRITE 4K 1K\nC: READ 0 512
                S: last {chunk}\nS: last OFFSET_DATA #1 0:64 07*512"
            );
            tolerated(
                export(framing),
                &sent,
                &format!(
                    "E: #0 error {done} discarded\nE: #0 done {done}
                    E: #1 data 0 07*512\nE: #1 done"
                ),
                &format!("! Decode(Overrun {{ message: {name:?} }})"),
            );
        }
    }
}

/// An offset that is cut off or outside the request is left out.
#[test]
fn offsets_of_errors() {
    for framing in CHUNKED {
        for offset in ["0", "4095", "5120", "2^64-1"] {
            tolerated(
                export(framing),
                &format!("C: WRITE 4K 1K\nS: last ERROR_OFFSET #0 EIO:32 2:16 \"hm\" {offset}:64"),
                "E: #0 error NBD_EIO \"hm\"\nE: #0 done NBD_EIO",
                "! Violation(OutOfBounds(#0))",
            );
        }
        for (payload, length) in [("EIO:32 0:16", 6), ("EIO:32 0:16 00*7", 13)] {
            tolerated(
                export(framing),
                &format!("C: WRITE 4K 1K\nS: last ERROR_OFFSET #0 {payload}"),
                "E: #0 error NBD_EIO \"\"\nE: #0 done NBD_EIO",
                &format!(
                    "! Decode(Length {{ message: \"NBD_REPLY_TYPE_ERROR_OFFSET\", length: {length} }})"
                ),
            );
        }
        tolerated(
            export(framing),
            "C: WRITE 4K 1K\nS: last ERROR_OFFSET #0 EIO:32 2:16 \"hm\" 00*7",
            "E: #0 error NBD_EIO \"hm\"\nE: #0 done NBD_EIO",
            "! Decode(Overrun { message: \"NBD_REPLY_TYPE_ERROR_OFFSET\" })",
        );
    }
}

/// A simple reply that reports an error has no payload: it ends any command (nbd-server
/// sends it to a read with DF), with the first error that was reported.
#[test]
fn simple_errors_where_chunks_are_due() {
    let export = with_contexts(Structured, 1);
    tolerated(
        export,
        "C: READ 0 512 DF\nC: READ 0 512\nS: simple EINVAL #0\nS: last OFFSET_DATA #1 0:64 07*512",
        "E: #0 done NBD_EINVAL\nE: #1 data 0 07*512\nE: #1 done",
        "! Violation(SimpleReply(NBD_CMD_READ))",
    );
    tolerated(
        export,
        "C: READ 0 512\nS: chunk OFFSET_DATA #0 0:64 07*256\nS: simple EIO #0",
        "E: #0 data 0 07*256\nE: #0 done NBD_EIO",
        "E: #0 data 0 07*256\n! Violation(SimpleReply(NBD_CMD_READ))",
    );
    tolerated(
        export,
        "C: STATUS 0 4K\nS: chunk BLOCK_STATUS #0 1:32 4K:32 0:32\nS: simple EIO #0",
        "E: #0 narrow 1 @0 4096/0x0\nE: #0 done NBD_EIO",
        "E: #0 narrow 1 @0 4096/0x0\n! Violation(SimpleReply(NBD_CMD_BLOCK_STATUS))",
    );
    for end in ["OK", "EPERM"] {
        tolerated(
            export,
            &format!("C: WRITE 0 512\nS: chunk ERROR #0 ENOSPC:32 0:16\nS: simple {end} #0"),
            "E: #0 error NBD_ENOSPC \"\"\nE: #0 done NBD_ENOSPC",
            "E: #0 error NBD_ENOSPC \"\"\n! Violation(SimpleReply(NBD_CMD_WRITE))",
        );
    }
    tolerated(
        export,
        "C: STATUS 0 4K\nS: simple OK #0",
        "E: #0 fault Violation(MissingContext(#0))\nE: #0 done NBD_EIO",
        "! Violation(SimpleReply(NBD_CMD_BLOCK_STATUS))",
    );
}

/// Content that is not what was requested is discarded, and the read fails. Content
/// that is within the request is delivered, before and after.
#[test]
fn content_that_breaks_the_rules() {
    for framing in CHUNKED {
        let half = "S: chunk OFFSET_DATA #0 4096:64 01*512";
        let seen = "E: #0 data 4096 01*512";
        for (flags, fault, error) in [
            (
                "",
                "chunk OFFSET_DATA #0 4096:64 02*2000",
                "OutOfBounds(#0)",
            ),
            ("", "chunk OFFSET_DATA #0 4096:64 02*1000", "Overlap(#0)"),
            (
                "",
                "chunk OFFSET_DATA #0 2^64-1:64 02*16",
                "OutOfBounds(#0)",
            ),
            ("", "chunk OFFSET_HOLE #0 4095:64 16:32", "OutOfBounds(#0)"),
            ("", "chunk OFFSET_HOLE #0 4096:64 1K:32", "Overlap(#0)"),
            (
                " DF",
                "chunk OFFSET_DATA #0 4608:64 02*512",
                "Fragmented(#0)",
            ),
        ] {
            let sent = format!(
                "C: READ 4K 1K{flags}\nC: READ 0 512\n{half}\nS: {fault}
                S: chunk ERROR #0 ENOSPC:32 0:16\nS: last NONE #0\nS: last OFFSET_DATA #1 0:64 07*512"
            );
            tolerated(
                export(framing),
                &sent,
                &format!(
                    "{seen}\nE: #0 fault Violation({error})\nE: #0 error NBD_ENOSPC \"\"
                    E: #0 done NBD_EIO\nE: #1 data 0 07*512\nE: #1 done"
                ),
                &format!("{seen}\n! Violation({error})"),
            );
        }
    }
}

/// A read that is declared complete and is not, fails.
#[test]
fn reads_that_are_not_complete() {
    for framing in CHUNKED {
        for (pieces, error) in [
            ("4096:64 01*512", "Incomplete(#0)"),
            ("4097:64 01*512", "Incomplete(#0)"),
        ] {
            let seen = pieces.replace(":64", "");
            tolerated(
                export(framing),
                &format!("C: READ 4K 1K\nS: last OFFSET_DATA #0 {pieces}"),
                &format!("E: #0 data {seen}\nE: #0 fault Violation({error})\nE: #0 done NBD_EIO"),
                &format!("E: #0 data {seen}\n! Violation({error})"),
            );
        }
        // As many bytes as were requested, some of them twice.
        let sent = "C: READ 4K 1K\nS: chunk OFFSET_DATA #0 4096:64 01*512
            S: last OFFSET_DATA #0 4352:64 02*512";
        let seen = "E: #0 data 4096 01*512\nE: #0 data 4352 02*512\n";
        tolerated(
            export(framing),
            sent,
            &format!("{seen}E: #0 fault Violation(Overlap(#0))\nE: #0 done NBD_EIO"),
            &format!("{seen}! Violation(Overlap(#0))"),
        );
    }
    // Nothing at all.
    tolerated(
        export(Structured),
        "C: READ 4K 1K\nS: last NONE #0",
        "E: #0 fault Violation(Incomplete(#0))\nE: #0 done NBD_EIO",
        "! Violation(Incomplete(#0))",
    );
}

/// A chunk whose header repeats another offset may be meant for another command: it is
/// discarded.
#[test]
fn another_offset_in_an_extended_header() {
    for chunk in [
        "last NONE #0 off=0",
        "last OFFSET_DATA #0 off=4608 4096:64 00*1024",
        "last ERROR #0 off=2^64-1 ENOSPC:32 0:16",
    ] {
        tolerated(
            export(Extended),
            &format!("C: READ 4K 1K\nC: FLUSH\nS: {chunk}\nS: last NONE #1"),
            "E: #0 fault Violation(OtherOffset(#0))\nE: #0 done NBD_EIO\nE: #1 done",
            "! Violation(OtherOffset(#0))",
        );
    }
}

/// A context that is known to be wide has no status that is too wide.
#[test]
fn wide_status_of_a_wide_context() {
    let mut export = export(Extended);
    let (id, width) = (ContextId(1), StatusWidth::Wide);
    export.contexts.push(SelectedContext { id, width }).unwrap();
    transmission(
        export,
        "C: STATUS 0 64K
        S: last BLOCK_STATUS_EXT #0 1:32 1:32 512:64 2^64-1:64
        E: #0 wide 1 @0 512/0xffffffffffffffff
        E: #0 done",
    );
}

/// What ends the session whatever the client is told: the place in the stream is lost,
/// the reply cannot be attributed, the negotiation is broken, or the specification
/// demands it.
#[test]
fn faults_that_always_end_the_session() {
    let fatal = |export: Negotiated, sent: &str, error: &str| {
        tolerated(export, sent, &format!("! {error}"), &format!("! {error}"));
    };
    for (framing, sent, error) in [
        (Simple, "00", "Decode(Magic { message: \"reply\" })"),
        (
            Simple,
            "simple OK 7:64",
            "Violation(UnknownCookie(Cookie(0x0000000000000007)))",
        ),
        (
            Structured,
            "simple OK #0",
            "Violation(SimpleReply(NBD_CMD_READ))",
        ),
        (
            Structured,
            "6e8a278c",
            "Violation(OtherFraming { negotiated: Structured })",
        ),
        (
            Extended,
            "67446698",
            "Violation(OtherFraming { negotiated: Extended })",
        ),
        (
            Extended,
            "668e33ef",
            "Violation(OtherFraming { negotiated: Extended })",
        ),
        (
            Extended,
            "chunk 3 #0",
            "Violation(UnknownChunk(ChunkType(0x3)))",
        ),
        (
            Extended,
            "chunk BLOCK_STATUS #0 len=12",
            "Violation(OtherWidth { chunk: NBD_REPLY_TYPE_BLOCK_STATUS, framing: Extended })",
        ),
        (
            Extended,
            "chunk BLOCK_STATUS_EXT #0 len=24",
            "Violation(UnexpectedChunk { chunk: NBD_REPLY_TYPE_BLOCK_STATUS_EXT, command: NBD_CMD_READ })",
        ),
        (Structured, "chunk NONE #0", "Violation(NoneNotDone)"),
        (
            Structured,
            "last NONE #0 00",
            "Decode(Length { message: \"NBD_REPLY_TYPE_NONE\", length: 1 })",
        ),
        (
            Structured,
            "chunk OFFSET_DATA #0 len=8",
            "Decode(Length { message: \"NBD_REPLY_TYPE_OFFSET_DATA\", length: 8 })",
        ),
        (
            Structured,
            "chunk OFFSET_HOLE #0 0:64 0:32",
            "Decode(EmptyHole)",
        ),
        (Structured, "chunk ERROR #0 OK:32 0:16", "Decode(NoError)"),
        (
            Structured,
            "chunk ERROR #0 len=5",
            "Decode(Length { message: \"NBD_REPLY_TYPE_ERROR\", length: 5 })",
        ),
        (
            Structured,
            "chunk ERROR #0 len=0x2000001 EIO:32 0:16",
            "Violation(ChunkTooLong { chunk: NBD_REPLY_TYPE_ERROR, length: 33554433 })",
        ),
        // A tolerated fault in a chunk that is longer than any may be.
        (
            Structured,
            "chunk OFFSET_DATA #0 len=0x2000001 2^63:64",
            "Violation(OutOfBounds(#0))",
        ),
    ] {
        fatal(export(framing), &format!("C: READ 0 512\nS: {sent}"), error);
    }
}

// ------------------------------------------------------------------- handshake

/// Block sizes that are impossible are as if the server had not stated any; what else
/// it says of the export holds.
#[test]
fn impossible_block_sizes_are_ignored() {
    for (sizes, debug) in [
        // Legal for a small export in an older specification.
        (
            "1:32 4096:32 1024:32",
            "minimum: 1, preferred: 4096, maximum: 1024",
        ),
        (
            "0:32 4096:32 1M:32",
            "minimum: 0, preferred: 4096, maximum: 1048576",
        ),
        (
            "3:32 4096:32 1M:32",
            "minimum: 3, preferred: 4096, maximum: 1048576",
        ),
        (
            "4096:32 512:32 1M:32",
            "minimum: 4096, preferred: 512, maximum: 1048576",
        ),
    ] {
        let sent = format!(
            "C: opt GO 0:32 1:16 BLOCK_SIZE:16
            S: rep GO INFO BLOCK_SIZE:16 {sizes}
            S: rep GO INFO EXPORT:16 1M:64 1:16
            S: rep GO ACK"
        );
        let due = format!(
            "E: Info(BlockSize(BlockSizes {{ {debug} }}))
            E: Info(Export {{ size: 1048576, flags: TransmissionFlags(HAS_FLAGS) }})
            E: Ack(NBD_OPT_GO)
            E: Ready"
        );
        tolerant_manual(&format!("{FIXED_NEWSTYLE}{sent}\n{due}"));
        fixed_newstyle(&format!(
            "{sent}\n! Violation(BlockSizes(BlockSizes {{ {debug} }}))"
        ));
        let agreed = negotiated_after(&sent);
        assert_eq!((agreed.size, agreed.block_sizes), (1 << 20, None));
    }
    // Nor do they replace what was possible.
    let agreed = negotiated_after(
        "C: opt GO 0:32 0:16
        S: rep GO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
        S: rep GO INFO BLOCK_SIZE:16 0:32 0:32 0:32
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK",
    );
    assert_eq!(agreed.constraints().minimum, 512);
}

/// `Connector` has the setting as well.
#[test]
fn a_strict_connector() {
    let transcript = r#"
        S: "NBDMAGIC" "IHAVEOPT" 3:16
        C: 3:32
        C: opt GO 0:32 1:16 BLOCK_SIZE:16
        S: rep GO INFO BLOCK_SIZE:16 1:32 4096:32 1024:32
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK"#;
    let config = Config::new("").framing(Simple);
    let debug = "BlockSizes { minimum: 1, preferred: 4096, maximum: 1024 }";
    let error = format!("{transcript}\n! Violation(BlockSizes({debug}))");
    play(|| Automatic::new(config.strict(true)), &error);
    let mut connecting = Automatic::with_limits(config, LIMITS);
    once(&mut connecting, transcript);
    let agreed = connecting.connector.into_negotiated().unwrap();
    assert_eq!((agreed.size, agreed.block_sizes), (1 << 20, None));
}
