//! Runs a script against the server's `Transmission`, and checks invariants
//! after each action.

mod answer;
mod events;
pub mod script;
mod status;

use nbd_codec::server::{ChunkedRead, Request, Transmission};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::{Content, Error, Misuse, Negotiated, Step};

use self::script::{Action, Script, ServerSetup, block_status_of};
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};
use crate::reference::requests::Change;
use crate::reply_event::{ReplyEvent, push};
use crate::snapshot::{Snapshots, check_unchanged};

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
    /// Zero is success.
    Answered {
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
    ChunkedRead(ChunkedRead),
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
    /// How the session ended.
    end: Option<Result<(), Error>>,
    /// How many events other than payload there were.
    ended: usize,
    cookies: u64,
    snapshots: Snapshots,
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
        if server.end.is_some() {
            break;
        }
    }
    server.end();
    Some(server)
}

impl Harness {
    fn new(setup: &ServerSetup, delivery: &Delivery) -> Option<Self> {
        let negotiated = setup.common.negotiated();
        let machine = match setup.machine() {
            Ok(machine) => machine,
            Err(misuse) => {
                let beyond = negotiated
                    .contexts
                    .iter()
                    .find(|context| context.id.0 >= 32);
                // A request that names every context.
                let needed = 40 + 4 * negotiated.contexts.len();
                let expected = match beyond {
                    Some(context) => Misuse::Context(context.id),
                    None => Misuse::BufferTooSmall { needed },
                };
                assert_eq!(misuse, expected);
                assert!(beyond.is_some() || needed > setup.least_buffer());
                return None;
            }
        };
        Some(Self {
            setup: setup.clone(),
            machine,
            incoming: Incoming::new(delivery, setup.least_buffer()),
            pending: Vec::new(),
            end: None,
            ended: 0,
            cookies: 0,
            snapshots: Snapshots::default(),
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

    /// The payloads of writes, joined as content is.
    pub fn payloads(&self) -> Vec<ReplyEvent> {
        let mut payloads = Vec::new();
        for event in &self.outcome.events {
            if let Event::Payload {
                cookie,
                offset,
                bytes,
                ..
            } = event
            {
                let (cookie, offset, bytes) = (*cookie, *offset, bytes.clone());
                if !bytes.is_empty() {
                    push(
                        &mut payloads,
                        ReplyEvent::Data {
                            cookie,
                            offset,
                            bytes,
                        },
                    );
                }
            }
        }
        payloads
    }

    /// Whether the caller claimed to have read payload that did not exist.
    pub fn has_reported_payload(&self) -> bool {
        let is_reported =
            |event: &Event| matches!(event, Event::Payload { reported, .. } if *reported > 0);
        self.outcome.events.iter().any(is_reported)
    }

    fn terms(&self) -> &Negotiated {
        self.machine.negotiated()
    }

    fn action(&mut self, action: &Action) {
        let framing = self.setup.common.framing();
        match action {
            Action::Request { request } => {
                let bytes = request.bytes(framing, self.cookie());
                self.receive(&bytes);
            }
            Action::Mutated { request, mutation } => {
                let mut bytes = request.bytes(framing, self.cookie());
                mutation.apply(&mut bytes);
                self.receive(&bytes);
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
                self.receive(&block_status_of(&ids, flags, cookie, *offset, *length));
            }
            Action::Raw { bytes } => self.receive(bytes),
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
                self.receive(&bytes);
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
        let before = self.snapshots.take(&self.machine);
        let result = self.machine.advance(n);
        self.outcome.calls.push(format!("{result:?}"));
        match (result, self.incoming.next()) {
            (Ok(()), Some(Next::Payload { length, .. })) => {
                assert!(n <= length, "more than the payload");
                match self.outcome.events.last_mut() {
                    Some(Event::Payload { reported, .. }) => *reported += n,
                    _ => panic!("no payload is due"),
                }
            }
            (Ok(()), _) => {
                assert_eq!(n, 0, "no payload is due");
                check_unchanged(before, &self.machine, "zero bytes");
            }
            (Err(misuse), _) => check_unchanged(before, &self.machine, misuse),
        }
        self.resume();
    }

    fn end_of_input(&mut self) {
        let result = self.machine.end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        let disconnected = self.outcome.events.last() == Some(&Event::Disconnect);
        assert_eq!(result.is_ok(), disconnected, "clean if and only if DISC");
        self.end = Some(result);
    }

    /// The end of a script: every request is replied to.
    fn end(&mut self) {
        if self.end.is_none() {
            self.end_of_input();
        }
        let end = self.end.unwrap_or(Ok(()));
        self.outcome.error = end.err();
        self.check_end(end);
        while !self.pending.is_empty() {
            self.fail(0, ErrorValue::ESHUTDOWN, "");
        }
    }

    /// After the end, all calls return the same and change nothing.
    fn check_end(&mut self, end: Result<(), Error>) {
        let before = self.snapshots.take(&self.machine);
        for _ in 0..2 {
            let bytes = [0x25; 64];
            let mut input = &bytes[..];
            match end {
                Ok(()) => assert!(matches!(
                    self.machine.receive(&mut input),
                    Ok(Step::Finished)
                )),
                Err(error) => {
                    assert_eq!(self.machine.receive(&mut input).err(), Some(error));
                    assert_eq!(self.machine.advance(0), Err(Misuse::Failed(error)));
                }
            }
            assert_eq!(input.len(), bytes.len(), "consumed after the end");
            assert_eq!(self.machine.end_of_input(), end);
        }
        check_unchanged(before, &self.machine, end);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.deliver(bytes);
    }
}

impl Driver for Harness {
    fn incoming(&mut self) -> &mut Incoming {
        &mut self.incoming
    }

    fn least_buffer(&self) -> usize {
        self.setup.least_buffer()
    }

    fn step(&mut self, buffer: &Buffer) -> Result<Next, Error> {
        let step = buffer.receive(&mut self.machine)?;
        let next = Next::after(&step);
        let last = self.outcome.events.last();
        match step {
            Step::Event(event) => self.record(event),
            Step::Content(Content::Data {
                cookie,
                offset,
                data,
            }) => self.record_data(cookie, offset, data),
            Step::Content(Content::Hole { .. }) => panic!("a hole in a write"),
            Step::Read(_) => {}
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => {
                let left = last.and_then(Event::left).expect("a payload");
                assert_eq!((cookie.0, offset, length), left);
            }
            Step::Finished => assert_eq!(last, Some(&Event::Disconnect)),
            Step::Transmit | Step::StartTls => panic!("a step of the handshake"),
        }
        Ok(next)
    }

    fn read_directly(&mut self, cookie: Cookie, offset: u64, payload: &[u8]) {
        self.machine.advance(payload.len() as u64).expect("payload");
        self.record_data(cookie, offset, payload);
    }

    fn fail(&mut self, error: Error) {
        self.end.get_or_insert(Err(error));
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
