//! Every option, and every answer to it.

use nbd_codec::server::{Export, Handshake, MetaContext, Offer};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Framing, Limits, Style};

use crate::drive::{Shop, play};

const ALL: TransmissionFlags = TransmissionFlags::KNOWN;

const DISK: &[Export<'_>] = &[disk()];

const fn disk() -> Export<'static> {
    let mut export = Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH);
    export.description = "a disk";
    export
}

/// Plays with the exports, under the best offer.
#[track_caller]
fn play_with(exports: &[Export<'_>], transcript: &str) {
    play(|| Shop::new(Offer::default(), exports), transcript);
}

/// What every fixed newstyle session begins with.
fn fixed(rest: &str) -> String {
    format!("S: NBDMAGIC IHAVEOPT 0003\nC: 00000003\n{rest}")
}

#[test]
fn oldstyle_is_its_greeting() {
    // Flags that only make sense elsewhere are left out.
    let export = Export::new("", 0x1234_5678, ALL);
    let start = || Shop {
        handshake: Handshake::oldstyle(&export).unwrap(),
        ..Shop::new(Offer::default(), &[])
    };
    play(
        start,
        "S: NBDMAGIC 0000_4202_8186_1253 0000_0000_1234_5678 0000_0f7f 00*124
         E: Ready",
    );
}

/// It has no way to say them, but they hold.
#[test]
fn oldstyle_has_the_block_sizes_of_its_export() {
    let mut export = disk();
    export.block_sizes.minimum = 512;
    let mut handshake = Handshake::oldstyle(&export).unwrap();
    handshake.transmit(&mut Vec::new()).unwrap();
    assert!(handshake.receive(&mut &b""[..]).unwrap().is_some());
    let negotiated = handshake.into_negotiated().unwrap();
    assert_eq!(negotiated.block_sizes, Some(export.block_sizes));
    assert_eq!(negotiated.style, Style::Oldstyle);
}

#[test]
fn newstyle_has_one_option() {
    let mut offer = Offer::default();
    offer.fixed = false;
    offer.no_zeroes = false;
    play(
        || Shop::new(offer, DISK),
        "S: NBDMAGIC IHAVEOPT 0000
         C: 00000000
         C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
         E: Export NBD_OPT_EXPORT_NAME \"disk\" []
         E: Ready
         S: 0000_0000_0010_0000 0005 00*124",
    );
    play(
        || Shop::new(offer, DISK),
        "S: NBDMAGIC IHAVEOPT 0000
         C: 00000000
         C: IHAVEOPT LIST 4{ }
         X: the peer broke the protocol: NBD_OPT_LIST without fixed newstyle",
    );
    // A client that does not agree to fixed newstyle has one option too.
    play_with(
        DISK,
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000002
         C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }
         X: the peer broke the protocol: NBD_OPT_GO without fixed newstyle",
    );
}

#[test]
fn client_flags_are_those_offered() {
    let mut offer = Offer::default();
    offer.no_zeroes = false;
    for (flags, over) in [
        ("00000002", "NO_ZEROES"),
        ("00000007", "FIXED_NEWSTYLE | NO_ZEROES | 0x4"),
        ("80000001", "FIXED_NEWSTYLE | 0x80000000"),
    ] {
        play(
            || Shop::new(offer, &[]),
            &format!(
                "S: NBDMAGIC IHAVEOPT 0001
                 C: {flags}
                 X: the peer broke the protocol: client flags that were not offered: {over}"
            ),
        );
    }
}

#[test]
fn export_name_without_zeroes() {
    play_with(
        DISK,
        &fixed(
            "C: IHAVEOPT EXPORT_NAME 4{ }
             E: Export NBD_OPT_EXPORT_NAME \"\" []
             E: Ready
             S: 0000_0000_0010_0000 0005",
        ),
    );
    play_with(
        DISK,
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000001
         C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
         E: Export NBD_OPT_EXPORT_NAME \"disk\" []
         E: Ready
         S: 0000_0000_0010_0000 0005 00*124",
    );
}

#[test]
fn export_name_has_no_refusal_but_the_end() {
    let refused = "the export was refused, and NBD_OPT_EXPORT_NAME has no reply that says so";
    let broke = "the peer broke the protocol:";
    play_with(
        DISK,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"desk\" }}
             E: Export NBD_OPT_EXPORT_NAME \"desk\" []
             X: {refused}"
        )),
    );
    for (name, over) in [
        ("00", "the name of the export is contains a NUL character"),
        ("ff", "the name of the export is not valid UTF-8"),
    ] {
        play_with(
            DISK,
            &fixed(&format!(
                "C: IHAVEOPT EXPORT_NAME 4{{ {name} }}\nX: {broke} {over}"
            )),
        );
    }
    play_with(
        DISK,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 00001001
             X: {broke} NBD_OPT_EXPORT_NAME with 4097 bytes of data is beyond the limit"
        )),
    );
    play_with(
        DISK,
        &fixed(&format!(
            "C: IHAVEOPT EXTENDED_HEADERS 4{{ }}
             S: REPLY EXTENDED_HEADERS ACK 4{{ }}
             C: IHAVEOPT EXPORT_NAME 4{{ \"disk\" }}
             X: {broke} NBD_OPT_EXPORT_NAME with extended headers"
        )),
    );
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    play_with(
        &[],
        &fixed(
            "C: IHAVEOPT ABORT 4{ }
             S: REPLY ABORT ACK 4{ }
             E: Aborted",
        ),
    );
    play_with(
        &[],
        &fixed(
            "C: IHAVEOPT ABORT 4{ ff*300 }
             S: REPLY ABORT ACK 4{ }
             E: Aborted",
        ),
    );
}

#[test]
fn list_names_the_exports() {
    play_with(
        &[disk(), Export::new("empty", 0, ALL)],
        &fixed(
            "C: IHAVEOPT LIST 4{ }
             E: List
             S: REPLY LIST REP_SERVER 4{ 4{ \"disk\" } \"a disk\" }
             S: REPLY LIST REP_SERVER 4{ 4{ \"empty\" } }
             S: REPLY LIST ACK 4{ }
             C: IHAVEOPT LIST 4{ 00 }
             S: REPLY LIST ERR_INVALID 4{ \"the option takes no data\" }",
        ),
    );
}

#[test]
fn unknown_options_are_skipped() {
    play_with(
        DISK,
        &fixed(
            "C: IHAVEOPT PEEK_EXPORT 4{ \"disk\" }
             S: REPLY PEEK_EXPORT ERR_UNSUP 4{ \"unsupported option\" }
             C: IHAVEOPT 0000_0000 4{ }
             S: REPLY 0000_0000 ERR_UNSUP 4{ \"unsupported option\" }
             C: IHAVEOPT ffff_ffff 4{ 00*9000 }
             S: REPLY ffff_ffff ERR_UNSUP 4{ \"unsupported option\" }
             C: IHAVEOPT ABORT 4{ }
             S: REPLY ABORT ACK 4{ }
             E: Aborted",
        ),
    );
}

#[test]
fn options_that_are_too_long_are_skipped() {
    let mut offer = Offer::default();
    offer.limits.option_data = 16;
    play(
        || Shop::new(offer, DISK),
        &fixed(
            "C: IHAVEOPT GO 4{ 4{ \"disk\" } 2{ 0000*2 00*7 } }
             S: REPLY GO ERR_TOO_BIG 4{ \"the option is too long\" }
             C: IHAVEOPT SET_META 4{ 4{ \"disk\" } 00*20 }
             S: REPLY SET_META ERR_TOO_BIG 4{ \"the option is too long\" }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }
             E: Export NBD_OPT_GO \"disk\" []
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
}

#[test]
fn go_and_info_say_what_is_asked() {
    let mut export = disk();
    export.block_sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 1 << 20,
    };
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT INFO 4{ 4{ } 0000 }
             E: Export NBD_OPT_INFO \"\" []
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY INFO ACK 4{ }
             # Unknown information is ignored.
             C: IHAVEOPT INFO 4{ 4{ } 0005 0003 0001 0002 0000 fff0 }
             E: Export NBD_OPT_INFO \"\" [NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, InfoType(0xfff0)]
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY INFO REP_INFO 4{ 0001 \"disk\" }
             S: REPLY INFO REP_INFO 4{ 0002 \"a disk\" }
             S: REPLY INFO REP_INFO 4{ 0003 0000_0200 0000_1000 0010_0000 }
             S: REPLY INFO ACK 4{ }
             C: IHAVEOPT INFO 4{ 4{ \"desk\" } 0000 }
             E: Export NBD_OPT_INFO \"desk\" []
             S: REPLY INFO ERR_UNKNOWN 4{ \"no such export\" }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0001 0003 }
             E: Export NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY GO REP_INFO 4{ 0003 0000_0200 0000_1000 0010_0000 }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
}

/// Nothing to say is not said.
#[test]
fn an_export_without_description_has_none() {
    play_with(
        &[Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH)],
        &fixed(
            "C: IHAVEOPT INFO 4{ 4{ } 0001 0002 }
             E: Export NBD_OPT_INFO \"\" [NBD_INFO_DESCRIPTION]
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY INFO ACK 4{ }",
        ),
    );
}

#[test]
fn malformed_options_are_answered() {
    let malformed = |option: &str, data: &str| {
        play_with(
            DISK,
            &fixed(&format!(
                "C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
                 S: REPLY STRUCTURED_REPLY ACK 4{{ }}
                 C: IHAVEOPT {option} 4{{ {data} }}
                 S: REPLY {option} ERR_INVALID 4{{ \"malformed option\" }}
                 C: IHAVEOPT LIST 4{{ }}
                 E: List
                 S: REPLY LIST REP_SERVER 4{{ 4{{ \"disk\" }} \"a disk\" }}
                 S: REPLY LIST ACK 4{{ }}"
            )),
        );
    };
    for option in ["INFO", "GO"] {
        malformed(option, "");
        malformed(option, "4{ \"disk\" }");
        malformed(option, "00000005 \"disk\" 0000");
        malformed(option, "ffffffff \"disk\" 0000");
        malformed(option, "4{ \"disk\" } 0001");
        malformed(option, "4{ \"disk\" } 0000 00");
    }
    for option in ["LIST_META", "SET_META"] {
        malformed(option, "");
        malformed(option, "4{ \"disk\" }");
        malformed(option, "4{ \"disk\" } 0000_0001");
        malformed(option, "4{ \"disk\" } 0000_0001 ffff_ffff \"x:y\"");
        malformed(option, "4{ \"disk\" } ffff_ffff 4{ \"x:y\" }");
        malformed(option, "4{ \"disk\" } 0000_0000 00");
    }
    for option in ["INFO", "GO"] {
        play_with(
            DISK,
            &fixed(&format!(
                "C: IHAVEOPT {option} 4{{ 4{{ \"a\" 00 }} 0000 }}
                 S: REPLY {option} ERR_INVALID 4{{ \"the export's name is no string\" }}"
            )),
        );
    }
}

#[test]
fn framing_is_agreed_on_in_any_order() {
    play_with(
        &[Export::new("disk", 1 << 20, ALL)],
        &fixed(
            "C: IHAVEOPT STRUCTURED_REPLY 4{ 00 }
             S: REPLY STRUCTURED_REPLY ERR_INVALID 4{ \"the option takes no data\" }
             # No structured replies, no DF.
             C: IHAVEOPT INFO 4{ 4{ } 0000 }
             E: Export NBD_OPT_INFO \"\" []
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0f7f }
             S: REPLY INFO ACK 4{ }
             C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ACK 4{ }
             C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ACK 4{ }
             C: IHAVEOPT INFO 4{ 4{ } 0000 }
             E: Export NBD_OPT_INFO \"\" []
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0fff }
             S: REPLY INFO ACK 4{ }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ERR_EXT_HEADER_REQD 4{ \"extended headers were agreed on already\" }
             C: IHAVEOPT GO 4{ 4{ } 0000 }
             E: Export NBD_OPT_GO \"\" []
             # No contexts, no payload for block status.
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0fff }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
}

#[test]
fn what_is_not_offered_is_unsupported() {
    let unsupported = |framing, options: &[&str]| {
        let mut offer = Offer::default();
        offer.framing = framing;
        let options: String = options
            .iter()
            .map(|option| {
                format!(
                    "C: IHAVEOPT {option} 4{{ }}
                     S: REPLY {option} ERR_UNSUP 4{{ \"unsupported option\" }}\n"
                )
            })
            .collect();
        play(|| Shop::new(offer, DISK), &fixed(&options));
    };
    let none = [
        "EXTENDED_HEADERS",
        "STRUCTURED_REPLY",
        "LIST_META",
        "SET_META",
    ];
    unsupported(Framing::Simple, &none);
    unsupported(Framing::Structured, &none[..1]);
}

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
    // What no namespace knows is ignored; what is found twice is said once.
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
    // No query selects nothing, and wildcards select nothing either.
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

/// A context of 64 bits: listed with a hint, selected with extended headers.
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
             # Never where it is about base: only.
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
    // Where extended headers are not to be had, nobody is sent for them.
    let mut offer = Offer::default();
    offer.framing = Framing::Structured;
    play(
        || Shop::new(offer, std::slice::from_ref(&export)),
        &fixed(
            "C: IHAVEOPT LIST_META 4{ 4{ } 00000000 }
             E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"\" []
             S: REPLY LIST_META REP_META 4{ 0000_0000 \"base:allocation\" }
             S: REPLY LIST_META ACK 4{ }",
        ),
    );
}

/// Flags in the answer to `GO` after selecting contexts in `options`; the bit
/// 0x1000, `BLOCK_STATUS_PAYLOAD`, tells whether they hold.
#[track_caller]
fn contexts_hold(options: &str, hold: bool) {
    let mut other = with_contexts();
    other.name = "other";
    let flags = if hold { "1fff" } else { "0fff" };
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
fn contexts_hold_for_the_export_they_were_selected_for() {
    contexts_hold(GO_DISK, true);
    contexts_hold(
        "C: IHAVEOPT GO 4{ 4{ \"other\" } 0000 }\nE: Export NBD_OPT_GO \"other\" []",
        false,
    );
    // Another name of the same export is another name.
    contexts_hold(
        "C: IHAVEOPT GO 4{ 4{ } 0000 }\nE: Export NBD_OPT_GO \"\" []",
        false,
    );
}

#[test]
fn selecting_again_replaces_even_where_it_fails() {
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
        contexts_hold(&format!("{option}\n{GO_DISK}"), false);
    }
    // Listing changes nothing.
    let list = "C: IHAVEOPT LIST_META 4{ 4{ \"other\" } 00000001 4{ \"x-b:\" } }
         E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"other\" [\"x-b:\"]
         S: REPLY LIST_META ACK 4{ }";
    contexts_hold(&format!("{list}\n{GO_DISK}"), true);
}

#[test]
fn what_an_export_requires_is_said() {
    let mut export = disk();
    export.requires_extended = true;
    export.requires_block_sizes = true;
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT GO 4{ 4{ \"disk\" } 0001 0003 }
             E: Export NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
             S: REPLY GO ERR_EXT_HEADER_REQD 4{ \"agree on extended headers first\" }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }
             E: Export NBD_OPT_GO \"disk\" []
             S: REPLY GO REP_INFO 4{ 0003 0000_0001 0000_1000 0200_0000 }
             S: REPLY GO ERR_BLOCK_SIZE_REQD 4{ \"ask for the block sizes\" }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0001 0003 }
             E: Export NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY GO REP_INFO 4{ 0003 0000_0001 0000_1000 0200_0000 }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
             E: Export NBD_OPT_EXPORT_NAME \"disk\" []
             X: the export was refused, and NBD_OPT_EXPORT_NAME has no reply that says so",
        ),
    );
}

/// What an export requires is for those who enter it: its contexts in `base:`
/// must not be answered `ERR_EXT_HEADER_REQD`.
#[test]
fn contexts_are_told_before_the_export_is_entered() {
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

/// What a connection can do is one value, and follows from what was agreed on.
#[test]
fn flags_are_those_that_hold() {
    let info = |flags: TransmissionFlags, maximum, expected: &str| {
        let mut export = Export::new("disk", 1 << 20, flags);
        export.block_sizes.maximum = maximum;
        play_with(
            &[export],
            &fixed(&format!(
                "C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
                 S: REPLY STRUCTURED_REPLY ACK 4{{ }}
                 C: IHAVEOPT INFO 4{{ 4{{ }} 0000 }}
                 E: Export NBD_OPT_INFO \"\" []
                 S: REPLY INFO REP_INFO 4{{ 0000 0000_0000_0010_0000 {expected} }}
                 S: REPLY INFO ACK 4{{ }}"
            )),
        );
    };
    info(TransmissionFlags::NONE, 1 << 25, "0001");
    info(TransmissionFlags(0xffff), 1 << 25, "0fff");
    // Fast zeroes without zeroes are nothing.
    info(TransmissionFlags::SEND_FAST_ZERO, 1 << 25, "0001");
    // DF promises 64 KiB in one chunk.
    info(TransmissionFlags::SEND_DF, 1 << 16, "0081");
    info(TransmissionFlags::SEND_DF, (1 << 16) - 1, "0001");
}

#[test]
fn shutdown_is_said_to_every_option_but_abort() {
    let start = || {
        let mut shop = Shop::new(Offer::default(), &[]);
        shop.handshake.shut_down();
        shop
    };
    let refused = |option: &str| {
        format!(
            "C: IHAVEOPT {option} 4{{ 00*5 }}
             S: REPLY {option} ERR_SHUTDOWN 4{{ \"the server is shutting down\" }}\n"
        )
    };
    let options = [
        "LIST",
        "STARTTLS",
        "INFO",
        "GO",
        "SET_META",
        "STRUCTURED_REPLY",
        "0000_1234",
    ];
    let options: String = options.into_iter().map(refused).collect();
    play(
        start,
        &fixed(&format!(
            "{options}
             C: IHAVEOPT ABORT 4{{ }}
             S: REPLY ABORT ACK 4{{ }}
             E: Aborted"
        )),
    );
    play(
        start,
        &fixed(
            "C: IHAVEOPT EXPORT_NAME 4{ }
             X: the export was refused, and NBD_OPT_EXPORT_NAME has no reply that says so",
        ),
    );
}

/// The limits are those of the offer.
#[test]
fn a_name_fills_the_limit() {
    let name = "n".repeat(4096);
    let mut export = disk();
    export.name = &name;
    assert_eq!(Limits::DEFAULT.option_data, 8196);
    play_with(
        &[export],
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"{name}\" }}
             E: Export NBD_OPT_EXPORT_NAME \"{name}\" []
             E: Ready
             S: 0000_0000_0010_0000 0005"
        )),
    );
}

/// What has exactly the longest data is taken. What has a byte more is answered
/// and skipped, but for `EXPORT_NAME`, which has no answer.
#[test]
fn options_are_as_long_as_the_limit() {
    let name = "n".repeat(122);
    let mut export = disk();
    export.name = &name;
    let exports = &[export];
    let mut offer = Offer::default();
    offer.limits.option_data = 128;
    let start = || Shop::new(offer, exports);
    play(
        start,
        &fixed(&format!(
            "C: IHAVEOPT GO 4{{ 4{{ \"{name}\" }} 0001 0003 0000 }}
             S: REPLY GO ERR_TOO_BIG 4{{ \"the option is too long\" }}
             C: IHAVEOPT INFO 4{{ 4{{ \"{name}\" }} 0000 }}
             E: Export NBD_OPT_INFO \"{name}\" []
             S: REPLY INFO REP_INFO 4{{ 0000 0000_0000_0010_0000 0005 }}
             S: REPLY INFO ACK 4{{ }}",
        )),
    );
    let long = "n".repeat(128);
    play(
        start,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"{long}\" }}
             E: Export NBD_OPT_EXPORT_NAME \"{long}\" []
             X: the export was refused, and NBD_OPT_EXPORT_NAME has no reply that says so",
        )),
    );
    play(
        start,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"{long}n\" }}
             X: the peer broke the protocol: NBD_OPT_EXPORT_NAME with 129 bytes of data is beyond the limit",
        )),
    );
}
