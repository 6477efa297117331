//! Greetings, client flags, and `EXPORT_NAME`.

use nbd_codec::client::{Config, Handshake, HandshakeEvent};
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option::OptionRequest as O;
use nbd_codec::{Error, Framing, HandshakeStyle, Misuse, Negotiated, Step};

use super::machines::{Bytes, LIMITS, Manual, manual};
use super::script::{self, NoCommands};
use super::transcript::{Machine, once};

/// Plays a manual handshake once, whole; returns what was negotiated.
pub(crate) fn negotiated(transcript: &str) -> Negotiated {
    let mut manual = Manual::new(Config::new(""));
    once(&mut manual, transcript);
    manual.handshake.into_negotiated().unwrap()
}

#[test]
fn oldstyle() {
    manual(
        r#"
        S: "NBDMAGIC" 00004202_81861253 2^63-1:64 0:16 1:16 00*124
        E: Greeting(Oldstyle(OldstyleGreeting { size: 9223372036854775807, handshake_flags: HandshakeFlags(0x0), flags: TransmissionFlags(HAS_FLAGS) }))
        E: Ready
        "#,
    );
}

/// A size has 64 bits.
#[test]
fn oldstyle_sizes() {
    for (word, size) in [
        ("0", 0),
        ("2^63-1", i64::MAX as u64),
        ("2^63", 1 << 63),
        ("2^64-1", u64::MAX),
    ] {
        let line = format!(r#"S: "NBDMAGIC" 00004202_81861253 {word}:64 0:16 3:16 00*124"#);
        let agreed = negotiated(&line);
        assert_eq!(agreed.size, size);
        assert_eq!(agreed.flags.0, 3);
        assert_eq!(agreed.style, HandshakeStyle::Oldstyle);
        assert_eq!(agreed.framing, Framing::Simple);
        assert!(!agreed.tls && agreed.contexts.is_empty() && agreed.block_sizes.is_none());
    }
}

/// The reserved bytes are not checked. What follows them belongs to the
/// transmission phase.
#[test]
fn oldstyle_reserved_bytes_and_what_follows() {
    manual(
        r#"
        S: "NBDMAGIC" 00004202_81861253 4096:64 0:16 1:16 a5*124
        S: 67446698 0:32 0:64
        E: Greeting(Oldstyle(OldstyleGreeting { size: 4096, handshake_flags: HandshakeFlags(0x0), flags: TransmissionFlags(HAS_FLAGS) }))
        E: Ready
        "#,
    );
}

/// Whether zeroes follow depends on the client flags.
#[test]
fn export_name_with_and_without_zeroes() {
    for (offered, wanted, style, zeroes) in [
        (0, 0, HandshakeStyle::Newstyle, true),
        (1, 1, HandshakeStyle::FixedNewstyle, true),
        (2, 2, HandshakeStyle::Newstyle, false),
        (3, 3, HandshakeStyle::FixedNewstyle, false),
        (3, 1, HandshakeStyle::FixedNewstyle, true),
        (3, 0, HandshakeStyle::Newstyle, true),
    ] {
        let zeroes = if zeroes { "00*124" } else { "" };
        let lines = format!(
            r#"
            S: "NBDMAGIC" "IHAVEOPT" {offered}:16
            C: flags {wanted}
            C: opt EXPORT_NAME "disk"
            S: 2^64-1:64 5:16 {zeroes}
            "#
        );
        let agreed = negotiated(&lines);
        assert_eq!((agreed.style, agreed.size), (style, u64::MAX));
        assert_eq!(agreed.flags.0, 5);
        assert_eq!(agreed.framing, Framing::Simple);
    }
}

#[test]
fn export_name_in_pieces() {
    manual(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 0:16
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(0x0) }))
        C: flags 0
        C: opt EXPORT_NAME "disk"
        S: 1M:64 5:16 00*124
        E: Ready
        "#,
    );
    manual(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 3:16
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
        C: flags 3
        C: opt EXPORT_NAME ""
        S: 1M:64 5:16
        E: Ready
        "#,
    );
}

/// The client sends no flag that the server did not offer, and none that is
/// unknown.
#[test]
fn client_flags_are_what_both_can_do() {
    for (offered, wanted, sent) in [(0, 3, 0), (1, 3, 1), (2, 3, 2), (3, 3, 3), (0xffff, 3, 3)] {
        let mut manual = Manual::new(Config::new(""));
        let greeting = format!(r#"S: "NBDMAGIC" "IHAVEOPT" {offered}:16"#);
        once(&mut manual, &greeting);
        let mut sink = Bytes::default();
        let written = manual
            .handshake
            .send_client_flags(ClientFlags(wanted), &mut sink);
        assert_eq!(written, Ok(4));
        assert_eq!(sink.0, u32::to_be_bytes(sent));
    }
}

/// Bytes that are no greeting are detected at the first wrong byte.
#[test]
fn unknown_greeting() {
    for line in [
        r#"S: "SSH-2.0-""#,
        r#"S: "NBDMAGID""#,
        r#"S: "NBDMAGIC" "IHAVEOPX" 0:16"#,
        r#"S: "NBDMAGIC" 00004202_81861254"#,
    ] {
        let error = r#"! Decode(Magic { message: "greeting" })"#;
        manual(&format!("{line}\n{error}"));
    }
}

/// A server sends nothing before the client has replied to the greeting, and
/// nothing between options.
#[test]
fn unsolicited_bytes() {
    manual(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 3:16
        S: 00
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
        ! Violation(Unsolicited)
        "#,
    );
    manual(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 3:16
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
        C: flags 3
        S: rep LIST ACK
        ! Violation(Unsolicited)
        "#,
    );
}

/// Without fixed newstyle EXPORT_NAME is the only option.
#[test]
fn options_that_need_fixed_newstyle() {
    let mut manual = Manual::new(Config::new(""));
    once(&mut manual, "S: \"NBDMAGIC\" \"IHAVEOPT\" 2:16\nC: flags 2");
    let refused = [
        (O::List, OptionType::LIST),
        (O::Abort, OptionType::ABORT),
        (O::StartTls, OptionType::STARTTLS),
        (O::StructuredReply, OptionType::STRUCTURED_REPLY),
        (O::ExtendedHeaders, OptionType::EXTENDED_HEADERS),
    ];
    for (request, option) in refused {
        let mut sink = Bytes::default();
        let result = manual.handshake.send(&request, &mut sink);
        assert_eq!(result, Err(Misuse::NotFixed(option)));
        assert!(sink.0.is_empty());
    }
    once(&mut manual, r#"C: opt EXPORT_NAME "disk""#);
    let during = Error::ClosedDuring(OptionType::EXPORT_NAME);
    assert_eq!(manual.end_of_input(), Err(during));
}

/// The loop of a driver that reads exactly what each step asks for, written out.
#[test]
fn exact_reads() {
    let stream: Vec<u8> = [
        r#""NBDMAGIC" 00004202_81861253 2^64-1:64 0:16 3:16 00*124"#,
        r#""more""#,
    ]
    .iter()
    .flat_map(|line| script::server(line, &NoCommands))
    .collect();
    let mut handshake = Handshake::new(&Config::new("").limits(LIMITS));
    let (mut buffer, mut at, mut ready) = (Vec::new(), 0, false);
    loop {
        let mut input = buffer.as_slice();
        match handshake.receive(&mut input).unwrap() {
            Step::Event(event) => ready |= event == HandshakeEvent::Ready,
            Step::Read(n) => {
                let held = input.len();
                buffer = stream[at - held..at + n.get()].to_vec();
                at += n.get();
                continue;
            }
            Step::Finished => break,
            other => panic!("{:?}", other.unexpected()),
        }
        buffer = input.to_vec();
    }
    assert!(ready && buffer.is_empty());
    assert_eq!(&stream[at..], b"more");
}
