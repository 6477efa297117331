//! Runs a script against the server's transmission machine, and checks on
//! every step what holds whatever happens.

mod answer;
mod hear;
pub mod script;
mod status;

use std::fmt::Debug;

use nbd_codec::server::{Chunks, Request, Transmission};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::{Error, Misuse, Need, Negotiated};

use self::script::{Service, ServiceSetup, ServiceStep, status_of};
use crate::delivery::{Delivery, Feed, Machine};
use crate::facts::Fact;
use crate::reader::requests::Change;

/// What a server was told, in plain numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Payload {
        cookie: u64,
        offset: u64,
        length: u64,
        bytes: Vec<u8>,
        /// What was only reported, with `advance`, and never existed.
        reported: u64,
    },
    Request(Ask),
    Refused {
        kind: u64,
        error: u64,
    },
    Bye,
}

/// A request, as far as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub kind: u64,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub flags: u64,
    pub contexts: Vec<u64>,
}

/// How a script ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub told: Vec<Told>,
    /// What every call of the caller returned.
    pub calls: Vec<String>,
    /// Everything the server has said.
    pub written: Vec<u8>,
    pub error: Option<Error>,
}

/// A request that waits for its answer.
enum Token {
    Request(Request),
    Chunks(Chunks),
}

struct Held {
    token: Token,
    ask: Ask,
    /// The first error that the client was told.
    error: u32,
}

/// The machine, and what must be true of it.
pub struct Server {
    pub setup: ServiceSetup,
    machine: Transmission,
    feed: Feed,
    held: Vec<Held>,
    /// How many requests have ended, as far as they are heard.
    heard: usize,
    cookies: u64,
    /// How often the machine is still looked at as a whole, which is slow.
    looks: usize,
    /// Everything the client has said, and what the caller did between.
    pub stream: Vec<u8>,
    pub changes: Vec<(usize, Change)>,
    /// For each request, how much the server had said when it was heard.
    pub places: Vec<usize>,
    /// What the client must make of what was written.
    pub answers: Vec<Fact>,
    pub outcome: Outcome,
}

/// Runs a script to its end. `None` for a setup that is refused.
pub fn run(service: &Service, delivery: &Delivery) -> Option<Server> {
    let mut server = Server::new(&service.setup, delivery)?;
    for step in &service.steps.0 {
        server.step(step);
        if server.outcome.error.is_some() {
            break;
        }
    }
    server.end();
    Some(server)
}

impl Server {
    fn new(setup: &ServiceSetup, delivery: &Delivery) -> Option<Self> {
        let negotiated = setup.common.negotiated();
        let machine = match Transmission::new(negotiated, setup.limits()) {
            Ok(machine) => machine,
            Err(misuse) => {
                let beyond = negotiated
                    .contexts
                    .iter()
                    .find(|context| context.id.0 >= 32);
                let expected = beyond.map(|context| Misuse::Context(context.id));
                assert_eq!(Some(misuse), expected);
                return None;
            }
        };
        Some(Self {
            setup: setup.clone(),
            machine,
            feed: Feed::new(delivery),
            held: Vec::new(),
            heard: 0,
            cookies: 0,
            looks: 16,
            stream: Vec::new(),
            changes: Vec::new(),
            places: Vec::new(),
            answers: Vec::new(),
            outcome: Outcome {
                told: Vec::new(),
                calls: Vec::new(),
                written: Vec::new(),
                error: None,
            },
        })
    }

    fn terms(&self) -> &Negotiated {
        self.machine.negotiated()
    }

    fn step(&mut self, step: &ServiceStep) {
        let framing = self.setup.common.framing();
        match step {
            ServiceStep::Request { ask } => {
                let bytes = ask.bytes(framing, self.cookie());
                self.deliver(&bytes);
            }
            ServiceStep::Tweaked { ask, tweak } => {
                let mut bytes = ask.bytes(framing, self.cookie());
                tweak.apply(&mut bytes);
                self.deliver(&bytes);
            }
            ServiceStep::StatusOf {
                contexts,
                flags,
                offset,
                length,
            } => {
                let selected: Vec<_> = self.terms().contexts.iter().collect();
                let id = |index: &u8| {
                    let selected = selected.get(usize::from(*index));
                    selected.map_or(ContextId((*index).into()), |context| context.id)
                };
                let ids: Vec<_> = contexts.0.iter().map(id).collect();
                let (flags, cookie) = (CommandFlags(*flags), self.cookie());
                self.deliver(&status_of(&ids, flags, cookie, *offset, *length));
            }
            ServiceStep::Raw { bytes } => self.deliver(bytes),
            ServiceStep::Finish {
                which,
                pieces,
                fail,
            } => self.finish(*which, *pieces, *fail),
            ServiceStep::Answer { which, answer } => self.answer(*which, answer),
            ServiceStep::Advance { n } => self.advance(*n),
            ServiceStep::Disconnect {} => {
                let disconnect = Command::DISC;
                let flags = CommandFlags::NONE;
                let (bytes, _) = script::header(framing, flags, disconnect, Cookie(0), 0, 0);
                self.deliver(&bytes);
            }
            ServiceStep::ShutDown {} => {
                self.machine.shut_down();
                self.changes.push((self.stream.len(), Change::ShutDown));
            }
            ServiceStep::End {} => self.end_of_input(),
        }
    }

    fn cookie(&mut self) -> Cookie {
        self.cookies += 1;
        Cookie(self.cookies << 32 | 0xc0)
    }

    /// Reports payload that never was.
    fn advance(&mut self, n: u64) {
        let (before, need) = (self.look(), self.machine.need());
        let result = self.machine.advance(n);
        self.outcome.calls.push(format!("{result:?}"));
        match (result, need) {
            (Ok(()), Need::Payload { length, .. }) => {
                assert!(n <= length, "more than there is");
                match self.outcome.told.last_mut() {
                    Some(Told::Payload { reported, .. }) => *reported += n,
                    _ => panic!("payload of nothing"),
                }
            }
            (Ok(()), _) => {
                assert_eq!(n, 0, "payload of nothing");
                self.check_unchanged(before, "zero bytes");
            }
            (Err(misuse), _) => self.check_unchanged(before, misuse),
        }
        self.fed(|feed, server| {
            feed.pump(server);
        });
    }

    fn end_of_input(&mut self) {
        let result = self.machine.end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        let bye = self.outcome.told.last() == Some(&Told::Bye);
        assert_eq!(result.is_ok(), bye, "the end, or none");
        self.outcome.error = Some(Error::Closed);
    }

    /// The end of a script: every request is answered.
    fn end(&mut self) {
        if self.outcome.error.is_none() {
            self.end_of_input();
        }
        let error = self.outcome.error.unwrap_or(Error::Closed);
        self.check_sticky(error);
        while !self.held.is_empty() {
            self.fail(0, ErrorValue::ESHUTDOWN, "");
        }
    }

    /// A fatal error stays, and nothing moves any more.
    fn check_sticky(&mut self, error: Error) {
        let before = self.look();
        for _ in 0..2 {
            let bytes = [0x25; 64];
            let mut input = &bytes[..];
            assert_eq!(self.machine.receive(&mut input), Err(error));
            assert_eq!(input.len(), bytes.len(), "consumed behind the end");
            assert_eq!(self.machine.advance(0), Err(Misuse::Failed(error)));
            assert_eq!(self.machine.end_of_input(), Err(error));
            assert_eq!(self.machine.need(), Need::Nothing);
        }
        self.check_unchanged(before, error);
    }

    /// Everything there is to know about the machine, at first.
    fn look(&mut self) -> Option<String> {
        self.looks = self.looks.checked_sub(1)?;
        Some(format!("{:?}", self.machine))
    }

    /// A call that was refused has changed nothing.
    fn check_unchanged(&self, before: Option<String>, why: impl Debug) {
        if let Some(before) = before {
            assert_eq!(format!("{:?}", self.machine), before, "in spite of {why:?}");
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.stream.extend(bytes);
        self.fed(|feed, server| feed.deliver(server, bytes));
    }

    fn fed(&mut self, feed: impl FnOnce(&mut Feed, &mut Self)) {
        let mut mine = std::mem::take(&mut self.feed);
        feed(&mut mine, self);
        self.outcome.error = self.outcome.error.or(mine.error);
        self.feed = mine;
    }
}

impl Machine for Server {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let event = self.machine.receive(input)?;
        let some = event.is_some();
        if let Some(event) = event {
            self.note(event);
        }
        Ok(some)
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    /// What is needed is more than is there, and belongs to what is heard.
    fn check_need(&self, need: Need, held: usize) {
        let last = self.outcome.told.last();
        match need {
            Need::Header(n) => assert!(n > held, "{n} bytes needed, {held} are there"),
            Need::Payload {
                cookie,
                offset,
                length,
            } => {
                assert_eq!(held, 0, "payload that is there");
                let left = last.and_then(Told::left).expect("a payload");
                assert_eq!((cookie.0, offset, length), left);
            }
            Need::Nothing => assert_eq!(last, Some(&Told::Bye), "the session is not over"),
        }
    }

    fn read_past(&mut self, payload: &[u8]) {
        let Need::Payload { cookie, offset, .. } = self.machine.need() else {
            panic!("payload is needed");
        };
        let n = payload.len() as u64;
        assert_eq!(self.machine.advance(n), Ok(()));
        self.note_data(cookie, offset, payload);
    }

    fn ended(&self) -> usize {
        self.heard
    }
}

impl Told {
    /// Of a payload that is not complete: cookie, where it goes on, how much
    /// is left.
    fn left(&self) -> Option<(u64, u64, u64)> {
        let Self::Payload {
            cookie,
            offset,
            length,
            bytes,
            reported,
        } = self
        else {
            return None;
        };
        let got = bytes.len() as u64 + reported;
        Some((*cookie, offset + got, length - got)).filter(|left| left.2 > 0)
    }
}
