//! The handshake by policy: every way to transmission, and every way it ends.

use nbd_codec::client::connect::{Connect, Plan, TlsPolicy};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::wire::number::ContextId;
use nbd_codec::wire::text::TextError;
use nbd_codec::{Framing, Limits, Misuse, Negotiated, Style, Width};

use super::machines::{ByPlan, by_plan, tiny};
use super::script::{self, NoCommands};
use super::transcript::Machine;

pub(crate) const GREETED: &str = "S: \"NBDMAGIC\" \"IHAVEOPT\" 3:16\nC: 3:32\n";
pub(crate) const GRANTED: &str = r#"
    S: rep GO INFO EXPORT:16 1M:64 1:16
    S: rep GO ACK
    E: Info(Export { size: 1048576, flags: TransmissionFlags(HAS_FLAGS) })
    E: Ready
"#;

pub(crate) fn plan(export: &str) -> Plan<'_> {
    let mut plan = Plan::new(export);
    plan.limits = tiny();
    plan
}

/// Plays a transcript once, whole, to its end.
pub(crate) fn connect<'a>(plan: Plan<'a>, transcript: &str) -> Connect<'a> {
    let mut machine = ByPlan::new(plan);
    for line in transcript.lines().map(str::trim) {
        match line.split_once(' ') {
            Some(("C:", what)) => machine.client(what),
            Some(("S:", what)) => {
                let bytes = script::server(what, &NoCommands);
                let mut input = bytes.as_slice();
                while machine.receive(&mut input).unwrap().is_some() {}
            }
            _ => {}
        }
    }
    machine.connect
}

/// Plays a transcript in every fragmentation; returns what was agreed on.
fn reaches(plan: Plan<'_>, transcript: &str) -> Negotiated {
    by_plan(plan, transcript);
    connect(plan, transcript).into_negotiated().unwrap()
}

/// The best a server can do: one option after the other.
#[test]
fn everything_granted() {
    let wanted = [
        ContextQuery::narrow("base:allocation"),
        ContextQuery::wide("x-zone:kind"),
    ];
    let mut plan = plan("disk");
    plan.contexts = &wanted;
    plan.describe = true;
    plan.tls = TlsPolicy::Prefer;
    let agreed = reaches(
        plan,
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
    assert_eq!(contexts, [(9, Width::Wide), (3, Width::Narrow)]);
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

/// Extended, structured, simple; whatever error says no.
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
            let mut plan = plan("disk");
            plan.framing = wanted;
            let agreed = reaches(plan, &[GREETED, &options, GO, GRANTED].concat());
            assert_eq!(agreed.framing, got);
            assert_eq!(agreed.style, Style::FixedNewstyle);
        }
    }
}

/// A server without GO; the contexts stay.
#[test]
fn export_name_where_go_is_not() {
    let wanted = [ContextQuery::narrow("base:allocation")];
    let mut plan = plan("disk");
    plan.contexts = &wanted;
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
    let agreed = reaches(plan, &transcript);
    assert_eq!((agreed.size, agreed.flags.0), (1 << 63, 5));
    assert_eq!(agreed.framing, Framing::Structured);
    assert_eq!(agreed.contexts.len(), 1);
}

/// With extended headers EXPORT_NAME is forbidden, and GO is not unsupported.
#[test]
fn no_export_name_with_extended_headers() {
    by_plan(
        plan("disk"),
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
        ("disk", newstyle, Style::Newstyle),
        ("disk", zeroes, Style::Newstyle),
        ("", oldstyle, Style::Oldstyle),
    ] {
        for tls in [TlsPolicy::Never, TlsPolicy::Prefer] {
            let mut plan = plan(export);
            plan.tls = tls;
            let agreed = reaches(plan, transcript);
            assert_eq!(agreed.style, style);
            assert_eq!(agreed.framing, Framing::Simple);
            assert_eq!((agreed.size, agreed.tls), (1 << 20, false));
        }
        let mut plan = plan(export);
        plan.tls = TlsPolicy::Require;
        let greeting = transcript.trim_start().lines().next().unwrap();
        by_plan(plan, &format!("{greeting}\n! TlsUnavailable"));
    }
}

/// Oldstyle has one export, and no name for it. What was turned down is not
/// ready for transmission.
#[test]
fn oldstyle_and_a_named_export() {
    let transcript = r#"
        S: "NBDMAGIC" 00004202_81861253 1M:64 0:16 1:16 00*124
        E: Failed { reason: NoExportNames, message: None }
    "#;
    by_plan(plan("disk"), transcript);
    let connect = connect(plan("disk"), transcript);
    let mut connect = connect.into_negotiated().expect_err("it was turned down");
    assert_eq!(connect.end_of_input(), Ok(()));
}

#[test]
fn tls_policies() {
    let starttls = "C: opt STARTTLS\n";
    let accepted = "S: rep STARTTLS ACK\nE: StartTls\nC: tls established\n";
    let refused = r#"
        S: rep STARTTLS ERR_POLICY
        E: Fallback { option: NBD_OPT_STARTTLS, error: NBD_REP_ERR_POLICY, message: Some("") }
    "#;
    let nonsense = r#"
        S: rep STARTTLS ERR_TLS_REQD
        E: Fallback { option: NBD_OPT_STARTTLS, error: NBD_REP_ERR_TLS_REQD, message: Some("") }
    "#;
    let behind = [EXTENDED, GO, GRANTED].concat();
    for (tls, how, protected) in [
        (TlsPolicy::Never, "".to_owned(), false),
        (TlsPolicy::Prefer, [starttls, accepted].concat(), true),
        (TlsPolicy::Prefer, [starttls, refused].concat(), false),
        // An error that makes no sense here is a refusal like any other.
        (TlsPolicy::Prefer, [starttls, nonsense].concat(), false),
        (TlsPolicy::Require, [starttls, accepted].concat(), true),
    ] {
        let mut plan = plan("disk");
        plan.tls = tls;
        let agreed = reaches(plan, &[GREETED, &how, &behind].concat());
        assert_eq!(agreed.tls, protected);
    }
}

/// TLS is required and refused: goodbye, and the export was never named.
#[test]
fn tls_required_and_refused() {
    for (error, reason) in [
        ("ERR_UNSUP", "TlsRefused(NBD_REP_ERR_UNSUP)"),
        ("ERR_POLICY", "TlsRefused(NBD_REP_ERR_POLICY)"),
        ("ERR_SHUTDOWN", "Shutdown"),
    ] {
        let mut plan = plan("disk");
        plan.tls = TlsPolicy::Require;
        by_plan(
            plan,
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
        let mut plan = plan("disk");
        plan.tls = tls;
        by_plan(
            plan,
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

/// Answers that end the session, to whatever option they come.
#[test]
fn refusals_that_end_it() {
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
        by_plan(plan("disk"), &transcript);
        let mut connect = connect(plan("disk"), &transcript);
        assert_eq!(connect.end_of_input(), Ok(()));
        assert!(connect.into_negotiated().is_err());
    }
}

/// What is due without input is said to need none.
#[test]
fn the_end_needs_nothing() {
    use nbd_codec::Need;
    let mut hand = super::machines::ByHand::new(false, tiny());
    for line in [
        r#"S: "NBDMAGIC" "IHAVEOPT" 3:16"#,
        "C: flags 3",
        "C: opt GO 0:32 0:16",
        "S: rep GO INFO EXPORT:16 1M:64 1:16",
        "S: rep GO ACK",
    ] {
        match line.split_at(3) {
            ("C: ", what) => hand.client(what),
            (_, what) => {
                let bytes = script::server(what, &NoCommands);
                assert!(hand.receive(&mut &bytes[..]).unwrap().is_some(), "{what}");
            }
        }
    }
    assert_eq!(hand.need(), Need::Header(0));
    assert!(hand.receive(&mut &b""[..]).unwrap().is_some());
    assert_eq!(hand.need(), Need::Nothing);
}

/// A goodbye that is refused is one all the same.
#[test]
fn the_goodbye_is_refused() {
    for error in ["ERR_UNSUP", "ERR_SHUTDOWN", "ERR_TLS_REQD"] {
        let transcript = format!(
            r#"{GREETED}{EXTENDED}{GO}
            S: rep GO ERR_UNKNOWN "no"
            E: Failed {{ reason: UnknownExport, message: Some("no") }}
            C: opt ABORT
            S: rep ABORT {error}
            "#
        );
        by_plan(plan("disk"), &transcript);
        assert_eq!(connect(plan("disk"), &transcript).end_of_input(), Ok(()));
    }
}

/// A server that hangs up instead of answering the goodbye, or before it.
#[test]
fn the_end_after_a_failure() {
    let failed = format!("{GREETED}{EXTENDED}{GO}S: rep GO ERR_UNKNOWN\n");
    for transcript in [failed.clone(), format!("{failed}C: opt ABORT\n")] {
        assert_eq!(connect(plan("disk"), &transcript).end_of_input(), Ok(()));
    }
}

/// Contexts that cannot be asked for are not asked for, and named.
#[test]
fn contexts_out_of_reach() {
    let wanted = [
        ContextQuery::wide("x-zone:kind"),
        ContextQuery::narrow("base:allocation"),
    ];
    let mut plan = plan("disk");
    plan.contexts = &wanted;
    let structured = format!(
        r#"{GREETED}{NO_EXTENDED}{STRUCTURED}
        C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
        S: rep SET_META_CONTEXT META_CONTEXT 1:32 "base:allocation"
        S: rep SET_META_CONTEXT ACK
        E: Context {{ wanted: Some(1), id: ContextId(1), name: "base:allocation" }}
        {GO}{GRANTED}"#
    );
    by_plan(plan, &structured);
    let connected = connect(plan, &structured);
    assert_eq!(connected.out_of_reach().collect::<Vec<_>>(), [0]);
    assert_eq!(connected.agreed().contexts.len(), 1);

    let simple = [GREETED, NO_EXTENDED, NO_STRUCTURED, GO, GRANTED].concat();
    by_plan(plan, &simple);
    let connected = connect(plan, &simple);
    assert_eq!(connected.out_of_reach().collect::<Vec<_>>(), [0, 1]);

    // Nothing is left to ask for, so nothing is asked.
    plan.contexts = &wanted[..1];
    let nothing = [GREETED, NO_EXTENDED, STRUCTURED, GO, GRANTED].concat();
    by_plan(plan, &nothing);
    let extended = [GREETED, EXTENDED].concat();
    assert_eq!(connect(plan, &extended).out_of_reach().count(), 0);
}

/// Fewer than wanted, others than wanted, none, an error: all are good.
#[test]
fn contexts_granted() {
    let wanted = [
        ContextQuery::narrow("base:allocation"),
        ContextQuery::narrow("qemu:dirty-bitmap:"),
    ];
    let mut plan = plan("");
    plan.contexts = &wanted;
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
        let agreed = reaches(plan, &transcript);
        let contexts: Vec<_> = agreed.contexts.iter().collect();
        assert_eq!(contexts.iter().map(|c| c.id.0).collect::<Vec<_>>(), ids);
        // Of what a wildcard brought nothing is known.
        let width = |id: u32| {
            agreed
                .contexts
                .position(ContextId(id))
                .map(|at| contexts[at].width)
        };
        if !ids.is_empty() {
            assert_eq!(width(4), Some(Width::Wide));
            assert_eq!(width(5), Some(Width::Narrow));
        }
    }
}

/// Plans that cannot be sent.
#[test]
fn impossible_plans() {
    let long = "n".repeat(4097);
    let why = |plan: Plan<'_>| Connect::new(plan).map(|_| ()).unwrap_err();
    assert_eq!(why(Plan::new(&long)), Misuse::Text(TextError::TooLong));
    assert!(Connect::new(Plan::new(&long[1..])).is_ok());
    assert_eq!(why(Plan::new("a\0b")), Misuse::Text(TextError::Nul));
    let queries = [ContextQuery::narrow(&long)];
    let mut plan = Plan::new("disk");
    plan.contexts = &queries;
    assert_eq!(why(plan), Misuse::Text(TextError::TooLong));
    let many = [ContextQuery::narrow("base:allocation"); 33];
    plan.contexts = &many;
    assert_eq!(why(plan), Misuse::TooManyContexts);
    plan.contexts = &many[..32];
    assert!(Connect::new(plan).is_ok());
}

/// A buffer of 256 bytes is enough for all of it, where names are short.
#[test]
fn a_small_receive_buffer() {
    let wanted = [ContextQuery::narrow("base:allocation")];
    let mut plan = Plan::new("disk");
    plan.contexts = &wanted;
    plan.describe = true;
    plan.limits = Limits::default();
    plan.limits.option_data = 236;
    by_plan(
        plan,
        &format!(
            r#"{GREETED}{EXTENDED}
            C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
            S: rep SET_META_CONTEXT META_CONTEXT 1:32 "base:allocation"
            S: rep SET_META_CONTEXT ACK
            E: Context {{ wanted: Some(0), id: ContextId(1), name: "base:allocation" }}
            C: opt GO 4:32 "disk" 3:16 BLOCK_SIZE:16 NAME:16 DESCRIPTION:16
            S: rep GO INFO DESCRIPTION:16 64*4096 // skipped
            S: rep GO INFO NAME:16 "disk"
            E: Info(Name("disk"))
            {GRANTED}"#
        ),
    );
}
