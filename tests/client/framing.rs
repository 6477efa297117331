//! Headers: magic numbers, cookies, offsets, chunk types.

use nbd_codec::Framing::{Extended, Simple, Structured};

use nbd_codec::wire::number::Cookie;

use super::machines::{export, transmission, with_contexts};

const SIMPLE: &str = "67446698";
const STRUCTURED: &str = "668e33ef";
const EXTENDED: &str = "6e8a278c";

/// A framing that was not negotiated is detected by its four bytes of magic: a
/// client that waits for a whole header of its own framing might never get it.
#[test]
fn another_framing() {
    for (framing, magic) in [
        (Simple, STRUCTURED),
        (Simple, EXTENDED),
        (Structured, EXTENDED),
        (Extended, SIMPLE),
        (Extended, STRUCTURED),
    ] {
        for command in ["FLUSH", "READ 0 4K", "WRITE 0 4K"] {
            let transcript = format!(
                "C: {command}\nS: {magic}\n! Violation(OtherFraming {{ negotiated: {framing:?} }})"
            );
            transmission(export(framing), &transcript);
        }
    }
}

/// Bytes that no reply begins with are detected at the first one.
#[test]
fn unknown_magic() {
    for framing in [Simple, Structured, Extended] {
        for magic in ["00", "6600", "67446699", "668e33ee", "6e8a278d", "25609513"] {
            let transcript =
                format!("C: FLUSH\nS: {magic}\n! Decode(Magic {{ message: \"reply\" }})");
            transmission(export(framing), &transcript);
        }
    }
}

/// A reply to a command that was never sent, that is complete, or whose slot
/// has been used again.
#[test]
fn unknown_cookies() {
    for (framing, ok) in [
        (Simple, "simple OK"),
        (Structured, "simple OK"),
        (Structured, "last NONE"),
    ] {
        for cookie in ["0:64", "1:64", "2^32+1:64", "2^63:64", "2^64-1:64"] {
            let cookie = cookie.replace("2^32+1", "0x100000001");
            let transcript = format!("C: FLUSH\nS: {ok} {cookie}");
            let number = super::script::number(cookie.split_once(':').unwrap().0);
            let error = format!("\n! Violation(UnknownCookie({:?}))", Cookie(number));
            transmission(export(framing), &(transcript + &error));
        }
        transmission(
            export(framing),
            &format!(
                "C: FLUSH\nS: {ok} #0\nS: {ok} #0\nE: #0 done\n! Violation(UnknownCookie(#0))"
            ),
        );
        transmission(
            export(framing),
            &format!(
                r#"
                C: FLUSH
                S: {ok} #0
                E: #0 done
                C: FLUSH // in the same slot
                S: {ok} #0
                ! Violation(UnknownCookie(#0))
                "#
            ),
        );
    }
    transmission(
        export(Extended),
        r#"
        C: FLUSH
        S: last NONE #0
        S: last NONE #0
        E: #0 done
        ! Violation(UnknownCookie(#0))
        "#,
    );
    transmission(
        export(Extended),
        &format!(
            "C: FLUSH\nS: chunk ERROR 7:64 off=0\n! Violation(UnknownCookie({:?}))",
            Cookie(7),
        ),
    );
}

/// A reply while nothing is in flight.
#[test]
fn replies_without_a_command() {
    for (framing, reply) in [
        (Simple, "simple OK 0:64"),
        (Structured, "simple OK 0:64"),
        (Structured, "last NONE 0:64"),
        (Extended, "last NONE 0:64 off=0"),
    ] {
        let error = format!("! Violation(UnknownCookie({:?}))", Cookie(0));
        transmission(export(framing), &format!("S: {reply}\n{error}"));
    }
}

/// An extended header repeats the offset of the request, whatever its payload
/// is.
#[test]
fn offsets() {
    for chunk in [
        "last NONE #0 off=0",
        "chunk OFFSET_DATA #0 off=4608 4608:64 00*512",
        "last OFFSET_DATA #0 off=4608 4096:64 00*1024",
        "last OFFSET_HOLE #0 off=0 4096:64 1024:32",
        "last ERROR #0 off=2^64-1 EIO:32 0:16",
    ] {
        transmission(
            export(Extended),
            &format!("C: READ 4K 1K\nS: {chunk}\n! Violation(OtherOffset(#0))"),
        );
    }
    transmission(
        export(Extended),
        r#"
        C: READ 4K 1K
        S: chunk OFFSET_DATA #0 off=4096 4608:64 02*512
        S: last OFFSET_DATA #0 off=4096 4096:64 01*512
        E: #0 data 4608 02*512
        E: #0 data 4096 01*512
        E: #0 done
        C: FLUSH
        S: last NONE #1 off=0
        E: #1 done
        C: RESIZE 2M
        S: last NONE #2 off=2097152
        E: #2 done
        "#,
    );
}

/// Simple replies where a payload must be in chunks.
#[test]
fn simple_replies_where_chunks_are_required() {
    for error in ["OK", "EIO"] {
        transmission(
            export(Structured),
            &format!("C: READ 0 512\nS: simple {error} #0\n! Violation(SimpleReply(NBD_CMD_READ))"),
        );
    }
    transmission(
        with_contexts(Structured, 1),
        "C: STATUS 0 512\nS: simple OK #0\n! Violation(SimpleReply(NBD_CMD_BLOCK_STATUS))",
    );
}

/// Chunk types that the command does not have.
#[test]
fn chunks_of_other_commands() {
    for framing in [Structured, Extended] {
        let status = match framing {
            Extended => "BLOCK_STATUS_EXT",
            _ => "BLOCK_STATUS",
        };
        for (command, name, chunks) in [
            (
                "WRITE",
                "NBD_CMD_WRITE",
                vec!["OFFSET_DATA", "OFFSET_HOLE", status],
            ),
            (
                "FLUSH",
                "NBD_CMD_FLUSH",
                vec!["OFFSET_DATA", "OFFSET_HOLE", status],
            ),
            (
                "TRIM",
                "NBD_CMD_TRIM",
                vec!["OFFSET_DATA", "OFFSET_HOLE", status],
            ),
            (
                "CACHE",
                "NBD_CMD_CACHE",
                vec!["OFFSET_DATA", "OFFSET_HOLE", status],
            ),
            (
                "WRITE_ZEROES",
                "NBD_CMD_WRITE_ZEROES",
                vec!["OFFSET_HOLE", status],
            ),
            ("RESIZE", "NBD_CMD_RESIZE", vec!["OFFSET_DATA", status]),
            ("READ", "NBD_CMD_READ", vec![status]),
            (
                "STATUS",
                "NBD_CMD_BLOCK_STATUS",
                vec!["OFFSET_DATA", "OFFSET_HOLE"],
            ),
        ] {
            let range = match command {
                "FLUSH" => "",
                "RESIZE" => "2M",
                _ => "0 512",
            };
            for chunk in chunks {
                // With any payload, even the one of a read.
                for body in ["len=100", "0:64 00*512"] {
                    let transcript = format!(
                        r#"
                        C: {command} {range}
                        S: last {chunk} #0 {body}
                        ! Violation(UnexpectedChunk {{ chunk: NBD_REPLY_TYPE_{chunk}, command: {name} }})
                        "#
                    );
                    transmission(with_contexts(framing, 1), &transcript);
                }
            }
        }
        for unknown in [3, 4, 7, 0x7fff] {
            let transcript = format!(
                r#"
                C: FLUSH
                S: chunk {unknown} #0
                ! Violation(UnknownChunk(ChunkType({unknown:#x})))
                "#
            );
            transmission(export(framing), &transcript);
        }
    }
}
