//! `LIST_META_CONTEXT` and `SET_META_CONTEXT`.

use nbd_codec::server::{Config, Export, HandshakeEvent, MetaContext, TlsMode};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Framing, Misuse, Step};

use crate::drive::{HandshakeDriver, play};
use crate::options::{ALL, fixed, play_with};
use crate::script::bytes;
use crate::tls::negotiating;

const CONTEXTS: &[MetaContext<'_>] = &[
    MetaContext::narrow("base:allocation"),
    MetaContext::narrow("x-a:one"),
    MetaContext::narrow("x-a:two"),
];

fn with_contexts() -> Export<'static> {
    let mut export = Export::new("disk", 1 << 20, ALL);
    export.contexts = CONTEXTS;
    export
}

#[test]
fn contexts_are_listed_by_query() {
    let listed = |queries: &str, debug: &str, found: &[&str]| {
        let found: String = found
            .iter()
            .map(|name| format!("S: REPLY LIST_META REP_META 4{{ 0000_0000 \"{name}\" }}\n"))
            .collect();
        play_with(
            &[with_contexts()],
            &fixed(&format!(
                "C: IHAVEOPT LIST_META 4{{ 4{{ \"disk\" }} {queries} }}
                 E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"disk\" {debug}
                 {found}
                 S: REPLY LIST_META ACK 4{{ }}"
            )),
        );
    };
    listed("00000000", "[]", &["base:allocation", "x-a:one", "x-a:two"]);
    listed(
        "00000001 4{ \"base:\" }",
        "[\"base:\"]",
        &["base:allocation"],
    );
    listed(
        "00000001 4{ \"x-a:\" }",
        "[\"x-a:\"]",
        &["x-a:one", "x-a:two"],
    );
    listed("00000001 4{ \"x-a:two\" }", "[\"x-a:two\"]", &["x-a:two"]);
    listed("00000001 4{ \"base:none\" }", "[\"base:none\"]", &[]);
    listed("00000001 4{ \"x-a\" \":o\" }", "[\"x-a:o\"]", &[]);
    // Unknown queries are ignored; a context that matches twice is listed once.
    listed(
        "00000003 4{ \"x-b:q\" } 4{ \"x-a:one\" } 4{ \"x-a:\" }",
        "[\"x-b:q\", \"x-a:one\", \"x-a:\"]",
        &["x-a:one", "x-a:two"],
    );
}

#[test]
fn contexts_are_selected_by_name() {
    let selected = |queries: &str, debug: &str, found: &[(u32, &str)]| {
        let found: String = found
            .iter()
            .map(|(id, name)| format!("S: REPLY SET_META REP_META 4{{ {id:08x} \"{name}\" }}\n"))
            .collect();
        play_with(
            &[with_contexts()],
            &fixed(&format!(
                "C: IHAVEOPT SET_META 4{{ 4{{ \"disk\" }} 00000000 }}
                 S: REPLY SET_META ERR_INVALID 4{{ \"agree on structured replies or extended headers first\" }}
                 C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
                 S: REPLY STRUCTURED_REPLY ACK 4{{ }}
                 C: IHAVEOPT SET_META 4{{ 4{{ \"disk\" }} {queries} }}
                 E: MetaContexts NBD_OPT_SET_META_CONTEXT \"disk\" {debug}
                 {found}
                 S: REPLY SET_META ACK 4{{ }}"
            )),
        );
    };
    // An empty list of queries selects nothing, nor do wildcards.
    selected("00000000", "[]", &[]);
    selected(
        "00000002 4{ \"base:\" } 4{ \"x-a:\" }",
        "[\"base:\", \"x-a:\"]",
        &[],
    );
    selected(
        "00000003 4{ \"x-a:two\" } 4{ \"base:allocation\" } 4{ \"x-b:two\" }",
        "[\"x-a:two\", \"base:allocation\", \"x-b:two\"]",
        &[(0, "base:allocation"), (2, "x-a:two")],
    );
}

#[test]
fn queries_have_a_namespace() {
    for query in [
        "4{ }",
        "4{ \"base\" }",
        "4{ \":x\" }",
        "4{ \"b c:x\" }",
        "4{ \"b:\" 00 }",
        "4{ ff \":\" }",
    ] {
        for option in ["LIST_META", "SET_META"] {
            play_with(
                &[with_contexts()],
                &fixed(&format!(
                    "C: IHAVEOPT EXTENDED_HEADERS 4{{ }}
                     S: REPLY EXTENDED_HEADERS ACK 4{{ }}
                     C: IHAVEOPT {option} 4{{ 4{{ }} 00000001 {query} }}
                     S: REPLY {option} ERR_INVALID 4{{ \"a query is namespace:leaf\" }}"
                )),
            );
        }
    }
}

const MIXED: &[MetaContext<'_>] = &[
    MetaContext::wide("x-w:wide"),
    MetaContext::narrow("base:allocation"),
];

/// A 64-bit context is listed with `ERR_EXT_HEADER_REQD`, and can be selected
/// only with extended headers.
#[test]
fn wide_contexts_need_extended_headers() {
    let mut export = with_contexts();
    export.contexts = MIXED;
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ACK 4{ }
             C: IHAVEOPT LIST_META 4{ 4{ } 00000000 }
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"\" []
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"x-w:wide\" }
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"base:allocation\" }
             S: REPLY LIST_META ERR_EXT_HEADER_REQD 4{ \"some contexts need extended headers\" }
             # Queries for base: only never get that error.
             C: IHAVEOPT LIST_META 4{ 4{ } 00000001 4{ \"base:\" } }
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"\" [\"base:\"]
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"base:allocation\" }
             S: REPLY LIST_META ACK 4{ }
             C: IHAVEOPT SET_META 4{ 4{ } 00000002 4{ \"x-w:wide\" } 4{ \"base:allocation\" } }
             E: MetaContexts NBD_OPT_SET_META_CONTEXT \"\" [\"x-w:wide\", \"base:allocation\"]
             S: REPLY SET_META REP_META 4{ 0000_0001 \"base:allocation\" }
             S: REPLY SET_META ACK 4{ }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT LIST_META 4{ 4{ } 00000000 }
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"\" []
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"x-w:wide\" }
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"base:allocation\" }
             S: REPLY LIST_META ACK 4{ }
             C: IHAVEOPT SET_META 4{ 4{ } 00000001 4{ \"x-w:wide\" } }
             E: MetaContexts NBD_OPT_SET_META_CONTEXT \"\" [\"x-w:wide\"]
             S: REPLY SET_META REP_META 4{ 0000_0000 \"x-w:wide\" }
             S: REPLY SET_META ACK 4{ }",
        ),
    );
    // A server without extended headers does not ask for them.
    let config = Config::new().framing(Framing::Structured);
    play(
        || HandshakeDriver::new(config, std::slice::from_ref(&export)),
        &fixed(
            "C: IHAVEOPT LIST_META 4{ 4{ } 00000000 }
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"\" []
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"base:allocation\" }
             S: REPLY LIST_META ACK 4{ }",
        ),
    );
}

/// Selects a context, plays `options`, and checks the flags in the answer to GO:
/// `BLOCK_STATUS_PAYLOAD` (0x1000) is set if the selection still applies.
#[track_caller]
fn selection_applies(options: &str, applies: bool) {
    let mut other = with_contexts();
    other.name = "other";
    let flags = if applies { "1fff" } else { "0fff" };
    play_with(
        &[with_contexts(), other],
        &fixed(&format!(
            "C: IHAVEOPT EXTENDED_HEADERS 4{{ }}
             S: REPLY EXTENDED_HEADERS ACK 4{{ }}
             C: IHAVEOPT SET_META 4{{ 4{{ \"disk\" }} 00000001 4{{ \"x-a:one\" }} }}
             E: MetaContexts NBD_OPT_SET_META_CONTEXT \"disk\" [\"x-a:one\"]
             S: REPLY SET_META REP_META 4{{ 0000_0001 \"x-a:one\" }}
             S: REPLY SET_META ACK 4{{ }}
             {options}
             S: REPLY GO REP_INFO 4{{ 0000 0000_0000_0010_0000 {flags} }}
             S: REPLY GO ACK 4{{ }}
             E: Ready"
        )),
    );
}

const GO_DISK: &str = "C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }\nE: Export NBD_OPT_GO \"disk\" []";

#[test]
fn contexts_apply_to_the_export_they_were_selected_for() {
    selection_applies(GO_DISK, true);
    selection_applies(
        "C: IHAVEOPT GO 4{ 4{ \"other\" } 0000 }\nE: Export NBD_OPT_GO \"other\" []",
        false,
    );
    // The default export is another name, though it is the same export.
    selection_applies(
        "C: IHAVEOPT GO 4{ 4{ } 0000 }\nE: Export NBD_OPT_GO \"\" []",
        false,
    );
}

#[test]
fn a_failed_selection_replaces_the_earlier_one() {
    let failing = [
        "C: IHAVEOPT SET_META 4{ }
         S: REPLY SET_META ERR_INVALID 4{ \"malformed option\" }",
        "C: IHAVEOPT SET_META 4{ 00*9000 }
         S: REPLY SET_META ERR_TOO_BIG 4{ \"the option is too long\" }",
        "C: IHAVEOPT SET_META 4{ 4{ \"desk\" } 00000000 }
         E: MetaContexts NBD_OPT_SET_META_CONTEXT \"desk\" []
         S: REPLY SET_META ERR_UNKNOWN 4{ \"no such export\" }",
        "C: IHAVEOPT SET_META 4{ 4{ \"disk\" } 00000000 }
         E: MetaContexts NBD_OPT_SET_META_CONTEXT \"disk\" []
         S: REPLY SET_META ACK 4{ }",
    ];
    for option in failing {
        selection_applies(&format!("{option}\n{GO_DISK}"), false);
    }
    // Listing does not change the selection.
    let list = "C: IHAVEOPT LIST_META 4{ 4{ \"other\" } 00000001 4{ \"x-b:\" } }
         E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"other\" [\"x-b:\"]
         S: REPLY LIST_META ACK 4{ }";
    selection_applies(&format!("{list}\n{GO_DISK}"), true);
}

/// The requirements of an export apply to entering it. A query for `base:` must
/// not get `ERR_EXT_HEADER_REQD`.
#[test]
fn list_meta_context_ignores_export_requirements() {
    let mut export = with_contexts();
    export.requires_extended = true;
    export.requires_block_sizes = true;
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT LIST_META 4{ 4{ \"disk\" } 00000001 4{ \"base:\" } }
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"disk\" [\"base:\"]
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"base:allocation\" }
             S: REPLY LIST_META ACK 4{ }",
        ),
    );
}

/// A caller that describes an export without a context that it granted, or with
/// another width, is refused at every way into transmission: the client would rely
/// on the context, and every block status would break the protocol.
#[test]
fn an_export_keeps_the_contexts_that_it_granted() {
    const GRANTED: &[MetaContext<'_>] = &[
        MetaContext::narrow("base:allocation"),
        MetaContext::narrow("x-a:dirty"),
    ];
    let poorer = &GRANTED[..1];
    let wider = &[GRANTED[0], MetaContext::wide("x-a:dirty")][..];
    let swapped = &[GRANTED[1], GRANTED[0]][..];
    for go in ["GO 4{ 4{ \"disk\" } 0000 }", "EXPORT_NAME 4{ \"disk\" }"] {
        for (changed, result) in [
            (poorer, Err(Misuse::ContextsChanged)),
            (wider, Err(Misuse::ContextsChanged)),
            (&[][..], Err(Misuse::ContextsChanged)),
            // Both ids still name a narrow context.
            (swapped, Ok(())),
            (GRANTED, Ok(())),
        ] {
            let mut handshake = negotiating(TlsMode::None);
            let mut grant = |option: &str, contexts| {
                let stream = bytes(&format!("IHAVEOPT {option}"));
                let mut out = Vec::new();
                match handshake.receive(&mut &stream[..]) {
                    Ok(Step::Event(
                        HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query),
                    )) => {
                        let mut export = Export::new("disk", 4096, TransmissionFlags::NONE);
                        export.contexts = contexts;
                        handshake.grant(&query, &export, &mut out).map(|_| ())
                    }
                    Ok(Step::Transmit) => handshake.transmit(&mut out).map(|_| ()),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(grant("STRUCTURED_REPLY 4{ }", GRANTED), Ok(()));
            let queries = "00000002 4{ \"base:allocation\" } 4{ \"x-a:dirty\" }";
            let set = format!("SET_META 4{{ 4{{ \"disk\" }} {queries} }}");
            assert_eq!(grant(&set, GRANTED), Ok(()));
            assert_eq!(grant(go, changed), result, "{go} {changed:?}");
        }
    }
}
