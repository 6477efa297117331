//! Runs a script against the client's transmission machine, and checks on
//! every step what holds whatever happens.

mod model;

use std::fmt::Debug;

use nbd_codec::client::{Request, Slot, Transmission, slot_index};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie};
use nbd_codec::{Error, Framing, Limits, Misuse, Need, Negotiated};

use self::model::{InFlight, within};
use crate::delivery::{Delivery, Feed, Machine};
use crate::facts::Fact;
use crate::peer::Target;
use crate::reader::requests::Change;
use crate::script::{Session, Setup, Step};
use crate::server::script::LONGEST;

/// A command that was accepted, and where in the stream of replies.
#[derive(Debug, Clone)]
pub struct Sent {
    pub at: usize,
    pub target: Target,
}

/// How a script ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub facts: Vec<Fact>,
    /// What every call of the caller returned.
    pub calls: Vec<String>,
    pub error: Option<Error>,
}

/// Runs a script to its end.
pub fn run(session: &Session, delivery: &Delivery) -> Client {
    let mut client = Client::new(&session.setup, delivery);
    for step in &session.steps.0 {
        client.step(step);
        if client.outcome.error.is_some() {
            break;
        }
    }
    client.end();
    client
}

/// The machine, and what must be true of it.
pub struct Client {
    setup: Setup,
    negotiated: Negotiated,
    machine: Transmission<Vec<Slot>>,
    feed: Feed,
    model: Vec<InFlight>,
    completed: Vec<Target>,
    disconnected: bool,
    /// How often the machine is still looked at as a whole, which is slow.
    looks: usize,
    /// Everything the server has said, and between what the commands were made.
    pub stream: Vec<u8>,
    pub sent: Vec<Sent>,
    /// Everything the client has said, to the first payload that is too long
    /// to be made, and the sizes that the export had between.
    pub upstream: Vec<u8>,
    pub changes: Vec<(usize, Change)>,
    pub too_long: bool,
    pub outcome: Outcome,
}

impl Client {
    fn new(setup: &Setup, delivery: &Delivery) -> Self {
        let negotiated = setup.negotiated();
        let slots = vec![Slot::EMPTY; setup.slots()];
        let limits: Limits = setup.limits.limits();
        let mut machine = Transmission::new(negotiated, slots, limits);
        if setup.lenient {
            machine = machine.lenient();
        }
        Self {
            setup: setup.clone(),
            negotiated,
            machine,
            feed: Feed::new(delivery),
            model: Vec::new(),
            completed: Vec::new(),
            disconnected: false,
            looks: 16,
            stream: Vec::new(),
            sent: Vec::new(),
            upstream: Vec::new(),
            changes: Vec::new(),
            too_long: false,
            outcome: Outcome {
                facts: Vec::new(),
                calls: Vec::new(),
                error: None,
            },
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Submit {
                command,
                flags,
                offset,
                length,
            } => {
                let request = Request {
                    command: command_of(*command),
                    flags: CommandFlags(*flags),
                    offset: *offset,
                    length: *length,
                };
                let contexts = match request.command {
                    Command::BLOCK_STATUS => self.selected(),
                    _ => vec![],
                };
                self.call(request, contexts, |machine| machine.submit(request));
            }
            Step::StatusOf {
                contexts,
                offset,
                length,
                flags,
                room,
            } => self.status_of(&contexts.0, *offset, *length, *flags, *room),
            Step::Disconnect {} => self.disconnect(),
            Step::Finish { to, pieces, fail } => {
                if let Some(target) = self.target(*to) {
                    self.deliver(&target.finish(*pieces, *fail));
                }
            }
            Step::Reply { to, reply } => {
                if let Some(target) = self.target(*to) {
                    self.deliver(&target.reply(reply));
                }
            }
            Step::Tweaked { to, reply, tweak } => {
                if let Some(target) = self.target(*to) {
                    let mut bytes = target.reply(reply);
                    tweak.apply(&mut bytes);
                    self.deliver(&bytes);
                }
            }
            Step::Raw { bytes } => self.deliver(bytes),
            Step::Advance { n } => self.advance(*n),
            Step::End {} => self.end_of_input(),
        }
        let live = self.model.len();
        assert_eq!(self.machine.in_flight(), live, "commands in flight");
    }

    /// Which command a reply is for: one in flight, or one that is complete,
    /// or one that never was.
    fn target(&self, to: u8) -> Option<Target> {
        let nobody = Target {
            framing: self.setup.framing(),
            cookie: Cookie(u64::from(to) << 32),
            request: Request::read(0, 1),
            contexts: vec![],
        };
        let live = self.model.len();
        Some(match to {
            0..=0xef if live > 0 => self.model[usize::from(to) % live].target.clone(),
            0..=0xef => return None,
            0xf0..=0xf7 => self.completed.last().cloned().unwrap_or(nobody),
            _ => nobody,
        })
    }

    fn selected(&self) -> Vec<ContextId> {
        let contexts = self.negotiated.contexts;
        contexts.iter().map(|context| context.id).collect()
    }

    /// Makes a command; what is refused must have changed nothing.
    fn call(
        &mut self,
        request: Request,
        contexts: Vec<ContextId>,
        call: impl FnOnce(&mut Transmission<Vec<Slot>>) -> Result<nbd_codec::client::Head, Misuse>,
    ) {
        let before = self.look();
        let live = self.model.len();
        let result = call(&mut self.machine);
        self.outcome.calls.push(format!("{result:?}"));
        let head = match result {
            Ok(head) => head,
            Err(misuse) => {
                self.check_unchanged(before, misuse);
                let room = live < self.setup.slots();
                assert!(misuse != Misuse::Full || !room, "not full");
                return;
            }
        };
        assert!(!self.disconnected, "a command behind the last");
        assert!(live < self.setup.slots(), "more in flight than slots");
        let cookie = head.cookie();
        let extended = self.setup.framing() == Framing::Extended;
        assert_eq!(head.as_bytes().len(), if extended { 32 } else { 28 });
        assert!(slot_index(cookie) < self.setup.slots());
        for other in &self.model {
            let other = other.target.cookie;
            assert_ne!(slot_index(other), slot_index(cookie), "a slot used twice");
        }
        for old in &self.completed {
            assert_ne!(old.cookie, cookie, "a cookie used twice");
        }
        let target = Target {
            framing: self.setup.framing(),
            cookie,
            request,
            contexts,
        };
        self.sent.push(Sent {
            at: self.stream.len(),
            target: target.clone(),
        });
        self.model.push(InFlight::new(target));
        self.say(head.as_bytes());
        if request.command == Command::WRITE {
            let payload = u64::from(head.payload_length()).min(LONGEST);
            self.say(&vec![0x77; payload as usize]);
            self.too_long |= payload < head.payload_length().into();
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        if !self.too_long {
            self.upstream.extend(bytes);
        }
    }

    fn status_of(&mut self, contexts: &[u8], offset: u64, length: u64, flags: u16, room: u64) {
        let selected = self.selected();
        let id = |index: &u8| {
            let selected = selected.get(usize::from(*index)).copied();
            selected.unwrap_or(ContextId((*index).into()))
        };
        let ids: Vec<_> = contexts.iter().map(id).collect();
        let flags = CommandFlags(flags);
        let request = Request::block_status(offset, length).with(flags);
        // A lenient machine takes what cannot be answered, and what is named
        // twice is asked for once.
        let mut asked = ids.clone();
        asked.retain(|id| selected.contains(id));
        asked.sort();
        asked.dedup();
        let mut payload = vec![0; room.min(300) as usize];
        let mut sink = &mut payload[..];
        let expected = 8 + 4 * ids.len();
        let mut written = None;
        self.call(request, asked, |machine| {
            let room = sink.len();
            let result = machine.block_status_of(&ids, offset, length, flags, &mut sink);
            written = Some((result, room - sink.len()));
            result
        });
        match written {
            Some((Ok(head), written)) => {
                assert_eq!(written, expected);
                self.say(&payload[..written]);
                assert_eq!(head.payload_length() as usize, expected);
            }
            Some((Err(_), written)) => assert_eq!(written, 0, "written and refused"),
            None => unreachable!("the call is made"),
        }
    }

    fn disconnect(&mut self) {
        let before = self.look();
        let result = self.machine.disconnect();
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(head) => {
                assert!(!self.disconnected, "disconnected twice");
                self.disconnected = true;
                self.say(head.as_bytes());
            }
            Err(misuse) => self.check_unchanged(before, misuse),
        }
    }

    /// Reports payload that never was.
    fn advance(&mut self, n: u64) {
        let (before, need) = (self.look(), self.machine.need());
        let result = self.machine.advance(n);
        self.outcome.calls.push(format!("{result:?}"));
        match (result, need) {
            (
                Ok(()),
                Need::Payload {
                    cookie,
                    offset,
                    length,
                },
            ) => {
                assert!(n <= length, "more than there is");
                if n > 0 {
                    self.note_content(cookie, offset, n);
                    let (cookie, length) = (cookie.0, n);
                    self.outcome.facts.push(Fact::Reported {
                        cookie,
                        offset,
                        length,
                    });
                }
            }
            (Ok(()), _) => {
                assert_eq!(n, 0, "payload of nothing");
                self.check_unchanged(before, "zero bytes");
            }
            (Err(misuse), _) => self.check_unchanged(before, misuse),
        }
        self.fed(|feed, client| {
            feed.pump(client);
        });
    }

    fn end_of_input(&mut self) {
        let result = self.machine.end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        if result.is_ok() {
            assert!(
                self.model.is_empty(),
                "the end while commands are in flight"
            );
        }
        self.outcome.error = Some(Error::Closed);
        assert_eq!(self.machine.end_of_input(), Err(Error::Closed));
    }

    /// The end of a script: every command is accounted for exactly once.
    fn end(&mut self) {
        let error = match self.outcome.error {
            Some(error) => error,
            None => {
                assert_eq!(self.machine.abandon(), None, "the session is not over");
                self.end_of_input();
                Error::Closed
            }
        };
        self.check_sticky(error);
        while let Some(cookie) = self.machine.abandon() {
            self.forget(cookie);
        }
        assert!(self.model.is_empty(), "commands without an end");
        assert_eq!(self.machine.in_flight(), 0);
    }

    fn forget(&mut self, cookie: Cookie) {
        let index = self.index(cookie);
        self.model.remove(index);
    }

    /// A fatal error stays, and nothing moves any more.
    fn check_sticky(&mut self, error: Error) {
        let before = self.look();
        for _ in 0..2 {
            let bytes = [0x67; 64];
            let mut input = &bytes[..];
            assert_eq!(self.machine.receive(&mut input), Err(error));
            assert_eq!(input.len(), bytes.len(), "consumed behind the end");
            let failed = Misuse::Failed(error);
            assert_eq!(
                self.machine.submit(Request::read(0, 512)).err(),
                Some(failed)
            );
            assert_eq!(self.machine.disconnect().err(), Some(failed));
            assert_eq!(self.machine.advance(0), Err(failed));
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
        self.fed(|feed, client| feed.deliver(client, bytes));
    }

    fn fed(&mut self, feed: impl FnOnce(&mut Feed, &mut Self)) {
        let mut mine = std::mem::take(&mut self.feed);
        feed(&mut mine, self);
        self.outcome.error = self.outcome.error.or(mine.error);
        self.feed = mine;
    }
}

impl Machine for Client {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let event = self.machine.receive(input)?;
        if let Some(event) = &event {
            self.note(event);
        }
        Ok(event.is_some())
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    /// What is needed is more than is there, and of a command in flight.
    fn check_need(&self, need: Need, held: usize) {
        match need {
            Need::Header(n) => assert!(n > held, "{n} bytes needed, {held} are there"),
            Need::Payload {
                cookie,
                offset,
                length,
            } => {
                assert_eq!(held, 0, "payload that is there");
                assert!(length > 0);
                let request = self.model[self.index(cookie)].target.request;
                assert_eq!(request.command, Command::READ);
                assert!(within(&request, offset, length));
            }
            Need::Nothing => panic!("the session is not over"),
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
        self.completed.len()
    }
}

fn command_of(byte: u8) -> Command {
    match byte {
        0..=9 => Command(byte.into()),
        _ => Command(u16::from(byte) * 257),
    }
}
