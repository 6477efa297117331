//! Reads in pieces: bounds, overlap, gaps, and the flag DF.

use nbd_codec::Framing::{self, Extended};

use super::machines::{CHUNKED, export, lenient, transmission};

/// Plays a transcript in both framings with chunks, after `READ 4K 1K`.
fn read(transcript: &str) {
    for framing in CHUNKED {
        transmission(export(framing), &format!("C: READ 4K 1K\n{transcript}"));
    }
}

#[test]
fn pieces_in_any_order() {
    read(
        r#"
        S: chunk OFFSET_HOLE #0 4608:64 256:32
        S: chunk OFFSET_DATA #0 4096:64 01*512
        S: chunk OFFSET_DATA #0 5119:64 03
        S: last OFFSET_DATA #0 4864:64 02*255
        E: #0 hole 4608 +256
        E: #0 data 4096 01*512
        E: #0 data 5119 03*1
        E: #0 data 4864 02*255
        E: #0 done
        "#,
    );
}

/// Reply flags that are not known are ignored.
#[test]
fn unknown_reply_flags() {
    read(
        r#"
        S: chunk OFFSET_DATA #0 flags=0x8002 4096:64 01*1024
        S: chunk NONE #0 flags=0xffff
        E: #0 data 4096 01*1024
        E: #0 done
        "#,
    );
}

/// Content outside the request, also where its end exceeds 64 bits.
#[test]
fn out_of_bounds() {
    for chunk in [
        "OFFSET_DATA #0 4095:64 00*1024",
        "OFFSET_DATA #0 4097:64 00*1024",
        "OFFSET_DATA #0 5120:64 00",
        "OFFSET_DATA #0 0:64 00",
        "OFFSET_DATA #0 2^64-1:64 00",
        "OFFSET_DATA #0 2^64-1024:64 00*1024",
        "OFFSET_DATA #0 len=1033 4096:64", // at the length, before any data
        "OFFSET_DATA #0 len=0xffffffff",
        "OFFSET_HOLE #0 4095:64 1:32",
        "OFFSET_HOLE #0 4096:64 1025:32",
        "OFFSET_HOLE #0 5120:64 1:32",
        "OFFSET_HOLE #0 2^64-1:64 1:32",
        "OFFSET_HOLE #0 2^64-1:64 2^32-1:32",
        "OFFSET_HOLE #0 4096:64 2^32-1:32",
    ] {
        read(&format!("S: chunk {chunk}\n! Violation(OutOfBounds(#0))"));
    }
    transmission(
        export(Extended),
        "C: READ 0 1\nS: chunk OFFSET_DATA #0 len=2^64-1\n! Violation(OutOfBounds(#0))",
    );
}

/// More bytes than the request has are detected at the chunk that exceeds it;
/// as many bytes in the wrong places, at the end of the reply.
#[test]
fn overlap() {
    read(
        r#"
        S: chunk OFFSET_HOLE #0 4096:64 1K:32
        S: chunk OFFSET_HOLE #0 4096:64 1:32
        E: #0 hole 4096 +1024
        ! Violation(Overlap(#0))
        "#,
    );
    read(
        r#"
        S: chunk OFFSET_HOLE #0 4096:64 512:32
        S: chunk OFFSET_HOLE #0 4096:64 512:32
        S: last NONE #0
        E: #0 hole 4096 +512
        E: #0 hole 4096 +512
        ! Violation(Overlap(#0))
        "#,
    );
    read(
        r#"
        S: chunk OFFSET_DATA #0 4096:64 01*513
        S: last OFFSET_DATA #0 4608:64 02*511
        E: #0 data 4096 01*513
        E: #0 data 4608 02*511
        ! Violation(Overlap(#0))
        "#,
    );
}

#[test]
fn gaps() {
    read("S: last NONE #0\n! Violation(Incomplete(#0))");
    read(
        r#"
        S: last OFFSET_HOLE #0 4096:64 1023:32
        E: #0 hole 4096 +1023
        ! Violation(Incomplete(#0))
        "#,
    );
    read(
        r#"
        S: chunk OFFSET_DATA #0 4096:64 01*500
        S: chunk OFFSET_DATA #0 4608:64 02*512
        S: last NONE #0
        E: #0 data 4096 01*500
        E: #0 data 4608 02*512
        ! Violation(Incomplete(#0))
        "#,
    );
}

/// A reply with an error may be incomplete.
#[test]
fn an_error_excuses_gaps() {
    read(
        r#"
        S: chunk OFFSET_DATA #0 4096:64 01*512
        S: last ERROR_OFFSET #0 EIO:32 3:16 "bad" 4608:64
        E: #0 data 4096 01*512
        E: #0 error NBD_EIO @4608 "bad"
        E: #0 done NBD_EIO
        "#,
    );
    read(
        r#"
        S: chunk ERROR #0 EIO:32 0:16
        S: chunk OFFSET_DATA #0 4096:64 01*512
        S: last NONE #0
        E: #0 error NBD_EIO ""
        E: #0 data 4096 01*512
        E: #0 done NBD_EIO
        "#,
    );
}

#[test]
fn do_not_fragment() {
    for framing in CHUNKED {
        for second in [
            "OFFSET_DATA #0 512:64 02*512",
            "OFFSET_HOLE #0 512:64 512:32",
        ] {
            transmission(
                export(framing),
                &format!(
                    r#"
                    C: READ 0 1K DF
                    S: chunk OFFSET_DATA #0 0:64 01*512
                    S: last {second}
                    E: #0 data 0 01*512
                    ! Violation(Fragmented(#0))
                    "#
                ),
            );
        }
        transmission(
            export(framing),
            r#"
            C: READ 0 1K DF
            S: last ERROR #0 EOVERFLOW:32 0:16
            E: #0 error NBD_EOVERFLOW ""
            E: #0 done NBD_EOVERFLOW
            "#,
        );
    }
}

/// Content of no bytes, and lengths that a chunk cannot have.
#[test]
fn impossible_lengths() {
    for (chunk, length) in [
        ("OFFSET_DATA", 0),
        ("OFFSET_DATA", 7),
        ("OFFSET_DATA", 8),
        ("OFFSET_HOLE", 0),
        ("OFFSET_HOLE", 11),
        ("OFFSET_HOLE", 13),
        ("NONE", 1),
    ] {
        let message = format!("NBD_REPLY_TYPE_{chunk}");
        read(&format!(
            "S: chunk {chunk} #0 len={length}\n! Decode(Length {{ message: {message:?}, length: {length} }})"
        ));
    }
    // With the offset at which the next data could begin.
    let no_data = r#"Decode(Length { message: "NBD_REPLY_TYPE_OFFSET_DATA", length: 8 })"#;
    read(&format!("S: chunk OFFSET_DATA #0 4096:64\n! {no_data}"));
    read("S: chunk OFFSET_HOLE #0 4096:64 0:32\n! Decode(EmptyHole)");
    read("S: chunk NONE #0\n! Violation(NoneNotDone)");
}

/// An error reply to a simple read has no payload.
#[test]
fn simple_errors_have_no_payload() {
    transmission(
        export(Framing::Simple),
        r#"
        C: READ 0 16
        C: READ 0 16
        S: simple EIO #0
        S: simple OK #1 07*16
        E: #0 done NBD_EIO
        E: #1 data 0 07*16
        E: #1 done
        "#,
    );
}

/// Only a lenient client can read zero bytes.
#[test]
fn reads_of_zero_bytes() {
    lenient(
        export(Framing::Simple),
        "C: READ 5 0\nS: simple OK #0\nE: #0 done",
    );
    for framing in CHUNKED {
        lenient(export(framing), "C: READ 5 0\nS: last NONE #0\nE: #0 done");
        lenient(
            export(framing),
            "C: READ 5 0\nS: chunk OFFSET_DATA #0 5:64 00\n! Violation(OutOfBounds(#0))",
        );
        lenient(
            export(framing),
            r#"
            C: READ 5 0
            S: last ERROR_OFFSET #0 EINVAL:32 0:16 5:64
            E: #0 error NBD_EINVAL @5 ""
            E: #0 done NBD_EINVAL
            "#,
        );
    }
}

/// A range that ends with the last offset of 64 bits, and one that continues
/// past it.
#[test]
fn the_end_of_the_address_space() {
    let mut export = export(Extended);
    export.size = u64::MAX;
    transmission(
        export,
        r#"
        C: READ 2^64-17 16
        S: chunk OFFSET_DATA #0 2^64-9:64 02*8
        S: last OFFSET_DATA #0 2^64-17:64 01*8
        E: #0 data 18446744073709551607 02*8
        E: #0 data 18446744073709551599 01*8
        E: #0 done
        C: READ 2^64-17 16
        S: chunk OFFSET_DATA #1 2^64-8:64 02*8
        ! Violation(OutOfBounds(#1))
        "#,
    );
    lenient(
        export,
        r#"
        C: READ 2^64-8 16
        S: chunk OFFSET_DATA #0 2^64-8:64 02*7
        S: chunk OFFSET_DATA #0 2^64-8:64 02*8
        E: #0 data 18446744073709551608 02*7
        ! Violation(OutOfBounds(#0))
        "#,
    );
    // A simple reply has no offset that could be wrong.
    export.framing = Framing::Simple;
    lenient(
        export,
        r#"
        C: READ 2^64-8 7
        S: simple OK #0 02*7
        E: #0 data 18446744073709551608 02*7
        E: #0 done
        "#,
    );
}
