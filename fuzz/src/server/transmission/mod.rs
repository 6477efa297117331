//! Runs a script against the server's `Transmission`, and checks invariants
//! after each action.

mod answer;
mod events;
pub mod script;
mod status;

use std::fmt::Debug;

use nbd_codec::server::{Chunks, Request, Transmission};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::{Error, Misuse, Need, Negotiated};

use self::script::{Action, Script, ServerSetup, block_status_of};
use crate::delivery::{Delivery, Driver, Incoming};
use crate::reference::requests::Change;
use crate::reply_event::ReplyEvent;

/// An event, in plain numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Payload {
        cookie: u64,
        offset: u64,
        length: u64,
        bytes: Vec<u8>,
        /// Payload that the caller claimed to have read directly, which did not
        /// exist.
        reported: u64,
    },
    Request(RequestFields),
    Rejected {
        kind: u64,
        error: u64,
    },
    Disconnect,
}

/// The fields of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestFields {
    pub kind: u64,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub flags: u64,
    pub contexts: Vec<u64>,
}

/// The result of a script.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Event>,
    /// The return value of each call.
    pub calls: Vec<String>,
    /// All bytes written.
    pub written: Vec<u8>,
    pub error: Option<Error>,
}

/// A request that is not yet replied to.
enum Token {
    Request(Request),
    Chunks(Chunks),
}

struct Pending {
    token: Token,
    fields: RequestFields,
    /// The first error sent in reply.
    error: u32,
}

/// The state machine, and the state that its invariants are checked against.
pub struct Harness {
    pub setup: ServerSetup,
    machine: Transmission,
    incoming: Incoming,
    pending: Vec<Pending>,
    /// Reading many events other than payload there were.
    ended: usize,
    cookies: u64,
    /// How many more snapshots of the whole state to take; they are slow.
    snapshots_left: usize,
    /// All bytes of the client, and the caller's changes between them.
    pub received: Vec<u8>,
    pub changes: Vec<(usize, Change)>,
    /// For each request, the number of bytes written before it.
    pub written_at: Vec<usize>,
    /// What the client must understand of the replies.
    pub expected: Vec<ReplyEvent>,
    pub outcome: Outcome,
}

/// Runs a script to its end. `None` if the setup is rejected.
pub fn run(script: &Script, delivery: &Delivery) -> Option<Harness> {
    let mut server = Harness::new(&script.setup, delivery)?;
    for action in &script.actions.0 {
        server.action(action);
        if server.outcome.error.is_some() {
            break;
        }
    }
    server.end();
    Some(server)
}

impl Harness {
    fn new(setup: &ServerSetup, delivery: &Delivery) -> Option<Self> {
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
            incoming: Incoming::new(delivery),
            pending: Vec::new(),
            ended: 0,
            cookies: 0,
            snapshots_left: 16,
            received: Vec::new(),
            changes: Vec::new(),
            written_at: Vec::new(),
            expected: Vec::new(),
            outcome: Outcome {
                events: Vec::new(),
                calls: Vec::new(),
                written: Vec::new(),
                error: None,
            },
        })
    }

    fn terms(&self) -> &Negotiated {
        self.machine.negotiated()
    }

    fn action(&mut self, action: &Action) {
        let framing = self.setup.common.framing();
        match action {
            Action::Request { request } => {
                let bytes = request.bytes(framing, self.cookie());
                self.deliver(&bytes);
            }
            Action::Mutated { request, mutation } => {
                let mut bytes = request.bytes(framing, self.cookie());
                mutation.apply(&mut bytes);
                self.deliver(&bytes);
            }
            Action::BlockStatusOf {
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
                self.deliver(&block_status_of(&ids, flags, cookie, *offset, *length));
            }
            Action::Raw { bytes } => self.deliver(bytes),
            Action::Finish {
                which,
                pieces,
                fail,
            } => self.finish(*which, *pieces, *fail),
            Action::Answer { which, answer } => self.answer(*which, answer),
            Action::Advance { n } => self.advance(*n),
            Action::Disconnect {} => {
                let disconnect = Command::DISC;
                let flags = CommandFlags::NONE;
                let (bytes, _) = script::header(framing, flags, disconnect, Cookie(0), 0, 0);
                self.deliver(&bytes);
            }
            Action::ShutDown {} => {
                self.machine.shut_down();
                self.changes.push((self.received.len(), Change::ShutDown));
            }
            Action::End {} => self.end_of_input(),
        }
    }

    fn cookie(&mut self) -> Cookie {
        self.cookies += 1;
        Cookie(self.cookies << 32 | 0xc0)
    }

    /// Reports payload that does not exist.
    fn advance(&mut self, n: u64) {
        let (before, need) = (self.snapshot(), self.machine.need());
        let result = self.machine.advance(n);
        self.outcome.calls.push(format!("{result:?}"));
        match (result, need) {
            (Ok(()), Need::Payload { length, .. }) => {
                assert!(n <= length, "more than the payload");
                match self.outcome.events.last_mut() {
                    Some(Event::Payload { reported, .. }) => *reported += n,
                    _ => panic!("no payload is due"),
                }
            }
            (Ok(()), _) => {
                assert_eq!(n, 0, "no payload is due");
                self.check_unchanged(before, "zero bytes");
            }
            (Err(misuse), _) => self.check_unchanged(before, misuse),
        }
        self.with_incoming(|incoming, server| {
            incoming.receive_all(server);
        });
    }

    fn end_of_input(&mut self) {
        let result = self.machine.end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        let disconnected = self.outcome.events.last() == Some(&Event::Disconnect);
        assert_eq!(
            result.is_ok(),
            disconnected,
            "a clean end if and only if DISC"
        );
        self.outcome.error = Some(Error::Closed);
    }

    /// The end of a script: every request is replied to.
    fn end(&mut self) {
        if self.outcome.error.is_none() {
            self.end_of_input();
        }
        let error = self.outcome.error.unwrap_or(Error::Closed);
        self.check_failed(error);
        while !self.pending.is_empty() {
            self.fail(0, ErrorValue::ESHUTDOWN, "");
        }
    }

    /// After a fatal error, all calls fail and change nothing.
    fn check_failed(&mut self, error: Error) {
        let before = self.snapshot();
        for _ in 0..2 {
            let bytes = [0x25; 64];
            let mut input = &bytes[..];
            assert_eq!(self.machine.receive(&mut input), Err(error));
            assert_eq!(input.len(), bytes.len(), "consumed after a fatal error");
            assert_eq!(self.machine.advance(0), Err(Misuse::Failed(error)));
            assert_eq!(self.machine.end_of_input(), Err(error));
            assert_eq!(self.machine.need(), Need::Nothing);
        }
        self.check_unchanged(before, error);
    }

    /// The whole state, for the first calls only.
    fn snapshot(&mut self) -> Option<String> {
        self.snapshots_left = self.snapshots_left.checked_sub(1)?;
        Some(format!("{:?}", self.machine))
    }

    /// A failed call changes nothing.
    fn check_unchanged(&self, before: Option<String>, why: impl Debug) {
        if let Some(before) = before {
            assert_eq!(
                format!("{:?}", self.machine),
                before,
                "changed by a failed call: {why:?}"
            );
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.with_incoming(|incoming, server| incoming.deliver(server, bytes));
    }

    fn with_incoming(&mut self, incoming: impl FnOnce(&mut Incoming, &mut Self)) {
        let mut mine = std::mem::take(&mut self.incoming);
        incoming(&mut mine, self);
        self.outcome.error = self.outcome.error.or(mine.error);
        self.incoming = mine;
    }
}

impl Driver for Harness {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let event = self.machine.receive(input)?;
        let some = event.is_some();
        if let Some(event) = event {
            self.record(event);
        }
        Ok(some)
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    /// The state machine asks for more than is buffered, and for payload of the
    /// current write only.
    fn check_need(&self, need: Need, buffered: usize) {
        let last = self.outcome.events.last();
        match need {
            Need::Header(n) => assert!(n > buffered, "needs {n} bytes, has {buffered}"),
            Need::Payload {
                cookie,
                offset,
                length,
            } => {
                assert_eq!(buffered, 0, "the payload is buffered");
                let left = last.and_then(Event::left).expect("a payload");
                assert_eq!((cookie.0, offset, length), left);
            }
            Need::Nothing => {
                assert_eq!(last, Some(&Event::Disconnect), "the session has not ended")
            }
        }
    }

    fn read_directly(&mut self, payload: &[u8]) {
        let Need::Payload { cookie, offset, .. } = self.machine.need() else {
            panic!("payload is needed");
        };
        let n = payload.len() as u64;
        assert_eq!(self.machine.advance(n), Ok(()));
        self.record_data(cookie, offset, payload);
    }

    fn ended(&self) -> usize {
        self.ended
    }
}

impl Event {
    /// Of an incomplete payload: cookie, next offset and remaining length.
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
        let received = bytes.len() as u64 + reported;
        Some((*cookie, offset + received, length - received)).filter(|left| left.2 > 0)
    }
}
