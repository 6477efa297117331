//! The automatic handshake: every way to transmission, and every way it ends.

use nbd_codec::client::{Config, ConnectEvent, Connector, MetaContextQuery, TlsPolicy};
use nbd_codec::wire::number::{ContextId, OptionType};
use nbd_codec::wire::text::TextError;
use nbd_codec::{Error, Framing, HandshakeStyle, Limits, Misuse, Negotiated, StatusWidth, Step};

use super::machines::{Automatic, automatic};
use super::script::{self, NoCommands};
use super::transcript::{once, play};

pub(crate) const GREETED: &str = "S: \"NBDMAGIC\" \"IHAVEOPT\" 3:16\nC: 3:32\n";
pub(crate) const GRANTED: &str = r#"
    S: rep GO INFO EXPORT:16 1M:64 1:16
    S: rep GO ACK
    E: Info(Export { size: 1048576, flags: TransmissionFlags(HAS_FLAGS) })
    E: Ready
"#;

/// Plays a transcript once, whole.
pub(crate) fn connect<'a>(config: Config<'a>, transcript: &str) -> Connector<'a> {
    let mut automatic = Automatic::new(config);
    once(&mut automatic, transcript);
    automatic.connector
}

/// Plays a transcript in every fragmentation; returns what was negotiated.
fn reaches(config: Config<'_>, transcript: &str) -> Negotiated {
    automatic(config, transcript);
    connect(config, transcript).into_negotiated().unwrap()
}

/// The server accepts every option.
#[test]
fn everything_granted() {
    let wanted = [
        MetaContextQuery::narrow("base:allocation"),
        MetaContextQuery::wide("x-zone:kind"),
    ];
    let config = Config::new("disk")
        .contexts(&wanted)
        .describe(true)
        .tls(TlsPolicy::Prefer);
    let agreed = reaches(
        config,
        &format!(
            r#"{GREETED}
            C: opt STARTTLS
            S: rep STARTTLS ACK
            E: StartTls
            C: tls established
            C: opt EXTENDED_HEADERS
            S: rep EXTENDED_HEADERS ACK
            C: opt SET_META_CONTEXT 4:32 "disk" 2:32 15:32 "base:allocation" 11:32 "x-zone:kind"
            S: rep SET_META_CONTEXT META_CONTEXT 9:32 "x-zone:kind"
            S: rep SET_META_CONTEXT META_CONTEXT 3:32 "base:allocation"
            S: rep SET_META_CONTEXT ACK
            E: Context {{ wanted: Some(1), id: ContextId(9), name: "x-zone:kind" }}
            E: Context {{ wanted: Some(0), id: ContextId(3), name: "base:allocation" }}
            C: opt GO 4:32 "disk" 3:16 BLOCK_SIZE:16 NAME:16 DESCRIPTION:16
            S: rep GO INFO NAME:16 "DISK"
            S: rep GO INFO DESCRIPTION:16 "a disk"
            S: rep GO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
            E: Info(Name("DISK"))
            E: Info(Description("a disk"))
            E: Info(BlockSize(BlockSizes {{ minimum: 512, preferred: 4096, maximum: 1048576 }}))
            {GRANTED}"#
        ),
    );
    assert_eq!(agreed.framing, Framing::Extended);
    assert_eq!(agreed.size, 1 << 20);
    assert!(agreed.tls);
    assert_eq!(agreed.constraints().minimum, 512);
    let contexts: Vec<_> = agreed
        .contexts
        .iter()
        .map(|context| (context.id.0, context.width))
        .collect();
    assert_eq!(contexts, [(9, StatusWidth::Wide), (3, StatusWidth::Narrow)]);
}

const GO: &str = "C: opt GO 4:32 \"disk\" 1:16 BLOCK_SIZE:16\n";
const NO_EXTENDED: &str = r#"
    C: opt EXTENDED_HEADERS
    S: rep EXTENDED_HEADERS ERR_UNSUP "what?"
    E: Fallback { option: NBD_OPT_EXTENDED_HEADERS, error: NBD_REP_ERR_UNSUP, message: Some("what?") }
"#;
const NO_STRUCTURED: &str = r#"
    C: opt STRUCTURED_REPLY
    S: rep STRUCTURED_REPLY ERR_UNSUP
    E: Fallback { option: NBD_OPT_STRUCTURED_REPLY, error: NBD_REP_ERR_UNSUP, message: Some("") }
"#;
const STRUCTURED: &str = r#"
    C: opt STRUCTURED_REPLY
    S: rep STRUCTURED_REPLY ACK
"#;
const EXTENDED: &str = r#"
    C: opt EXTENDED_HEADERS
    S: rep EXTENDED_HEADERS ACK
"#;

/// Extended, structured, simple; whatever error refuses a framing.
#[test]
fn framings() {
    for (wanted, options, got) in [
        (Framing::Extended, EXTENDED.to_owned(), Framing::Extended),
        (
            Framing::Extended,
            [NO_EXTENDED, STRUCTURED].concat(),
            Framing::Structured,
        ),
        (
            Framing::Extended,
            [NO_EXTENDED, NO_STRUCTURED].concat(),
            Framing::Simple,
        ),
        (
            Framing::Structured,
            STRUCTURED.to_owned(),
            Framing::Structured,
        ),
        (
            Framing::Structured,
            NO_STRUCTURED.to_owned(),
            Framing::Simple,
        ),
        (Framing::Simple, String::new(), Framing::Simple),
    ] {
        for (code, name) in [
            ("ERR_UNSUP", "NBD_REP_ERR_UNSUP"),
            ("ERR_POLICY", "NBD_REP_ERR_POLICY"),
            ("ERR_INVALID", "NBD_REP_ERR_INVALID"),
            ("ERR_PLATFORM", "NBD_REP_ERR_PLATFORM"),
        ] {
            let options = options
                .replace("NBD_REP_ERR_UNSUP", name)
                .replace(" ERR_UNSUP", &format!(" {code}"));
            let config = Config::new("disk").framing(wanted);
            let agreed = reaches(config, &[GREETED, &options, GO, GRANTED].concat());
            assert_eq!(agreed.framing, got);
            assert_eq!(agreed.style, HandshakeStyle::FixedNewstyle);
        }
    }
}

/// EXPORT_NAME where the server does not support GO; the contexts remain.
#[test]
fn export_name_after_go_is_unsupported() {
    let wanted = [MetaContextQuery::narrow("base:allocation")];
    let config = Config::new("disk").contexts(&wanted);
    let transcript = format!(
        r#"{GREETED}{NO_EXTENDED}{STRUCTURED}
        C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
        S: rep SET_META_CONTEXT META_CONTEXT 1:32 "base:allocation"
        S: rep SET_META_CONTEXT ACK
        E: Context {{ wanted: Some(0), id: ContextId(1), name: "base:allocation" }}
        {GO}
        S: rep GO ERR_UNSUP
        E: Fallback {{ option: NBD_OPT_GO, error: NBD_REP_ERR_UNSUP, message: Some("") }}
        C: opt EXPORT_NAME "disk"
        S: 2^63:64 5:16
        E: Ready
        "#
    );
    let agreed = reaches(config, &transcript);
    assert_eq!((agreed.size, agreed.flags.0), (1 << 63, 5));
    assert_eq!(agreed.framing, Framing::Structured);
    assert_eq!(agreed.contexts.len(), 1);
}

/// With extended headers EXPORT_NAME is forbidden: there is no fallback for GO.
#[test]
fn no_export_name_with_extended_headers() {
    automatic(
        Config::new("disk"),
        &format!(
            r#"{GREETED}{EXTENDED}{GO}
            S: rep GO ERR_UNSUP
            E: Failed {{ reason: Refused(NBD_REP_ERR_UNSUP), message: Some("") }}
            C: opt ABORT
            S: rep ABORT ACK
            "#
        ),
    );
}

#[test]
fn older_styles() {
    let newstyle = r#"
        S: "NBDMAGIC" "IHAVEOPT" 2:16
        C: 2:32
        C: opt EXPORT_NAME "disk"
        S: 1M:64 1:16
        E: Ready
    "#;
    let zeroes = r#"
        S: "NBDMAGIC" "IHAVEOPT" 0:16
        C: 0:32
        C: opt EXPORT_NAME "disk"
        S: 1M:64 1:16 00*124
        E: Ready
    "#;
    let oldstyle = r#"
        S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124
        E: Ready
    "#;
    for (export, transcript, style) in [
        ("disk", newstyle, HandshakeStyle::Newstyle),
        ("disk", zeroes, HandshakeStyle::Newstyle),
        ("", oldstyle, HandshakeStyle::Oldstyle),
    ] {
        for tls in [TlsPolicy::Never, TlsPolicy::Prefer] {
            let config = Config::new(export).tls(tls);
            let agreed = reaches(config, transcript);
            assert_eq!(agreed.style, style);
            assert_eq!(agreed.framing, Framing::Simple);
            assert_eq!((agreed.size, agreed.tls), (1 << 20, false));
        }
        let config = Config::new(export).tls(TlsPolicy::Require);
        let greeting = transcript.trim_start().lines().next().unwrap();
        automatic(config, &format!("{greeting}\n! TlsUnavailable"));
    }
}

/// An oldstyle server has one export without a name: a configuration that names
/// one fails, and there is no transmission.
#[test]
fn oldstyle_and_a_named_export() {
    let transcript = r#"
        S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124
        E: Failed { reason: NoExportNames, message: None }
    "#;
    automatic(Config::new("disk"), transcript);
    let connector = connect(Config::new("disk"), transcript);
    let mut connector = connector.into_negotiated().expect_err("connecting failed");
    assert_eq!(connector.end_of_input(), Ok(()));
}

#[test]
fn tls_policies() {
    let starttls = "C: opt STARTTLS\n";
    let accepted = "S: rep STARTTLS ACK\nE: StartTls\nC: tls established\n";
    let refused = r#"
        S: rep STARTTLS ERR_POLICY
        E: Fallback { option: NBD_OPT_STARTTLS, error: NBD_REP_ERR_POLICY, message: Some("") }
    "#;
    let unexpected = r#"
        S: rep STARTTLS ERR_TLS_REQD
        E: Fallback { option: NBD_OPT_STARTTLS, error: NBD_REP_ERR_TLS_REQD, message: Some("") }
    "#;
    let after_tls = [EXTENDED, GO, GRANTED].concat();
    for (tls, how, protected) in [
        (TlsPolicy::Never, "".to_owned(), false),
        (TlsPolicy::Prefer, [starttls, accepted].concat(), true),
        (TlsPolicy::Prefer, [starttls, refused].concat(), false),
        // An error that STARTTLS does not have is a refusal all the same.
        (TlsPolicy::Prefer, [starttls, unexpected].concat(), false),
        (TlsPolicy::Require, [starttls, accepted].concat(), true),
    ] {
        let config = Config::new("disk").tls(tls);
        let agreed = reaches(config, &[GREETED, &how, &after_tls].concat());
        assert_eq!(agreed.tls, protected);
    }
}

/// TLS is required and refused: ABORT, and the name of the export is not sent.
#[test]
fn tls_required_and_refused() {
    for (error, reason) in [
        ("ERR_UNSUP", "TlsRefused(NBD_REP_ERR_UNSUP)"),
        ("ERR_POLICY", "TlsRefused(NBD_REP_ERR_POLICY)"),
        ("ERR_SHUTDOWN", "Shutdown"),
    ] {
        let config = Config::new("disk").tls(TlsPolicy::Require);
        automatic(
            config,
            &format!(
                r#"{GREETED}
                C: opt STARTTLS
                S: rep STARTTLS {error} "no"
                E: Failed {{ reason: {reason}, message: Some("no") }}
                C: opt ABORT
                "#
            ),
        );
    }
}

#[test]
fn tls_that_fails() {
    for tls in [TlsPolicy::Prefer, TlsPolicy::Require] {
        let config = Config::new("disk").tls(tls);
        automatic(
            config,
            &format!(
                r#"{GREETED}
                C: opt STARTTLS
                S: rep STARTTLS ACK
                E: StartTls
                C: tls failed
                S: 00
                ! TlsFailed
                "#
            ),
        );
    }
}

/// Errors that end the handshake, whatever option they refuse.
#[test]
fn refusals_that_end_the_handshake() {
    let first = "C: opt EXTENDED_HEADERS\nS: rep EXTENDED_HEADERS ";
    let go = [EXTENDED, GO, "S: rep GO "].concat();
    for (so_far, error, reason) in [
        (first, "ERR_TLS_REQD", "ServerRequiresTls"),
        (first, "ERR_SHUTDOWN", "Shutdown"),
        (&go, "ERR_TLS_REQD", "ServerRequiresTls"),
        (&go, "ERR_SHUTDOWN", "Shutdown"),
        (&go, "ERR_UNKNOWN", "UnknownExport"),
        (&go, "ERR_EXT_HEADER_REQD", "ServerRequiresExtended"),
        (&go, "ERR_POLICY", "Refused(NBD_REP_ERR_POLICY)"),
        (
            &go,
            "ERR_BLOCK_SIZE_REQD",
            "Refused(NBD_REP_ERR_BLOCK_SIZE_REQD)",
        ),
        (&go, "0x80001234", "Refused(OptionReplyType(0x80001234))"),
    ] {
        let transcript = format!(
            r#"{GREETED}{so_far}{error} "why"
            E: Failed {{ reason: {reason}, message: Some("why") }}
            C: opt ABORT
            S: rep ABORT ACK
            "#
        );
        automatic(Config::new("disk"), &transcript);
        let mut connector = connect(Config::new("disk"), &transcript);
        assert_eq!(connector.end_of_input(), Ok(()));
        assert!(connector.into_negotiated().is_err());
    }
}

/// `Ready` needs no input of its own; after it the handshake is finished.
#[test]
fn ready_needs_no_input() {
    let before_go = [GREETED, EXTENDED, GO].concat();
    let mut connector = connect(Config::new("disk"), &before_go);
    let replies = [
        script::server("rep GO INFO EXPORT:16 1M:64 1:16", &NoCommands),
        script::server("rep GO ACK", &NoCommands),
    ]
    .concat();
    let mut input = replies.as_slice();
    let mut events = 0;
    while let Step::Event(event) = connector.receive(&mut input).unwrap() {
        events += 1;
        assert_eq!(event == ConnectEvent::Ready, events == 2, "{event:?}");
        assert!(input.is_empty() || event != ConnectEvent::Ready);
    }
    assert_eq!(events, 2);
    for input in [&b""[..], b"more"] {
        assert_eq!(connector.receive(&mut &input[..]), Ok(Step::Finished));
    }
}

/// A server that closes the connection instead of replying: the error names the
/// option, which the next connection can leave out.
#[test]
fn closed_during_an_option() {
    let first = format!("{GREETED}C: opt EXTENDED_HEADERS\n");
    let second = format!("{GREETED}{NO_EXTENDED}C: opt STRUCTURED_REPLY\n");
    let go = format!("{GREETED}{EXTENDED}{GO}");
    let in_the_replies = format!("{go}S: rep GO INFO EXPORT:16 1M:64 1:16\n");
    let in_discarded_data = format!("{go}S: rep GO INFO len=4098 DESCRIPTION:16\n");
    let no_go = format!(
        "{GREETED}{NO_EXTENDED}{NO_STRUCTURED}{GO}S: rep GO ERR_UNSUP\nC: opt EXPORT_NAME \"disk\"\n"
    );
    for (transcript, option) in [
        (&first, OptionType::EXTENDED_HEADERS),
        (&second, OptionType::STRUCTURED_REPLY),
        (&go, OptionType::GO),
        (&in_the_replies, OptionType::GO),
        (&in_discarded_data, OptionType::GO),
        (&no_go, OptionType::EXPORT_NAME),
    ] {
        let mut connector = connect(Config::new("disk"), transcript);
        let error = Error::ClosedDuring(option);
        for _ in 0..2 {
            assert_eq!(connector.end_of_input(), Err(error), "{transcript}");
            assert_eq!(connector.receive(&mut &b""[..]), Err(error));
        }
        assert!(error.is_fatal());
        assert!(connector.into_negotiated().is_err());
    }
    // Between two options, and before the first.
    for transcript in ["", "S: \"NBDMAGIC\" \"IHAVEOPT\" 3:16", GREETED] {
        let mut connector = connect(Config::new("disk"), transcript);
        assert_eq!(connector.end_of_input(), Err(Error::Closed));
    }
}

/// An ABORT that the server refuses ends the handshake all the same.
#[test]
fn abort_is_refused() {
    for error in ["ERR_UNSUP", "ERR_SHUTDOWN", "ERR_TLS_REQD"] {
        let transcript = format!(
            r#"{GREETED}{EXTENDED}{GO}
            S: rep GO ERR_UNKNOWN "no"
            E: Failed {{ reason: UnknownExport, message: Some("no") }}
            C: opt ABORT
            S: rep ABORT {error}
            "#
        );
        automatic(Config::new("disk"), &transcript);
        assert_eq!(
            connect(Config::new("disk"), &transcript).end_of_input(),
            Ok(())
        );
    }
}

/// A server that closes the connection instead of replying to ABORT, or before
/// it.
#[test]
fn closed_after_a_failure() {
    let failed = format!("{GREETED}{EXTENDED}{GO}S: rep GO ERR_UNKNOWN\n");
    let aborted = format!("{failed}C: opt ABORT\n");
    let acknowledged = format!("{aborted}S: rep ABORT ACK\n");
    let refusing = format!("{aborted}S: rep ABORT ERR_POLICY len=300 78*20\n");
    for transcript in [failed, aborted, acknowledged, refusing] {
        let mut connector = connect(Config::new("disk"), &transcript);
        for _ in 0..3 {
            assert_eq!(connector.end_of_input(), Ok(()));
            assert_eq!(connector.receive(&mut &b""[..]), Ok(Step::Finished));
        }
        assert!(connector.into_negotiated().is_err());
    }
}

/// Contexts that cannot be asked for are left out, and named.
#[test]
fn unsupported_contexts() {
    let wanted = [
        MetaContextQuery::wide("x-zone:kind"),
        MetaContextQuery::narrow("base:allocation"),
    ];
    let config = Config::new("disk").contexts(&wanted);
    let structured = format!(
        r#"{GREETED}{NO_EXTENDED}{STRUCTURED}
        C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
        S: rep SET_META_CONTEXT META_CONTEXT 1:32 "base:allocation"
        S: rep SET_META_CONTEXT ACK
        E: Context {{ wanted: Some(1), id: ContextId(1), name: "base:allocation" }}
        {GO}{GRANTED}"#
    );
    automatic(config, &structured);
    let connected = connect(config, &structured);
    assert_eq!(connected.unsupported_contexts().collect::<Vec<_>>(), [0]);
    assert_eq!(connected.agreed().contexts.len(), 1);

    let simple = [GREETED, NO_EXTENDED, NO_STRUCTURED, GO, GRANTED].concat();
    automatic(config, &simple);
    let connected = connect(config, &simple);
    assert_eq!(connected.unsupported_contexts().collect::<Vec<_>>(), [0, 1]);

    // No context is left to ask for.
    let config = config.contexts(&wanted[..1]);
    let nothing = [GREETED, NO_EXTENDED, STRUCTURED, GO, GRANTED].concat();
    automatic(config, &nothing);
    let extended = [GREETED, EXTENDED].concat();
    assert_eq!(connect(config, &extended).unsupported_contexts().count(), 0);
}

/// Fewer contexts than wanted, others, none, an error: all are accepted.
#[test]
fn contexts_granted() {
    let wanted = [
        MetaContextQuery::narrow("base:allocation"),
        MetaContextQuery::narrow("qemu:dirty-bitmap:"),
    ];
    let config = Config::new("").contexts(&wanted);
    let ask = r#"
        C: opt SET_META_CONTEXT 0:32 2:32 15:32 "base:allocation" 18:32 "qemu:dirty-bitmap:"
    "#;
    let go = "C: opt GO 0:32 1:16 BLOCK_SIZE:16\n";
    let wildcard = r#"
        S: rep SET_META_CONTEXT META_CONTEXT 4:32 "qemu:dirty-bitmap:b"
        S: rep SET_META_CONTEXT META_CONTEXT 5:32 "base:allocation"
        S: rep SET_META_CONTEXT ACK
        E: Context { wanted: None, id: ContextId(4), name: "qemu:dirty-bitmap:b" }
        E: Context { wanted: Some(0), id: ContextId(5), name: "base:allocation" }
    "#;
    let none = "S: rep SET_META_CONTEXT ACK\n";
    let error = r#"
        S: rep SET_META_CONTEXT META_CONTEXT 4:32 "base:allocation"
        S: rep SET_META_CONTEXT ERR_EXT_HEADER_REQD
        E: Context { wanted: Some(0), id: ContextId(4), name: "base:allocation" }
        E: Fallback { option: NBD_OPT_SET_META_CONTEXT, error: NBD_REP_ERR_EXT_HEADER_REQD, message: Some("") }
    "#;
    for (answer, ids) in [(wildcard, vec![4, 5]), (none, vec![]), (error, vec![])] {
        let transcript = [GREETED, EXTENDED, ask, answer, go, GRANTED].concat();
        let agreed = reaches(config, &transcript);
        let contexts: Vec<_> = agreed.contexts.iter().collect();
        assert_eq!(contexts.iter().map(|c| c.id.0).collect::<Vec<_>>(), ids);
        // The width of what a wildcard selected is unknown.
        let width = |id: u32| {
            agreed
                .contexts
                .position(ContextId(id))
                .map(|at| contexts[at].width)
        };
        if !ids.is_empty() {
            assert_eq!(width(4), Some(StatusWidth::Wide));
            assert_eq!(width(5), Some(StatusWidth::Narrow));
        }
    }
}

/// The width of a context is what the caller says; else that of its namespace.
#[test]
fn widths_of_contexts() {
    let (narrow, wide) = (StatusWidth::Narrow, StatusWidth::Wide);
    for (wanted, width) in [
        (MetaContextQuery::new("base:allocation"), narrow),
        (MetaContextQuery::wide("base:allocation"), wide),
        (MetaContextQuery::new("x-zone:allocate"), wide),
        (MetaContextQuery::narrow("x-zone:allocate"), narrow),
        // What it selects has a longer name.
        (MetaContextQuery::new("base:"), narrow),
        (MetaContextQuery::narrow("x-zone:"), wide),
    ] {
        let granted = match wanted.name.split_once(':') {
            Some(("base", _)) => "base:allocation",
            _ => "x-zone:allocate",
        };
        let (name, at) = (wanted.name, (wanted.name == granted).then_some(0));
        let length = name.len();
        let contexts = [wanted];
        let agreed = reaches(
            Config::new("disk").contexts(&contexts),
            &format!(
                r#"{GREETED}{EXTENDED}
                C: opt SET_META_CONTEXT 4:32 "disk" 1:32 {length}:32 "{name}"
                S: rep SET_META_CONTEXT META_CONTEXT 5:32 "{granted}"
                S: rep SET_META_CONTEXT ACK
                E: Context {{ wanted: {at:?}, id: ContextId(5), name: "{granted}" }}
                {GO}{GRANTED}"#
            ),
        );
        let widths: Vec<_> = agreed.contexts.iter().map(|c| c.width).collect();
        assert_eq!(widths, [width], "{wanted:?}");
    }
}

/// Configurations that cannot be sent.
#[test]
fn impossible_configurations() {
    let long = "n".repeat(4097);
    let why = |config: Config<'_>| Connector::new(config).map(|_| ()).unwrap_err();
    assert_eq!(why(Config::new(&long)), Misuse::Text(TextError::TooLong));
    assert!(Connector::new(Config::new(&long[1..])).is_ok());
    assert_eq!(why(Config::new("a\0b")), Misuse::Text(TextError::Nul));
    let queries = [MetaContextQuery::narrow(&long)];
    let with_long_query = Config::new("disk").contexts(&queries);
    assert_eq!(why(with_long_query), Misuse::Text(TextError::TooLong));
    let names: Vec<String> = (0..33).map(|n| format!("x:{n}")).collect();
    let many: Vec<_> = names.iter().map(|n| MetaContextQuery::narrow(n)).collect();
    let config = Config::new("disk");
    assert_eq!(why(config.contexts(&many)), Misuse::TooManyContexts);
    assert!(Connector::new(config.contexts(&many[..32])).is_ok());
    for other in [
        MetaContextQuery::narrow("x:0"),
        MetaContextQuery::wide("x:0"),
    ] {
        let twice = [many[0], many[1], other];
        assert_eq!(why(config.contexts(&twice)), Misuse::RepeatedQuery);
    }
}

/// Without `GO` the export is opened with `EXPORT_NAME`, which may be the first option:
/// some servers close the connection at every other one. Extended headers exclude it.
#[test]
fn without_go() {
    let entered = r#"
        C: opt EXPORT_NAME "disk"
        S: 1M:64 1:16
        E: Ready"#;
    let config = Config::new("disk").go(false).describe(true);
    automatic(
        config.framing(Framing::Simple),
        &format!("{GREETED}{entered}"),
    );
    for framing in [Framing::Structured, Framing::Extended] {
        let contexts = [MetaContextQuery::narrow("base:allocation")];
        let config = config.framing(framing);
        let accepted = "
            C: opt STRUCTURED_REPLY
            S: rep STRUCTURED_REPLY ACK";
        automatic(config, &format!("{GREETED}{accepted}{entered}"));
        let refused = r#"
            C: opt STRUCTURED_REPLY
            S: rep STRUCTURED_REPLY ERR_UNSUP
            E: Fallback { option: NBD_OPT_STRUCTURED_REPLY, error: NBD_REP_ERR_UNSUP, message: Some("") }"#;
        automatic(config, &format!("{GREETED}{refused}{entered}"));
        let selected = r#"
            C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
            S: rep SET_META_CONTEXT META_CONTEXT 5:32 "base:allocation"
            S: rep SET_META_CONTEXT ACK
            E: Context { wanted: Some(0), id: ContextId(5), name: "base:allocation" }"#;
        let whole = format!("{GREETED}{accepted}{selected}{entered}");
        // The contexts hold for the export that was entered.
        let agreed = reaches(config.contexts(&contexts), &whole);
        assert_eq!(agreed.contexts.len(), 1);
    }
}

/// A buffer of 256 bytes is enough for the whole handshake, where names are
/// short.
#[test]
fn a_small_receive_buffer() {
    let wanted = [MetaContextQuery::narrow("base:allocation")];
    let config = Config::new("disk").contexts(&wanted).describe(true);
    let limits = Limits::for_buffer(256);
    play(
        || Automatic::with_limits(config, limits),
        &format!(
            r#"{GREETED}{EXTENDED}
            C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
            S: rep SET_META_CONTEXT META_CONTEXT 1:32 "base:allocation"
            S: rep SET_META_CONTEXT ACK
            E: Context {{ wanted: Some(0), id: ContextId(1), name: "base:allocation" }}
            C: opt GO 4:32 "disk" 3:16 BLOCK_SIZE:16 NAME:16 DESCRIPTION:16
            S: rep GO INFO DESCRIPTION:16 64*4096 // discarded
            S: rep GO INFO NAME:16 "disk"
            E: Info(Name("disk"))
            {GRANTED}"#
        ),
    );
}
