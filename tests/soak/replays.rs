//! Recorded sessions whose replies are mutated: the client ends with an error or with
//! events, the same ones in every fragmentation.

use std::fs;
use std::path::Path;
use std::time::Instant;

use nbd_codec::client::{Config, ConnectEvent, Connector, MetaContextQuery, Slot, Transmission};
use nbd_codec::wire::number::Command;
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Error, Limits, Step, UnexpectedStep, Violation};

use crate::play::{Line, Session, note, note_content, wanted};
use crate::{Random, deadline, figure};

#[test]
fn mutated_sessions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions");
    let mut sessions = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder of the sessions") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|end| end == "txt") {
            let text = fs::read_to_string(&path).expect("a session");
            sessions.push(Session::parse(&text));
        }
    }
    assert!(sessions.len() >= 16, "sessions are missing");
    let mut random = Random::new(3);
    let end = deadline();
    let (mut replays, mut errors) = (0, 0);
    while Instant::now() < end {
        let session = &sessions[random.below(sessions.len())];
        let mut received = replies(session);
        for _ in 0..1 + random.below(3) {
            mutate(&mut received, &mut random);
        }
        let whole = replay(session, &received, |bytes| bytes.len());
        let piece = 1 + random.below(40);
        let mut other = Random::new(random.next());
        let pieces = [
            replay(session, &received, |_| piece),
            replay(session, &received, |_| 1 + other.below(100)),
        ];
        for events in pieces {
            // Whether a reply comes before the client has asked depends on when it
            // arrives.
            if [&events, &whole]
                .iter()
                .any(|events| is_unsolicited(events))
            {
                continue;
            }
            assert_eq!(events, whole, "in pieces; replies: {received:02x?}");
        }
        replays += 3;
        let failed = whole.last().is_some_and(|end| end.starts_with("failed: "));
        errors += u64::from(failed);
    }
    figure("replays of mutated sessions", replays);
    // Some mutations end a session, and some do not.
    assert!(
        errors > 10 && errors < replays / 3,
        "{errors} errors in {replays}"
    );
}

fn is_unsolicited(events: &[String]) -> bool {
    let failed = format!("failed: {:?}", Error::Violation(Violation::Unsolicited));
    events.last() == Some(&failed)
}

/// Changes one of the server's messages.
fn mutate(received: &mut [Vec<u8>], random: &mut Random) {
    let count = received.len();
    let Some(bytes) = received
        .get_mut(random.below(count))
        .filter(|bytes| !bytes.is_empty())
    else {
        return;
    };
    // Mostly in the headers at its beginning.
    let most = if random.below(4) == 0 {
        bytes.len()
    } else {
        bytes.len().min(100)
    };
    let at = random.below(most);
    let length = 1 + random.below((bytes.len() - at).min(40));
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes[at..at + length].fill([0, 1, 0x7f, 0x80, 0xff][random.below(5)]),
        3 => drop(bytes.drain(at..at + length)),
        4 => {
            let copy = bytes[at..at + length].to_vec();
            bytes.splice(at..at, copy);
        }
        5 => bytes.truncate(at),
        _ => {
            // A number that is one more or less.
            let last = &mut bytes[at + length - 1];
            *last = last.wrapping_add([1, 255][random.below(2)]);
        }
    }
}

/// What the server sent, in the messages of the recording.
fn replies(session: &Session) -> Vec<Vec<u8>> {
    let received = |line: &Line| match line {
        Line::Received(bytes) => Some(bytes.clone()),
        Line::Sent(_) => None,
    };
    session.lines.iter().filter_map(received).collect()
}

/// The events of a session with other replies. `piece` says how many of the bytes arrive
/// next.
fn replay(
    session: &Session,
    received: &[Vec<u8>],
    mut piece: impl FnMut(&[u8]) -> usize,
) -> Vec<String> {
    let queries = session.contexts.iter();
    let queries: Vec<_> = queries.map(|name| MetaContextQuery::narrow(name)).collect();
    let config = Config::new(&session.export);
    let config = config.framing(session.framing).contexts(&queries);
    let connector = Connector::new(config).expect("a configuration that was recorded");
    let mut client = Client {
        machine: Machine::Connect(Box::new(connector)),
        held: Vec::new(),
        unsent: Vec::new(),
        events: Vec::new(),
    };
    let mut received = received.iter();
    for line in &session.lines {
        match line {
            Line::Sent(bytes) => {
                client.unsent.extend(bytes);
                client.submit();
            }
            Line::Received(_) => {
                let mut left = &received.next().expect("a message for each")[..];
                while !left.is_empty() {
                    let (now, later) = left.split_at(piece(left).min(left.len()));
                    client.held.extend(now);
                    left = later;
                    if !client.receive() {
                        return client.events;
                    }
                }
            }
        }
    }
    let end = match &mut client.machine {
        Machine::Connect(connector) => connector.end_of_input(),
        Machine::Transmission(transmission) => transmission.end_of_input(),
    };
    client.events.push(format!("end: {end:?}"));
    client.events
}

enum Machine<'a> {
    Connect(Box<Connector<'a>>),
    Transmission(Box<Transmission<Vec<Slot>>>),
}

struct Client<'a> {
    machine: Machine<'a>,
    /// Received and not consumed.
    held: Vec<u8>,
    /// What the recorded client sent, and was not made a command yet.
    unsent: Vec<u8>,
    events: Vec<String>,
}

impl Client<'_> {
    /// Makes the commands of the recorded client, as far as the session permits them.
    fn submit(&mut self) {
        let Machine::Transmission(session) = &mut self.machine else {
            // These are options.
            self.unsent.clear();
            return;
        };
        let mut rest = &self.unsent[..];
        let extended = ExtendedRequest::decode(&mut rest).ok().flatten();
        let compact = CompactRequest::decode(&mut rest).ok().flatten();
        let request = extended.or(compact.map(|request| ExtendedRequest {
            flags: request.flags,
            command: request.command,
            cookie: request.cookie,
            offset: request.offset,
            length: request.length.into(),
        }));
        // The mutated session may be smaller, read-only, or without contexts.
        match request {
            Some(request) if request.command == Command::DISC => drop(session.disconnect()),
            Some(request) => drop(session.submit(wanted(request))),
            None => {}
        }
        self.unsent.clear();
    }

    /// Takes all steps of what has arrived; false at the end of the session.
    fn receive(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        let mut input = &held[..];
        let result = loop {
            match self.step(&mut input) {
                Ok(true) => {}
                other => break other,
            }
        };
        self.held = input.to_vec();
        match result {
            Ok(_) => !matches!(self.events.last(), Some(end) if end.starts_with("ended: ")),
            Err(error) => {
                // It is returned again.
                assert_eq!(self.step(&mut &[][..]), Err(error));
                self.events.push(format!("failed: {error:?}"));
                false
            }
        }
    }

    /// Takes one step; false if it asks for bytes, or nothing follows.
    fn step(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let step = match &mut self.machine {
            Machine::Connect(connector) => match connector.receive(input)? {
                Step::Event(ConnectEvent::Ready) => {
                    self.events.push("ready".into());
                    let negotiated = *connector.agreed();
                    let slots = vec![Slot::EMPTY; 64];
                    let session = Transmission::new(negotiated, slots, Limits::DEFAULT);
                    self.machine = Machine::Transmission(Box::new(session));
                    return Ok(true);
                }
                Step::Event(event) => {
                    self.events.push(format!("{event:?}"));
                    return Ok(true);
                }
                Step::Transmit => {
                    let sent = connector.transmit(&mut Vec::new());
                    assert!(sent.expect("room") > 0, "nothing to transmit");
                    return Ok(true);
                }
                step => step.unexpected(),
            },
            Machine::Transmission(session) => match session.receive(input)? {
                Step::Event(event) => {
                    note(&mut self.events, event);
                    return Ok(true);
                }
                Step::Content(content) => {
                    note_content(&mut self.events, content);
                    return Ok(true);
                }
                step => step.unexpected(),
            },
        };
        match step {
            UnexpectedStep::Read | UnexpectedStep::ReadPayload => {}
            end => self.events.push(format!("ended: {end:?}")),
        }
        Ok(false)
    }
}
