//! What a handshake refuses to send; a refused call changes nothing.

use nbd_codec::client::{Config, Connector, MetaContextQuery};
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::number::{InfoType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest as O, Queries};
use nbd_codec::wire::text::{Text, TextError};
use nbd_codec::{Error, Misuse};

use super::machines::{Bytes, Manual};
use super::script;
use super::transcript::{Machine, once};

const GREETING: &str = r#""NBDMAGIC" "IHAVEOPT" 3:16"#;

/// What the client sends.
fn client(manual: &mut Manual, line: &str) {
    once(manual, &format!("C: {line}"));
}

/// What the server sends.
fn server(manual: &mut Manual, line: &str) {
    once(manual, &format!("S: {line}"));
}

/// After the client flags, and after options that were accepted.
fn negotiating(config: Config<'_>, accepted: &[&str]) -> Manual {
    let mut manual = Manual::greeted(config);
    for option in accepted {
        client(&mut manual, &format!("opt {option}"));
        server(&mut manual, &format!("rep {option} ACK"));
    }
    manual
}

/// The whole state, by its `Debug`.
fn state(manual: &Manual) -> String {
    format!("{:?}", manual.handshake)
}

#[track_caller]
fn refused(manual: &mut Manual, request: O<'_>, misuse: Misuse) {
    let before = state(manual);
    let mut sink = Bytes::default();
    assert_eq!(manual.handshake.send(&request, &mut sink), Err(misuse));
    assert!(sink.0.is_empty(), "something was written");
    assert_eq!(state(manual), before, "something has changed");
}

fn info(export: &[u8]) -> InfoRequest<'_> {
    InfoRequest {
        export: export.into(),
        requests: [].as_slice().into(),
    }
}

fn contexts<'a>(export: &'a str, queries: &'a [&'a str]) -> MetaContextRequest<'a> {
    MetaContextRequest {
        export: export.into(),
        queries: queries.into(),
    }
}

#[test]
fn before_the_greeting_and_before_the_flags() {
    let mut manual = Manual::new(Config::new(""));
    let early = Misuse::State("the option before has not been replied to");
    refused(&mut manual, O::List, early);
    let flags = Misuse::State("client flags follow a newstyle greeting");
    let mut sink = Bytes::default();
    let result = manual
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut sink);
    assert_eq!(result, Err(flags));
    server(&mut manual, GREETING);
    refused(&mut manual, O::List, early);
    let before = state(&manual);
    let mut room = [0; 3];
    let result = manual
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut room.as_mut_slice());
    assert_eq!(result, Err(EncodeError::NoRoom { needed: 4 }.into()));
    assert_eq!(room, [0; 3]);
    assert_eq!(state(&manual), before);
    let mut room = [0; 4];
    let result = manual
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut room.as_mut_slice());
    assert_eq!((result, room), (Ok(4), [0, 0, 0, 3]));
    let result = manual
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut sink);
    assert_eq!(result, Err(flags));
    assert!(sink.0.is_empty());
}

#[test]
fn one_option_at_a_time() {
    let mut manual = negotiating(Config::new(""), &[]);
    client(&mut manual, "opt LIST");
    let busy = Misuse::State("the option before has not been replied to");
    refused(&mut manual, O::List, busy);
    refused(&mut manual, O::Abort, busy);
    server(&mut manual, r#"rep LIST SERVER 1:32 "a""#);
    refused(&mut manual, O::List, busy);
    server(&mut manual, "rep LIST ACK");
    client(&mut manual, "opt LIST");
}

#[test]
fn after_the_end() {
    let over = Misuse::State("the option before has not been replied to");
    let mut manual = negotiating(Config::new(""), &["ABORT"]);
    refused(&mut manual, O::List, over);
    let mut manual = negotiating(Config::new(""), &[]);
    client(&mut manual, "opt GO 0:32 0:16");
    server(&mut manual, "rep GO INFO EXPORT:16 1M:64 1:16");
    server(&mut manual, "rep GO ACK");
    refused(&mut manual, O::List, over);
    let mut manual = negotiating(Config::new(""), &[]);
    assert_eq!(manual.end_of_input(), Err(Error::Closed));
    refused(&mut manual, O::List, Misuse::Failed(Error::Closed));
}

#[test]
fn impossible_names() {
    let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
    let long = [b'n'; 4097];
    let long_text = str::from_utf8(&long).unwrap();
    for (name, why) in [
        (long.as_slice(), TextError::TooLong),
        (b"a\0b", TextError::Nul),
        (b"\xff", TextError::Utf8),
    ] {
        let bad = Misuse::Text(why);
        refused(&mut manual, O::ExportName(name.into()), bad);
        refused(&mut manual, O::Info(info(name)), bad);
        refused(&mut manual, O::Go(info(name)), bad);
        let request = MetaContextRequest {
            export: Text::new(name),
            queries: Queries::NONE,
        };
        refused(&mut manual, O::ListMetaContext(request), bad);
        refused(&mut manual, O::SetMetaContext(request), bad);
    }
    for (query, why) in [(long_text, TextError::TooLong), ("a\0b", TextError::Nul)] {
        let queries = [query];
        let request = contexts("disk", &queries);
        refused(&mut manual, O::SetMetaContext(request), Misuse::Text(why));
        refused(&mut manual, O::ListMetaContext(request), Misuse::Text(why));
        let mut sink = Bytes::default();
        let asked = [MetaContextQuery::narrow(query)];
        let result = manual
            .handshake
            .set_meta_contexts("disk".into(), &asked, &mut sink);
        assert_eq!(result, Err(Misuse::Text(why)));
        assert!(sink.0.is_empty());
    }
    // The longest name.
    let name = [b'n'; 4096];
    let mut sink = Bytes::default();
    let written = manual
        .handshake
        .send(&O::ExportName(Text::new(&name)), &mut sink);
    assert_eq!(written, Ok(16 + 4096));
}

#[test]
fn options_that_contradict_the_framing() {
    let mut manual = negotiating(Config::new(""), &[]);
    let request = contexts("disk", &["base:allocation"]);
    let needs = Misuse::NeedsChunks(OptionType::SET_META_CONTEXT);
    refused(&mut manual, O::SetMetaContext(request), needs);
    let needs = Misuse::NeedsChunks(OptionType::LIST_META_CONTEXT);
    refused(&mut manual, O::ListMetaContext(request), needs);
    let mut manual = negotiating(Config::new(""), &["EXTENDED_HEADERS"]);
    let name = O::ExportName("disk".into());
    refused(&mut manual, name, Misuse::ExportNameWithExtended);
    let twice = [InfoType::NAME, InfoType::BLOCK_SIZE, InfoType::NAME];
    let request = InfoRequest {
        export: "disk".into(),
        requests: twice.as_slice().into(),
    };
    refused(&mut manual, O::Go(request), Misuse::RepeatedInfo);
    refused(&mut manual, O::Info(request), Misuse::RepeatedInfo);
    let names: Vec<String> = (0..33).map(|n| format!("x:{n}")).collect();
    let many: Vec<&str> = names.iter().map(String::as_str).collect();
    let request = contexts("disk", &many);
    refused(
        &mut manual,
        O::SetMetaContext(request),
        Misuse::TooManyContexts,
    );
    // As many as can be selected.
    let mut sink = Bytes::default();
    let request = contexts("disk", &many[..32]);
    assert!(
        manual
            .handshake
            .send(&O::SetMetaContext(request), &mut sink)
            .is_ok()
    );
}

/// A context that is selected twice has its number twice, which only a faulty
/// server does: refused in every function that selects.
#[test]
fn a_context_is_selected_once() {
    for config in [Config::new(""), Config::new("").lenient(true)] {
        let mut manual = negotiating(config, &["EXTENDED_HEADERS"]);
        let queries = ["x:a", "x:b", "x:a"];
        let request = O::SetMetaContext(contexts("disk", &queries));
        refused(&mut manual, request, Misuse::RepeatedQuery);
        // Sent by its number.
        let mut whole = Bytes::default();
        request.encode(&mut whole).unwrap();
        let by_number = O::Other {
            option: OptionType::SET_META_CONTEXT,
            data: &whole.0[16..],
        };
        refused(&mut manual, by_number, Misuse::RepeatedQuery);
        let asked = queries.map(MetaContextQuery::new);
        let mut sink = Bytes::default();
        let before = state(&manual);
        let handshake = &mut manual.handshake;
        let result = handshake.set_meta_contexts("disk".into(), &asked, &mut sink);
        assert_eq!((result, sink.0.len()), (Err(Misuse::RepeatedQuery), 0));
        assert_eq!(state(&manual), before);
        // To list a context twice does no harm.
        let request = O::ListMetaContext(contexts("disk", &queries));
        assert!(manual.handshake.send(&request, &mut sink).is_ok());
    }
}

/// What is sent by its number is checked as what is sent by its name.
#[test]
fn options_by_their_number_pass_the_same_checks() {
    let by_number = |option, data| O::Other { option, data };
    let mut manual = negotiating(Config::new(""), &["EXTENDED_HEADERS"]);
    let name = by_number(OptionType::EXPORT_NAME, b"disk");
    refused(&mut manual, name, Misuse::ExportNameWithExtended);
    let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
    let nul = by_number(OptionType::EXPORT_NAME, b"a\0b");
    refused(&mut manual, nul, Misuse::Text(TextError::Nul));
    let twice = by_number(OptionType::GO, b"\0\0\0\0\0\x02\0\x03\0\x03");
    refused(&mut manual, twice, Misuse::RepeatedInfo);
    let query = b"\0\0\0\0\0\0\0\x01\0\0\0\x01x";
    for option in [OptionType::SET_META_CONTEXT, OptionType::LIST_META_CONTEXT] {
        refused(&mut manual, by_number(option, query), Misuse::Query);
    }
    // Data that means nothing is sent as it is: servers have to refuse it.
    let malformed = by_number(OptionType::GO, b"\0");
    let mut sink = Bytes::default();
    assert_eq!(manual.handshake.send(&malformed, &mut sink), Ok(17));
}

/// A query begins with a namespace and a colon, in every function that sends
/// one.
#[test]
fn queries_have_a_namespace() {
    let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
    for query in ["", ":", ":allocation", "allocation", "base.allocation"] {
        let queries = ["base:allocation", query];
        let request = contexts("disk", &queries);
        refused(&mut manual, O::SetMetaContext(request), Misuse::Query);
        refused(&mut manual, O::ListMetaContext(request), Misuse::Query);
        let asked = queries.map(MetaContextQuery::new);
        let mut sink = Bytes::default();
        let result = manual
            .handshake
            .set_meta_contexts("disk".into(), &asked, &mut sink);
        assert_eq!(result, Err(Misuse::Query));
        assert!(sink.0.is_empty());
        let config = Config::new("disk").contexts(&asked);
        assert_eq!(Connector::new(config).err(), Some(Misuse::Query));
    }
    // The namespace defines what follows the colon.
    for query in ["a:", "a::", "base:allocation", "x-disk: a thing"] {
        let mut sink = Bytes::default();
        let queries = [query];
        let request = O::ListMetaContext(contexts("disk", &queries));
        assert!(
            manual.handshake.send(&request, &mut sink).is_ok(),
            "{query}"
        );
        server(&mut manual, "rep LIST_META_CONTEXT ACK");
        let asked = [MetaContextQuery::new(query)];
        let config = Config::new("disk").contexts(&asked);
        assert!(Connector::new(config).is_ok(), "{query}");
    }
}

/// A framing that was accepted is not asked for again; one that was refused can
/// be.
#[test]
fn a_framing_is_negotiated_once() {
    let again = Misuse::State("the framing is agreed on already");
    for (option, request) in [
        ("STRUCTURED_REPLY", O::StructuredReply),
        ("EXTENDED_HEADERS", O::ExtendedHeaders),
    ] {
        let mut manual = negotiating(Config::new(""), &[]);
        client(&mut manual, &format!("opt {option}"));
        server(&mut manual, &format!("rep {option} ERR_UNSUP"));
        client(&mut manual, &format!("opt {option}"));
        server(&mut manual, &format!("rep {option} ACK"));
        refused(&mut manual, request, again);
        // After STARTTLS nothing is negotiated.
        client(&mut manual, "opt STARTTLS");
        server(&mut manual, "rep STARTTLS ACK");
        client(&mut manual, "tls established");
        client(&mut manual, &format!("opt {option}"));
    }
    // Either can come first.
    negotiating(Config::new(""), &["STRUCTURED_REPLY", "EXTENDED_HEADERS"]);
    negotiating(Config::new(""), &["EXTENDED_HEADERS", "STRUCTURED_REPLY"]);
}

/// A lenient client sends what a client should not; what the state machine
/// itself depends on is refused all the same.
#[test]
fn a_lenient_client() {
    let mut manual = negotiating(Config::new("").lenient(true), &[]);
    for line in [
        r#"LIST_META_CONTEXT 4:32 "disk" 1:32 3:32 "all""#,
        "STRUCTURED_REPLY",
        "STRUCTURED_REPLY",
        "EXTENDED_HEADERS",
        "EXTENDED_HEADERS",
        r#"SET_META_CONTEXT 4:32 "disk" 1:32 1:32 ":""#,
        r#"INFO 4:32 "disk" 2:16 NAME:16 NAME:16"#,
    ] {
        client(&mut manual, &format!("opt {line}"));
        let option = line.split(' ').next().unwrap();
        if option == "INFO" {
            server(&mut manual, "rep INFO INFO EXPORT:16 1M:64 1:16");
        }
        server(&mut manual, &format!("rep {option} ACK"));
    }
    let name = O::ExportName("disk".into());
    refused(&mut manual, name, Misuse::ExportNameWithExtended);
    let many = ["base:allocation"; 33];
    let many = O::SetMetaContext(contexts("disk", &many));
    refused(&mut manual, many, Misuse::TooManyContexts);
    let long = O::Go(info(&[b'n'; 4097]));
    refused(&mut manual, long, Misuse::Text(TextError::TooLong));
    let mut manual = negotiating(Config::new("").require_tls().lenient(true), &[]);
    refused(&mut manual, O::List, Misuse::TlsRequired);
    let mut manual = negotiating(Config::new("").lenient(true), &[]);
    let needs = Misuse::NeedsChunks(OptionType::SET_META_CONTEXT);
    let set = O::SetMetaContext(contexts("disk", &["base:allocation"]));
    refused(&mut manual, set, needs);
}

/// A context of 64 bits is not asked for where no server can select it.
#[test]
fn wide_contexts_need_extended_headers() {
    let asked = [
        MetaContextQuery::narrow("base:allocation"),
        MetaContextQuery::wide("x-wide:zone"),
    ];
    let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
    let before = state(&manual);
    let mut sink = Bytes::default();
    let result = manual
        .handshake
        .set_meta_contexts("disk".into(), &asked, &mut sink);
    assert_eq!(result, Err(Misuse::NeedsExtended));
    assert!(sink.0.is_empty());
    assert_eq!(state(&manual), before);
    let written = manual
        .handshake
        .set_meta_contexts("disk".into(), &asked[..1], &mut sink);
    let due = script::option(&script::words(
        r#"SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation""#,
    ));
    assert_eq!((written, &sink.0), (Ok(due.len()), &due));

    let mut manual = negotiating(Config::new(""), &["EXTENDED_HEADERS"]);
    let mut sink = Bytes::default();
    assert!(
        manual
            .handshake
            .set_meta_contexts("disk".into(), &asked, &mut sink)
            .is_ok()
    );

    let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
    let names: Vec<String> = (0..33).map(|n| format!("x:{n}")).collect();
    let many: Vec<_> = names.iter().map(|n| MetaContextQuery::new(n)).collect();
    let mut sink = Bytes::default();
    let result = manual
        .handshake
        .set_meta_contexts("disk".into(), &many, &mut sink);
    assert_eq!(result, Err(Misuse::TooManyContexts));
    let result = manual
        .handshake
        .set_meta_contexts("disk".into(), &many[..32], &mut sink);
    assert_eq!(result, Ok(sink.0.len()));
}

/// Where the sink has no room, nothing is written, and the option can be sent
/// again.
#[test]
fn no_room() {
    let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
    let queries = ["base:allocation"];
    for request in [
        O::List,
        O::ExportName("disk".into()),
        O::Go(info(b"disk")),
        O::SetMetaContext(contexts("disk", &queries)),
    ] {
        let before = state(&manual);
        let mut whole = Bytes::default();
        let needed = request.encode(&mut whole).unwrap();
        for size in 0..needed {
            let mut room = vec![0xee; size];
            let result = manual.handshake.send(&request, &mut room.as_mut_slice());
            assert_eq!(result, Err(EncodeError::NoRoom { needed }.into()));
            assert!(room.iter().all(|byte| *byte == 0xee));
        }
        assert_eq!(state(&manual), before);
    }
    client(&mut manual, "opt LIST");
}

/// Where TLS is required, nothing is sent in plain text but STARTTLS and ABORT.
#[test]
fn tls_required() {
    let mut manual = negotiating(Config::new("").require_tls(), &[]);
    let queries = ["base:allocation"];
    for request in [
        O::List,
        O::ExportName("disk".into()),
        O::Info(info(b"disk")),
        O::Go(info(b"disk")),
        O::StructuredReply,
        O::ExtendedHeaders,
        O::ListMetaContext(contexts("disk", &queries)),
        O::SetMetaContext(contexts("disk", &queries)),
        O::Other {
            option: OptionType(99),
            data: b"disk",
        },
    ] {
        refused(&mut manual, request, Misuse::TlsRequired);
    }
    client(&mut manual, "opt STARTTLS");
    server(&mut manual, "rep STARTTLS ACK");
    let idle = Misuse::State("the option before has not been replied to");
    refused(&mut manual, O::List, idle);
    client(&mut manual, "tls established");
    let again = Misuse::State("TLS was started already");
    refused(&mut manual, O::StartTls, again);
    client(&mut manual, "opt LIST");
}

/// The outcome of TLS can be stated once, after STARTTLS was acknowledged.
#[test]
fn tls_outcome_out_of_order() {
    let mut manual = negotiating(Config::new(""), &[]);
    let none = Misuse::State("no TLS handshake is under way");
    assert_eq!(manual.handshake.tls_established(), Err(none));
    client(&mut manual, "opt STARTTLS");
    assert_eq!(manual.handshake.tls_established(), Err(none));
    server(&mut manual, "rep STARTTLS ACK");
    assert_eq!(manual.handshake.tls_established(), Ok(()));
    assert_eq!(manual.handshake.tls_established(), Err(none));
}

fn by_number(option: OptionType, data: &[u8]) -> O<'_> {
    O::Other { option, data }
}

/// An option sent by its number has the meaning of the number.
#[test]
fn options_by_number_have_their_meaning() {
    // Contexts are replaced, and hold for the export that is named.
    let set = b"\0\0\0\x01a\0\0\0\x01\0\0\0\x02x:".as_slice();
    // (Malformed data names no export.)
    let malformed = b"\0\0\0\x09a".as_slice();
    for (set, export, kept) in [(set, b'a', 1), (set, b'b', 0), (malformed, b'a', 0)] {
        let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
        for id in [1, 2] {
            let mut sink = Bytes::default();
            let request = by_number(OptionType::SET_META_CONTEXT, set);
            assert!(manual.handshake.send(&request, &mut sink).is_ok());
            server(
                &mut manual,
                &format!("rep SET_META_CONTEXT META_CONTEXT {id}:32"),
            );
            server(&mut manual, "rep SET_META_CONTEXT ACK");
        }
        let go = [0, 0, 0, 1, export, 0, 0];
        let mut sink = Bytes::default();
        let request = by_number(OptionType::GO, go.as_slice());
        assert!(manual.handshake.send(&request, &mut sink).is_ok());
        server(&mut manual, "rep GO INFO EXPORT:16 1M:64 1:16");
        server(&mut manual, "rep GO ACK");
        let agreed = manual.handshake.into_negotiated().unwrap();
        assert_eq!(agreed.contexts.len(), kept, "{:?}", agreed.contexts);
    }
}

/// A malformed option names no export. Its number decides what is forgotten:
/// contexts after another selection, and their export after another `GO`.
#[test]
fn malformed_options_by_number() {
    use OptionType as T;
    let empty = b"\0\0\0\0".as_slice();
    let malformed = b"\0\0\0\x09a".as_slice();
    for (option, answer, then, kept) in [
        (T::SET_META_CONTEXT, "ERR_INVALID", empty, 0),
        (T::SET_META_CONTEXT, "ACK", empty, 0),
        (T::GO, "ERR_INVALID", malformed, 0),
        (T::INFO, "ERR_INVALID", empty, 1),
        (T::LIST_META_CONTEXT, "ACK", empty, 1),
    ] {
        let mut manual = negotiating(Config::new(""), &["STRUCTURED_REPLY"]);
        client(&mut manual, r#"opt SET_META_CONTEXT 0:32 1:32 2:32 "x:""#);
        server(
            &mut manual,
            r#"rep SET_META_CONTEXT META_CONTEXT 1:32 "x:y""#,
        );
        server(&mut manual, "rep SET_META_CONTEXT ACK");
        let mut sink = Bytes::default();
        let request = by_number(option, malformed);
        assert!(manual.handshake.send(&request, &mut sink).is_ok());
        server(&mut manual, &format!("rep {} {answer}", option.0));
        let go = [then, &[0, 0][..]].concat();
        let request = by_number(T::GO, &go);
        assert!(manual.handshake.send(&request, &mut sink).is_ok());
        server(&mut manual, "rep GO INFO EXPORT:16 1M:64 1:16");
        server(&mut manual, "rep GO ACK");
        let agreed = manual.handshake.into_negotiated().unwrap();
        assert_eq!(agreed.contexts.len(), kept, "{option} {answer}");
    }
}

/// Until it is ready, `into_negotiated` returns the handshake unchanged.
#[test]
fn too_early_for_transmission() {
    let manual = negotiating(Config::new(""), &[]);
    let before = state(&manual);
    let back = manual.handshake.into_negotiated().unwrap_err();
    assert_eq!(format!("{back:?}"), before);
}
