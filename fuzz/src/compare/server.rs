//! The server's state machines: the client's bytes, and the replies.

use nbd_codec::server::TlsMode;
use nbd_codec::{Framing, Negotiated, SelectedContexts, StatusWidth};

use super::{check_validity, framing, is_plaintext_error, replies_config, requests_config};
use crate::reference::options::{self, Tls};
use crate::reference::requests::{self, Event, Request};
use crate::reference::{Validity, option_replies, replies};
use crate::reply_event::ReplyEvent;
use crate::server::handshake;
use crate::server::transmission::{self, RequestFields};

/// Two deliveries of one script for `Transmission`.
pub fn transmission_deliveries(first: &transmission::Harness, second: &transmission::Harness) {
    assert_eq!(first.outcome, second.outcome);
    assert_eq!(first.expected, second.expected);
}

/// `Transmission` and the reference parsers on the same bytes.
pub fn transmission(server: &transmission::Harness) {
    let (events, validity) = parse_transmission(server);
    let outcome = &server.outcome;
    let context = || format!("reference: {validity:?} {events:#?}\nserver: {outcome:#?}");
    let parse = |stream: &[u8]| parse_requests(server, stream).1;
    check_validity(validity, outcome.error, &server.received, parse, &context);
    let mut pairs = events.iter().zip(&outcome.events);
    let same = events.len() == outcome.events.len() && pairs.all(|(ours, its)| is_same(ours, its));
    assert!(same, "{}", context());
    check_replies(server, &events);
}

/// The client's reference parser accepts the replies, and understands what the
/// caller replied.
fn check_replies(server: &transmission::Harness, events: &[Event]) {
    let requests = events.iter().filter_map(|event| match event {
        Event::Request(request) | Event::Answered { request, .. } => Some(request),
        _ => None,
    });
    let requests = requests.zip(&server.written_at);
    let commands: Vec<_> = requests
        .map(|(request, at)| command(request, *at))
        .collect();
    let cookies: Vec<_> = commands.iter().map(|command| command.cookie).collect();
    let is_repeated = |n: usize| cookies[..n].contains(&cookies[n]);
    if (0..cookies.len()).any(is_repeated) {
        // The client cannot tell the replies apart.
        return;
    }
    let config = replies_config(&server.setup.common);
    let (events, validity) = replies::parse(&config, &commands, &server.outcome.written);
    let expected = &server.expected;
    let context = || format!("client: {validity:?} {events:#?}\nserver: {expected:#?}");
    assert_eq!(validity, Validity::Valid, "{}", context());
    assert_eq!(&events, expected, "{}", context());
    let done = events.iter().filter(|event| event.is_done()).count();
    assert_eq!(done, commands.len(), "one reply for each request");
    let is_over = |(n, event)| is_over_an_error(&events[..n], event);
    assert!(!events.iter().enumerate().any(is_over), "{}", context());
}

/// "NBD_REPLY_TYPE_OFFSET_DATA": content must not overlap the offset of an error
/// that was reported before. (The reader does not check it: a client need not.)
fn is_over_an_error(before: &[ReplyEvent], event: &ReplyEvent) -> bool {
    let (content, offset, length) = match event {
        ReplyEvent::Data {
            cookie,
            offset,
            bytes,
        } => (*cookie, *offset, bytes.len() as u64),
        ReplyEvent::Hole {
            cookie,
            offset,
            length,
        } => (*cookie, *offset, *length),
        _ => return false,
    };
    before.iter().any(|event| match event {
        ReplyEvent::Error {
            cookie,
            offset: Some(at),
            ..
        } => *cookie == content && offset <= *at && at - offset < length,
        _ => false,
    })
}

fn command(request: &Request, at: usize) -> replies::Command {
    replies::Command {
        at,
        cookie: request.cookie,
        kind: request.kind,
        flags: request.flags,
        offset: request.offset,
        length: request.length,
        contexts: request.contexts.iter().map(|id| *id as u32).collect(),
    }
}

/// The reference parser's view of a run of `Transmission`.
pub fn parse_transmission(server: &transmission::Harness) -> (Vec<Event>, Validity) {
    parse_requests(server, &server.received)
}

fn parse_requests(server: &transmission::Harness, stream: &[u8]) -> (Vec<Event>, Validity) {
    let config = requests::Config {
        max_effect: server.setup.limits().max_effect_length,
        strict: server.setup.common.strict,
        ..requests_config(&server.setup.common)
    };
    requests::parse(&config, &server.changes, stream)
}

/// Whether an event of the reference parser is that of the state machine.
fn is_same(reference: &Event, server: &transmission::Event) -> bool {
    match (reference, server) {
        (
            Event::Payload { request, bytes },
            transmission::Event::Payload {
                cookie,
                offset,
                length,
                bytes: received,
                reported: 0,
            },
        ) => {
            let payload = (request.cookie, request.offset, request.length);
            payload == (*cookie, *offset, *length) && bytes == received
        }
        (Event::Request(request), transmission::Event::Request(fields)) => {
            *fields == visible_fields(request)
        }
        (Event::Answered { request, errors }, transmission::Event::Answered { kind, error }) => {
            let success: &[u64] = &[0];
            let errors = if errors.is_empty() { success } else { errors };
            request.kind == *kind && errors.contains(error)
        }
        (Event::Disconnect, transmission::Event::Disconnect) => true,
        _ => false,
    }
}

/// The fields of a request that its caller sees.
fn visible_fields(request: &Request) -> RequestFields {
    let Request {
        kind,
        flags,
        cookie,
        offset,
        length,
        ..
    } = *request;
    const FUA: u64 = 1;
    let (flags, offset, length) = match kind {
        0 => (flags & 1 << 2, offset, length),
        1 | 4 => (flags & FUA, offset, length),
        6 => (flags & (FUA | 1 << 1 | 1 << 4), offset, length),
        7 => (flags & 1 << 3, offset, length),
        8 => (0, offset, 0),
        3 => (0, 0, 0),
        _ => (0, offset, length),
    };
    let mut contexts = request.contexts.clone();
    contexts.sort();
    RequestFields {
        kind,
        cookie,
        offset,
        length,
        flags,
        contexts,
    }
}

/// Two deliveries of one script for `Handshake`.
pub fn handshake_deliveries(first: &handshake::Harness, second: &handshake::Harness) {
    let [first, second] = [first, second].map(|run| without_start_tls(run.outcome.clone()));
    assert_eq!(first, second);
}

fn without_start_tls(mut outcome: handshake::Outcome) -> handshake::Outcome {
    if is_plaintext_error(outcome.error) {
        outcome
            .events
            .pop_if(|event| *event == handshake::Event::StartTls);
        let acknowledgement = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";
        if let Some(before) = outcome.written.strip_suffix(acknowledgement) {
            outcome.written.truncate(before.len());
        }
        // The calls between depend on it.
        outcome.calls.clear();
    }
    outcome
}

/// `Handshake` and the reference parsers on the same bytes.
pub fn handshake(server: handshake::Harness) {
    let setup = server.config();
    let limits = setup.limits.limits();
    let config = options::Config {
        oldstyle: setup.oldstyle(),
        fixed: setup.fixed,
        no_zeroes: setup.no_zeroes,
        tls: match setup.tls() {
            TlsMode::None => Tls::No,
            TlsMode::Selective => Tls::Selective,
            TlsMode::Forced => Tls::Forced,
        },
        framing: framing(setup.framing()),
        max_data: limits.option_data.into(),
        max_discarded: limits.payload.into(),
        strict: setup.strict,
    };
    let session = options::parse(&config, &server.decisions, &server.received);
    let (received, reply_starts, decisions) =
        (server.received, server.reply_starts, server.decisions);
    let outcome = without_start_tls(server.outcome);
    let context = || format!("reference: {session:#?}\nserver: {outcome:#?}");
    let parse = |stream: &[u8]| options::parse(&config, &decisions, stream).validity;
    check_validity(session.validity, outcome.error, &received, parse, &context);
    let mut events: Vec<_> = session.events.iter().filter_map(server_event).collect();
    if is_plaintext_error(outcome.error) {
        events.pop_if(|event| *event == handshake::Event::StartTls);
    }
    assert_eq!(events, outcome.events, "{}", context());
    if let Some(negotiated) = &outcome.negotiated
        && !config.oldstyle
    {
        let contexts = negotiated.contexts.iter();
        let negotiation = options::Negotiation {
            size: negotiated.size,
            framing: framing(negotiated.framing),
            contexts: contexts
                .map(|context| (context.id.0.into(), context.width == StatusWidth::Wide))
                .collect(),
            tls: negotiated.tls,
        };
        assert_eq!(negotiation, session.negotiation, "{}", context());
    }
    check_option_replies(&outcome, &session, &reply_starts);
}

fn server_event(event: &options::Event) -> Option<handshake::Event> {
    Some(match event {
        options::Event::List => handshake::Event::List,
        options::Event::Query {
            option,
            export,
            requests,
            queries,
        } => handshake::Event::Query {
            option: *option,
            export: export.clone(),
            requests: requests.clone(),
            queries: queries.clone(),
        },
        options::Event::Reply { .. } => return None,
        options::Event::StartTls => handshake::Event::StartTls,
        options::Event::Aborted => handshake::Event::Aborted,
        options::Event::Ready => handshake::Event::Ready,
    })
}

/// The client's reference parser accepts the replies, which are those that the
/// options deserve.
fn check_option_replies(
    outcome: &handshake::Outcome,
    session: &options::Session,
    reply_starts: &[usize],
) {
    let config = option_replies::Config {
        require_tls: false,
        max_data: u64::MAX,
        max_contexts: SelectedContexts::CAPACITY,
        strict: true,
    };
    // The client's flags follow the greeting, which has 18 bytes.
    let starts = reply_starts.get(1..).unwrap_or_default();
    let starts = std::iter::once(18).chain(starts.iter().copied());
    let sent: Vec<_> = starts.zip(session.sent.iter().cloned()).collect();
    let (events, validity, negotiation) = option_replies::parse(&config, &sent, &outcome.written);
    let context =
        || format!("client: {validity:?} {events:#?} {sent:?}\nserver: {session:#?} {outcome:#?}");
    let is_pending = matches!(
        session.events.last(),
        Some(options::Event::List | options::Event::Query { .. })
    );
    match validity {
        Validity::Valid => {}
        Validity::Incomplete => assert!(
            is_pending || outcome.error.is_some() || reply_starts.is_empty(),
            "{}",
            context()
        ),
        Validity::Invalid(_) => panic!("{}", context()),
    }
    let mut received = events.iter().filter_map(|event| match event {
        option_replies::Event::Ack { option } => Some((*option, 0)),
        option_replies::Event::Refused { option, error, .. } => Some((*option, *error)),
        option_replies::Event::StartTls => Some((5, 0)),
        option_replies::Event::Ready => Some((7, 0)),
        _ => None,
    });
    for event in &session.events {
        let options::Event::Reply { option, replies } = event else {
            continue;
        };
        let ready = outcome.events.last() == Some(&handshake::Event::Ready);
        let granted = (*option, &replies[..]) == (7, &[0]);
        assert!(!granted || ready, "granted but not ready: {}", context());
        match received.next() {
            Some((of, reply)) => {
                assert!(of == *option && replies.contains(&reply), "{}", context());
            }
            None => assert!(outcome.error.is_some(), "{}", context()),
        }
    }
    if let Some(negotiated) = &outcome.negotiated {
        check_flags(negotiated);
        assert_eq!(negotiation.size, negotiated.size);
        assert_eq!(negotiation.flags, u64::from(negotiated.flags.0));
        assert_eq!(negotiation.framing, framing(negotiated.framing));
        assert_eq!(negotiation.tls, negotiated.tls);
        let contexts = negotiated.contexts.iter();
        let contexts = contexts.map(|context| context.id.0.into());
        assert_eq!(negotiation.contexts, contexts.collect::<Vec<u64>>());
        if let (Some(client), Some(own)) = (negotiation.block_sizes, negotiated.block_sizes) {
            let own = (own.minimum.into(), own.preferred.into(), own.maximum.into());
            assert_eq!(client, own);
        }
    }
}

/// "Transmission flags": flags that require others.
fn check_flags(negotiated: &Negotiated) {
    let has = |bit: u32| negotiated.flags.0 >> bit & 1 == 1;
    assert!(has(0), "HAS_FLAGS");
    assert!(!has(11) || has(6), "FAST_ZERO without WRITE_ZEROES");
    assert!(
        !has(7) || negotiated.framing != Framing::Simple,
        "DF without chunks"
    );
    let status = negotiated.framing == Framing::Extended && !negotiated.contexts.is_empty();
    assert!(!has(12) || status, "a payload without extended headers");
    assert_eq!(negotiated.flags.0 >> 13, 0, "unknown flags");
}
