//! STARTTLS: the hand-over, and what must not survive it.

use nbd_codec::{Error, Misuse, Need, Violation};

use super::greetings::agreed;
use super::machines::{ByHand, fixed, small, tiny};
use super::script::{self, NoCommands};
use super::transcript::{Machine, play};

const GREETING: &str = r#"S: "NBDMAGIC" "IHAVEOPT" 3:16"#;

#[test]
fn hand_over() {
    fixed(
        r#"
        C: opt STARTTLS
        S: rep STARTTLS ACK
        E: StartTls
        C: tls established
        C: opt LIST
        S: rep LIST ACK
        E: Ack(NBD_OPT_LIST)
        "#,
    );
}

#[test]
fn refused_and_failed() {
    fixed(
        r#"
        C: opt STARTTLS
        S: rep STARTTLS ERR_POLICY "not here"
        E: Refused { option: NBD_OPT_STARTTLS, error: NBD_REP_ERR_POLICY, message: Some("not here") }
        C: opt LIST
        S: rep LIST ACK
        E: Ack(NBD_OPT_LIST)
        "#,
    );
    fixed(
        r#"
        C: opt STARTTLS
        S: rep STARTTLS ACK
        E: StartTls
        C: tls failed
        S: 00
        ! TlsFailed
        "#,
    );
}

/// Everything that was agreed on in plain text is forgotten.
#[test]
fn nothing_survives() {
    let before = format!(
        r#"
        {GREETING}
        C: flags 3
        C: opt EXTENDED_HEADERS
        S: rep EXTENDED_HEADERS ACK
        C: opt SET_META_CONTEXT 0:32 1:32 2:32 "x:"
        S: rep SET_META_CONTEXT META_CONTEXT 5:32 "x:a"
        S: rep SET_META_CONTEXT ACK
        C: opt INFO 0:32 1:16 BLOCK_SIZE:16
        S: rep INFO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
        S: rep INFO INFO EXPORT:16 2M:64 3:16
        S: rep INFO ACK
        C: opt STARTTLS
        S: rep STARTTLS ACK
        C: tls established
        "#
    );
    let after = r#"
        C: opt GO 0:32 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
    "#;
    let agreed_on = agreed(ByHand::new(false, small()), &format!("{before}{after}"));
    let mut due = nbd_codec::Negotiated::new(
        nbd_codec::Framing::Simple,
        1 << 20,
        nbd_codec::wire::flags::TransmissionFlags(1),
    );
    due.tls = true;
    assert_eq!(agreed_on, due);
    // NO_ZEROES is part of the greeting, and stays.
    let after = "C: opt EXPORT_NAME \"\"\nS: 1M:64 1:16";
    let agreed_on = agreed(ByHand::new(false, small()), &format!("{before}{after}"));
    assert_eq!(agreed_on, due);
}

fn awaiting_the_ack() -> ByHand {
    let mut hand = ByHand::new(true, tiny());
    let greeting = script::server(GREETING.split_once(' ').unwrap().1, &NoCommands);
    assert!(hand.receive(&mut greeting.as_slice()).unwrap().is_some());
    hand.client("flags 3");
    hand.client("opt STARTTLS");
    hand
}

const INJECTED: Error = Error::Violation(Violation::PlaintextAfterStartTls);

/// Bytes behind the ACK were there before TLS was: in the same input the
/// hand-over does not even happen.
#[test]
fn plain_text_in_the_same_input() {
    let ack = script::server("rep STARTTLS ACK", &NoCommands);
    let whole = [ack.as_slice(), b"\0"].concat();
    for split in 0..ack.len() {
        let mut hand = awaiting_the_ack();
        assert_eq!(hand.receive(&mut &whole[..split]), Ok(None), "{split}");
        assert_eq!(hand.receive(&mut whole.as_slice()), Err(INJECTED));
        assert_eq!(hand.need(), Need::Nothing);
        let over = Err(Misuse::Failed(INJECTED));
        assert_eq!(hand.handshake.tls_established(), over);
    }
}

/// And in a later one: the outcome cannot be stated any more.
#[test]
fn plain_text_in_a_later_input() {
    let ack = script::server("rep STARTTLS ACK", &NoCommands);
    let mut hand = awaiting_the_ack();
    assert!(hand.receive(&mut ack.as_slice()).unwrap().is_some());
    assert_eq!(hand.need(), Need::Nothing);
    assert_eq!(hand.receive(&mut &b""[..]), Ok(None));
    assert_eq!(hand.receive(&mut &b"\x15"[..]), Err(INJECTED));
    let over = Err(Misuse::Failed(INJECTED));
    assert_eq!(hand.handshake.tls_established(), over);
}

/// A server that has no way to start TLS ends the session where it is
/// required.
#[test]
fn required_and_impossible() {
    for line in [
        r#"S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 0:16"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 2:16"#,
    ] {
        let start = || ByHand::new(true, tiny());
        play(start, &format!("{line}\n! TlsUnavailable"));
    }
}

/// A client that does not say it speaks fixed newstyle cannot start TLS
/// either: with TLS required it has nothing to send.
#[test]
fn required_and_not_offered() {
    use nbd_codec::wire::number::OptionType;
    use nbd_codec::wire::option::OptionRequest as O;
    let mut hand = ByHand::new(true, tiny());
    let greeting = script::server(GREETING.split_once(' ').unwrap().1, &NoCommands);
    assert!(hand.receive(&mut greeting.as_slice()).unwrap().is_some());
    hand.client("flags 0");
    let mut sink = super::machines::Bytes::default();
    let name = hand
        .handshake
        .send(&O::ExportName("disk".into()), &mut sink);
    assert_eq!(name, Err(Misuse::TlsRequired));
    let start = hand.handshake.send(&O::StartTls, &mut sink);
    assert_eq!(start, Err(Misuse::NotFixed(OptionType::STARTTLS)));
    assert!(sink.0.is_empty());
}
