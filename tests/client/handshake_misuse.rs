//! What a handshake refuses to send, and that nothing has changed then.

use nbd_codec::client::connect::{Connect, Plan};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::number::{InfoType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest as O, Queries};
use nbd_codec::wire::text::{Text, TextError};
use nbd_codec::{Error, Misuse};

use super::machines::{ByHand, Bytes, small};
use super::script::{self, NoCommands};
use super::transcript::Machine;

const GREETING: &str = r#""NBDMAGIC" "IHAVEOPT" 3:16"#;

fn say(hand: &mut ByHand, line: &str) {
    let bytes = script::server(line, &NoCommands);
    let mut input = bytes.as_slice();
    while hand.receive(&mut input).unwrap().is_some() {}
    assert!(input.is_empty());
}

/// Behind the client flags, and behind some options that were accepted.
fn negotiating(require_tls: bool, accepted: &[&str]) -> ByHand {
    let mut hand = ByHand::new(require_tls, small());
    say(&mut hand, GREETING);
    hand.client("flags 3");
    for option in accepted {
        hand.client(&format!("opt {option}"));
        say(&mut hand, &format!("rep {option} ACK"));
    }
    hand
}

/// The state as far as it can be seen.
fn state(hand: &ByHand) -> String {
    format!("{:?}", hand.handshake)
}

#[track_caller]
fn refused(hand: &mut ByHand, request: O<'_>, misuse: Misuse) {
    let before = state(hand);
    let mut sink = Bytes::default();
    assert_eq!(hand.handshake.send(&request, &mut sink), Err(misuse));
    assert!(sink.0.is_empty(), "something was written");
    assert_eq!(state(hand), before, "something has changed");
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
    let mut hand = ByHand::new(false, small());
    let early = Misuse::State("an option is sent when the one before is answered");
    refused(&mut hand, O::List, early);
    let flags = Misuse::State("the client's flags answer a greeting");
    let mut sink = Bytes::default();
    let result = hand
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut sink);
    assert_eq!(result, Err(flags));
    say(&mut hand, GREETING);
    refused(&mut hand, O::List, early);
    let before = state(&hand);
    let mut room = [0; 3];
    let result = hand
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut room.as_mut_slice());
    assert_eq!(result, Err(EncodeError::NoRoom { needed: 4 }.into()));
    assert_eq!(room, [0; 3]);
    assert_eq!(state(&hand), before);
    let mut room = [0; 4];
    let result = hand
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut room.as_mut_slice());
    assert_eq!((result, room), (Ok(4), [0, 0, 0, 3]));
    let result = hand
        .handshake
        .send_client_flags(ClientFlags::KNOWN, &mut sink);
    assert_eq!(result, Err(flags));
    assert!(sink.0.is_empty());
}

#[test]
fn one_option_at_a_time() {
    let mut hand = negotiating(false, &[]);
    hand.client("opt LIST");
    let busy = Misuse::State("an option is sent when the one before is answered");
    refused(&mut hand, O::List, busy);
    refused(&mut hand, O::Abort, busy);
    say(&mut hand, r#"rep LIST SERVER 1:32 "a""#);
    refused(&mut hand, O::List, busy);
    say(&mut hand, "rep LIST ACK");
    hand.client("opt LIST");
}

#[test]
fn after_the_end() {
    let over = Misuse::State("an option is sent when the one before is answered");
    let mut hand = negotiating(false, &["ABORT"]);
    refused(&mut hand, O::List, over);
    let mut hand = negotiating(false, &[]);
    hand.client("opt GO 0:32 0:16");
    say(&mut hand, "rep GO INFO EXPORT:16 1M:64 1:16");
    say(&mut hand, "rep GO ACK");
    refused(&mut hand, O::List, over);
    let mut hand = negotiating(false, &[]);
    assert_eq!(hand.end_of_input(), Err(Error::Closed));
    refused(&mut hand, O::List, Misuse::Failed(Error::Closed));
}

#[test]
fn names_that_cannot_be() {
    let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
    let long = [b'n'; 4097];
    let long_text = str::from_utf8(&long).unwrap();
    for (name, why) in [
        (long.as_slice(), TextError::TooLong),
        (b"a\0b", TextError::Nul),
        (b"\xff", TextError::Utf8),
    ] {
        let bad = Misuse::Text(why);
        refused(&mut hand, O::ExportName(name.into()), bad);
        refused(&mut hand, O::Info(info(name)), bad);
        refused(&mut hand, O::Go(info(name)), bad);
        let request = MetaContextRequest {
            export: Text::new(name),
            queries: Queries::NONE,
        };
        refused(&mut hand, O::ListMetaContext(request), bad);
        refused(&mut hand, O::SetMetaContext(request), bad);
    }
    for (query, why) in [(long_text, TextError::TooLong), ("a\0b", TextError::Nul)] {
        let queries = [query];
        let request = contexts("disk", &queries);
        refused(&mut hand, O::SetMetaContext(request), Misuse::Text(why));
        refused(&mut hand, O::ListMetaContext(request), Misuse::Text(why));
        let mut sink = Bytes::default();
        let asked = [ContextQuery::narrow(query)];
        let result = hand.handshake.select("disk".into(), &asked, &mut sink);
        assert_eq!(result, Err(Misuse::Text(why)));
        assert!(sink.0.is_empty());
    }
    // The longest name is none too long.
    let name = [b'n'; 4096];
    let mut sink = Bytes::default();
    let written = hand
        .handshake
        .send(&O::ExportName(Text::new(&name)), &mut sink);
    assert_eq!(written, Ok(16 + 4096));
}

#[test]
fn options_that_contradict_what_is_agreed() {
    let mut hand = negotiating(false, &[]);
    let request = contexts("disk", &["base:allocation"]);
    let needs = Misuse::NeedsChunks(OptionType::SET_META_CONTEXT);
    refused(&mut hand, O::SetMetaContext(request), needs);
    let needs = Misuse::NeedsChunks(OptionType::LIST_META_CONTEXT);
    refused(&mut hand, O::ListMetaContext(request), needs);
    let mut hand = negotiating(false, &["EXTENDED_HEADERS"]);
    let name = O::ExportName("disk".into());
    refused(&mut hand, name, Misuse::ExportNameWithExtended);
    let twice = [InfoType::NAME, InfoType::BLOCK_SIZE, InfoType::NAME];
    let request = InfoRequest {
        export: "disk".into(),
        requests: twice.as_slice().into(),
    };
    refused(&mut hand, O::Go(request), Misuse::RepeatedInfo);
    refused(&mut hand, O::Info(request), Misuse::RepeatedInfo);
    let many = ["base:allocation"; 33];
    let request = contexts("disk", &many);
    refused(
        &mut hand,
        O::SetMetaContext(request),
        Misuse::TooManyContexts,
    );
    // A list may ask for more than can be selected.
    let mut sink = Bytes::default();
    let request = contexts("disk", &many[..32]);
    assert!(
        hand.handshake
            .send(&O::SetMetaContext(request), &mut sink)
            .is_ok()
    );
}

/// A query begins with a namespace and a colon, whoever makes it.
#[test]
fn queries_have_a_namespace() {
    let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
    for query in ["", ":", ":allocation", "allocation", "base.allocation"] {
        let queries = ["base:allocation", query];
        let request = contexts("disk", &queries);
        refused(&mut hand, O::SetMetaContext(request), Misuse::Query);
        refused(&mut hand, O::ListMetaContext(request), Misuse::Query);
        let asked = queries.map(ContextQuery::new);
        let mut sink = Bytes::default();
        let result = hand.handshake.select("disk".into(), &asked, &mut sink);
        assert_eq!(result, Err(Misuse::Query));
        assert!(sink.0.is_empty());
        let mut plan = Plan::new("disk");
        plan.contexts = &asked;
        assert_eq!(Connect::new(plan).err(), Some(Misuse::Query));
    }
    // What stands behind it is the namespace's own affair.
    for query in ["a:", "a::", "base:allocation", "x-disk: a thing"] {
        let mut sink = Bytes::default();
        let queries = [query];
        let request = O::ListMetaContext(contexts("disk", &queries));
        assert!(hand.handshake.send(&request, &mut sink).is_ok(), "{query}");
        say(&mut hand, "rep LIST_META_CONTEXT ACK");
        let mut plan = Plan::new("disk");
        let asked = [ContextQuery::new(query)];
        plan.contexts = &asked;
        assert!(Connect::new(plan).is_ok(), "{query}");
    }
}

/// What was agreed on is not asked for again; what was refused can be.
#[test]
fn a_framing_is_agreed_on_once() {
    let again = Misuse::State("the framing is agreed on already");
    for (option, request) in [
        ("STRUCTURED_REPLY", O::StructuredReply),
        ("EXTENDED_HEADERS", O::ExtendedHeaders),
    ] {
        let mut hand = negotiating(false, &[]);
        hand.client(&format!("opt {option}"));
        say(&mut hand, &format!("rep {option} ERR_UNSUP"));
        hand.client(&format!("opt {option}"));
        say(&mut hand, &format!("rep {option} ACK"));
        refused(&mut hand, request, again);
        // Behind STARTTLS nothing is agreed on.
        hand.client("opt STARTTLS");
        say(&mut hand, "rep STARTTLS ACK");
        hand.client("tls established");
        hand.client(&format!("opt {option}"));
    }
    // Which of the two comes first is the caller's choice.
    negotiating(false, &["STRUCTURED_REPLY", "EXTENDED_HEADERS"]);
    negotiating(false, &["EXTENDED_HEADERS", "STRUCTURED_REPLY"]);
}

/// A tester sends what a client should not; what the machine itself depends on
/// holds for testers too.
#[test]
fn a_lenient_client() {
    let mut hand = ByHand::new(false, small());
    hand.handshake = hand.handshake.lenient();
    say(&mut hand, GREETING);
    hand.client("flags 3");
    for line in [
        r#"LIST_META_CONTEXT 4:32 "disk" 1:32 3:32 "all""#,
        "STRUCTURED_REPLY",
        "STRUCTURED_REPLY",
        "EXTENDED_HEADERS",
        "EXTENDED_HEADERS",
        r#"SET_META_CONTEXT 4:32 "disk" 1:32 1:32 ":""#,
        r#"INFO 4:32 "disk" 2:16 NAME:16 NAME:16"#,
    ] {
        hand.client(&format!("opt {line}"));
        let option = line.split(' ').next().unwrap();
        if option == "INFO" {
            say(&mut hand, "rep INFO INFO EXPORT:16 1M:64 1:16");
        }
        say(&mut hand, &format!("rep {option} ACK"));
    }
    let name = O::ExportName("disk".into());
    refused(&mut hand, name, Misuse::ExportNameWithExtended);
    let many = ["base:allocation"; 33];
    let many = O::SetMetaContext(contexts("disk", &many));
    refused(&mut hand, many, Misuse::TooManyContexts);
    let long = O::Go(info(&[b'n'; 4097]));
    refused(&mut hand, long, Misuse::Text(TextError::TooLong));
    let mut hand = ByHand::new(true, small());
    hand.handshake = hand.handshake.lenient();
    say(&mut hand, GREETING);
    hand.client("flags 3");
    refused(&mut hand, O::List, Misuse::TlsRequired);
    let mut hand = ByHand::new(false, small());
    hand.handshake = hand.handshake.lenient();
    say(&mut hand, GREETING);
    hand.client("flags 3");
    let needs = Misuse::NeedsChunks(OptionType::SET_META_CONTEXT);
    let set = O::SetMetaContext(contexts("disk", &["base:allocation"]));
    refused(&mut hand, set, needs);
}

/// A context of 64 bits is not asked for where it could only be left out.
#[test]
fn wide_contexts_need_extended_headers() {
    let asked = [
        ContextQuery::narrow("base:allocation"),
        ContextQuery::wide("x-wide:zone"),
    ];
    let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
    let before = state(&hand);
    let mut sink = Bytes::default();
    let result = hand.handshake.select("disk".into(), &asked, &mut sink);
    assert_eq!(result, Err(Misuse::NeedsExtended));
    assert!(sink.0.is_empty());
    assert_eq!(state(&hand), before);
    let written = hand.handshake.select("disk".into(), &asked[..1], &mut sink);
    let due = script::option(&script::words(
        r#"SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation""#,
    ));
    assert_eq!((written, &sink.0), (Ok(due.len()), &due));

    let mut hand = negotiating(false, &["EXTENDED_HEADERS"]);
    let mut sink = Bytes::default();
    assert!(
        hand.handshake
            .select("disk".into(), &asked, &mut sink)
            .is_ok()
    );

    let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
    let many = [ContextQuery::new("base:allocation"); 33];
    let mut sink = Bytes::default();
    let result = hand.handshake.select("disk".into(), &many, &mut sink);
    assert_eq!(result, Err(Misuse::TooManyContexts));
    let result = hand.handshake.select("disk".into(), &many[..32], &mut sink);
    assert_eq!(result, Ok(sink.0.len()));
}

/// A sink without room: nothing is written, and the option can be sent again.
#[test]
fn no_room() {
    let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
    let queries = ["base:allocation"];
    for request in [
        O::List,
        O::ExportName("disk".into()),
        O::Go(info(b"disk")),
        O::SetMetaContext(contexts("disk", &queries)),
    ] {
        let before = state(&hand);
        let mut whole = Bytes::default();
        let needed = request.encode(&mut whole).unwrap();
        for size in 0..needed {
            let mut room = vec![0xee; size];
            let result = hand.handshake.send(&request, &mut room.as_mut_slice());
            assert_eq!(result, Err(EncodeError::NoRoom { needed }.into()));
            assert!(room.iter().all(|byte| *byte == 0xee));
        }
        assert_eq!(state(&hand), before);
    }
    hand.client("opt LIST");
}

/// With TLS required, nothing goes out in plain text but what starts TLS or
/// ends the session.
#[test]
fn tls_required() {
    let mut hand = negotiating(true, &[]);
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
        refused(&mut hand, request, Misuse::TlsRequired);
    }
    hand.client("opt STARTTLS");
    say(&mut hand, "rep STARTTLS ACK");
    let idle = Misuse::State("an option is sent when the one before is answered");
    refused(&mut hand, O::List, idle);
    hand.client("tls established");
    let again = Misuse::State("TLS was started already");
    refused(&mut hand, O::StartTls, again);
    hand.client("opt LIST");
}

/// The outcome of TLS is stated when it is due, and only then.
#[test]
fn tls_outcome_out_of_place() {
    let mut hand = negotiating(false, &[]);
    let none = Misuse::State("no TLS handshake is under way");
    assert_eq!(hand.handshake.tls_established(), Err(none));
    hand.client("opt STARTTLS");
    assert_eq!(hand.handshake.tls_established(), Err(none));
    say(&mut hand, "rep STARTTLS ACK");
    assert_eq!(hand.handshake.tls_established(), Ok(()));
    assert_eq!(hand.handshake.tls_established(), Err(none));
}

fn by_number(option: OptionType, data: &[u8]) -> O<'_> {
    O::Other { option, data }
}

/// What a tester sends by number is what the specification says it is.
#[test]
fn options_by_number_count_as_what_they_are() {
    // Contexts are replaced, and hold for the export that is named.
    let set = b"\0\0\0\x01a\0\0\0\x01\0\0\0\x02x:".as_slice();
    // (What is malformed names no export.)
    let malformed = b"\0\0\0\x09a".as_slice();
    for (set, export, kept) in [(set, b'a', 1), (set, b'b', 0), (malformed, b'a', 0)] {
        let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
        for id in [1, 2] {
            let mut sink = Bytes::default();
            let request = by_number(OptionType::SET_META_CONTEXT, set);
            assert!(hand.handshake.send(&request, &mut sink).is_ok());
            say(
                &mut hand,
                &format!("rep SET_META_CONTEXT META_CONTEXT {id}:32"),
            );
            say(&mut hand, "rep SET_META_CONTEXT ACK");
        }
        let go = [0, 0, 0, 1, export, 0, 0];
        let mut sink = Bytes::default();
        let request = by_number(OptionType::GO, go.as_slice());
        assert!(hand.handshake.send(&request, &mut sink).is_ok());
        say(&mut hand, "rep GO INFO EXPORT:16 1M:64 1:16");
        say(&mut hand, "rep GO ACK");
        let agreed = hand.handshake.into_negotiated().unwrap();
        assert_eq!(agreed.contexts.len(), kept, "{:?}", agreed.contexts);
    }
}

/// What is malformed names no export. What it was meant to be decides what is
/// forgotten: contexts behind another selection, and whose they are behind
/// another `GO`.
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
        let mut hand = negotiating(false, &["STRUCTURED_REPLY"]);
        hand.client(r#"opt SET_META_CONTEXT 0:32 1:32 2:32 "x:""#);
        say(&mut hand, r#"rep SET_META_CONTEXT META_CONTEXT 1:32 "x:y""#);
        say(&mut hand, "rep SET_META_CONTEXT ACK");
        let mut sink = Bytes::default();
        let request = by_number(option, malformed);
        assert!(hand.handshake.send(&request, &mut sink).is_ok());
        say(&mut hand, &format!("rep {} {answer}", option.0));
        let go = [then, &[0, 0][..]].concat();
        let request = by_number(T::GO, &go);
        assert!(hand.handshake.send(&request, &mut sink).is_ok());
        say(&mut hand, "rep GO INFO EXPORT:16 1M:64 1:16");
        say(&mut hand, "rep GO ACK");
        let agreed = hand.handshake.into_negotiated().unwrap();
        assert_eq!(agreed.contexts.len(), kept, "{option} {answer}");
    }
}

/// The machine comes back whole until it is ready.
#[test]
fn too_early_for_transmission() {
    let hand = negotiating(false, &[]);
    let before = state(&hand);
    let back = hand.handshake.into_negotiated().unwrap_err();
    assert_eq!(format!("{back:?}"), before);
}
