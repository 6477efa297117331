//! Errors that a server reports: they are events, and the reply continues to
//! its end.

use nbd_codec::Framing::{Extended, Simple, Structured};
use nbd_codec::Limits;
use nbd_codec::wire::number::ErrorValue;

use super::machines::{CHUNKED, Client, export, transmission, with_contexts};
use super::transcript::play;

fn write(transcript: &str) {
    for framing in CHUNKED {
        transmission(export(framing), &format!("C: WRITE 4K 1K\n{transcript}"));
    }
}

/// After an error chunk the reply continues to DONE; the first error is the
/// result.
#[test]
fn the_reply_continues_to_done() {
    write(
        r#"
        S: chunk ERROR #0 EIO:32 2:16 "hm"
        S: chunk ERROR #0 ENOSPC:32 0:16
        S: chunk ERROR_OFFSET #0 EINVAL:32 0:16 4096:64
        E: #0 error NBD_EIO "hm"
        E: #0 error NBD_ENOSPC ""
        E: #0 error NBD_EINVAL @4096 ""
        C: FLUSH
        S: last NONE #1
        S: last NONE #0
        E: #1 done
        E: #0 done NBD_EIO
        "#,
    );
}

/// A reply that began with chunks cannot end with a simple reply: its success
/// would hide the error.
#[test]
fn a_simple_reply_does_not_hide_an_error() {
    transmission(
        export(Structured),
        r#"
        C: WRITE 4K 1K
        S: chunk ERROR #0 EIO:32 0:16
        S: simple OK #0
        E: #0 error NBD_EIO ""
        ! Violation(SimpleReply(NBD_CMD_WRITE))
        "#,
    );
    transmission(
        with_contexts(Structured, 1),
        r#"
        C: STATUS 0 4K
        S: chunk BLOCK_STATUS #0 1:32 4K:32 0:32
        S: simple EIO #0
        E: #0 narrow 1 @0 4096/0x0
        ! Violation(SimpleReply(NBD_CMD_BLOCK_STATUS))
        "#,
    );
}

/// The offset of an error is within the request. Commands without a range
/// accept any offset, and fail all the same.
#[test]
fn offsets() {
    for offset in [4096, 5119] {
        write(&format!(
            r#"
            S: last ERROR_OFFSET #0 EIO:32 0:16 {offset}:64
            E: #0 error NBD_EIO @{offset} ""
            E: #0 done NBD_EIO
            "#
        ));
    }
    for offset in [0, 4095, 5120, u64::MAX] {
        write(&format!(
            "S: last ERROR_OFFSET #0 EIO:32 0:16 {offset}:64\n! Violation(OutOfBounds(#0))"
        ));
    }
    for framing in CHUNKED {
        for command in ["FLUSH", "RESIZE 2M"] {
            for offset in [0, 4096, u64::MAX] {
                transmission(
                    export(framing),
                    &format!(
                        r#"
                        C: {command}
                        S: last ERROR_OFFSET #0 EIO:32 0:16 {offset}:64
                        E: #0 error NBD_EIO @{offset} ""
                        E: #0 done NBD_EIO
                        "#
                    ),
                );
            }
        }
    }
}

/// Unknown error chunks are errors; what follows the message is discarded.
#[test]
fn unknown_error_chunks() {
    for kind in ["0x8003", "0xffff", "0x8000"] {
        write(
            &format!(
                r#"
            S: chunk {kind} #0 EIO:32 5:16 "hello" 0102030405
            S: last {kind} #0 EPERM:32 0:16 ff*100
            S: last NONE #1
            E: #0 error NBD_EIO "hello"
            E: #0 error NBD_EPERM ""
            E: #0 done NBD_EIO
            "#
            )
            .replace("S: last NONE #1\n", ""),
        );
    }
    // Known types may have bytes after the message, too.
    write(
        r#"
        S: chunk ERROR #0 EIO:32 1:16 "x" 01*70
        S: last ERROR_OFFSET #0 EIO:32 1:16 "x" 4K:64 01*70
        E: #0 error NBD_EIO "x"
        E: #0 error NBD_EIO @4096 "x"
        E: #0 done NBD_EIO
        "#,
    );
}

/// Lengths that an error chunk cannot have.
#[test]
fn impossible_lengths() {
    for (kind, length, name) in [
        ("ERROR", 0, "NBD_REPLY_TYPE_ERROR"),
        ("ERROR", 5, "NBD_REPLY_TYPE_ERROR"),
        ("ERROR_OFFSET", 6, "NBD_REPLY_TYPE_ERROR_OFFSET"),
        ("ERROR_OFFSET", 13, "NBD_REPLY_TYPE_ERROR_OFFSET"),
        ("0x8003", 5, "unknown chunk"),
    ] {
        write(&format!(
            "S: chunk {kind} #0 len={length}\n! Decode(Length {{ message: {name:?}, length: {length} }})"
        ));
    }
    for (line, name) in [
        ("ERROR #0 len=6 EIO:32 1:16", "NBD_REPLY_TYPE_ERROR"),
        ("ERROR #0 len=4000 EIO:32 0xffff:16", "NBD_REPLY_TYPE_ERROR"),
        (
            "ERROR_OFFSET #0 len=14 EIO:32 1:16",
            "NBD_REPLY_TYPE_ERROR_OFFSET",
        ),
        ("0x8003 #0 len=10 EIO:32 5:16", "unknown chunk"),
    ] {
        write(&format!(
            "S: chunk {line}\n! Decode(Overrun {{ message: {name:?} }})"
        ));
    }
    write("S: chunk ERROR #0 OK:32 0:16\n! Decode(NoError)");
    write(
        r#"
        S: chunk ERROR #0 len=0xffffffff EIO:32 0:16
        ! Violation(ChunkTooLong { chunk: NBD_REPLY_TYPE_ERROR, length: 4294967295 })
        "#,
    );
    transmission(
        export(Extended),
        r#"
        C: FLUSH
        S: chunk ERROR #0 len=2^64-1
        ! Violation(ChunkTooLong { chunk: NBD_REPLY_TYPE_ERROR, length: 18446744073709551615 })
        "#,
    );
}

/// Messages longer than the limit are discarded; the error and its offset are
/// not.
#[test]
fn long_messages() {
    write(
        r#"
        S: chunk ERROR #0 EIO:32 18:16 78*18
        S: chunk ERROR #0 EIO:32 57:16 78*57
        S: chunk ERROR_OFFSET #0 EIO:32 4096:16 78*4096 4100:64
        S: chunk ERROR_OFFSET #0 EIO:32 100:16 78*100 4101:64 ff*90
        S: last 0x8003 #0 EIO:32 5000:16 78*5000 ff*3
        E: #0 error NBD_EIO "xxxxxxxxxxxxxxxxxx"
        E: #0 error NBD_EIO discarded
        E: #0 error NBD_EIO @4100 discarded
        E: #0 error NBD_EIO @4101 discarded
        E: #0 error NBD_EIO discarded
        E: #0 done NBD_EIO
        "#,
    );
    // The longest message for a buffer of 64 bytes, with its offset.
    write(&format!(
        r#"
        S: last ERROR_OFFSET #0 EIO:32 56:16 78*56 4100:64
        E: #0 error NBD_EIO @4100 "{}"
        E: #0 done NBD_EIO
        "#,
        "x".repeat(56)
    ));
    write("S: chunk ERROR_OFFSET #0 EIO:32 100:16 78*100 0:64\n! Violation(OutOfBounds(#0))");
    // A larger limit.
    for framing in CHUNKED {
        let start = || Client::with_limits(export(framing), Limits::for_buffer(256));
        let transcript = format!(
            r#"
            C: FLUSH
            S: last ERROR #0 EIO:32 248:16 78*248
            E: #0 error NBD_EIO "{}"
            E: #0 done NBD_EIO
            "#,
            "x".repeat(248)
        );
        play(start, &transcript);
    }
}

/// Error numbers that the specification does not define are reported as they
/// are; `or_invalid` makes them EINVAL.
#[test]
fn unexpected_numbers() {
    for (number, name, valid) in [
        (2_u32, "ErrorValue(0x2)", ErrorValue::EINVAL),
        (122, "ErrorValue(0x7a)", ErrorValue::EINVAL),
        (u32::MAX, "ErrorValue(0xffffffff)", ErrorValue::EINVAL),
        (108, "NBD_ESHUTDOWN", ErrorValue::ESHUTDOWN),
    ] {
        for framing in [Simple, Structured] {
            let transcript = format!("C: FLUSH\nS: simple {number} #0\nE: #0 done {name}");
            transmission(export(framing), &transcript);
        }
        write(&format!(
            r#"
            S: last ERROR #0 {number}:32 0:16
            E: #0 error {name} ""
            E: #0 done {name}
            "#
        ));
        assert_eq!(ErrorValue(number).or_invalid(), valid);
    }
}

/// A server that shuts down fails the commands in flight with ESHUTDOWN; the
/// client then disconnects.
#[test]
fn shutdown() {
    transmission(
        export(Structured),
        r#"
        C: FLUSH
        C: WRITE 0 512
        S: last ERROR #0 ESHUTDOWN:32 4:16 "soon"
        E: #0 error NBD_ESHUTDOWN "soon"
        E: #0 done NBD_ESHUTDOWN
        S: simple ESHUTDOWN #1
        E: #1 done NBD_ESHUTDOWN
        C: DISC
        "#,
    );
}

/// Messages are arbitrary bytes: Debug escapes them.
#[test]
fn messages_of_any_bytes() {
    write(
        r#"
        S: last ERROR #0 EIO:32 5:16 1b5b6d00ff
        E: #0 error NBD_EIO "\u{1b}[m\u{0}�"
        E: #0 done NBD_EIO
        "#,
    );
}

/// Every command with a range can fail at an offset, in both framings with
/// chunks.
#[test]
fn every_command_with_a_range() {
    for framing in CHUNKED {
        for command in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES", "STATUS"] {
            transmission(
                with_contexts(framing, 1),
                &format!(
                    r#"
                    C: {command} 4K 512
                    S: last ERROR_OFFSET #0 EIO:32 4:16 "here" 4607:64
                    E: #0 error NBD_EIO @4607 "here"
                    E: #0 done NBD_EIO
                    "#
                ),
            );
        }
    }
}

/// What a driver that returns `std::io::Error` makes of each kind of error.
#[cfg(feature = "std")]
#[test]
fn errors_as_errors_of_io() {
    use std::io;

    use nbd_codec::client::{Config, ConnectError, Connector};
    use nbd_codec::wire::EncodeError;
    use nbd_codec::{Error, Misuse, SessionError, Violation};

    let kinds: [(SessionError, io::ErrorKind); 13] = [
        (Error::Closed.into(), io::ErrorKind::UnexpectedEof),
        (
            Error::from(Violation::UnknownCookie(nbd_codec::wire::number::Cookie(1))).into(),
            io::ErrorKind::InvalidData,
        ),
        (Error::TlsRequired.into(), io::ErrorKind::Other),
        (Misuse::TlsRequired.into(), io::ErrorKind::InvalidInput),
        (EncodeError::TooLong.into(), io::ErrorKind::InvalidInput),
        (ConnectError::UnknownExport.into(), io::ErrorKind::NotFound),
        (
            ConnectError::Shutdown.into(),
            io::ErrorKind::ConnectionRefused,
        ),
        (ErrorValue::EPERM.into(), io::ErrorKind::PermissionDenied),
        (ErrorValue::ENOMEM.into(), io::ErrorKind::OutOfMemory),
        (ErrorValue::EINVAL.into(), io::ErrorKind::InvalidInput),
        (ErrorValue::ENOSPC.into(), io::ErrorKind::StorageFull),
        (ErrorValue::ENOTSUP.into(), io::ErrorKind::Unsupported),
        (ErrorValue::EIO.into(), io::ErrorKind::Other),
    ];
    for (error, kind) in kinds {
        let text = error.to_string();
        let io = io::Error::from(error);
        assert_eq!((io.kind(), io.to_string()), (kind, text));
    }
    // A handshake that is asked for what it negotiated before its end.
    let early = Connector::new(Config::new("")).unwrap().into_negotiated();
    let early = early.map_err(SessionError::from);
    assert!(matches!(early, Err(SessionError::NotReady)), "{early:?}");
}
