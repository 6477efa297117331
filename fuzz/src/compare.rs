//! Two runs of one script, or a run and the reader: what must be the same.

use nbd_codec::wire::DecodeError;
use nbd_codec::{Error, Framing, Violation};

use crate::client::{Client, Outcome, Sent};
use crate::facts::Fact;
use crate::reader::{Verdict, handshake, transmission};
use crate::script::Setup;
use crate::talk::Talk;

/// Two deliveries of one script.
pub fn same(one: &Outcome, other: &Outcome) {
    // A chunk of extents is judged in the pieces that it comes in. If one of
    // them is wrong, those before it were told or not, and if two are wrong,
    // either may be found first.
    if let (true, true) = (among_extents(one.error), among_extents(other.error)) {
        assert_eq!(one.calls, other.calls);
        let (one, other) = (without_status(&one.facts), without_status(&other.facts));
        assert_eq!(one, other);
        return;
    }
    assert_eq!(one, other);
}

fn among_extents(error: Option<Error>) -> bool {
    matches!(
        error,
        Some(Error::Violation(
            Violation::StatusTooWide(_) | Violation::NotOne(_) | Violation::ExtentBeyond(_)
        )) | Some(Error::Decode(DecodeError::EmptyExtent))
    )
}

/// The facts before the last chunk, if it is one of extents.
fn without_status(facts: &[Fact]) -> Vec<&Fact> {
    let mut facts: Vec<_> = facts.iter().collect();
    while let Some(Fact::Status { .. }) = facts.last() {
        facts.pop();
    }
    facts
}

/// What the reader makes of what the server said.
pub fn read(client: &Client, setup: &Setup) -> (Vec<Fact>, Verdict) {
    transmission::read(&terms(setup), &commands(client), &client.stream)
}

fn commands(client: &Client) -> Vec<transmission::Command> {
    let command = |sent: &Sent| {
        let request = sent.target.request;
        transmission::Command {
            at: sent.at,
            cookie: sent.target.cookie.0,
            kind: request.command.0.into(),
            flags: request.flags.0.into(),
            offset: request.offset,
            length: request.length,
            contexts: sent.target.contexts.iter().map(|id| id.0).collect(),
        }
    };
    client.sent.iter().map(command).collect()
}

/// The machine, and the reader on the same bytes.
pub fn agree(client: &Client, setup: &Setup) {
    let (facts, verdict) = read(client, setup);
    let outcome = &client.outcome;
    let failed = !matches!(outcome.error, None | Some(Error::Closed));
    let context = || format!("reader: {verdict:?} {facts:#?}\nmachine: {outcome:#?}");
    match verdict {
        Verdict::Good => {
            assert!(!failed, "{}", context());
            assert_eq!(outcome.facts, facts);
        }
        Verdict::Bad(_) => {
            assert!(failed, "{}", context());
            if among_extents(outcome.error) {
                let (ours, theirs) = (without_status(&outcome.facts), without_status(&facts));
                assert_eq!(ours, theirs);
            } else {
                assert_eq!(outcome.facts, facts);
            }
        }
        Verdict::Torn if !failed => assert_eq!(outcome.facts, facts),
        // The machine has judged what is there of the last field: then nothing
        // that could come behind it mends it.
        Verdict::Torn => {
            for filler in [0, 1, 0x67, 0xff] {
                let mut longer = client.stream.clone();
                longer.resize(longer.len() + 64, filler);
                let (_, verdict) = transmission::read(&terms(setup), &commands(client), &longer);
                let bad = matches!(verdict, Verdict::Bad(_));
                assert!(bad, "too early: {}", context());
            }
        }
    }
}

fn terms(setup: &Setup) -> transmission::Terms {
    let negotiated = setup.negotiated();
    let limits = setup.limits.limits();
    transmission::Terms {
        framing: in_words(negotiated.framing),
        contexts: negotiated
            .contexts
            .iter()
            .map(|context| (context.id.0, context.width == nbd_codec::Width::Wide))
            .collect(),
        longest_message: limits.error_message.into(),
        longest_error: limits.payload.into(),
        most_extents: limits.extents.into(),
    }
}

pub fn in_words(framing: Framing) -> transmission::Framing {
    match framing {
        Framing::Simple => transmission::Framing::Simple,
        Framing::Structured => transmission::Framing::Structured,
        Framing::Extended => transmission::Framing::Extended,
    }
}

/// Two deliveries of one handshake.
pub fn same_talk(one: crate::handshake::Outcome, other: crate::handshake::Outcome) {
    assert_eq!(without_torn_tls(one), without_torn_tls(other));
}

/// Plain text behind the acknowledgement of STARTTLS is an error when it is
/// seen: with the acknowledgement, or behind it.
fn without_torn_tls(mut outcome: crate::handshake::Outcome) -> crate::handshake::Outcome {
    let plaintext = Error::Violation(Violation::PlaintextAfterStartTls);
    if outcome.error == Some(plaintext) {
        if outcome.heard.last() == Some(&handshake::Heard::StartTls) {
            outcome.heard.pop();
        }
        if outcome.told.last().map(String::as_str) == Some("StartTls") {
            outcome.told.pop();
        }
    }
    outcome
}

/// What the reader makes of what the server said.
pub fn read_talk(
    client: &crate::handshake::Client,
    talk: &Talk,
) -> (Vec<handshake::Heard>, Verdict, handshake::Agreed) {
    handshake::read(&talk_terms(talk), &client.sent, &client.stream)
}

fn talk_terms(talk: &Talk) -> handshake::Terms {
    handshake::Terms {
        require_tls: talk.tls % 3 == 2,
        longest_data: talk.limits.limits().option_data.into(),
        most_contexts: nbd_codec::Contexts::CAPACITY,
    }
}

/// The handshake machine, by hand or by policy, and the reader on the same
/// bytes.
pub fn agree_talk(client: crate::handshake::Client, talk: &Talk, by_hand: bool) {
    let (mut heard, verdict, agreed) = read_talk(&client, talk);
    let (stream, sent) = (client.stream, client.sent);
    let outcome = without_torn_tls(client.outcome);
    // That nothing comes any more, and that TLS fails, is not on the wire.
    let quiet = [None, Some(Error::Closed), Some(Error::TlsFailed)];
    let failed = !quiet.contains(&outcome.error);
    let context = || format!("reader: {verdict:?} {heard:#?}\nmachine: {outcome:#?}");
    match verdict {
        Verdict::Good => assert!(!failed, "{}", context()),
        Verdict::Bad(_) => assert!(failed, "{}", context()),
        Verdict::Torn if !failed => {}
        Verdict::Torn => {
            for filler in [0, 1, 0x4e, 0xff] {
                let mut longer = stream.clone();
                longer.resize(longer.len() + 64, filler);
                let (_, verdict, _) = handshake::read(&talk_terms(talk), &sent, &longer);
                let bad = matches!(verdict, Verdict::Bad(_));
                assert!(bad, "too early: {}", context());
            }
        }
    }
    if let Some(negotiated) = &outcome.negotiated {
        assert_eq!(agreed, in_numbers(negotiated));
    }
    // The policy tells less than it hears.
    if by_hand {
        let plaintext = Error::Violation(Violation::PlaintextAfterStartTls);
        if outcome.error == Some(plaintext) {
            heard.pop();
        }
        assert_eq!(outcome.heard, heard);
    }
}

fn in_numbers(negotiated: &nbd_codec::Negotiated) -> handshake::Agreed {
    let contexts = negotiated.contexts.iter();
    let sizes = negotiated.block_sizes;
    handshake::Agreed {
        size: negotiated.size,
        flags: negotiated.flags.0.into(),
        framing: in_words(negotiated.framing),
        block_sizes: sizes.map(|sizes| {
            let nbd_codec::wire::option_reply::BlockSizes {
                minimum,
                preferred,
                maximum,
            } = sizes;
            (minimum.into(), preferred.into(), maximum.into())
        }),
        contexts: contexts.map(|context| context.id.0.into()).collect(),
        tls: negotiated.tls,
    }
}
