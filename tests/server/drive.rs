//! Drivers that play a transcript in every fragmentation.

use std::fmt::Debug;

use nbd_codec::server::{self, Export, Handshake, Request, Transmission, handshake};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Error, Need};

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
    /// As `need` says, never more; payloads with `advance`.
    Exact,
}

/// A state machine of the server, and a caller that answers it.
pub(crate) trait Driver {
    /// Calls `receive` once: notes events and written bytes; false if nothing
    /// happened.
    fn receive(&mut self, input: &mut &[u8], turn: &mut Turn) -> Result<bool, Error>;
    fn need(&self) -> Need;
    fn advance(&mut self, n: u64);
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
        if let Err(error) = exhaust(driver, &mut held, &mut turn) {
            turn.error = Some(error.to_string());
            return turn;
        }
        let n = match (pieces, driver.need()) {
            _ if rest.is_empty() => break,
            (Pieces::Whole, _) => rest.len(),
            (Pieces::Bytes, _) => 1,
            (Pieces::Split(at), _) if rest.len() == sends.len() => at.min(rest.len()),
            (Pieces::Split(_), _) => rest.len(),
            (Pieces::Exact, Need::Header(n)) => {
                assert!(n > held.len(), "needs {n} bytes and has {}", held.len());
                (n - held.len()).min(rest.len())
            }
            (Pieces::Exact, Need::Payload { offset, length, .. }) => {
                assert!(
                    held.is_empty(),
                    "a payload after bytes that were not consumed"
                );
                let n = rest.len().min(length.try_into().unwrap_or(usize::MAX));
                let (data, after) = rest.split_at(n);
                note_data(&mut turn, offset, data);
                driver.advance(n as u64);
                rest = after;
                continue;
            }
            // After the end: what follows is not consumed.
            (Pieces::Exact, Need::Nothing) => rest.len(),
        };
        let (piece, after) = rest.split_at(n);
        held.extend(piece);
        rest = after;
    }
    turn
}

/// Calls `receive` until nothing happens any more.
fn exhaust(driver: &mut impl Driver, held: &mut Vec<u8>, turn: &mut Turn) -> Result<(), Error> {
    for _ in 0..100_000 {
        let mut input = &held[..];
        let result = driver.receive(&mut input, turn);
        let used = held.len() - input.len();
        held.drain(..used);
        if !result? {
            return Ok(());
        }
    }
    panic!("`receive` goes on without input");
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
    pub(crate) exports: &'a [Export<'a>],
    /// The reply to an unknown export.
    pub(crate) unknown: OptionReplyType,
}

impl<'a> HandshakeDriver<'a> {
    pub(crate) fn new(offer: server::Offer, exports: &'a [Export<'a>]) -> Self {
        Self {
            handshake: Handshake::new(offer).unwrap(),
            exports,
            unknown: OptionReplyType::ERR_UNKNOWN,
        }
    }

    fn answer(&mut self, event: handshake::Event<'_>, turn: &mut Turn) {
        use handshake::Event as E;
        let out = &mut turn.writes;
        turn.events.push(describe(&event));
        match event {
            E::List => {
                for export in self.exports {
                    self.handshake.list(export, out).unwrap();
                }
                self.handshake.done(out).unwrap();
            }
            E::Export(inquiry) | E::MetaContexts(inquiry) => {
                let known = |export: &&Export<'_>| {
                    export.name == inquiry.export() || inquiry.export().is_empty()
                };
                match self.exports.iter().find(known) {
                    Some(export) => self.handshake.grant(&inquiry, export, out).unwrap(),
                    None => self
                        .handshake
                        .refuse(self.unknown, "no such export", out)
                        .unwrap(),
                };
            }
            E::StartTls => self.handshake.tls_established().unwrap(),
            _ => {}
        }
    }
}

fn describe(event: &handshake::Event<'_>) -> String {
    use handshake::Event as E;
    match event {
        E::Export(inquiry) => format!(
            "Export {} {:?} {:?}",
            inquiry.option(),
            inquiry.export(),
            inquiry.requests()
        ),
        E::MetaContexts(inquiry) => format!(
            "MetaContexts {} {:?} {:?}",
            inquiry.option(),
            inquiry.export(),
            inquiry.queries()
        ),
        other => format!("{other:?}"),
    }
}

impl Driver for HandshakeDriver<'_> {
    fn receive(&mut self, input: &mut &[u8], turn: &mut Turn) -> Result<bool, Error> {
        let event = self.handshake.receive(input)?;
        if let Some(event) = event {
            self.answer(event, turn);
            return Ok(true);
        }
        let written = self.handshake.transmit(&mut turn.writes).unwrap();
        Ok(written > 0)
    }

    fn need(&self) -> Need {
        self.handshake.need()
    }

    fn advance(&mut self, _: u64) {
        panic!("a handshake has no payload");
    }
}

/// Transmission, and a caller that answers each request at once.
pub(crate) struct TransmissionDriver<F> {
    pub(crate) transmission: Transmission,
    /// Answers a request.
    pub(crate) answer: F,
}

impl<F: FnMut(&mut Transmission, Request, &mut Vec<u8>)> Driver for TransmissionDriver<F> {
    fn receive(&mut self, input: &mut &[u8], turn: &mut Turn) -> Result<bool, Error> {
        use server::Event as E;
        let Some(event) = self.transmission.receive(input)? else {
            return Ok(false);
        };
        match event {
            E::Request(request) => {
                turn.events.push(summary(&request));
                (self.answer)(&mut self.transmission, request, &mut turn.writes);
            }
            E::Payload { offset, length, .. } => {
                turn.events.push(format!("payload {offset:#x}+{length:#x}"));
            }
            E::Data { offset, data, .. } => note_data(turn, offset, data),
            E::Rejected {
                command,
                error,
                reply,
            } => {
                turn.events.push(format!("rejected {command} {error}"));
                reply.encode(&mut turn.writes).unwrap();
            }
            other => turn.events.push(format!("{other:?}")),
        }
        Ok(true)
    }

    fn need(&self) -> Need {
        self.transmission.need()
    }

    fn advance(&mut self, n: u64) {
        self.transmission.advance(n).unwrap();
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
            let fast = flag(it.fast(), " FAST_ZERO");
            let range = range(it.offset(), it.length());
            format!("zeroes {range}{fua}{no_hole}{fast}")
        }
        Request::BlockStatus32(it) => {
            let one = flag(it.one(), " REQ_ONE");
            let contexts = list(it.contexts());
            format!(
                "status32 {} of {contexts}{one}",
                range(it.offset(), it.length())
            )
        }
        Request::BlockStatus64(it) => {
            let one = flag(it.one(), " REQ_ONE");
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
