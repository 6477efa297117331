//! The client's state machines.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Error, Negotiated, SelectedContexts, Violation};

use super::{check_validity, framing, is_plaintext_error, replies_config, requests_config};
use crate::client::handshake::script::Script;
use crate::client::transmission::Sent;
use crate::client::{handshake, transmission};
use crate::reference::{Validity, option_replies, replies, requests};
use crate::reply_event::ReplyEvent;
use crate::script::Setup;

/// Two deliveries of one script for `Transmission`.
pub fn transmission_deliveries(first: &transmission::Outcome, second: &transmission::Outcome) {
    assert_eq!(first, second);
}

/// An error in block status. The reference parser checks a whole chunk before it
/// reports any of it.
fn is_extent_error(error: Option<Error>) -> bool {
    matches!(
        error,
        Some(Error::Violation(
            Violation::StatusTooWide(_) | Violation::NotOne(_) | Violation::ExtentBeyond(_)
        )) | Some(Error::Decode(DecodeError::EmptyExtent))
    )
}

/// The events before the last chunk, if that is block status.
fn without_status(events: &[ReplyEvent]) -> Vec<&ReplyEvent> {
    let mut events: Vec<_> = events.iter().collect();
    while let Some(ReplyEvent::Status { .. }) = events.last() {
        events.pop();
    }
    events
}

/// The reference parser's view of a run of `Transmission`.
pub fn parse_transmission(
    client: &transmission::Harness,
    setup: &Setup,
) -> (Vec<ReplyEvent>, Validity) {
    parse_replies(client, setup, &client.received)
}

fn parse_replies(
    client: &transmission::Harness,
    setup: &Setup,
    stream: &[u8],
) -> (Vec<ReplyEvent>, Validity) {
    let limits = setup.limits.limits();
    let config = replies::Config {
        max_message: limits.error_message.into(),
        max_error: limits.payload.into(),
        max_extents: limits.extents.into(),
        strict: setup.strict,
        ..replies_config(setup)
    };
    let command = |sent: &Sent| {
        let request = sent.target.request;
        replies::Command {
            at: sent.at,
            cookie: sent.target.cookie.0,
            kind: request.command.0.into(),
            flags: request.flags.0.into(),
            offset: request.offset,
            length: request.length,
            contexts: sent.target.contexts.iter().map(|id| id.0).collect(),
        }
    };
    let commands: Vec<_> = client.sent.iter().map(command).collect();
    replies::parse(&config, &commands, stream)
}

/// `Transmission` and the reference parser on the same bytes.
pub fn transmission(client: &transmission::Harness, setup: &Setup) {
    let (events, validity) = parse_transmission(client, setup);
    let outcome = &client.outcome;
    let context = || format!("reference: {validity:?} {events:#?}\nclient: {outcome:#?}");
    let parse = |stream: &[u8]| parse_replies(client, setup, stream).1;
    check_validity(validity, outcome.error, &client.received, parse, &context);
    let failed = !matches!(outcome.error, None | Some(Error::Closed));
    if failed && validity == Validity::Incomplete {
        return;
    }
    if is_extent_error(outcome.error) {
        assert_eq!(without_status(&outcome.events), without_status(&events));
    } else {
        assert_eq!(outcome.events, events);
    }
}

/// The server's reference parser accepts all requests, with the same fields.
pub fn requests(client: &transmission::Harness, setup: &Setup) {
    let sizes = setup.negotiated().block_sizes;
    if setup.lenient || sizes.is_some_and(|sizes| !sizes.is_valid()) {
        return;
    }
    let config = requests_config(setup);
    let (events, validity) = requests::parse(&config, &client.changes, &client.written);
    let context = || {
        format!(
            "reference: {validity:?} {events:#?}\nclient: {:#?}",
            client.sent
        )
    };
    let expected = if client.written_is_truncated {
        Validity::Incomplete
    } else {
        Validity::Valid
    };
    assert_eq!(validity, expected, "{}", context());
    let requests = events.iter().filter_map(|event| match event {
        requests::Event::Request(request) => Some(request),
        // Policy: the client may request more than one chunk can hold.
        requests::Event::Answered { request, errors } if errors == &[75] && request.kind == 0 => {
            Some(request)
        }
        requests::Event::Answered { .. } => panic!("{}", context()),
        requests::Event::Payload { .. } | requests::Event::Disconnect => None,
    });
    let requests: Vec<_> = requests.collect();
    assert!(
        client.written_is_truncated || requests.len() == client.sent.len(),
        "{}",
        context()
    );
    for (parsed, sent) in requests.iter().zip(&client.sent) {
        let (cookie, request) = (sent.target.cookie.0, sent.target.request);
        let kind = request.command.0.into();
        let fields = (parsed.kind, parsed.cookie, parsed.offset, parsed.length);
        assert_eq!(fields, (kind, cookie, request.offset, request.length));
        let contexts = sent.target.contexts.iter();
        let mut expected: Vec<u64> = contexts.map(|id| id.0.into()).collect();
        expected.sort();
        let mut contexts = parsed.contexts.clone();
        contexts.sort();
        assert_eq!(contexts, expected);
    }
}

/// Two deliveries of one script for `Handshake` or `Connector`.
pub fn handshake_deliveries(first: handshake::Outcome, second: handshake::Outcome) {
    assert_eq!(without_start_tls(first), without_start_tls(second));
}

fn without_start_tls(mut outcome: handshake::Outcome) -> handshake::Outcome {
    if is_plaintext_error(outcome.error) {
        outcome
            .events
            .pop_if(|event| *event == option_replies::Event::StartTls);
        outcome.connector_events.pop_if(|event| event == "StartTls");
    }
    outcome
}

/// The reference parser's view of a handshake.
pub fn parse_handshake(
    client: &handshake::Harness,
    script: &Script,
) -> (
    Vec<option_replies::Event>,
    Validity,
    option_replies::Negotiation,
) {
    option_replies::parse(&handshake_config(script), &client.sent, &client.received)
}

fn handshake_config(script: &Script) -> option_replies::Config {
    option_replies::Config {
        require_tls: script.tls % 3 == 2,
        max_data: script.limits.limits().option_data.into(),
        max_contexts: SelectedContexts::CAPACITY,
        strict: script.strict,
    }
}

/// `Handshake` or `Connector`, and the reference parser on the same bytes.
pub fn handshake(client: handshake::Harness, script: &Script) {
    let (mut events, validity, negotiation) = parse_handshake(&client, script);
    let (received, sent) = (client.received, client.sent);
    let outcome = without_start_tls(client.outcome);
    let context = || format!("reference: {validity:?} {events:#?}\nclient: {outcome:#?}");
    let config = handshake_config(script);
    let parse = |stream: &[u8]| option_replies::parse(&config, &sent, stream).1;
    check_validity(validity, outcome.error, &received, parse, &context);
    if let Some(negotiated) = &outcome.negotiated {
        assert_eq!(negotiation, parameters(negotiated));
    }
    // The connector reports only some of the events.
    if !client.is_connector {
        if is_plaintext_error(outcome.error) {
            events.pop();
        }
        assert_eq!(outcome.events, events);
    }
}

fn parameters(negotiated: &Negotiated) -> option_replies::Negotiation {
    let contexts = negotiated.contexts.iter();
    let block_sizes = |sizes: BlockSizes| {
        (
            sizes.minimum.into(),
            sizes.preferred.into(),
            sizes.maximum.into(),
        )
    };
    option_replies::Negotiation {
        size: negotiated.size,
        flags: negotiated.flags.0.into(),
        framing: framing(negotiated.framing),
        block_sizes: negotiated.block_sizes.map(block_sizes),
        contexts: contexts.map(|context| context.id.0.into()).collect(),
        tls: negotiated.tls,
    }
}
