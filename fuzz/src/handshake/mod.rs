//! Runs a script against the client's handshake machine, or the policy on top
//! of it, and checks on every step what holds whatever happens.

mod hear;

use std::fmt::Debug;

use nbd_codec::client::connect::{Connect, Plan, TlsPolicy};
use nbd_codec::client::handshake::{ContextQuery, Handshake};
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::greeting::RESERVED_ZEROES;
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option::{OptionHeader, OptionRequest};
use nbd_codec::wire::text::Text;
use nbd_codec::{Error, Framing, Misuse, Need, Negotiated};

use crate::delivery::{Delivery, Feed, Machine};
use crate::reader::data;
use crate::reader::handshake::{Heard, Sent};
use crate::script::framing;
use crate::talk::{self, OptionScript, QuerySetup, Talk, TalkStep, name};

/// How a handshake ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub heard: Vec<Heard>,
    /// What the policy reported, which the hand does not.
    pub told: Vec<String>,
    pub calls: Vec<String>,
    pub error: Option<Error>,
    pub negotiated: Option<Negotiated>,
}

/// The machine under the script.
enum Under<'a> {
    Hand(Box<Handshake>),
    Policy(Box<Connect<'a>>),
}

/// The machine, and what must be true of it.
pub struct Client<'a> {
    machine: Under<'a>,
    require_tls: bool,
    feed: Feed,
    looks: usize,
    fixed: bool,
    no_zeroes: bool,
    tls: bool,
    ready: bool,
    failed: bool,
    ended: usize,
    /// What is sent may be anything.
    nonsense: bool,
    /// The option that was sent last.
    last: OptionType,
    /// Everything the server has said, and what was sent between.
    pub stream: Vec<u8>,
    pub sent: Vec<(usize, Sent)>,
    pub outcome: Outcome,
}

/// Runs a script to its end: by hand.
pub fn by_hand(script: &Talk, delivery: &Delivery) -> Client<'static> {
    let require_tls = script.tls % 3 == 2;
    let machine = Handshake::new(require_tls, script.limits.limits());
    let machine = Under::Hand(Box::new(machine));
    Client::new(machine, require_tls, delivery).run(script)
}

/// Runs a script to its end: by policy. `None` for a plan that is refused.
pub fn by_policy<T>(
    script: &Talk,
    delivery: &Delivery,
    then: impl FnOnce(Client) -> T,
) -> Option<T> {
    let contexts = queries(&script.plan.contexts.0);
    let mut plan = Plan::new(name(script.plan.export));
    plan.contexts = &contexts;
    plan.framing = framing(script.plan.framing);
    plan.describe = script.plan.describe;
    plan.limits = script.limits.limits();
    plan.tls = match script.tls % 3 {
        0 => TlsPolicy::Never,
        1 => TlsPolicy::Prefer,
        _ => TlsPolicy::Require,
    };
    let machine = Under::Policy(Box::new(Connect::new(plan).ok()?));
    let require = plan.tls == TlsPolicy::Require;
    let client = Client::new(machine, require, delivery).run(script);
    if let Some(negotiated) = &client.outcome.negotiated {
        assert!(negotiated.framing <= plan.framing, "more than was wanted");
        assert!(!negotiated.tls || plan.tls != TlsPolicy::Never);
    }
    Some(then(client))
}

pub fn queries(setup: &[QuerySetup]) -> Vec<ContextQuery<'static>> {
    let query = |setup: &QuerySetup| match setup.width % 3 {
        0 => ContextQuery::narrow(name(setup.name)),
        1 => ContextQuery::wide(name(setup.name)),
        _ => ContextQuery::new(name(setup.name)),
    };
    setup.iter().map(query).collect()
}

impl<'a> Client<'a> {
    fn new(machine: Under<'a>, require_tls: bool, delivery: &Delivery) -> Self {
        Self {
            machine,
            require_tls,
            feed: Feed::new(delivery),
            looks: 16,
            fixed: false,
            no_zeroes: false,
            tls: false,
            ready: false,
            failed: false,
            ended: 0,
            nonsense: false,
            last: OptionType(0),
            stream: Vec::new(),
            sent: Vec::new(),
            outcome: Outcome {
                heard: Vec::new(),
                told: Vec::new(),
                calls: Vec::new(),
                error: None,
                negotiated: None,
            },
        }
    }

    fn run(mut self, script: &Talk) -> Self {
        for step in &script.steps.0 {
            self.step(step);
            if self.outcome.error.is_some() {
                break;
            }
        }
        self.end()
    }

    fn step(&mut self, step: &TalkStep) {
        let policy = matches!(self.machine, Under::Policy(_));
        match step {
            TalkStep::ClientFlags { room, .. } if policy => self.transmit((*room).into()),
            TalkStep::Send { room, .. } | TalkStep::Select { room, .. } if policy => {
                self.transmit((*room).min(9000) as usize);
            }
            TalkStep::ClientFlags { wanted, room } => {
                let flags = ClientFlags((*wanted).into());
                let room = usize::from(*room);
                self.call(room, |machine, sink| {
                    machine.send_client_flags(flags, &mut *sink)
                });
            }
            TalkStep::Send { option, room } => {
                let room = (*room).min(9000) as usize;
                self.nonsense = matches!(option, OptionScript::Other { .. });
                option.with(|option| self.call(room, |machine, sink| machine.send(option, sink)));
            }
            TalkStep::Select {
                export,
                queries: setup,
                room,
            } => {
                let room = (*room).min(9000) as usize;
                let (export, queries) = (Text::from(name(*export)), queries(&setup.0));
                self.call(room, |machine, sink| machine.select(export, &queries, sink));
            }
            TalkStep::TlsEstablished {} => self.tls_established(),
            TalkStep::TlsFailed {} => {
                match &mut self.machine {
                    Under::Hand(machine) => machine.tls_failed(),
                    Under::Policy(machine) => machine.tls_failed(),
                }
                self.outcome.error = Some(Error::TlsFailed);
            }
            TalkStep::End {} => self.end_of_input(),
            TalkStep::Raw { bytes } => self.deliver(bytes),
            TalkStep::Greeting { kind, flags, size } => {
                self.deliver(&talk::greeting(*kind, *flags, *size));
            }
            TalkStep::Finish { how, size, flags } => {
                self.transmit_all();
                let bytes = match self.last {
                    OptionType::EXPORT_NAME => {
                        let zeroes = if self.no_zeroes { 0 } else { RESERVED_ZEROES };
                        talk::export_name(*size, *flags, zeroes)
                    }
                    option => talk::finish(option, *how, *size, *flags),
                };
                self.deliver(&bytes);
            }
            TalkStep::ExportName {
                size,
                flags,
                zeroes,
            } => {
                self.transmit_all();
                self.deliver(&talk::export_name(*size, *flags, (*zeroes).into()));
            }
            TalkStep::Reply { option, reply } => {
                self.transmit_all();
                self.deliver(&reply.bytes(self.option(*option)));
            }
            TalkStep::Tweaked {
                option,
                reply,
                tweak,
            } => {
                self.transmit_all();
                let mut bytes = reply.bytes(self.option(*option));
                tweak.apply(&mut bytes);
                self.deliver(&bytes);
            }
        }
    }

    /// Mostly the option that was sent last.
    fn option(&self, byte: u8) -> OptionType {
        match byte {
            0xf0..=0xff => OptionType(byte.into()),
            0xe0..=0xef => OptionType((byte - 0xe0).into()),
            _ => self.last,
        }
    }

    fn transmit_all(&mut self) {
        while let (Under::Policy(_), None) = (&self.machine, self.outcome.error) {
            let before = self.sent.len();
            self.transmit(9000);
            if self.sent.len() == before {
                break;
            }
        }
    }

    /// What the policy has to say.
    fn transmit(&mut self, room: usize) {
        let Under::Policy(_) = &self.machine else {
            return;
        };
        let before = self.look();
        let mut buffer = vec![0; room];
        let mut sink = &mut buffer[..];
        let Under::Policy(machine) = &mut self.machine else {
            return;
        };
        let result = machine.transmit(&mut sink);
        let left = sink.len();
        self.outcome.calls.push(format!("{result:?}"));
        buffer.truncate(room - left);
        self.note_call(result, &buffer, before);
        // The policy may have something more to expect.
        self.fed(|feed, client| {
            feed.pump(client);
        });
    }

    /// A call that writes, or is refused.
    fn call(
        &mut self,
        room: usize,
        call: impl FnOnce(&mut Handshake, &mut &mut [u8]) -> Result<usize, Misuse>,
    ) {
        let before = self.look();
        let mut buffer = vec![0; room];
        let mut sink = &mut buffer[..];
        let Under::Hand(machine) = &mut self.machine else {
            return;
        };
        let result = call(machine, &mut sink);
        let left = sink.len();
        self.outcome.calls.push(format!("{result:?}"));
        buffer.truncate(room - left);
        self.note_call(result, &buffer, before);
    }

    fn note_call(&mut self, result: Result<usize, Misuse>, written: &[u8], before: Option<String>) {
        match result {
            Ok(n) => {
                assert_eq!(n, written.len());
                if n > 0 {
                    self.note_sent(written);
                }
            }
            Err(misuse) => {
                assert!(written.is_empty(), "written and refused");
                self.check_unchanged(before, misuse);
            }
        }
    }

    /// Reads what was written, as a server would.
    fn note_sent(&mut self, written: &[u8]) {
        assert!(!self.ready, "an option during transmission");
        let mut bytes = written;
        let sent = match self.sent.is_empty() {
            true => {
                let flags = ClientFlags::decode(&mut bytes).expect("the client's flags");
                assert!(bytes.is_empty());
                self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
                self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
                let (fixed, no_zeroes) = (self.fixed, self.no_zeroes);
                Sent::ClientFlags { fixed, no_zeroes }
            }
            false => {
                let header = OptionHeader::decode(&mut bytes).unwrap().unwrap();
                assert_eq!(header.length as usize, bytes.len());
                let form = data::is_well_formed(header.option.0.into(), bytes);
                assert!(form || self.nonsense, "an option that is none");
                self.last = header.option;
                let harmless = [OptionType::STARTTLS, OptionType::ABORT];
                assert!(
                    !self.require_tls || self.tls || harmless.contains(&header.option),
                    "in plain text: {}",
                    header.option
                );
                assert!(self.fixed || header.option == OptionType::EXPORT_NAME);
                let export = match OptionRequest::decode(header.option, bytes) {
                    Ok(OptionRequest::ExportName(name)) => Some(name),
                    Ok(OptionRequest::Go(request)) => Some(request.export),
                    Ok(OptionRequest::SetMetaContext(request)) => Some(request.export),
                    _ => None,
                };
                Sent::Option {
                    number: header.option.0.into(),
                    export: export.map(|name| name.as_bytes().to_vec()),
                }
            }
        };
        self.sent.push((self.stream.len(), sent));
    }

    fn tls_established(&mut self) {
        let before = self.look();
        let result = match &mut self.machine {
            Under::Hand(machine) => machine.tls_established(),
            Under::Policy(machine) => machine.tls_established(),
        };
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(()) => {
                assert!(!self.tls, "TLS twice");
                self.tls = true;
                self.sent.push((self.stream.len(), Sent::Tls));
            }
            Err(misuse) => self.check_unchanged(before, misuse),
        }
    }

    fn end_of_input(&mut self) {
        let result = self.finish_input();
        self.outcome.calls.push(format!("{result:?}"));
        let error = self.finish_input();
        self.outcome.error = Some(error.err().unwrap_or(Error::Closed));
    }

    fn finish_input(&mut self) -> Result<(), Error> {
        match &mut self.machine {
            Under::Hand(machine) => machine.end_of_input(),
            Under::Policy(machine) => machine.end_of_input(),
        }
    }

    fn end(mut self) -> Self {
        if let Some(error) = self.outcome.error {
            self.check_sticky(error);
        }
        let granted = self.ready && self.outcome.error.is_none();
        let Self { machine, .. } = self;
        let (negotiated, machine) = match machine {
            Under::Hand(machine) => match machine.into_negotiated() {
                Ok(negotiated) => (Some(negotiated), None),
                Err(machine) => (None, Some(Under::Hand(Box::new(machine)))),
            },
            Under::Policy(machine) => match machine.into_negotiated() {
                Ok(negotiated) => (Some(negotiated), None),
                Err(machine) => (None, Some(Under::Policy(Box::new(machine)))),
            },
        };
        assert_eq!(negotiated.is_some(), granted, "ready, or not");
        if let Some(negotiated) = &negotiated {
            assert!(negotiated.tls || !self.require_tls, "without TLS");
            let chunks = negotiated.framing != Framing::Simple;
            assert!(chunks || negotiated.contexts.is_empty());
        }
        self.outcome.negotiated = negotiated;
        self.machine = machine.unwrap_or_else(|| {
            let limits = nbd_codec::Limits::DEFAULT;
            Under::Hand(Box::new(Handshake::new(false, limits)))
        });
        self
    }

    /// A fatal error stays, and nothing moves any more.
    fn check_sticky(&mut self, error: Error) {
        let before = self.look();
        let bytes = [0x4e; 64];
        let mut input = &bytes[..];
        let mut out = Vec::new();
        match &mut self.machine {
            Under::Hand(machine) => {
                assert_eq!(machine.receive(&mut input), Err(error));
                let failed = Misuse::Failed(error);
                let sent = machine.send(&OptionRequest::Abort, &mut out);
                assert_eq!(sent, Err(failed));
                assert_eq!(machine.tls_established(), Err(failed));
                assert_eq!(machine.need(), Need::Nothing);
            }
            Under::Policy(machine) => {
                assert_eq!(machine.receive(&mut input), Err(error));
                assert_eq!(machine.tls_established(), Err(Misuse::Failed(error)));
                assert_eq!(machine.need(), Need::Nothing);
            }
        }
        assert_eq!(input.len(), bytes.len(), "consumed behind the end");
        assert!(out.is_empty());
        self.check_unchanged(before, error);
    }

    fn look(&mut self) -> Option<String> {
        self.looks = self.looks.checked_sub(1)?;
        Some(self.state())
    }

    fn state(&self) -> String {
        match &self.machine {
            Under::Hand(machine) => format!("{machine:?}"),
            Under::Policy(machine) => format!("{machine:?}"),
        }
    }

    fn check_unchanged(&self, before: Option<String>, why: impl Debug) {
        if let Some(before) = before {
            assert_eq!(self.state(), before, "in spite of {why:?}");
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

impl Machine for Client<'_> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        match &mut self.machine {
            Under::Hand(machine) => {
                let event = machine.receive(input)?;
                if let Some(event) = &event {
                    self.note(event);
                }
                Ok(event.is_some())
            }
            Under::Policy(machine) => {
                let event = machine.receive(input)?;
                if let Some(event) = &event {
                    self.note_policy(event);
                }
                Ok(event.is_some())
            }
        }
    }

    fn need(&self) -> Need {
        match &self.machine {
            Under::Hand(machine) => machine.need(),
            Under::Policy(machine) => machine.need(),
        }
    }

    fn check_need(&self, need: Need, held: usize) {
        match need {
            Need::Header(n) => assert!(n > held, "{n} bytes needed, {held} are there"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            // What lies behind the handshake is not its own.
            Need::Nothing => assert!(held == 0 || self.over(), "bytes that nobody needs"),
        }
    }

    fn read_past(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.ended
    }
}

impl Client<'_> {
    fn over(&self) -> bool {
        // A server that was turned down may be an oldstyle one, which is
        // ready all the same.
        self.ready || self.failed
    }
}
