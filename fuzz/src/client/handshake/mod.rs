//! Runs a script against the client's `Handshake` or `Connector`, and checks
//! invariants after each action.

mod events;
pub mod script;

use nbd_codec::client::{Config, Connector, Handshake, MetaContextQuery, TlsPolicy};
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::greeting::RESERVED_ZEROES;
use nbd_codec::wire::number::{Cookie, OptionType};
use nbd_codec::wire::option::{OptionHeader, OptionRequest};
use nbd_codec::wire::text::Text;
use nbd_codec::{Error, Framing, Limits, Misuse, Negotiated, Step};

use self::script::{Action, OptionScript, QuerySetup, Script};
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};
use crate::reference::option_data;
use crate::reference::option_replies::{Event, Sent};
use crate::script::{framing, name};
use crate::snapshot::{Snapshots, check_unchanged};

/// The result of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Event>,
    /// `Debug` output of the connector's events.
    pub connector_events: Vec<String>,
    pub calls: Vec<String>,
    pub error: Option<Error>,
    pub negotiated: Option<Negotiated>,
}

/// The state machine under test.
#[derive(Debug)]
enum Machine<'a> {
    Handshake(Box<Handshake>),
    Connector(Box<Connector<'a>>),
    /// Only after the end of the script, and during a step.
    Finished,
}

/// The state machine, and the state that its invariants are checked against.
pub struct Harness<'a> {
    machine: Machine<'a>,
    require_tls: bool,
    limits: Limits,
    incoming: Incoming,
    snapshots: Snapshots,
    fixed: bool,
    no_zeroes: bool,
    tls: bool,
    starting_tls: bool,
    aborted: bool,
    ready: bool,
    failed: bool,
    ended: usize,
    /// How the session ended.
    end: Option<Result<(), Error>>,
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
    let config = config(script, &[]);
    let machine = Machine::Handshake(Box::new(Handshake::new(&config)));
    Harness::new(machine, script, delivery).run(script)
}

/// Runs a script against `Connector`. `None` if its configuration is rejected.
pub fn run_connector<T>(
    script: &Script,
    delivery: &Delivery,
    then: impl FnOnce(Harness) -> T,
) -> Option<T> {
    let contexts = queries(&script.config.contexts.0);
    let config = config(script, &contexts);
    let machine = Machine::Connector(Box::new(Connector::new(config).ok()?));
    let client = Harness::new(machine, script, delivery).run(script);
    if let Some(negotiated) = &client.outcome.negotiated {
        let framing = framing(script.config.framing);
        assert!(negotiated.framing <= framing, "more than configured");
        assert!(!negotiated.tls || tls_policy(script.tls) != TlsPolicy::Never);
    }
    Some(then(client))
}

pub fn config<'a>(script: &Script, contexts: &'a [MetaContextQuery<'a>]) -> Config<'a> {
    Config::new(name(script.config.export))
        .contexts(contexts)
        .framing(framing(script.config.framing))
        .go(script.go)
        .strict(script.strict)
        .describe(script.config.describe)
        .limits(script.limits.limits())
        .tls(tls_policy(script.tls))
}

pub fn tls_policy(byte: u8) -> TlsPolicy {
    match byte % 3 {
        0 => TlsPolicy::Never,
        1 => TlsPolicy::Prefer,
        _ => TlsPolicy::Require,
    }
}

pub fn queries(setup: &[QuerySetup]) -> Vec<MetaContextQuery<'static>> {
    let query = |setup: &QuerySetup| match setup.width % 3 {
        0 => MetaContextQuery::narrow(name(setup.name)),
        1 => MetaContextQuery::wide(name(setup.name)),
        _ => MetaContextQuery::new(name(setup.name)),
    };
    setup.iter().map(query).collect()
}

impl<'a> Harness<'a> {
    fn new(machine: Machine<'a>, script: &Script, delivery: &Delivery) -> Self {
        let limits = script.limits.limits();
        Self {
            is_connector: matches!(machine, Machine::Connector(_)),
            machine,
            require_tls: tls_policy(script.tls) == TlsPolicy::Require,
            limits,
            incoming: Incoming::new(delivery, limits.buffer()),
            snapshots: Snapshots::default(),
            fixed: false,
            no_zeroes: false,
            tls: false,
            starting_tls: false,
            aborted: false,
            ready: false,
            failed: false,
            ended: 0,
            end: None,
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
            if self.end.is_some() {
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
                    machine.set_meta_contexts(export, &queries, sink)
                });
            }
            Action::TlsEstablished {} => self.tls_established(),
            Action::TlsFailed {} => {
                match &mut self.machine {
                    Machine::Handshake(machine) => machine.tls_failed(),
                    Machine::Connector(machine) => machine.tls_failed(),
                    Machine::Finished => {}
                }
                self.end = Some(Err(Error::TlsFailed));
            }
            Action::End {} => self.end_of_input(),
            Action::Raw { bytes } => self.receive(bytes),
            Action::Greeting { kind, flags, size } => {
                self.receive(&script::greeting(*kind, *flags, *size));
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
                self.receive(&bytes);
            }
            Action::ExportName {
                size,
                flags,
                zeroes,
            } => {
                self.transmit_all();
                self.receive(&script::export_name(*size, *flags, (*zeroes).into()));
            }
            Action::Reply { option, reply } => {
                self.transmit_all();
                self.receive(&reply.bytes(self.option(*option)));
            }
            Action::Mutated {
                option,
                reply,
                mutation,
            } => {
                self.transmit_all();
                let mut bytes = reply.bytes(self.option(*option));
                mutation.apply(&mut bytes);
                self.receive(&bytes);
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
        while let (Machine::Connector(_), None) = (&self.machine, self.end) {
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
        let before = self.snapshots.take(&self.machine);
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
        self.resume();
    }

    /// A call that writes, or fails without an effect.
    fn call(
        &mut self,
        space: usize,
        call: impl FnOnce(&mut Handshake, &mut &mut [u8]) -> Result<usize, Misuse>,
    ) {
        let before = self.snapshots.take(&self.machine);
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
                check_unchanged(before, &self.machine, misuse);
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
        let before = self.snapshots.take(&self.machine);
        let result = match &mut self.machine {
            Machine::Handshake(machine) => machine.tls_established(),
            Machine::Connector(machine) => machine.tls_established(),
            Machine::Finished => return,
        };
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(()) => {
                assert!(!self.tls, "TLS twice");
                self.tls = true;
                self.sent.push((self.received.len(), Sent::Tls));
            }
            Err(misuse) => check_unchanged(before, &self.machine, misuse),
        }
    }

    fn end_of_input(&mut self) {
        let result = self.finish_input();
        self.outcome.calls.push(format!("{result:?}"));
        assert_eq!(self.finish_input(), result, "the end, again");
        self.end = Some(result);
    }

    fn finish_input(&mut self) -> Result<(), Error> {
        match &mut self.machine {
            Machine::Handshake(machine) => machine.end_of_input(),
            Machine::Connector(machine) => machine.end_of_input(),
            Machine::Finished => Ok(()),
        }
    }

    fn end(mut self) -> Self {
        if let Some(Err(error)) = self.end {
            self.outcome.error = Some(error);
            self.check_failed(error);
        }
        let granted = self.ready && self.end.is_none();
        let machine = std::mem::replace(&mut self.machine, Machine::Finished);
        let negotiated = match machine {
            Machine::Handshake(machine) => machine.into_negotiated().ok(),
            Machine::Connector(machine) => machine.into_negotiated().ok(),
            Machine::Finished => None,
        };
        let is_negotiated = negotiated.is_some();
        assert_eq!(is_negotiated, granted, "negotiated if and only if ready");
        if let Some(negotiated) = &negotiated {
            assert!(negotiated.tls || !self.require_tls, "without TLS");
            let chunks = negotiated.framing != Framing::Simple;
            assert!(chunks || negotiated.contexts.is_empty());
        }
        self.outcome.negotiated = negotiated;
        self
    }

    /// After a fatal error, all calls fail and change nothing.
    fn check_failed(&mut self, error: Error) {
        let before = self.snapshots.take(&self.machine);
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
            }
            Machine::Connector(machine) => {
                assert_eq!(machine.receive(&mut input), Err(error));
                assert_eq!(machine.tls_established(), Err(Misuse::Failed(error)));
            }
            Machine::Finished => {}
        }
        assert_eq!(input.len(), bytes.len(), "consumed after a fatal error");
        assert!(out.is_empty());
        check_unchanged(before, &self.machine, error);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.deliver(bytes);
    }
}

impl Harness<'_> {
    fn record_step<E>(&mut self, step: Step<E, &[u8]>, record: impl FnOnce(&mut Self, &E)) -> Next {
        match &step {
            Step::Event(event) => record(self, event),
            Step::StartTls => self.record_start_tls(),
            // Written by an action of the script.
            Step::Transmit => return Next::Caller,
            // After a failed attempt, an oldstyle server has sent all of its
            // handshake too.
            Step::Finished => assert!(self.ready || self.failed || self.aborted),
            Step::Read(_) => {}
            Step::Content(_) | Step::ReadPayload { .. } => panic!("payload in a handshake"),
        }
        Next::after(&step)
    }
}

impl Driver for Harness<'_> {
    fn incoming(&mut self) -> &mut Incoming {
        &mut self.incoming
    }

    fn least_buffer(&self) -> usize {
        self.limits.buffer()
    }

    fn step(&mut self, buffer: &Buffer) -> Result<Next, Error> {
        // The state machine is not used during `record`.
        let mut machine = std::mem::replace(&mut self.machine, Machine::Finished);
        let next = match &mut machine {
            Machine::Handshake(machine) => {
                let step = buffer.receive(&mut **machine);
                step.map(|step| self.record_step(step, Self::record))
            }
            Machine::Connector(machine) => {
                let step = buffer.receive(&mut **machine);
                step.map(|step| self.record_step(step, Self::record_connector))
            }
            Machine::Finished => panic!("a step after the end"),
        };
        self.machine = machine;
        next
    }

    fn read_directly(&mut self, _: Cookie, _: u64, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn fail(&mut self, error: Error) {
        self.end.get_or_insert(Err(error));
    }

    fn ended(&self) -> usize {
        self.ended
    }
}
