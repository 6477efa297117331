//! TLS modes: NOTLS, SELECTIVETLS, FORCEDTLS.

use nbd_codec::server::{Config, Export, Handshake, MetaContext, TlsMode};
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::{Error, Misuse, Step, Violation};

use crate::drive::{HandshakeDriver, play, read};

const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];

fn exports() -> [Export<'static>; 2] {
    let mut secret = Export::new("secret", 4096, TransmissionFlags::NONE);
    secret.requires_tls = true;
    secret.contexts = CONTEXTS;
    [secret, Export::new("open", 4096, TransmissionFlags::NONE)]
}

#[track_caller]
fn play_in(tls: TlsMode, transcript: &str) {
    let exports = exports();
    let transcript = format!("S: NBDMAGIC IHAVEOPT 0003\nC: 00000003\n{transcript}");
    play(
        || HandshakeDriver::new(Config::new().tls(tls), &exports),
        &transcript,
    );
}

const START: &str = "C: IHAVEOPT STARTTLS 4{ }
    S: REPLY STARTTLS ACK 4{ }
    E: StartTls\n";

#[test]
fn notls_refuses_starttls() {
    play_in(
        TlsMode::None,
        "C: IHAVEOPT STARTTLS 4{ }
         S: REPLY STARTTLS ERR_POLICY 4{ \"the server has no TLS\" }
         # Exports that require TLS are refused; TLS_REQD must not be sent.
         C: IHAVEOPT LIST 4{ }
         E: List
         S: REPLY LIST REP_SERVER 4{ 4{ \"open\" } }
         S: REPLY LIST ACK 4{ }
         C: IHAVEOPT GO 4{ 4{ \"secret\" } 0000 }
         E: Export NBD_OPT_GO \"secret\" []
         S: REPLY GO ERR_POLICY 4{ \"the export needs TLS\" }
         C: IHAVEOPT EXPORT_NAME 4{ \"secret\" }
         E: Export NBD_OPT_EXPORT_NAME \"secret\" []
         X: the export was refused, and NBD_OPT_EXPORT_NAME has no error reply",
    );
}

#[test]
fn forcedtls_refuses_every_option_before_tls() {
    let refused = |option: &str| {
        format!(
            "C: IHAVEOPT {option} 4{{ 00*7 }}
             S: REPLY {option} ERR_TLS_REQD 4{{ \"start TLS first\" }}\n"
        )
    };
    let options = [
        "LIST",
        "INFO",
        "GO",
        "STRUCTURED_REPLY",
        "EXTENDED_HEADERS",
        "LIST_META",
        "SET_META",
        "PEEK_EXPORT",
        "0000_1234",
    ];
    let options: String = options.into_iter().map(refused).collect();
    play_in(
        TlsMode::Forced,
        &format!(
            "{options}{START}
             C: IHAVEOPT STARTTLS 4{{ }}
             S: REPLY STARTTLS ERR_INVALID 4{{ \"TLS was started already\" }}
             C: IHAVEOPT 0000_1234 4{{ }}
             S: REPLY 0000_1234 ERR_UNSUP 4{{ \"unsupported option\" }}
             C: IHAVEOPT GO 4{{ 4{{ \"secret\" }} 0000 }}
             E: Export NBD_OPT_GO \"secret\" []
             S: REPLY GO REP_INFO 4{{ 0000 0000_0000_0000_1000 0001 }}
             S: REPLY GO ACK 4{{ }}
             E: Ready"
        ),
    );
    play_in(
        TlsMode::Forced,
        "C: IHAVEOPT ABORT 4{ }
         S: REPLY ABORT ACK 4{ }
         E: Aborted",
    );
    for name in ["secret", "open", "none"] {
        play_in(
            TlsMode::Forced,
            &format!(
                "C: IHAVEOPT EXPORT_NAME 4{{ \"{name}\" }}
                 X: TLS is required, and NBD_OPT_EXPORT_NAME asked for an export without it"
            ),
        );
    }
}

#[test]
fn selectivetls_applies_to_each_export() {
    play_in(
        TlsMode::Selective,
        &format!(
            "C: IHAVEOPT LIST 4{{ }}
             E: List
             S: REPLY LIST REP_SERVER 4{{ 4{{ \"open\" }} }}
             S: REPLY LIST ACK 4{{ }}
             C: IHAVEOPT INFO 4{{ 4{{ \"secret\" }} 0000 }}
             E: Export NBD_OPT_INFO \"secret\" []
             S: REPLY INFO ERR_TLS_REQD 4{{ \"start TLS first\" }}
             C: IHAVEOPT GO 4{{ 4{{ \"secret\" }} 0000 }}
             E: Export NBD_OPT_GO \"secret\" []
             S: REPLY GO ERR_TLS_REQD 4{{ \"start TLS first\" }}
             # LIST_META_CONTEXT must not get TLS_REQD.
             C: IHAVEOPT LIST_META 4{{ 4{{ \"secret\" }} 00000000 }}
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"secret\" []
             S: REPLY LIST_META ERR_UNKNOWN 4{{ \"no such export\" }}
             C: IHAVEOPT INFO 4{{ 4{{ \"open\" }} 0000 }}
             E: Export NBD_OPT_INFO \"open\" []
             S: REPLY INFO REP_INFO 4{{ 0000 0000_0000_0000_1000 0001 }}
             S: REPLY INFO ACK 4{{ }}
             {START}
             C: IHAVEOPT LIST 4{{ }}
             E: List
             S: REPLY LIST REP_SERVER 4{{ 4{{ \"secret\" }} }}
             S: REPLY LIST REP_SERVER 4{{ 4{{ \"open\" }} }}
             S: REPLY LIST ACK 4{{ }}
             C: IHAVEOPT STARTTLS 4{{ }}
             S: REPLY STARTTLS ERR_INVALID 4{{ \"TLS was started already\" }}
             C: IHAVEOPT GO 4{{ 4{{ \"secret\" }} 0000 }}
             E: Export NBD_OPT_GO \"secret\" []
             S: REPLY GO REP_INFO 4{{ 0000 0000_0000_0000_1000 0001 }}
             S: REPLY GO ACK 4{{ }}
             E: Ready"
        ),
    );
    play_in(
        TlsMode::Selective,
        "C: IHAVEOPT EXPORT_NAME 4{ \"secret\" }
         E: Export NBD_OPT_EXPORT_NAME \"secret\" []
         X: TLS is required, and NBD_OPT_EXPORT_NAME asked for an export without it",
    );
    play_in(
        TlsMode::Selective,
        "C: IHAVEOPT EXPORT_NAME 4{ \"open\" }
         E: Export NBD_OPT_EXPORT_NAME \"open\" []
         E: Ready
         S: 0000_0000_0000_1000 0001",
    );
}

/// A SELECTIVETLS server may hide which exports exist.
#[test]
fn unknown_exports_can_be_hidden() {
    let exports = exports();
    let start = || HandshakeDriver {
        unknown: OptionReplyType::ERR_TLS_REQD,
        ..HandshakeDriver::new(Config::new().tls(TlsMode::Selective), &exports)
    };
    play(
        start,
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000003
         C: IHAVEOPT GO 4{ 4{ \"none\" } 0000 }
         E: Export NBD_OPT_GO \"none\" []
         S: REPLY GO ERR_TLS_REQD 4{ \"no such export\" }",
    );
}

#[test]
fn starttls_takes_no_data() {
    play_in(
        TlsMode::Selective,
        "C: IHAVEOPT STARTTLS 4{ 00 }
         S: REPLY STARTTLS ERR_INVALID 4{ \"the option takes no data\" }
         C: IHAVEOPT LIST 4{ }
         E: List
         S: REPLY LIST REP_SERVER 4{ 4{ \"open\" } }
         S: REPLY LIST ACK 4{ }",
    );
}

/// A handshake in the option haggling phase.
pub(crate) fn negotiating(tls: TlsMode) -> Handshake {
    let mut handshake = Handshake::new(Config::new().tls(tls)).unwrap();
    handshake.transmit(&mut Vec::new()).unwrap();
    let flags = ClientFlags::KNOWN.encode();
    assert_eq!(handshake.receive(&mut &flags[..]), Ok(read(16)));
    handshake
}

fn start_tls() -> Vec<u8> {
    let mut bytes = Vec::new();
    OptionRequest::StartTls.encode(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_caller_reports_the_outcome_of_tls() {
    let mut handshake = negotiating(TlsMode::Forced);
    let early = Misuse::State("no TLS handshake is under way");
    assert_eq!(handshake.tls_established(), Err(early));
    assert_eq!(handshake.receive(&mut &start_tls()[..]), Ok(Step::Transmit));
    // Misuse until the acknowledgement is written and the step is `StartTls`.
    assert_eq!(handshake.tls_established(), Err(early));
    assert_eq!(handshake.receive(&mut &[][..]), Ok(Step::Transmit));
    assert_eq!(handshake.transmit(&mut Vec::new()), Ok(20));
    assert_eq!(handshake.tls_established(), Err(early));
    for _ in 0..3 {
        assert_eq!(handshake.receive(&mut &[][..]), Ok(Step::StartTls));
    }
    assert!(!handshake.agreed().tls);
    assert_eq!(handshake.tls_established(), Ok(()));
    assert!(handshake.agreed().tls);
    assert_eq!(handshake.receive(&mut &[][..]), Ok(read(16)));

    let mut handshake = negotiating(TlsMode::Selective);
    assert_eq!(handshake.receive(&mut &start_tls()[..]), Ok(Step::Transmit));
    handshake.tls_failed();
    assert_eq!(handshake.receive(&mut &[][..]), Err(Error::TlsFailed));
    assert_eq!(
        handshake.tls_established(),
        Err(Misuse::Failed(Error::TlsFailed))
    );
}

/// An attacker may have injected bytes that follow STARTTLS in plain text.
#[test]
fn plain_text_after_starttls_ends_the_session() {
    let injected = Err(Error::Violation(Violation::PlaintextAfterStartTls));
    // In the same piece.
    let mut handshake = negotiating(TlsMode::Selective);
    let mut bytes = start_tls();
    bytes.push(b'I');
    assert_eq!(handshake.receive(&mut &bytes[..]), injected);
    // Before the acknowledgement, before the step, and before the outcome.
    for steps in 0..3 {
        let mut handshake = negotiating(TlsMode::Selective);
        assert_eq!(handshake.receive(&mut &start_tls()[..]), Ok(Step::Transmit));
        if steps > 0 {
            handshake.transmit(&mut Vec::new()).unwrap();
        }
        if steps > 1 {
            assert_eq!(handshake.receive(&mut &[][..]), Ok(Step::StartTls));
        }
        assert_eq!(handshake.receive(&mut &b"I"[..]), injected, "{steps}");
        assert_eq!(handshake.transmit(&mut Vec::new()), Ok(0));
    }
}

/// Framing and contexts that were negotiated before STARTTLS do not apply.
#[test]
fn starttls_resets_negotiated_state() {
    let mut export = exports()[0];
    export.flags = TransmissionFlags::KNOWN;
    play(
        || HandshakeDriver::new(Config::new().tls(TlsMode::Selective), std::slice::from_ref(&export)),
        &format!(
            "S: NBDMAGIC IHAVEOPT 0003
             C: 00000003
             C: IHAVEOPT EXTENDED_HEADERS 4{{ }}
             S: REPLY EXTENDED_HEADERS ACK 4{{ }}
             {START}
             C: IHAVEOPT SET_META 4{{ 4{{ \"secret\" }} 00000000 }}
             S: REPLY SET_META ERR_INVALID 4{{ \"agree on structured replies or extended headers first\" }}
             C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
             S: REPLY STRUCTURED_REPLY ACK 4{{ }}
             C: IHAVEOPT EXPORT_NAME 4{{ \"secret\" }}
             E: Export NBD_OPT_EXPORT_NAME \"secret\" []
             E: Ready
             S: 0000_0000_0000_1000 0fff"
        ),
    );
}
