//! The server's machines, and simple readers of both directions: what the
//! client said, and what the server made of it on the wire.

use nbd_codec::Error;
use nbd_codec::{Contexts, Framing, Violation, Width};

use crate::client::Client;
use crate::compare::in_words;
use crate::host::{self, Host};
use crate::reader::options::{self, Tls};
use crate::reader::requests::{self, Heard, Request};
use crate::reader::{Verdict, handshake, transmission};
use crate::script::Setup;
use crate::server::{Ask, Server, Told};

/// Two deliveries of one script.
pub fn same(one: &Server, other: &Server) {
    assert_eq!(one.outcome, other.outcome);
    assert_eq!(one.answers, other.answers);
}

/// The machine, and the readers on the same bytes.
pub fn agree(server: &Server) {
    let (heard, verdict) = read(server);
    let outcome = &server.outcome;
    let failed = !matches!(outcome.error, None | Some(Error::Closed));
    let context = || format!("reader: {verdict:?} {heard:#?}\nmachine: {outcome:#?}");
    match verdict {
        Verdict::Good => assert!(!failed, "{}", context()),
        Verdict::Bad(_) => assert!(failed, "{}", context()),
        Verdict::Torn if !failed => {}
        // The machine has judged what is there of the last field: then nothing
        // that could come behind it mends it.
        Verdict::Torn => {
            for filler in [0, 1, 0x25, 0xff] {
                let mut longer = server.stream.clone();
                longer.resize(longer.len() + 64, filler);
                let (_, verdict) = requests::read(&terms(server), &server.changes, &longer);
                let bad = matches!(verdict, Verdict::Bad(_));
                assert!(bad, "too early: {}", context());
            }
        }
    }
    let same = heard.len() == outcome.told.len();
    let mut pairs = heard.iter().zip(&outcome.told);
    assert!(
        same && pairs.all(|(heard, told)| means(heard, told)),
        "{}",
        context()
    );
    agree_on_answers(server, &heard);
}

/// What the client reads is what the caller answered, and all of it is legal.
fn agree_on_answers(server: &Server, heard: &[Heard]) {
    let asked = heard.iter().filter_map(|heard| match heard {
        Heard::Request(request) | Heard::Refused { request, .. } => Some(request),
        _ => None,
    });
    let asked = asked.zip(&server.places);
    let commands: Vec<_> = asked.map(|(request, at)| command(request, *at)).collect();
    let cookies: Vec<_> = commands.iter().map(|command| command.cookie).collect();
    let twice = |n: usize| cookies[..n].contains(&cookies[n]);
    if (0..cookies.len()).any(twice) {
        // A client that does this cannot tell.
        return;
    }
    let terms = answer_terms(&server.setup.common);
    let (facts, verdict) = transmission::read(&terms, &commands, &server.outcome.written);
    let answers = &server.answers;
    let context = || format!("client: {verdict:?} {facts:#?}\nserver: {answers:#?}");
    assert_eq!(verdict, Verdict::Good, "{}", context());
    assert_eq!(&facts, answers, "{}", context());
    let done = facts.iter().filter(|fact| fact.is_done()).count();
    assert_eq!(done, commands.len(), "each request is answered once");
}

fn command(request: &Request, at: usize) -> transmission::Command {
    transmission::Command {
        at,
        cookie: request.cookie,
        kind: request.kind,
        flags: request.flags,
        offset: request.offset,
        length: request.length,
        contexts: request.contexts.iter().map(|id| *id as u32).collect(),
    }
}

/// What the reader makes of what the client said.
pub fn read(server: &Server) -> (Vec<Heard>, Verdict) {
    requests::read(&terms(server), &server.changes, &server.stream)
}

fn terms(server: &Server) -> requests::Terms {
    let mut terms = request_terms(&server.setup.common);
    terms.longest_effect = server.setup.limits().effect;
    terms
}

/// What requests are judged by.
pub fn request_terms(setup: &Setup) -> requests::Terms {
    let negotiated = setup.negotiated();
    let sizes = negotiated.constraints();
    requests::Terms {
        framing: in_words(negotiated.framing),
        size: negotiated.size,
        flags: negotiated.flags.0.into(),
        minimum: sizes.minimum.into(),
        maximum: sizes.maximum.into(),
        contexts: negotiated
            .contexts
            .iter()
            .map(|context| context.id.0.into())
            .collect(),
        longest_payload: setup.limits.limits().payload.into(),
        longest_effect: u64::MAX,
    }
}

fn answer_terms(setup: &Setup) -> transmission::Terms {
    let negotiated = setup.negotiated();
    let contexts = negotiated.contexts.iter();
    transmission::Terms {
        framing: in_words(negotiated.framing),
        contexts: contexts
            .map(|context| (context.id.0, context.width == Width::Wide))
            .collect(),
        longest_message: u64::MAX,
        longest_error: u64::MAX,
        most_extents: u64::MAX,
    }
}

/// Whether the machine told what the reader heard.
fn means(heard: &Heard, told: &Told) -> bool {
    match (heard, told) {
        (
            Heard::Payload { request, bytes },
            Told::Payload {
                cookie,
                offset,
                length,
                bytes: got,
                reported: 0,
            },
        ) => {
            let payload = (request.cookie, request.offset, request.length);
            payload == (*cookie, *offset, *length) && bytes == got
        }
        (Heard::Request(request), Told::Request(ask)) => *ask == visible(request),
        (Heard::Refused { request, errors }, Told::Refused { kind, error }) => {
            request.kind == *kind && errors.contains(error)
        }
        (Heard::Bye, Told::Bye) => true,
        _ => false,
    }
}

/// As much of a request as its caller is told.
fn visible(request: &Request) -> Ask {
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
    Ask {
        kind,
        cookie,
        offset,
        length,
        flags,
        contexts,
    }
}

/// Two deliveries of one handshake.
pub fn same_talk(one: Host, other: Host) {
    assert_eq!(
        without_torn_tls(one.outcome),
        without_torn_tls(other.outcome)
    );
}

/// Plain text behind STARTTLS is an error when it is seen: before the
/// acknowledgement, or behind it.
fn without_torn_tls(mut outcome: host::Outcome) -> host::Outcome {
    let plaintext = Error::Violation(Violation::PlaintextAfterStartTls);
    if outcome.error == Some(plaintext) {
        if outcome.told.last() == Some(&host::Told::StartTls) {
            outcome.told.pop();
        }
        let acknowledgement = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";
        if outcome.written.ends_with(acknowledgement) {
            let before = outcome.written.len() - acknowledgement.len();
            outcome.written.truncate(before);
        }
        // What was called between differs with it.
        outcome.calls.clear();
    }
    outcome
}

/// The handshake machine, and the readers on the same bytes.
pub fn agree_talk(host: Host) {
    let offer = host.offer();
    let limits = offer.limits;
    let terms = options::Terms {
        oldstyle: host.is_oldstyle(),
        fixed: offer.fixed,
        no_zeroes: offer.no_zeroes,
        tls: match offer.tls {
            nbd_codec::server::TlsMode::None => Tls::No,
            nbd_codec::server::TlsMode::Selective => Tls::Selective,
            nbd_codec::server::TlsMode::Forced => Tls::Forced,
        },
        framing: in_words(offer.framing),
        longest_data: limits.option_data.into(),
        longest_skipped: limits.payload.into(),
    };
    let reading = options::read(&terms, &host.decisions, &host.stream);
    let (stream, starts, decisions) = (host.stream, host.starts, host.decisions);
    let outcome = without_torn_tls(host.outcome);
    let quiet = [None, Some(Error::Closed), Some(Error::TlsFailed)];
    let failed = !quiet.contains(&outcome.error);
    let context = || format!("reader: {reading:#?}\nmachine: {outcome:#?}");
    match reading.verdict {
        Verdict::Good => assert!(!failed, "{}", context()),
        Verdict::Bad(_) => assert!(failed, "{}", context()),
        Verdict::Torn if !failed => {}
        Verdict::Torn => {
            for filler in [0, 1, 0x49, 0xff] {
                let mut longer = stream.clone();
                longer.resize(longer.len() + 9000, filler);
                let longer = options::read(&terms, &decisions, &longer);
                let bad = matches!(longer.verdict, Verdict::Bad(_));
                assert!(bad, "too early: {}", context());
            }
        }
    }
    let mut heard: Vec<_> = reading.heard.iter().filter_map(told).collect();
    let plaintext = Error::Violation(Violation::PlaintextAfterStartTls);
    if outcome.error == Some(plaintext) && heard.last() == Some(&host::Told::StartTls) {
        heard.pop();
    }
    assert_eq!(heard, outcome.told, "{}", context());
    if let Some(negotiated) = &outcome.negotiated
        && !terms.oldstyle
    {
        let contexts = negotiated.contexts.iter();
        let agreed = options::Agreed {
            size: negotiated.size,
            framing: in_words(negotiated.framing),
            contexts: contexts
                .map(|context| (context.id.0.into(), context.width == Width::Wide))
                .collect(),
            tls: negotiated.tls,
        };
        assert_eq!(agreed, reading.agreed, "{}", context());
    }
    agree_on_replies(&outcome, &reading, &starts);
}

fn told(heard: &options::Heard) -> Option<host::Told> {
    Some(match heard {
        options::Heard::List => host::Told::List,
        options::Heard::Asked {
            option,
            export,
            requests,
            queries,
        } => host::Told::Asked {
            option: *option,
            export: export.clone(),
            requests: requests.clone(),
            queries: queries.clone(),
        },
        options::Heard::Answer { .. } => return None,
        options::Heard::StartTls => host::Told::StartTls,
        options::Heard::Aborted => host::Told::Aborted,
        options::Heard::Ready => host::Told::Ready,
    })
}

/// What a client reads is what it must be told, and all of it is legal.
fn agree_on_replies(outcome: &host::Outcome, reading: &options::Reading, starts: &[usize]) {
    let terms = handshake::Terms {
        require_tls: false,
        longest_data: u64::MAX,
        most_contexts: Contexts::CAPACITY,
    };
    // The first is the greeting; the flags of the client follow it.
    let greeted = starts.get(1..).unwrap_or_default();
    let places = std::iter::once(18).chain(greeted.iter().copied());
    let sent: Vec<_> = places.zip(reading.sent.iter().cloned()).collect();
    let (heard, verdict, agreed) = handshake::read(&terms, &sent, &outcome.written);
    let context =
        || format!("client: {verdict:?} {heard:#?} {sent:?}\nserver: {reading:#?} {outcome:#?}");
    // A question that waits, or was never answered.
    let waits = matches!(
        reading.heard.last(),
        Some(options::Heard::List | options::Heard::Asked { .. })
    );
    match verdict {
        Verdict::Good => {}
        Verdict::Torn => assert!(
            waits || outcome.error.is_some() || starts.is_empty(),
            "{}",
            context()
        ),
        Verdict::Bad(_) => panic!("{}", context()),
    }
    let answers = reading.heard.iter().filter_map(|heard| match heard {
        options::Heard::Answer { option, replies } => Some((*option, replies.clone())),
        _ => None,
    });
    let answers: Vec<_> = answers.collect();
    let mut got = heard.iter().filter_map(|heard| match heard {
        handshake::Heard::Ack { option } => Some((*option, 0)),
        handshake::Heard::Refused { option, error, .. } => Some((*option, *error)),
        handshake::Heard::StartTls => Some((5, 0)),
        handshake::Heard::Ready => Some((7, 0)),
        _ => None,
    });
    for (option, replies) in answers {
        if option == 7 && replies == [0] && outcome.told.last() != Some(&host::Told::Ready) {
            panic!("granted and not ready: {}", context());
        }
        match got.next() {
            Some((of, reply)) => {
                assert!(of == option && replies.contains(&reply), "{}", context());
            }
            None => assert!(outcome.error.is_some(), "{}", context()),
        }
    }
    if let Some(negotiated) = &outcome.negotiated {
        check_flags(negotiated);
        assert_eq!(agreed.size, negotiated.size);
        assert_eq!(agreed.flags, u64::from(negotiated.flags.0));
        assert_eq!(agreed.framing, in_words(negotiated.framing));
        assert_eq!(agreed.tls, negotiated.tls);
        let contexts = negotiated
            .contexts
            .iter()
            .map(|context| context.id.0.into());
        assert_eq!(agreed.contexts, contexts.collect::<Vec<u64>>());
        if let (Some(sizes), Some(own)) = (agreed.block_sizes, negotiated.block_sizes) {
            let own = (own.minimum.into(), own.preferred.into(), own.maximum.into());
            assert_eq!(sizes, own);
        }
    }
}

/// "Transmission flags": which of them need one another.
fn check_flags(negotiated: &nbd_codec::Negotiated) {
    let has = |bit: u32| negotiated.flags.0 >> bit & 1 == 1;
    assert!(has(0), "HAS_FLAGS");
    assert!(!has(11) || has(6), "FAST_ZERO without WRITE_ZEROES");
    assert!(
        !has(7) || negotiated.framing != Framing::Simple,
        "DF without chunks"
    );
    let status = negotiated.framing == Framing::Extended && !negotiated.contexts.is_empty();
    assert!(!has(12) || status, "a payload without extended headers");
    assert_eq!(negotiated.flags.0 >> 13, 0, "flags that nobody knows");
}

/// What our client says is read as it was meant, and nothing of it is refused.
pub fn accept(client: &Client, setup: &Setup) {
    let sizes = setup.negotiated().block_sizes;
    if setup.lenient || sizes.is_some_and(|sizes| !sizes.is_valid()) {
        return;
    }
    let terms = request_terms(setup);
    let (heard, verdict) = requests::read(&terms, &client.changes, &client.upstream);
    let context = || format!("server: {verdict:?} {heard:#?}\nclient: {:#?}", client.sent);
    let expected = if client.too_long {
        Verdict::Torn
    } else {
        Verdict::Good
    };
    assert_eq!(verdict, expected, "{}", context());
    let requests = heard.iter().filter_map(|heard| match heard {
        Heard::Request(request) => Some(request),
        // Policy: of more than a chunk can say at once.
        Heard::Refused { request, errors } if errors == &[75] && request.kind == 0 => Some(request),
        Heard::Refused { .. } => panic!("{}", context()),
        Heard::Payload { .. } | Heard::Bye => None,
    });
    let requests: Vec<_> = requests.collect();
    assert!(
        client.too_long || requests.len() == client.sent.len(),
        "{}",
        context()
    );
    for (read, sent) in requests.iter().zip(&client.sent) {
        let request = sent.target.request;
        let meant = (
            request.command.0.into(),
            sent.target.cookie.0,
            request.offset,
            request.length,
        );
        assert_eq!((read.kind, read.cookie, read.offset, read.length), meant);
        let mut contexts = read.contexts.clone();
        contexts.sort();
        let mut asked: Vec<_> = sent
            .target
            .contexts
            .iter()
            .map(|id| u64::from(id.0))
            .collect();
        asked.sort();
        assert_eq!(contexts, asked);
    }
}
