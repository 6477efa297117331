//! STARTTLS: when TLS is started, and what must not survive it.

use nbd_codec::client::Config;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option::OptionRequest as O;
use nbd_codec::{Error, Framing, Misuse, Negotiated, Step, Violation};

use super::greetings::negotiated;
use super::machines::{Bytes, Manual, fixed_newstyle};
use super::script::{self, NoCommands};
use super::transcript::{Machine, once, play};

const GREETING: &str = r#"S: "NBDMAGIC" "IHAVEOPT" 3:16"#;

#[test]
fn established() {
    fixed_newstyle(
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
    fixed_newstyle(
        r#"
        C: opt STARTTLS
        S: rep STARTTLS ERR_POLICY "not here"
        E: Refused { option: NBD_OPT_STARTTLS, error: NBD_REP_ERR_POLICY, message: Some("not here") }
        C: opt LIST
        S: rep LIST ACK
        E: Ack(NBD_OPT_LIST)
        "#,
    );
    fixed_newstyle(
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

/// Everything that was negotiated in plain text is forgotten.
#[test]
fn nothing_survives_starttls() {
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
    let agreed = negotiated(&format!("{before}{after}"));
    let mut due = Negotiated::new(Framing::Simple, 1 << 20, TransmissionFlags(1));
    due.tls = true;
    assert_eq!(agreed, due);
    // NO_ZEROES is part of the client flags, and still holds.
    let after = "C: opt EXPORT_NAME \"\"\nS: 1M:64 1:16";
    let agreed = negotiated(&format!("{before}{after}"));
    assert_eq!(agreed, due);
}

/// After STARTTLS was sent.
fn before_the_ack() -> Manual {
    let mut manual = Manual::greeted(Config::new("").require_tls());
    once(&mut manual, "C: opt STARTTLS");
    manual
}

const INJECTED: Error = Error::Violation(Violation::PlaintextAfterStartTls);

/// Bytes after the ACK were sent before TLS was started: where they are in the
/// same input, the step to start TLS never comes.
#[test]
fn plain_text_in_the_same_input() {
    let ack = script::server("rep STARTTLS ACK", &NoCommands);
    let whole = [ack.as_slice(), b"\0"].concat();
    for split in 0..ack.len() {
        let mut manual = before_the_ack();
        let step = manual.receive(&mut &whole[..split]);
        assert!(matches!(step, Ok(Step::Read(_))), "{split}: {step:?}");
        for _ in 0..2 {
            assert_eq!(manual.receive(&mut whole.as_slice()), Err(INJECTED));
        }
        let over = Err(Misuse::Failed(INJECTED));
        assert_eq!(manual.handshake.tls_established(), over);
    }
}

/// Where they are in a later input, the outcome of TLS cannot be stated any
/// more.
#[test]
fn plain_text_in_a_later_input() {
    let mut manual = before_the_ack();
    once(&mut manual, "S: rep STARTTLS ACK");
    for _ in 0..2 {
        assert_eq!(manual.receive(&mut &b""[..]), Ok(Step::StartTls));
    }
    assert_eq!(manual.receive(&mut &b"\x15"[..]), Err(INJECTED));
    let over = Err(Misuse::Failed(INJECTED));
    assert_eq!(manual.handshake.tls_established(), over);
}

/// A server that cannot start TLS ends the session where TLS is required.
#[test]
fn required_and_impossible() {
    for line in [
        r#"S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 0:16"#,
        r#"S: "NBDMAGIC" "IHAVEOPT" 2:16"#,
    ] {
        let start = || Manual::new(Config::new("").require_tls());
        play(start, &format!("{line}\n! TlsUnavailable"));
    }
}

/// A client that does not set FIXED_NEWSTYLE cannot start TLS either: where TLS
/// is required it has nothing to send.
#[test]
fn required_and_not_offered() {
    let mut manual = Manual::new(Config::new("").require_tls());
    once(&mut manual, &format!("{GREETING}\nC: flags 0"));
    let mut sink = Bytes::default();
    let name = manual
        .handshake
        .send(&O::ExportName("disk".into()), &mut sink);
    assert_eq!(name, Err(Misuse::TlsRequired));
    let start = manual.handshake.send(&O::StartTls, &mut sink);
    assert_eq!(start, Err(Misuse::NotFixed(OptionType::STARTTLS)));
    assert!(sink.0.is_empty());
}
