//! Faults of other programs that must not happen here. Each test is named after
//! the program and the fault.

use nbd_codec::Framing::{Extended, Simple, Structured};
use nbd_codec::client::{
    Config, Connector, Request, Slot, TlsPolicy, Transmission, TransmissionEvent,
};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::text::{Text, TextError};
use nbd_codec::{
    Error, Framing, Limits, Misuse, Negotiated, SelectedContext, StatusWidth, Step, Violation,
};

use super::connect::{GRANTED, GREETED, connect};
use super::greetings::negotiated;
use super::machines::{
    Automatic, Bytes, Client, FRAMINGS, Manual, automatic, export, fixed_newstyle, lenient,
    transmission, with_contexts,
};
use super::script::{self, NoCommands};
use super::transcript::{Machine, once};

/// Required TLS is checked on every path to transmission: none without TLS, and
/// nothing is sent.
#[test]
fn libnbd_cve_2019_14842_tls_required_refuses_plain_text() {
    let impossible = [
        r#"S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 0:16"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 2:16"#,
    ];
    for greeting in impossible {
        for export in ["", "disk"] {
            let config = Config::new(export).require_tls();
            automatic(config, &format!("{greeting}\n! TlsUnavailable"));
            let mut machine = Automatic::new(config);
            let bytes = script::server(&greeting[3..], &NoCommands);
            assert_eq!(
                machine.receive(&mut bytes.as_slice()),
                Err(Error::TlsUnavailable)
            );
            let mut sent = Bytes::default();
            assert_eq!(machine.connector.transmit(&mut sent), Ok(0));
            assert!(machine.connector.into_negotiated().is_err());
        }
    }
    let config = Config::new("disk").require_tls();
    let refused = format!("{GREETED}C: opt STARTTLS\nS: rep STARTTLS ERR_POLICY\nC: opt ABORT\n");
    assert!(connect(config, &refused).into_negotiated().is_err());
}

/// Bounds are checked without overflow: an offset near 2^64 does not wrap
/// around.
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

/// The end of input and junk in every state: an error, and the same one again.
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
    let config = Config::new("disk").tls(TlsPolicy::Prefer);
    for end in 0..=lines.len() {
        let reach = || connect(config, &lines[..end].join("\n"));
        let mut closed = reach();
        let error = closed.end_of_input().unwrap_err();
        assert!(
            matches!(error, Error::Closed | Error::ClosedDuring(_)),
            "{end}"
        );
        assert_eq!(closed.end_of_input(), Err(error));
        assert_eq!(closed.receive(&mut &b""[..]), Err(error));
        let mut junk = reach();
        let ready = lines[end..].iter().all(|line| !line.starts_with("S:"));
        match junk.receive(&mut &[0xff; 64][..]) {
            Err(error) => assert_eq!(junk.end_of_input(), Err(error)),
            Ok(Step::Finished) => assert!(ready, "{end}: junk was taken for a message"),
            Ok(step) => panic!("{step:?}"),
        }
    }
}

/// A context that was not negotiated is refused, whatever was asked.
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

/// Sizes are u64 everywhere.
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
            let agreed = negotiated(&lines);
            assert_eq!(agreed.size, size);
            let machine = Transmission::new(agreed, [Slot::EMPTY; 1], Limits::DEFAULT);
            assert_eq!(machine.negotiated().size, size);
        }
    }
    // The last byte of such an export can be read.
    let export = Negotiated::new(Extended, u64::MAX, TransmissionFlags::HAS_FLAGS);
    transmission(
        export,
        "C: READ 2^64-2 1\nS: last OFFSET_DATA #0 2^64-2:64 07\nE: #0 data 18446744073709551614 07*1\nE: #0 done",
    );
}

/// Each width is a type of its own; narrowing can fail, and never clamps.
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
    let context = SelectedContext {
        id: ContextId(1),
        width: StatusWidth::Wide,
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

/// A failed read never succeeds: not with an error chunk, not with parts
/// missing, not truncated.
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
        let mut client = Client::new(export(framing));
        once(&mut client, "C: READ 0 512");
        for line in answer {
            let bytes = script::server(line, &client);
            let mut input = bytes.as_slice();
            while let Ok(step @ (Step::Event(_) | Step::Content(_))) =
                client.machine.receive(&mut input)
            {
                let Step::Event(TransmissionEvent::Done { result, .. }) = step else {
                    continue;
                };
                assert!(result.is_err(), "{answer:?} succeeded");
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
        let config = Config::new("disk").require_tls();
        let mut connector = Connector::new(config).unwrap();
        let step = connector.receive(&mut greeting.as_slice());
        assert_eq!(step, Ok(Step::Transmit));
        let mut sent = Bytes::default();
        while connector.transmit(&mut sent).unwrap() > 0 {}
        let step = connector.receive(&mut ack.as_slice());
        assert_eq!(step, Ok(Step::StartTls));
        match outcome {
            None => {}
            Some(false) => connector.tls_failed(),
            Some(true) => connector.tls_established().unwrap(),
        }
        assert_eq!(connector.agreed().tls, outcome == Some(true));
        let next = match outcome {
            None => Ok(Step::StartTls),
            Some(false) => Err(Error::TlsFailed),
            Some(true) => Ok(Step::Transmit),
        };
        assert_eq!(connector.receive(&mut &b""[..]), next);
        let mut sent = Bytes::default();
        let written = connector.transmit(&mut sent).unwrap();
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

/// The magic number is checked as soon as its four bytes have arrived, however
/// long the expected header is.
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
        let magic = magic.to_be_bytes();
        let step = machine.receive(&mut &magic[..3]);
        assert!(matches!(step, Ok(Step::Read(_))), "{step:?}");
        assert!(machine.receive(&mut &magic[..]).is_err());
    }
    // A simple reply is 16 bytes, also where a structured header would be 20.
    let mut machine = Transmission::new(export(Structured), [Slot::EMPTY; 1], Limits::DEFAULT);
    let cookie = machine.submit(Request::flush()).unwrap().cookie();
    let step = machine.receive(&mut &b""[..]).unwrap();
    assert_eq!(step.read_limit().unwrap().get(), 16);
    let mut reply = 0x6744_6698_0000_0000_u64.to_be_bytes().to_vec();
    reply.extend(cookie.0.to_be_bytes());
    let result = Ok(());
    let done = Step::Event(TransmissionEvent::Done { cookie, result });
    assert_eq!(machine.receive(&mut reply.as_slice()), Ok(done));
}

/// Names are slices of at most 4096 bytes, sent and received.
#[test]
fn qemu_cve_2017_2630_and_15118_long_export_name() {
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
        let sent = Manual::greeted(Config::new(""))
            .handshake
            .send(&request, &mut sink);
        if good {
            assert_eq!(sent, Ok(16 + length))
        } else {
            assert_eq!(sent, Err(Misuse::Text(TextError::TooLong)))
        }
    }
    fixed_newstyle(
        r#"
        C: opt LIST
        S: rep LIST SERVER 4096:32 6e*4096
        S: rep LIST SERVER 0xffffffff:32 6e*16
        E: Discarded { reply: NBD_REP_SERVER, length: 4100 }
        ! Decode(Overrun { message: "NBD_REP_SERVER" })
        "#,
    );
}

/// Texts of any length are delivered or discarded, and never end the session.
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
        let Ok(Step::Event(TransmissionEvent::Error { message, .. })) = machine.receive(&mut input)
        else {
            panic!("no error was reported");
        };
        let text = message.map(|text| text.len());
        assert_eq!(text, (length <= 4096).then_some(length));
        let result = Err(ErrorValue::EIO);
        let done = Step::Event(TransmissionEvent::Done { cookie, result });
        assert_eq!(machine.receive(&mut input), Ok(done));
    }
}

/// The state machine owns the table of cookies: each completes once, and no other
/// number completes.
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
            let error = Error::Violation(Violation::UnknownCookie(other));
            assert_eq!(machine.receive(&mut reply.as_slice()), Err(error));
            assert_eq!(machine.pop_unanswered(), Some(sent));
            assert_eq!(machine.pop_unanswered(), None);
        }
    }
}

/// Reply magic, a framing that was not negotiated, overlapping chunks: each has
/// its own error.
#[test]
fn go_nbd_52_57_58_unchecked_replies() {
    let magic = "C: READ 0 512\nS: 67446697\n! Decode(Magic { message: \"reply\" })";
    transmission(export(Simple), magic);
    let framing = "C: READ 0 512\nS: chunk OFFSET_DATA #0 structured 0:64 00*512\n! Violation(OtherFraming { negotiated: Simple })";
    transmission(export(Simple), framing);
    let overlap = "C: READ 0 512\nS: chunk OFFSET_HOLE #0 0:64 512:32\nS: chunk OFFSET_HOLE #0 0:64 512:32\nE: #0 hole 0 +512\n! Violation(Overlap(#0))";
    transmission(export(Structured), overlap);
}

/// After an error chunk the reply continues to DONE.
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

/// An error reply to READ has no payload: the next reply follows at once.
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

/// A refused call changes nothing: not the next cookie, not a slot, not the
/// buffer that it was given.
#[test]
fn ersek_review_08_a_refused_call_changes_nothing() {
    for framing in FRAMINGS {
        let machine = || Transmission::new(export(framing), [Slot::EMPTY; 2], Limits::DEFAULT);
        let (mut refusing, mut fresh) = (machine(), machine());
        let mut payload = Bytes::default();
        assert!(refusing.submit(Request::read(1 << 20, 1)).is_err());
        let ids = [ContextId(1)];
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

/// A wide status chunk without extended headers is a violation at its type; it
/// is never truncated.
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
