//! Runs a script against the client's `Transmission`, and checks invariants
//! after each action.

mod model;
mod peer;
pub mod script;

use nbd_codec::client::{Request, Slot, Transmission, slot_index};
use nbd_codec::monitor::Side;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie};
use nbd_codec::{Content, Error, Framing, Misuse, Negotiated, Step};

use self::model::{InFlight, within};
use self::peer::Target;
use self::script::{Action, Script};
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};
use crate::monitor::Traffic;
use crate::reference::requests::Change;
use crate::reply_event::ReplyEvent;
use crate::script::Setup;
use crate::server::transmission::script::MAX_PAYLOAD;
use crate::snapshot::{Snapshots, check_unchanged};

/// An accepted command, and the number of bytes received before it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub at: usize,
    pub target: Target,
}

/// The result of a script.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<ReplyEvent>,
    /// The return value of each call.
    pub calls: Vec<String>,
    pub error: Option<Error>,
}

/// Runs a script to its end.
pub fn run(script: &Script, delivery: &Delivery) -> Harness {
    let mut client = Harness::new(&script.setup, delivery);
    for action in &script.actions.0 {
        client.action(action);
        if client.end.is_some() {
            break;
        }
    }
    client.end();
    client
}

/// The state machine, and the state that its invariants are checked against.
pub struct Harness {
    setup: Setup,
    negotiated: Negotiated,
    machine: Transmission<Vec<Slot>>,
    incoming: Incoming,
    model: Vec<InFlight>,
    completed: Vec<Target>,
    disconnected: bool,
    /// How the session ended.
    end: Option<Result<(), Error>>,
    snapshots: Snapshots,
    /// All bytes of the server, and the commands between them.
    pub received: Vec<u8>,
    pub sent: Vec<Sent>,
    /// All bytes of the client up to the first payload that is longer than
    /// `MAX_PAYLOAD`, and the resizes between them.
    pub written: Vec<u8>,
    pub changes: Vec<(usize, Change)>,
    pub written_is_truncated: bool,
    /// What a tap sees, until bytes are not known.
    pub traffic: Traffic,
    pub outcome: Outcome,
}

impl Harness {
    fn new(setup: &Setup, delivery: &Delivery) -> Self {
        let negotiated = setup.negotiated();
        let slots = vec![Slot::EMPTY; setup.slots()];
        let limits = setup.limits.limits();
        let mut machine = Transmission::new(negotiated, slots, limits);
        if setup.lenient {
            machine = machine.lenient();
        }
        if setup.strict {
            machine = machine.strict();
        }
        Self {
            setup: setup.clone(),
            negotiated,
            machine,
            incoming: Incoming::new(delivery, limits.buffer()),
            model: Vec::new(),
            completed: Vec::new(),
            disconnected: false,
            end: None,
            snapshots: Snapshots::default(),
            received: Vec::new(),
            sent: Vec::new(),
            written: Vec::new(),
            changes: Vec::new(),
            written_is_truncated: false,
            traffic: Traffic::default(),
            outcome: Outcome {
                events: Vec::new(),
                calls: Vec::new(),
                error: None,
            },
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Submit {
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
            Action::BlockStatusOf {
                contexts,
                offset,
                length,
                flags,
                space,
            } => self.block_status_of(&contexts.0, *offset, *length, *flags, *space),
            Action::Disconnect {} => self.disconnect(),
            Action::Finish { to, pieces, fail } => {
                if let Some(target) = self.target(*to) {
                    self.receive(&target.finish(*pieces, *fail));
                }
            }
            Action::Reply { to, reply } => {
                if let Some(target) = self.target(*to) {
                    self.receive(&target.reply(reply));
                }
            }
            Action::Mutated {
                to,
                reply,
                mutation,
            } => {
                if let Some(target) = self.target(*to) {
                    let mut bytes = target.reply(reply);
                    mutation.apply(&mut bytes);
                    self.receive(&bytes);
                }
            }
            Action::Raw { bytes } => self.receive(bytes),
            Action::Advance { n } => self.advance(*n),
            Action::End {} => self.end_of_input(),
        }
        let in_flight = self.model.len();
        assert_eq!(self.machine.in_flight(), in_flight, "commands in flight");
    }

    /// The command that a reply is for: in flight, completed, or unknown.
    fn target(&self, to: u8) -> Option<Target> {
        let unknown = Target {
            framing: self.setup.framing(),
            cookie: Cookie(u64::from(to) << 32),
            request: Request::read(0, 1),
            contexts: vec![],
        };
        let in_flight = self.model.len();
        Some(match to {
            0..=0xef if in_flight > 0 => self.model[usize::from(to) % in_flight].target.clone(),
            0..=0xef => return None,
            0xf0..=0xf7 => self.completed.last().cloned().unwrap_or(unknown),
            _ => unknown,
        })
    }

    fn selected(&self) -> Vec<ContextId> {
        let contexts = self.negotiated.contexts;
        contexts.iter().map(|context| context.id).collect()
    }

    /// Submits a command. A rejected call changes nothing.
    fn call(
        &mut self,
        request: Request,
        contexts: Vec<ContextId>,
        call: impl FnOnce(
            &mut Transmission<Vec<Slot>>,
        ) -> Result<nbd_codec::client::RequestHeader, Misuse>,
    ) {
        let before = self.snapshots.take(&self.machine);
        let in_flight = self.model.len();
        let result = call(&mut self.machine);
        self.outcome.calls.push(format!("{result:?}"));
        let header = match result {
            Ok(header) => header,
            Err(misuse) => {
                check_unchanged(before, &self.machine, misuse);
                let space = in_flight < self.setup.slots();
                assert!(misuse != Misuse::Full || !space, "not full");
                return;
            }
        };
        assert!(!self.disconnected, "a command after DISC");
        assert!(in_flight < self.setup.slots(), "more in flight than slots");
        let cookie = header.cookie();
        let extended = self.setup.framing() == Framing::Extended;
        assert_eq!(header.as_bytes().len(), if extended { 32 } else { 28 });
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
            at: self.received.len(),
            target: target.clone(),
        });
        self.model.push(InFlight::new(target));
        self.write(header.as_bytes());
        if request.command == Command::WRITE {
            let payload = u64::from(header.payload_length()).min(MAX_PAYLOAD);
            self.write(&vec![0x77; payload as usize]);
            self.written_is_truncated |= payload < header.payload_length().into();
            self.traffic.truncated |= self.written_is_truncated;
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if !self.written_is_truncated {
            self.written.extend(bytes);
            self.traffic.push(Side::Client, bytes);
        }
    }

    fn block_status_of(
        &mut self,
        contexts: &[u8],
        offset: u64,
        length: u64,
        flags: u16,
        space: u64,
    ) {
        let selected = self.selected();
        let id = |index: &u8| {
            let selected = selected.get(usize::from(*index)).copied();
            selected.unwrap_or(ContextId((*index).into()))
        };
        let ids: Vec<_> = contexts.iter().map(id).collect();
        let flags = CommandFlags(flags);
        let request = Request::block_status(offset, length).with_flags(flags);
        // With `lenient`, unselected contexts are sent but not expected in the
        // reply, and repeated ids count once.
        let mut requested = ids.clone();
        requested.retain(|id| selected.contains(id));
        requested.sort();
        requested.dedup();
        let mut payload = vec![0; space.min(300) as usize];
        let mut sink = &mut payload[..];
        let expected = 8 + 4 * ids.len();
        let mut written = None;
        self.call(request, requested, |machine| {
            let space = sink.len();
            let result = machine.block_status_of(&ids, offset, length, flags, &mut sink);
            written = Some((result, space - sink.len()));
            result
        });
        match written {
            Some((Ok(header), written)) => {
                assert_eq!(written, expected);
                self.write(&payload[..written]);
                assert_eq!(header.payload_length() as usize, expected);
            }
            Some((Err(_), written)) => assert_eq!(written, 0, "a failed call wrote"),
            None => unreachable!("the call is made"),
        }
    }

    fn disconnect(&mut self) {
        let before = self.snapshots.take(&self.machine);
        let result = self.machine.disconnect();
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(header) => {
                assert!(!self.disconnected, "disconnected twice");
                self.disconnected = true;
                self.write(header.as_bytes());
            }
            Err(misuse) => check_unchanged(before, &self.machine, misuse),
        }
    }

    /// Reports payload that does not exist.
    fn advance(&mut self, n: u64) {
        let before = self.snapshots.take(&self.machine);
        let result = self.machine.advance(n);
        self.outcome.calls.push(format!("{result:?}"));
        match (result, self.incoming.next()) {
            (
                Ok(()),
                Some(Next::Payload {
                    cookie,
                    offset,
                    length,
                }),
            ) => {
                assert!(n <= length, "more than the payload");
                if n > 0 {
                    self.traffic.truncated = true;
                    self.record_content(cookie, offset, n);
                    let (cookie, length) = (cookie.0, n);
                    self.outcome.events.push(ReplyEvent::Reported {
                        cookie,
                        offset,
                        length,
                    });
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
        let is_idle = self.model.is_empty();
        assert!(result.is_err() || is_idle, "a clean end during a command");
        self.end = Some(result);
    }

    /// The end of a script: every command ended exactly once.
    fn end(&mut self) {
        let end = loop {
            match self.end {
                Some(end) => break end,
                None => {
                    let unanswered = self.machine.pop_unanswered();
                    assert_eq!(unanswered, None, "the session has not ended");
                    self.end_of_input();
                }
            }
        };
        self.outcome.error = end.err();
        self.check_end(end);
        while let Some(cookie) = self.machine.pop_unanswered() {
            self.forget(cookie);
        }
        assert!(self.model.is_empty(), "unfinished commands");
        assert_eq!(self.machine.in_flight(), 0);
    }

    fn forget(&mut self, cookie: Cookie) {
        let index = self.index(cookie);
        self.model.remove(index);
    }

    /// After the end, all calls return the same and change nothing.
    fn check_end(&mut self, end: Result<(), Error>) {
        let before = self.snapshots.take(&self.machine);
        for _ in 0..2 {
            let bytes = [0x67; 64];
            let mut input = &bytes[..];
            let step = end.map(|()| Step::Finished);
            assert_eq!(self.machine.receive(&mut input), step);
            assert_eq!(input.len(), bytes.len(), "consumed after the end");
            let failed = Misuse::Failed(end.err().unwrap_or(Error::Closed));
            let submitted = self.machine.submit(Request::read(0, 512));
            assert_eq!(submitted.err(), Some(failed));
            assert_eq!(self.machine.disconnect().err(), Some(failed));
            assert_eq!(self.machine.advance(0).is_err(), end.is_err());
            assert_eq!(self.machine.end_of_input(), end);
        }
        check_unchanged(before, &self.machine, end);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.traffic.push(Side::Server, bytes);
        self.deliver(bytes);
    }
}

impl Driver for Harness {
    fn incoming(&mut self) -> &mut Incoming {
        &mut self.incoming
    }

    fn least_buffer(&self) -> usize {
        self.setup.limits.limits().buffer()
    }

    fn step(&mut self, buffer: &Buffer) -> Result<Next, Error> {
        let step = buffer.receive(&mut self.machine)?;
        let next = Next::after(&step);
        match step {
            Step::Event(event) => self.record(event),
            Step::Content(Content::Data {
                cookie,
                offset,
                data,
            }) => self.record_data(cookie, offset, data),
            Step::Content(Content::Hole {
                cookie,
                offset,
                length,
            }) => self.record_hole(cookie, offset, length.into()),
            Step::Read(_) => {}
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => {
                let request = self.model[self.index(cookie)].target.request;
                assert_eq!(request.command, Command::READ);
                assert!(within(&request, offset, length));
            }
            Step::Finished => assert!(self.disconnected && self.model.is_empty()),
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
        self.completed.len()
    }
}

fn command_of(byte: u8) -> Command {
    match byte {
        0..=9 => Command(byte.into()),
        _ => Command(u16::from(byte) * 257),
    }
}
