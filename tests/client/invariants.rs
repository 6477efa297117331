//! What has gone wrong in other programs, and must hold here. Each test is
//! named after where it happened.

use nbd_codec::Framing::{Extended, Simple, Structured};
use nbd_codec::client::connect::{Connect, Plan, TlsPolicy};
use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Cookie, ErrorValue};
use nbd_codec::{Error, Framing, Limits, Misuse, Need, Negotiated};

use super::connect::{GRANTED, GREETED, connect, plan};
use super::greetings::agreed;
use super::machines::{
    ByHand, ByPlan, Bytes, by_plan, export, fixed, lenient, small, tiny, transmission,
    with_contexts,
};
use super::script::{self, NoCommands};
use super::transcript::Machine;

const FRAMINGS: [Framing; 3] = [Simple, Structured, Extended];

/// TLS that is required is checked on every way into transmission: there is
/// none without it, and nothing is sent.
#[test]
fn libnbd_cve_2019_14842_tls_required_refuses_plain_text() {
    let impossible = [
        r#"S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 0:16"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 2:16"#,
    ];
    for greeting in impossible {
        for export in ["", "disk"] {
            let mut plan = plan(export);
            plan.tls = TlsPolicy::Require;
            // (A transcript has no C: line that it does not name.)
            by_plan(plan, &format!("{greeting}\n! TlsUnavailable"));
            let mut machine = ByPlan::new(plan);
            let bytes = script::server(&greeting[3..], &NoCommands);
            assert_eq!(
                machine.receive(&mut bytes.as_slice()),
                Err(Error::TlsUnavailable)
            );
            machine.assert_silent();
            assert!(machine.connect.into_negotiated().is_err());
        }
    }
    let mut plan = plan("disk");
    plan.tls = TlsPolicy::Require;
    let refused = format!("{GREETED}C: opt STARTTLS\nS: rep STARTTLS ERR_POLICY\nC: opt ABORT\n");
    assert!(connect(plan, &refused).into_negotiated().is_err());
}

/// One bounds function in checked 64 bits: an offset near 2^64 does not wrap
/// past it.
#[test]
fn libnbd_2019_chunk_offset_wraps_around() {
    for framing in [Structured, Extended] {
        for chunk in [
            "OFFSET_DATA #0 2^64-1:64 00*512",
            "OFFSET_DATA #0 2^64-512:64 00*512",
            "OFFSET_HOLE #0 2^64-1:64 512:32",
            "OFFSET_HOLE #0 2^64-1:64 1:32",
        ] {
            for offset in ["0", "512"] {
                let transcript =
                    format!("C: READ {offset} 512\nS: chunk {chunk}\n! Violation(OutOfBounds(#0))");
                transmission(export(framing), &transcript);
            }
        }
    }
}

/// The end of input and junk are legal in every state: an error, said again
/// and again.
#[test]
fn libnbd_cve_2021_20286_and_qemu_cve_2017_9524_closed_in_mid_negotiation() {
    let transcript = format!(
        r#"{GREETED}
        C: opt STARTTLS
        S: rep STARTTLS ERR_UNSUP
        C: opt EXTENDED_HEADERS
        S: rep EXTENDED_HEADERS ACK
        C: opt GO 4:32 "disk" 1:16 BLOCK_SIZE:16
        {GRANTED}"#
    );
    let lines: Vec<&str> = transcript.lines().map(str::trim).collect();
    let mut plan = plan("disk");
    plan.tls = TlsPolicy::Prefer;
    for end in 0..=lines.len() {
        let reach = || connect(plan, &lines[..end].join("\n"));
        let mut closed = reach();
        assert_eq!(closed.end_of_input(), Err(Error::Closed), "{end}");
        assert_eq!(closed.end_of_input(), Err(Error::Closed));
        assert_eq!(closed.need(), Need::Nothing);
        let mut junk = reach();
        let ready = end == lines.len() || lines[end..].iter().all(|line| !line.starts_with("S:"));
        match junk.receive(&mut &[0xff; 64][..]) {
            Err(error) => assert_eq!(junk.end_of_input(), Err(error)),
            Ok(None) => assert!(ready, "{end}: junk was taken for a message"),
            Ok(Some(event)) => panic!("{event:?}"),
        }
    }
}

/// Only what was negotiated is accepted, whatever was asked.
#[test]
fn libnbd_2023_status_chunk_without_a_context() {
    for (framing, chunk) in [
        (Structured, "BLOCK_STATUS #0 1:32 512:32 0:32"),
        (Extended, "BLOCK_STATUS_EXT #0 1:32 1:32 512:64 0:64"),
    ] {
        lenient(
            export(framing),
            &format!(
                "C: STATUS 0 512\nS: chunk {chunk}\n! Violation(UnknownContext(ContextId(1)))"
            ),
        );
    }
}

/// Sizes are u64 from end to end.
#[test]
fn libnbd_cve_2023_5215_sizes_above_2_to_the_63() {
    for size in [i64::MAX as u64, 1 << 63, u64::MAX] {
        let lines = [
            format!(r#"S: "NBDMAGIC" 00004202_81861253 {size}:64 0:16 1:16 00*124"#),
            format!(
                "S: \"NBDMAGIC\" \"IHAVEOPT\" 3:16\nC: flags 3\nC: opt EXPORT_NAME \"\"\nS: {size}:64 1:16"
            ),
            format!(
                "S: \"NBDMAGIC\" \"IHAVEOPT\" 3:16\nC: flags 3\nC: opt GO 0:32 0:16\nS: rep GO INFO EXPORT:16 {size}:64 1:16\nS: rep GO ACK"
            ),
        ];
        for lines in lines {
            let agreed = agreed(ByHand::new(false, small()), &lines);
            assert_eq!(agreed.size, size);
            let machine = Transmission::new(agreed, [Slot::EMPTY; 1], Limits::DEFAULT);
            assert_eq!(machine.negotiated().size, size);
        }
    }
    // And the last byte of it can be read.
    let export = Negotiated::new(Extended, u64::MAX, TransmissionFlags::HAS_FLAGS);
    transmission(
        export,
        "C: READ 2^64-2 1\nS: last OFFSET_DATA #0 2^64-2:64 07\nE: #0 data 18446744073709551614 07*1\nE: #0 done",
    );
}

/// Widths are types; narrowing is fallible and clamps nothing.
#[test]
fn libnbd_cve_2023_5871_wide_status_flags() {
    let wide = |length, flags| Extent64 { length, flags };
    for (length, flags, fits) in [
        (0xffff_ffff, 0xffff_ffff, true),
        (1 << 32, 0, false),
        (1, 1 << 32, false),
        (u64::MAX, u64::MAX, false),
    ] {
        let narrow = Extent32::try_from(wide(length, flags));
        assert_eq!(narrow.is_ok(), fits);
        match narrow {
            Ok(narrow) => assert_eq!(Extent64::from(narrow), wide(length, flags)),
            Err(error) => assert_eq!(error.0, wide(length, flags)),
        }
    }
    let mut export = with_contexts(Extended, 0);
    let context = nbd_codec::Context {
        id: nbd_codec::wire::number::ContextId(1),
        width: nbd_codec::Width::Wide,
    };
    export.contexts.push(context).unwrap();
    transmission(
        export,
        r#"
        C: STATUS 0 512
        S: last BLOCK_STATUS_EXT #0 1:32 1:32 512:64 2^64-1:64
        E: #0 wide 1 @0 512/0xffffffffffffffff
        E: #0 done
        "#,
    );
}

/// A failed read never ends as complete: not with an error chunk, not with
/// parts missing, not cut off.
#[test]
fn nbdcopy_cve_2022_0485_read_errors_are_ignored() {
    let answers: [(Framing, &[&str]); 8] = [
        (Simple, &["simple EIO #0"]),
        (Simple, &["simple OK #0 00*511"]),
        (
            Structured,
            &[
                "chunk OFFSET_DATA #0 0:64 00*512",
                "last ERROR #0 EIO:32 0:16",
            ],
        ),
        (
            Structured,
            &[
                "chunk ERROR #0 EIO:32 0:16",
                "last OFFSET_DATA #0 0:64 00*512",
            ],
        ),
        (
            Structured,
            &["chunk ERROR_OFFSET #0 EIO:32 0:16 9:64", "last NONE #0"],
        ),
        (Structured, &["last OFFSET_DATA #0 0:64 00*511"]),
        (
            Extended,
            &[
                "chunk 0x8fff #0 EIO:32 0:16",
                "last OFFSET_HOLE #0 0:64 512:32",
            ],
        ),
        (Extended, &["last NONE #0"]),
    ];
    for (framing, answer) in answers {
        let mut sending = super::machines::Sending::new(export(framing), tiny());
        sending.client("READ 0 512");
        for line in answer {
            let bytes = script::server(line, &sending);
            let mut input = bytes.as_slice();
            while let Ok(Some(event)) = sending.machine.receive(&mut input) {
                let good = matches!(event, Event::Done { result: Ok(()), .. });
                assert!(!good, "{answer:?} ended well");
            }
        }
    }
}

/// The caller states the outcome of TLS; there is no default.
#[test]
fn libnbd_cve_2024_7383_certificate_not_verified() {
    let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 3:16"#, &NoCommands);
    let ack = script::server("rep STARTTLS ACK", &NoCommands);
    for outcome in [None, Some(false), Some(true)] {
        let mut plan = Plan::new("disk");
        plan.tls = TlsPolicy::Require;
        let mut connect = Connect::new(plan).unwrap();
        assert_eq!(connect.receive(&mut greeting.as_slice()), Ok(None));
        let mut sent = Bytes::default();
        while connect.transmit(&mut sent).unwrap() > 0 {}
        assert!(connect.receive(&mut ack.as_slice()).unwrap().is_some());
        match outcome {
            None => {}
            Some(false) => connect.tls_failed(),
            Some(true) => connect.tls_established().unwrap(),
        }
        assert_eq!(connect.agreed().tls, outcome == Some(true));
        let mut sent = Bytes::default();
        let written = connect.transmit(&mut sent).unwrap();
        assert_eq!(written > 0, outcome == Some(true), "{outcome:?}");
    }
}

/// A host is never taken for an option.
#[cfg(feature = "alloc")]
#[test]
fn libnbd_cve_2025_14946_host_taken_as_an_option() {
    use nbd_codec::uri::Uri;
    for uri in [
        "nbd+ssh://-oProxyCommand=id/disk",
        "nbd+ssh://-F/disk",
        "nbd+ssh://user@-oProxyCommand=id/",
        "nbd://-host/",
        "nbd+ssh://%2doProxyCommand=id/",
    ] {
        assert!(Uri::parse(uri).is_err(), "{uri}");
    }
    assert!(Uri::parse("nbd+ssh://host-o/disk").is_ok());
}

/// The magic number is judged as soon as its four bytes are there, however
/// long the header is that was expected.
#[test]
fn libnbd_2023_waits_for_a_longer_header() {
    for (framing, magic) in [
        (Extended, 0x6744_6698_u32),
        (Extended, 0x668e_33ef),
        (Structured, 0x6e8a_278c),
        (Simple, 0x668e_33ef),
    ] {
        let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 1], Limits::DEFAULT);
        let _ = machine.submit(Request::flush()).unwrap();
        assert_eq!(machine.receive(&mut &magic.to_be_bytes()[..3]), Ok(None));
        assert!(machine.receive(&mut &magic.to_be_bytes()[..]).is_err());
    }
    // A header that fits is never awaited longer than it is.
    let mut machine = Transmission::new(export(Structured), [Slot::EMPTY; 1], Limits::DEFAULT);
    let cookie = machine.submit(Request::flush()).unwrap().cookie().0;
    assert_eq!(machine.need(), Need::Header(16));
    let mut reply = 0x6744_6698_0000_0000_u64.to_be_bytes().to_vec();
    reply.extend(cookie.to_be_bytes());
    assert!(machine.receive(&mut reply.as_slice()).unwrap().is_some());
}

/// Names are slices, capped at 4096 bytes both ways.
#[test]
fn qemu_cve_2017_2630_and_15118_long_export_name() {
    use nbd_codec::wire::option::OptionRequest;
    use nbd_codec::wire::text::{Text, TextError};
    let start = || {
        let mut hand = ByHand::new(false, small());
        let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 3:16"#, &NoCommands);
        assert!(hand.receive(&mut greeting.as_slice()).unwrap().is_some());
        hand.client("flags 3");
        hand
    };
    for (length, good) in [
        (255, true),
        (256, true),
        (4096, true),
        (4097, false),
        (1 << 20, false),
    ] {
        let name = vec![b'n'; length];
        let mut sink = Bytes::default();
        let request = OptionRequest::ExportName(Text::new(&name));
        let sent = start().handshake.send(&request, &mut sink);
        match good {
            true => assert_eq!(sent, Ok(16 + length)),
            false => assert_eq!(sent, Err(Misuse::Text(TextError::TooLong))),
        }
    }
    fixed(
        r#"
        C: opt LIST
        S: rep LIST SERVER 4096:32 6e*4096
        S: rep LIST SERVER 0xffffffff:32 6e*16
        E: Skipped { reply: NBD_REP_SERVER, length: 4100 }
        ! Decode(Overrun { message: "NBD_REP_SERVER" })
        "#,
    );
}

/// Texts of any length are taken or skipped, never an end.
#[test]
fn qemu_cve_2020_10761_long_error_text() {
    for length in [4095, 4096, 4097, 8192] {
        let limits = Limits::DEFAULT;
        let mut machine = Transmission::new(export(Structured), [Slot::EMPTY; 1], limits);
        let cookie = machine.submit(Request::flush()).unwrap().cookie();
        let mut chunk = 0x668e_33ef_0001_8001_u64.to_be_bytes().to_vec();
        chunk.extend(cookie.0.to_be_bytes());
        chunk.extend(u32::try_from(6 + length).unwrap().to_be_bytes());
        chunk.extend(5u32.to_be_bytes());
        chunk.extend(u16::try_from(length).unwrap().to_be_bytes());
        chunk.extend(vec![b'x'; length]);
        let mut input = chunk.as_slice();
        let Ok(Some(Event::Error { message, .. })) = machine.receive(&mut input) else {
            panic!("no error was reported");
        };
        let text = message.map(|text| text.len());
        assert_eq!(text, (length <= 4096).then_some(length));
        let result = Err(ErrorValue::EIO);
        assert_eq!(
            machine.receive(&mut input),
            Ok(Some(Event::Done { cookie, result }))
        );
    }
}

/// The machine owns the table of cookies: one completion for each, none for
/// any other number.
#[test]
fn linux_2021_reply_for_a_completed_or_unsent_cookie() {
    for (framing, ok) in [
        (Simple, "simple OK"),
        (Structured, "last NONE"),
        (Extended, "last NONE"),
    ] {
        let twice = format!(
            "C: FLUSH\nC: FLUSH\nS: {ok} #0\nS: {ok} #0\nE: #0 done\n! Violation(UnknownCookie(#0))"
        );
        transmission(export(framing), &twice);
        for bit in 0..64 {
            let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 4], Limits::DEFAULT);
            let sent = machine.submit(Request::flush()).unwrap().cookie();
            let other = Cookie(sent.0 ^ (1 << bit));
            let mut reply = match framing {
                Simple => 0x6744_6698_0000_0000_u64,
                Structured => 0x668e_33ef_0001_0000,
                Extended => 0x6e8a_278c_0001_0000,
            }
            .to_be_bytes()
            .to_vec();
            reply.extend(other.0.to_be_bytes());
            reply.extend([0; 16]);
            let error = Error::Violation(nbd_codec::Violation::UnknownCookie(other));
            assert_eq!(machine.receive(&mut reply.as_slice()), Err(error));
            assert_eq!(machine.abandon(), Some(sent));
            assert_eq!(machine.abandon(), None);
        }
    }
}

/// Reply magic, framing that was not agreed on, overlapping chunks: each its
/// own error.
#[test]
fn go_nbd_52_57_58_unchecked_replies() {
    let magic = "C: READ 0 512\nS: 67446697\n! Decode(Magic { message: \"reply\" })";
    transmission(export(Simple), magic);
    let framing = "C: READ 0 512\nS: chunk OFFSET_DATA #0 structured 0:64 00*512\n! Violation(OtherFraming { negotiated: Simple })";
    transmission(export(Simple), framing);
    let overlap = "C: READ 0 512\nS: chunk OFFSET_HOLE #0 0:64 512:32\nS: chunk OFFSET_HOLE #0 0:64 512:32\nE: #0 hole 0 +512\n! Violation(Overlap(#0))";
    transmission(export(Structured), overlap);
}

/// After an error chunk the reply still runs to DONE.
#[test]
fn go_nbd_error_chunk_is_not_the_end() {
    for framing in [Structured, Extended] {
        transmission(
            export(framing),
            r#"
            C: READ 0 512
            S: chunk ERROR #0 EIO:32 0:16
            E: #0 error NBD_EIO ""
            C: FLUSH
            S: last NONE #1
            S: last NONE #0
            E: #1 done
            E: #0 done NBD_EIO
            "#,
        );
    }
}

/// An error reply to READ has no payload: the next reply begins right behind.
#[test]
fn rust_nbd_data_after_an_error_reply() {
    transmission(
        export(Simple),
        r#"
        C: READ 0 512
        C: FLUSH
        S: simple EIO #0
        S: simple OK #1
        E: #0 done NBD_EIO
        E: #1 done
        "#,
    );
}

/// A refused call changes nothing: not the next cookie, not a slot, not what
/// was lent to it.
#[test]
fn ersek_review_08_a_refused_call_changes_nothing() {
    for framing in FRAMINGS {
        let machine = || Transmission::new(export(framing), [Slot::EMPTY; 2], Limits::DEFAULT);
        let (mut refusing, mut fresh) = (machine(), machine());
        let mut payload = Bytes::default();
        assert!(refusing.submit(Request::read(1 << 20, 1)).is_err());
        let ids = [nbd_codec::wire::number::ContextId(1)];
        let flags = CommandFlags::NONE;
        assert!(
            refusing
                .block_status_of(&ids, 0, 1, flags, &mut payload)
                .is_err()
        );
        assert!(refusing.advance(1).is_err());
        assert!(payload.0.is_empty());
        assert_eq!(format!("{refusing:?}"), format!("{fresh:?}"));
        assert_eq!(
            refusing.submit(Request::flush()),
            fresh.submit(Request::flush())
        );
    }
}

/// A wide status chunk without extended headers is a violation at its type,
/// not something to be cut.
#[test]
fn ersek_review_08_wide_status_without_extended_headers() {
    for rest in ["", "1:32 1:32 512:64 0:64"] {
        transmission(
            with_contexts(Structured, 1),
            &format!(
                r#"
                C: STATUS 0 512
                S: chunk BLOCK_STATUS_EXT #0 len=24 {rest}
                ! Violation(OtherWidth {{ chunk: NBD_REPLY_TYPE_BLOCK_STATUS_EXT, framing: Structured }})
                "#
            ),
        );
    }
}
