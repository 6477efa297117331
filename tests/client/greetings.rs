//! Greetings, client flags, and `EXPORT_NAME`.

use nbd_codec::client::handshake::{Event, Handshake};
use nbd_codec::wire::number::OptionType;
use nbd_codec::{Error, Framing, Misuse, Need, Negotiated, Style};

use super::machines::{ByHand, Bytes, by_hand, small, tiny};
use super::script::{self, NoCommands};
use super::transcript::Machine;

/// Plays lines once, whole; returns what was agreed on.
pub(crate) fn agreed(mut by_hand: ByHand, lines: &str) -> Negotiated {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (who, what) = line.split_once(' ').unwrap();
        match who {
            "C:" => by_hand.client(what),
            "S:" => {
                let bytes = script::server(what, &NoCommands);
                let mut input = bytes.as_slice();
                while by_hand.receive(&mut input).unwrap().is_some() {}
                assert!(input.is_empty());
            }
            _ => panic!("{line:?}"),
        }
    }
    by_hand.handshake.into_negotiated().unwrap()
}

#[test]
fn oldstyle() {
    by_hand(
        r#"
        S: "NBDMAGIC" 00004202_81861253 2^63-1:64 0:16 1:16 00*124
        E: Greeting(Oldstyle(OldstyleGreeting { size: 9223372036854775807, handshake_flags: HandshakeFlags(0x0), flags: TransmissionFlags(HAS_FLAGS) }))
        E: Ready
        "#,
    );
}

/// A size is 64 bits from end to end.
#[test]
fn oldstyle_sizes() {
    for (word, size) in [
        ("0", 0),
        ("2^63-1", i64::MAX as u64),
        ("2^63", 1 << 63),
        ("2^64-1", u64::MAX),
    ] {
        let line = format!(r#"S: "NBDMAGIC" 00004202_81861253 {word}:64 0:16 3:16 00*124"#);
        let agreed = agreed(ByHand::new(false, tiny()), &line);
        assert_eq!(agreed.size, size);
        assert_eq!(agreed.flags.0, 3);
        assert_eq!(agreed.style, Style::Oldstyle);
        assert_eq!(agreed.framing, Framing::Simple);
        assert!(!agreed.tls && agreed.contexts.is_empty() && agreed.block_sizes.is_none());
    }
}

/// The zeroes are reserved: what they are is not looked at. What follows them
/// belongs to the transmission.
#[test]
fn oldstyle_reserved_bytes_and_what_follows() {
    by_hand(
        r#"
        S: "NBDMAGIC" 00004202_81861253 4096:64 0:16 1:16 a5*124
        S: 67446698 0:32 0:64
        E: Greeting(Oldstyle(OldstyleGreeting { size: 4096, handshake_flags: HandshakeFlags(0x0), flags: TransmissionFlags(HAS_FLAGS) }))
        E: Ready
        "#,
    );
}

/// Client flags; whether zeroes follow.
#[test]
fn export_name_with_and_without_zeroes() {
    for (offered, wanted, style, zeroes) in [
        (0, 0, Style::Newstyle, true),
        (1, 1, Style::FixedNewstyle, true),
        (2, 2, Style::Newstyle, false),
        (3, 3, Style::FixedNewstyle, false),
        (3, 1, Style::FixedNewstyle, true),
        (3, 0, Style::Newstyle, true),
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
        let agreed = agreed(ByHand::new(false, tiny()), &lines);
        assert_eq!((agreed.style, agreed.size), (style, u64::MAX));
        assert_eq!(agreed.flags.0, 5);
        assert_eq!(agreed.framing, Framing::Simple);
    }
}

#[test]
fn export_name_in_pieces() {
    by_hand(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 0:16
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(0x0) }))
        C: flags 0
        C: opt EXPORT_NAME "disk"
        S: 1M:64 5:16 00*124
        E: Ready
        "#,
    );
    by_hand(
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

/// Flags that the server does not have are not claimed; unknown ones are kept
/// for the caller to see.
#[test]
fn client_flags_are_what_both_can_do() {
    use nbd_codec::wire::flags::ClientFlags;
    for (offered, wanted, sent) in [(0, 3, 0), (1, 3, 1), (2, 3, 2), (3, 3, 3), (0xffff, 3, 3)] {
        let mut hand = ByHand::new(false, small());
        let greeting = script::server(
            &format!(r#""NBDMAGIC" "IHAVEOPT" {offered}:16"#),
            &NoCommands,
        );
        let event = hand.receive(&mut greeting.as_slice()).unwrap();
        assert!(event.is_some());
        let mut sink = Bytes::default();
        let written = hand
            .handshake
            .send_client_flags(ClientFlags(wanted), &mut sink);
        assert_eq!(written, Ok(4));
        assert_eq!(sink.0, u32::to_be_bytes(sent));
    }
}

/// Bytes that are no greeting, at the first wrong byte.
#[test]
fn no_greeting() {
    for line in [
        r#"S: "SSH-2.0-""#,
        r#"S: "NBDMAGID""#,
        r#"S: "NBDMAGIC" "IHAVEOPX" 0:16"#,
        r#"S: "NBDMAGIC" 00004202_81861254"#,
    ] {
        let error = r#"! Decode(Magic { message: "greeting" })"#;
        by_hand(&format!("{line}\n{error}"));
    }
}

/// A server says nothing before the client has spoken.
#[test]
fn unsolicited_bytes() {
    by_hand(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 3:16
        S: 00
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
        ! Violation(Unsolicited)
        "#,
    );
    by_hand(
        r#"
        S: "NBDMAGIC" "IHAVEOPT" 3:16
        E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
        C: flags 3
        S: rep LIST ACK
        ! Violation(Unsolicited)
        "#,
    );
}

/// Without fixed newstyle there is one option.
#[test]
fn options_that_need_fixed_newstyle() {
    use nbd_codec::wire::option::OptionRequest as O;
    let mut hand = ByHand::new(false, tiny());
    let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 2:16"#, &NoCommands);
    assert!(hand.receive(&mut greeting.as_slice()).unwrap().is_some());
    hand.client("flags 2");
    let refused = [
        (O::List, OptionType::LIST),
        (O::Abort, OptionType::ABORT),
        (O::StartTls, OptionType::STARTTLS),
        (O::StructuredReply, OptionType::STRUCTURED_REPLY),
        (O::ExtendedHeaders, OptionType::EXTENDED_HEADERS),
    ];
    for (request, option) in refused {
        let mut sink = Bytes::default();
        let result = hand.handshake.send(&request, &mut sink);
        assert_eq!(result, Err(Misuse::NotFixed(option)));
        assert!(sink.0.is_empty());
    }
    hand.client(r#"opt EXPORT_NAME "disk""#);
    assert_eq!(hand.end_of_input(), Err(Error::Closed));
}

/// What a reader does that reads exactly what is needed, once more without the
/// driver of the transcripts.
#[test]
fn exact_reads_by_hand() {
    let stream: Vec<u8> = [
        r#""NBDMAGIC" 00004202_81861253 2^64-1:64 0:16 3:16 00*124"#,
        r#""more""#,
    ]
    .iter()
    .flat_map(|line| script::server(line, &NoCommands))
    .collect();
    let mut handshake = Handshake::new(false, small());
    let (mut buffer, mut at, mut ready) = (Vec::new(), 0, false);
    while !ready {
        let Need::Header(n) = handshake.need() else {
            panic!("{:?}", handshake.need());
        };
        assert!(n > buffer.len(), "a reader would hang");
        at += n - buffer.len();
        buffer = stream[at - n..at].to_vec();
        let mut input = buffer.as_slice();
        while let Some(event) = handshake.receive(&mut input).unwrap() {
            ready |= event == Event::Ready;
        }
        buffer = input.to_vec();
    }
    assert_eq!(&stream[at..], b"more");
}
