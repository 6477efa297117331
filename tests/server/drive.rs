//! Drivers that play a transcript in every fragmentation.

use std::fmt::Debug;

use nbd_codec::server::{
    Config, Export, ExportQuery, Handshake, HandshakeEvent, Request, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Content, Error, Limits, Step};

use crate::script::{Turn, turns};

/// How the bytes of a message reach the state machine.
#[derive(Debug, Clone, Copy)]
enum Pieces {
    /// All at once.
    Whole,
    /// Byte by byte.
    Bytes,
    /// In two pieces, the first of this many bytes.
    Split(usize),
    /// As many as `Step::Read` says; payloads with `advance`.
    Exact,
}

/// A state machine of the server, and a caller that takes its steps.
pub(crate) trait Driver {
    /// Calls `receive` once, and notes events and written bytes.
    fn receive(&mut self, input: &mut &[u8], turn: &mut Turn) -> Result<Next, Error>;
    fn advance(&mut self, n: u64);
    /// The size of the receive buffer that must suffice.
    fn buffer(&self) -> usize;
}

/// The step that reads `n` bytes.
pub(crate) fn read<E, D>(n: usize) -> Step<E, D> {
    Step::Read(n.try_into().unwrap())
}

/// What follows a step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Next {
    /// The next step.
    Step,
    /// A read of at most `n` bytes.
    Read(usize),
    /// A read of payload.
    ReadPayload {
        offset: u64,
        length: u64,
    },
    Finished,
}

impl Next {
    /// What follows a step that the caller has not taken yet: a read, or nothing.
    fn of<E: Debug, D: Debug>(step: Step<E, D>) -> Self {
        match step {
            Step::Read(n) => Self::Read(n.get()),
            Step::ReadPayload { offset, length, .. } => Self::ReadPayload { offset, length },
            Step::Finished => Self::Finished,
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// Plays a transcript in every fragmentation.
#[track_caller]
pub(crate) fn play<D: Driver>(start: impl Fn() -> D, transcript: &str) {
    let expected = turns(transcript);
    let longest = expected.iter().map(|turn| turn.sends.len()).max().unwrap();
    let splits = (1..longest.min(400)).map(Pieces::Split);
    for pieces in [Pieces::Whole, Pieces::Bytes, Pieces::Exact]
        .into_iter()
        .chain(splits)
    {
        let mut driver = start();
        for (number, turn) in expected.iter().enumerate() {
            let seen = play_turn(&mut driver, &turn.sends, pieces);
            check(&seen, turn, &format!("turn {number}, {pieces:?}"));
        }
    }
}

#[track_caller]
fn check(seen: &Turn, expected: &Turn, place: &str) {
    assert_eq!(seen.error, expected.error, "{place}: error");
    assert_eq!(seen.events, expected.events, "{place}: events");
    let written = |turn: &Turn| turn.writes.escape_ascii().to_string();
    assert_eq!(written(seen), written(expected), "{place}: bytes written");
}

fn play_turn(driver: &mut impl Driver, sends: &[u8], pieces: Pieces) -> Turn {
    let mut turn = Turn {
        sends: sends.to_vec(),
        ..Turn::default()
    };
    let mut held = Vec::new();
    let mut rest = sends;
    loop {
        let next = match exhaust(driver, &mut held, &mut turn) {
            Ok(next) => next,
            Err(error) => {
                turn.error = Some(error.to_string());
                return turn;
            }
        };
        let n = match (pieces, next) {
            _ if rest.is_empty() => break,
            (Pieces::Whole, _) => rest.len(),
            (Pieces::Bytes, _) => 1,
            (Pieces::Split(at), _) if rest.len() == sends.len() => at.min(rest.len()),
            (Pieces::Split(_), _) => rest.len(),
            (Pieces::Exact, Next::ReadPayload { offset, length }) => {
                let n = rest.len().min(length.try_into().unwrap_or(usize::MAX));
                let (data, after) = rest.split_at(n);
                note_data(&mut turn, offset, data);
                driver.advance(n as u64);
                rest = after;
                continue;
            }
            (Pieces::Exact, Next::Read(n)) => {
                let needed = held.len() + n;
                assert!(needed <= driver.buffer(), "{needed} bytes in the buffer");
                n.min(rest.len())
            }
            // After the end: what follows is not consumed.
            (Pieces::Exact, _) => rest.len(),
        };
        let (piece, after) = rest.split_at(n);
        held.extend(piece);
        rest = after;
    }
    turn
}

/// Takes steps until one is a read, or the last.
fn exhaust(driver: &mut impl Driver, held: &mut Vec<u8>, turn: &mut Turn) -> Result<Next, Error> {
    for _ in 0..100_000 {
        let mut input = &held[..];
        let result = driver.receive(&mut input, turn);
        let used = held.len() - input.len();
        held.drain(..used);
        match result? {
            Next::Step => {}
            Next::ReadPayload { .. } => {
                assert!(
                    held.is_empty(),
                    "a payload after bytes that were not consumed"
                );
                return result;
            }
            _ => return result,
        }
    }
    panic!("`receive` goes on without input")
}

/// Joins consecutive pieces of data, as if they had come in one.
fn note_data(turn: &mut Turn, offset: u64, data: &[u8]) {
    let text = |data: &[u8]| data.escape_ascii().to_string();
    if let Some(last) = turn
        .events
        .last_mut()
        .filter(|last| last.starts_with("data "))
    {
        last.push_str(&text(data));
        return;
    }
    turn.events.push(format!("data {offset:#x} {}", text(data)));
}

/// A handshake, and a caller that answers with a few exports.
pub(crate) struct HandshakeDriver<'a> {
    pub(crate) handshake: Handshake,
    pub(crate) limits: Limits,
    pub(crate) exports: &'a [Export<'a>],
    /// The reply to an unknown export.
    pub(crate) unknown: OptionReplyType,
}

impl<'a> HandshakeDriver<'a> {
    pub(crate) fn new(config: Config, exports: &'a [Export<'a>]) -> Self {
        Self {
            handshake: Handshake::new(config).unwrap(),
            limits: Limits::DEFAULT,
            exports,
            unknown: OptionReplyType::ERR_UNKNOWN,
        }
    }

    pub(crate) fn with_limits(limits: Limits, exports: &'a [Export<'a>]) -> Self {
        Self {
            limits,
            ..Self::new(Config::new().limits(limits), exports)
        }
    }

    fn answer(&mut self, event: HandshakeEvent<'_>, turn: &mut Turn) {
        use HandshakeEvent as E;
        let out = &mut turn.writes;
        turn.events.push(describe(&event));
        match event {
            E::List => {
                for export in self.exports {
                    self.handshake.list(export, out).unwrap();
                }
                self.handshake.finish_list(out).unwrap();
            }
            E::Export(query) | E::MetaContexts(query) => self.answer_query(&query, out),
            _ => {}
        }
    }

    fn answer_query(&mut self, query: &ExportQuery<'_>, out: &mut Vec<u8>) {
        let known =
            |export: &&Export<'_>| export.name == query.export() || query.export().is_empty();
        let written = match self.exports.iter().find(known) {
            Some(export) => self.handshake.grant(query, export, out).unwrap().written,
            None => {
                let error = self.unknown;
                self.handshake.refuse(error, "no such export", out).unwrap()
            }
        };
        assert!(written <= out.len());
    }
}

fn describe(event: &HandshakeEvent<'_>) -> String {
    use HandshakeEvent as E;
    match event {
        E::Export(query) => format!(
            "Export {} {:?} {:?}",
            query.option(),
            query.export(),
            query.requests()
        ),
        E::MetaContexts(query) => format!(
            "MetaContexts {} {:?} {:?}",
            query.option(),
            query.export(),
            query.queries()
        ),
        E::Ready { .. } => "Ready".to_owned(),
        other => format!("{other:?}"),
    }
}

impl Driver for HandshakeDriver<'_> {
    fn receive(&mut self, input: &mut &[u8], turn: &mut Turn) -> Result<Next, Error> {
        match self.handshake.receive(input)? {
            Step::Event(event) => self.answer(event, turn),
            Step::Transmit => {
                let written = self.handshake.transmit(&mut turn.writes).unwrap();
                assert!(written > 0, "nothing to transmit");
            }
            Step::StartTls => {
                turn.events.push("StartTls".to_owned());
                self.handshake.tls_established().unwrap();
            }
            other => return Ok(Next::of(other)),
        }
        Ok(Next::Step)
    }

    fn advance(&mut self, _: u64) {
        panic!("a handshake has no payload");
    }

    fn buffer(&self) -> usize {
        self.limits.buffer()
    }
}

/// Transmission, and a caller that answers each request at once.
pub(crate) struct TransmissionDriver<F> {
    pub(crate) transmission: Transmission,
    pub(crate) limits: Limits,
    /// Answers a request.
    pub(crate) answer: F,
}

impl<F: FnMut(&mut Transmission, Request, &mut Vec<u8>)> Driver for TransmissionDriver<F> {
    fn receive(&mut self, input: &mut &[u8], turn: &mut Turn) -> Result<Next, Error> {
        use TransmissionEvent as E;
        match self.transmission.receive(input)? {
            Step::Event(E::Request(request)) => {
                turn.events.push(summary(&request));
                (self.answer)(&mut self.transmission, request, &mut turn.writes);
            }
            Step::Event(E::WritePayload { offset, length, .. }) => {
                turn.events.push(format!("payload {offset:#x}+{length:#x}"));
            }
            Step::Event(E::Answered {
                command,
                result,
                reply,
            }) => {
                turn.events.push(match result {
                    Ok(()) => format!("answered {command}"),
                    Err(error) => format!("rejected {command} {error}"),
                });
                reply.encode(&mut turn.writes).unwrap();
            }
            Step::Event(other) => turn.events.push(format!("{other:?}")),
            Step::Content(Content::Data { offset, data, .. }) => note_data(turn, offset, data),
            other => return Ok(Next::of(other)),
        }
        Ok(Next::Step)
    }

    fn advance(&mut self, n: u64) {
        self.transmission.advance(n).unwrap();
    }

    fn buffer(&self) -> usize {
        self.limits.buffer()
    }
}

/// A request as a line of a transcript.
fn summary(request: &Request) -> String {
    let range = |offset, length| format!("{offset:#x}+{length:#x}");
    let flag = |set, name| if set { name } else { "" };
    match request {
        Request::Read(it) => {
            let df = flag(it.dont_fragment(), " DF");
            format!("read {}{df}", range(it.offset(), it.length().into()))
        }
        Request::Write(it) => {
            let fua = flag(it.fua(), " FUA");
            format!("write {}{fua}", range(it.offset(), it.length()))
        }
        Request::Flush(_) => "flush".to_owned(),
        Request::Trim(it) => {
            let fua = flag(it.fua(), " FUA");
            format!("trim {}{fua}", range(it.offset(), it.length()))
        }
        Request::Cache(it) => format!("cache {}", range(it.offset(), it.length())),
        Request::WriteZeroes(it) => {
            let fua = flag(it.fua(), " FUA");
            let no_hole = flag(it.no_hole(), " NO_HOLE");
            let fast = flag(it.fast_zero(), " FAST_ZERO");
            let range = range(it.offset(), it.length());
            format!("zeroes {range}{fua}{no_hole}{fast}")
        }
        Request::BlockStatus32(it) => {
            let one = flag(it.req_one(), " REQ_ONE");
            let contexts = list(it.contexts());
            format!(
                "status32 {} of {contexts}{one}",
                range(it.offset(), it.length())
            )
        }
        Request::BlockStatus64(it) => {
            let one = flag(it.req_one(), " REQ_ONE");
            let contexts = list(it.contexts());
            format!(
                "status64 {} of {contexts}{one}",
                range(it.offset(), it.length())
            )
        }
        Request::Resize(it) => format!("resize {:#x}", it.size()),
        other => panic!("unknown {other:?}"),
    }
}

fn list(items: impl Iterator<Item = impl Debug>) -> String {
    items
        .map(|item| format!("{item:?}"))
        .collect::<Vec<_>>()
        .join(" ")
}
