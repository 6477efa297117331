//! Runs a script against the client's `Handshake` or `Connector`, and checks
//! invariants after each action.

mod events;
pub mod script;

use std::fmt::Debug;

use nbd_codec::client::connect::{Connect, Plan, TlsPolicy};
use nbd_codec::client::handshake::{ContextQuery, Handshake};
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::greeting::RESERVED_ZEROES;
use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::option::{OptionHeader, OptionRequest};
use nbd_codec::wire::text::Text;
use nbd_codec::{Error, Framing, Misuse, Need, Negotiated};

use self::script::{Action, OptionScript, QuerySetup, Script};
use crate::delivery::{Delivery, Driver, Incoming};
use crate::reference::option_data;
use crate::reference::option_replies::{Event, Sent};
use crate::script::{framing, name};

/// The result of a script.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Event>,
    /// `Debug` output of the connector's events.
    pub connector_events: Vec<String>,
    pub calls: Vec<String>,
    pub error: Option<Error>,
    pub negotiated: Option<Negotiated>,
}

/// The state machine under test.
enum Machine<'a> {
    Handshake(Box<Handshake>),
    Connector(Box<Connect<'a>>),
}

/// The state machine, and the state that its invariants are checked against.
pub struct Harness<'a> {
    machine: Machine<'a>,
    require_tls: bool,
    incoming: Incoming,
    snapshots_left: usize,
    fixed: bool,
    no_zeroes: bool,
    tls: bool,
    ready: bool,
    failed: bool,
    ended: usize,
    /// The last option is arbitrary bytes.
    is_arbitrary: bool,
    /// The last option that was sent.
    last: OptionType,
    /// All bytes of the server. Each entry of `sent` has the number of bytes
    /// received before it.
    pub received: Vec<u8>,
    pub sent: Vec<(usize, Sent)>,
    pub is_connector: bool,
    pub outcome: Outcome,
}

/// Runs a script against `Handshake`.
pub fn run(script: &Script, delivery: &Delivery) -> Harness<'static> {
    let require_tls = script.tls % 3 == 2;
    let machine = Handshake::new(require_tls, script.limits.limits());
    let machine = Machine::Handshake(Box::new(machine));
    Harness::new(machine, require_tls, delivery).run(script)
}

/// Runs a script against `Connector`. `None` if its configuration is rejected.
pub fn run_connector<T>(
    script: &Script,
    delivery: &Delivery,
    then: impl FnOnce(Harness) -> T,
) -> Option<T> {
    let contexts = queries(&script.config.contexts.0);
    let mut config = Plan::new(name(script.config.export));
    config.contexts = &contexts;
    config.framing = framing(script.config.framing);
    config.describe = script.config.describe;
    config.limits = script.limits.limits();
    config.tls = match script.tls % 3 {
        0 => TlsPolicy::Never,
        1 => TlsPolicy::Prefer,
        _ => TlsPolicy::Require,
    };
    let machine = Machine::Connector(Box::new(Connect::new(config).ok()?));
    let require = config.tls == TlsPolicy::Require;
    let client = Harness::new(machine, require, delivery).run(script);
    if let Some(negotiated) = &client.outcome.negotiated {
        assert!(negotiated.framing <= config.framing, "more than configured");
        assert!(!negotiated.tls || config.tls != TlsPolicy::Never);
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

impl<'a> Harness<'a> {
    fn new(machine: Machine<'a>, require_tls: bool, delivery: &Delivery) -> Self {
        Self {
            is_connector: matches!(machine, Machine::Connector(_)),
            machine,
            require_tls,
            incoming: Incoming::new(delivery),
            snapshots_left: 16,
            fixed: false,
            no_zeroes: false,
            tls: false,
            ready: false,
            failed: false,
            ended: 0,
            is_arbitrary: false,
            last: OptionType(0),
            received: Vec::new(),
            sent: Vec::new(),
            outcome: Outcome {
                events: Vec::new(),
                connector_events: Vec::new(),
                calls: Vec::new(),
                error: None,
                negotiated: None,
            },
        }
    }

    fn run(mut self, script: &Script) -> Self {
        for action in &script.actions.0 {
            self.action(action);
            if self.outcome.error.is_some() {
                break;
            }
        }
        self.end()
    }

    fn action(&mut self, action: &Action) {
        let is_connector = self.is_connector;
        match action {
            Action::ClientFlags { space, .. } if is_connector => self.transmit((*space).into()),
            Action::Send { space, .. } | Action::Select { space, .. } if is_connector => {
                self.transmit((*space).min(9000) as usize);
            }
            Action::ClientFlags { wanted, space } => {
                let flags = ClientFlags((*wanted).into());
                let space = usize::from(*space);
                self.call(space, |machine, sink| {
                    machine.send_client_flags(flags, &mut *sink)
                });
            }
            Action::Send { option, space } => {
                let space = (*space).min(9000) as usize;
                self.is_arbitrary = matches!(option, OptionScript::Other { .. });
                option.with(|option| self.call(space, |machine, sink| machine.send(option, sink)));
            }
            Action::Select {
                export,
                queries: setup,
                space,
            } => {
                let space = (*space).min(9000) as usize;
                let (export, queries) = (Text::from(name(*export)), queries(&setup.0));
                self.call(space, |machine, sink| {
                    machine.select(export, &queries, sink)
                });
            }
            Action::TlsEstablished {} => self.tls_established(),
            Action::TlsFailed {} => {
                match &mut self.machine {
                    Machine::Handshake(machine) => machine.tls_failed(),
                    Machine::Connector(machine) => machine.tls_failed(),
                }
                self.outcome.error = Some(Error::TlsFailed);
            }
            Action::End {} => self.end_of_input(),
            Action::Raw { bytes } => self.deliver(bytes),
            Action::Greeting { kind, flags, size } => {
                self.deliver(&script::greeting(*kind, *flags, *size));
            }
            Action::Finish { how, size, flags } => {
                self.transmit_all();
                let bytes = match self.last {
                    OptionType::EXPORT_NAME => {
                        let zeroes = if self.no_zeroes { 0 } else { RESERVED_ZEROES };
                        script::export_name(*size, *flags, zeroes)
                    }
                    option => script::finish(option, *how, *size, *flags),
                };
                self.deliver(&bytes);
            }
            Action::ExportName {
                size,
                flags,
                zeroes,
            } => {
                self.transmit_all();
                self.deliver(&script::export_name(*size, *flags, (*zeroes).into()));
            }
            Action::Reply { option, reply } => {
                self.transmit_all();
                self.deliver(&reply.bytes(self.option(*option)));
            }
            Action::Mutated {
                option,
                reply,
                mutation,
            } => {
                self.transmit_all();
                let mut bytes = reply.bytes(self.option(*option));
                mutation.apply(&mut bytes);
                self.deliver(&bytes);
            }
        }
    }

    /// In most cases the last option.
    fn option(&self, byte: u8) -> OptionType {
        match byte {
            0xf0..=0xff => OptionType(byte.into()),
            0xe0..=0xef => OptionType((byte - 0xe0).into()),
            _ => self.last,
        }
    }

    fn transmit_all(&mut self) {
        while let (Machine::Connector(_), None) = (&self.machine, self.outcome.error) {
            let before = self.sent.len();
            self.transmit(9000);
            if self.sent.len() == before {
                break;
            }
        }
    }

    /// Writes what is due.
    fn transmit(&mut self, space: usize) {
        let Machine::Connector(_) = &self.machine else {
            return;
        };
        let before = self.snapshot();
        let mut buffer = vec![0; space];
        let mut sink = &mut buffer[..];
        let Machine::Connector(machine) = &mut self.machine else {
            return;
        };
        let result = machine.transmit(&mut sink);
        let left = sink.len();
        self.outcome.calls.push(format!("{result:?}"));
        buffer.truncate(space - left);
        self.record_call(result, &buffer, before);
        // Another event may be due.
        self.with_incoming(|incoming, client| {
            incoming.receive_all(client);
        });
    }

    /// A call that writes, or fails without an effect.
    fn call(
        &mut self,
        space: usize,
        call: impl FnOnce(&mut Handshake, &mut &mut [u8]) -> Result<usize, Misuse>,
    ) {
        let before = self.snapshot();
        let mut buffer = vec![0; space];
        let mut sink = &mut buffer[..];
        let Machine::Handshake(machine) = &mut self.machine else {
            return;
        };
        let result = call(machine, &mut sink);
        let left = sink.len();
        self.outcome.calls.push(format!("{result:?}"));
        buffer.truncate(space - left);
        self.record_call(result, &buffer, before);
    }

    fn record_call(
        &mut self,
        result: Result<usize, Misuse>,
        written: &[u8],
        before: Option<String>,
    ) {
        match result {
            Ok(n) => {
                assert_eq!(n, written.len());
                if n > 0 {
                    self.record_sent(written);
                }
            }
            Err(misuse) => {
                assert!(written.is_empty(), "a failed call wrote");
                self.check_unchanged(before, misuse);
            }
        }
    }

    /// Parses what was written.
    fn record_sent(&mut self, written: &[u8]) {
        assert!(!self.ready, "an option during transmission");
        let mut bytes = written;
        let sent = if self.sent.is_empty() {
            let flags = ClientFlags::decode(&mut bytes).expect("the client's flags");
            assert!(bytes.is_empty());
            self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
            self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
            let (fixed, no_zeroes) = (self.fixed, self.no_zeroes);
            Sent::ClientFlags { fixed, no_zeroes }
        } else {
            let header = OptionHeader::decode(&mut bytes).unwrap().unwrap();
            assert_eq!(header.length as usize, bytes.len());
            let form = option_data::is_well_formed(header.option.0.into(), bytes);
            assert!(form || self.is_arbitrary, "a malformed option");
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
        };
        self.sent.push((self.received.len(), sent));
    }

    fn tls_established(&mut self) {
        let before = self.snapshot();
        let result = match &mut self.machine {
            Machine::Handshake(machine) => machine.tls_established(),
            Machine::Connector(machine) => machine.tls_established(),
        };
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(()) => {
                assert!(!self.tls, "TLS twice");
                self.tls = true;
                self.sent.push((self.received.len(), Sent::Tls));
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
            Machine::Handshake(machine) => machine.end_of_input(),
            Machine::Connector(machine) => machine.end_of_input(),
        }
    }

    fn end(mut self) -> Self {
        if let Some(error) = self.outcome.error {
            self.check_failed(error);
        }
        let granted = self.ready && self.outcome.error.is_none();
        let Self { machine, .. } = self;
        let (negotiated, machine) = match machine {
            Machine::Handshake(machine) => match machine.into_negotiated() {
                Ok(negotiated) => (Some(negotiated), None),
                Err(machine) => (None, Some(Machine::Handshake(Box::new(machine)))),
            },
            Machine::Connector(machine) => match machine.into_negotiated() {
                Ok(negotiated) => (Some(negotiated), None),
                Err(machine) => (None, Some(Machine::Connector(Box::new(machine)))),
            },
        };
        assert_eq!(
            negotiated.is_some(),
            granted,
            "negotiated if and only if ready"
        );
        if let Some(negotiated) = &negotiated {
            assert!(negotiated.tls || !self.require_tls, "without TLS");
            let chunks = negotiated.framing != Framing::Simple;
            assert!(chunks || negotiated.contexts.is_empty());
        }
        self.outcome.negotiated = negotiated;
        self.machine = machine.unwrap_or_else(|| {
            let limits = nbd_codec::Limits::DEFAULT;
            Machine::Handshake(Box::new(Handshake::new(false, limits)))
        });
        self
    }

    /// After a fatal error, all calls fail and change nothing.
    fn check_failed(&mut self, error: Error) {
        let before = self.snapshot();
        let bytes = [0x4e; 64];
        let mut input = &bytes[..];
        let mut out = Vec::new();
        match &mut self.machine {
            Machine::Handshake(machine) => {
                assert_eq!(machine.receive(&mut input), Err(error));
                let failed = Misuse::Failed(error);
                let sent = machine.send(&OptionRequest::Abort, &mut out);
                assert_eq!(sent, Err(failed));
                assert_eq!(machine.tls_established(), Err(failed));
                assert_eq!(machine.need(), Need::Nothing);
            }
            Machine::Connector(machine) => {
                assert_eq!(machine.receive(&mut input), Err(error));
                assert_eq!(machine.tls_established(), Err(Misuse::Failed(error)));
                assert_eq!(machine.need(), Need::Nothing);
            }
        }
        assert_eq!(input.len(), bytes.len(), "consumed after a fatal error");
        assert!(out.is_empty());
        self.check_unchanged(before, error);
    }

    fn snapshot(&mut self) -> Option<String> {
        self.snapshots_left = self.snapshots_left.checked_sub(1)?;
        Some(self.state())
    }

    fn state(&self) -> String {
        match &self.machine {
            Machine::Handshake(machine) => format!("{machine:?}"),
            Machine::Connector(machine) => format!("{machine:?}"),
        }
    }

    fn check_unchanged(&self, before: Option<String>, why: impl Debug) {
        if let Some(before) = before {
            assert_eq!(self.state(), before, "changed by a failed call: {why:?}");
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.with_incoming(|incoming, client| incoming.deliver(client, bytes));
    }

    fn with_incoming(&mut self, incoming: impl FnOnce(&mut Incoming, &mut Self)) {
        let mut mine = std::mem::take(&mut self.incoming);
        incoming(&mut mine, self);
        self.outcome.error = self.outcome.error.or(mine.error);
        self.incoming = mine;
    }
}

impl Driver for Harness<'_> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        match &mut self.machine {
            Machine::Handshake(machine) => {
                let event = machine.receive(input)?;
                if let Some(event) = &event {
                    self.record(event);
                }
                Ok(event.is_some())
            }
            Machine::Connector(machine) => {
                let event = machine.receive(input)?;
                if let Some(event) = &event {
                    self.record_connector(event);
                }
                Ok(event.is_some())
            }
        }
    }

    fn need(&self) -> Need {
        match &self.machine {
            Machine::Handshake(machine) => machine.need(),
            Machine::Connector(machine) => machine.need(),
        }
    }

    fn check_need(&self, need: Need, buffered: usize) {
        match need {
            Need::Header(n) => assert!(n > buffered, "needs {n} bytes, has {buffered}"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            // Bytes after the handshake belong to transmission.
            Need::Nothing => assert!(buffered == 0 || self.over(), "unused bytes"),
        }
    }

    fn read_directly(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.ended
    }
}

impl Harness<'_> {
    fn over(&self) -> bool {
        // After a failed attempt, an oldstyle server has sent all of its
        // handshake too.
        self.ready || self.failed
    }
}
