//! Runs a script against the server's `Handshake`, and checks invariants after
//! each action.

mod query;
pub mod script;

use nbd_codec::server::{Export, Handshake, HandshakeEvent, TlsMode};
use nbd_codec::wire::Sink;
use nbd_codec::wire::number::{Cookie, OptionReplyType};
use nbd_codec::{Error, Framing, HandshakeStyle, Misuse, Negotiated, StatusWidth, Step};

use self::query::PendingQuery;
use self::script::{Action, ConfigSetup, Script};
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};
use crate::reference::options::{self, Decision};
use crate::script::name;
use crate::snapshot::{Snapshots, check_unchanged};

/// An event, in plain numbers and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    List,
    Query {
        option: u64,
        export: Vec<u8>,
        requests: Vec<u64>,
        queries: Vec<Vec<u8>>,
    },
    StartTls,
    Aborted,
    Ready,
}

/// The result of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Event>,
    pub calls: Vec<String>,
    /// All bytes written.
    pub written: Vec<u8>,
    pub error: Option<Error>,
    pub negotiated: Option<Negotiated>,
}

/// The state machine, and the state that its invariants are checked against.
pub struct Harness {
    script: Script,
    machine: Option<Handshake>,
    incoming: Incoming,
    snapshots: Snapshots,
    starting_tls: bool,
    tls: bool,
    finished: bool,
    /// The export that `Ready` must name.
    granted: Option<usize>,
    ended: usize,
    /// How the session ended.
    end: Option<Result<(), Error>>,
    query: Option<PendingQuery>,
    /// All bytes of the client, and the caller's decisions between them.
    pub received: Vec<u8>,
    pub decisions: Vec<Decision>,
    /// The number of bytes written before the reply to each option, and before
    /// TLS.
    pub reply_starts: Vec<usize>,
    pub outcome: Outcome,
}

/// Runs a script to its end. `None` if the configuration is rejected.
pub fn run(script: &Script, delivery: &Delivery) -> Option<Harness> {
    let mut harness = Harness::new(script, delivery)?;
    for action in &script.actions.0 {
        harness.action(action);
        if harness.end.is_some() {
            break;
        }
    }
    harness.end();
    Some(harness)
}

impl Harness {
    fn new(script: &Script, delivery: &Delivery) -> Option<Self> {
        let machine = if script.config.oldstyle() {
            let setup = script.exports.0.first()?;
            let contexts = setup.contexts();
            Handshake::oldstyle(&setup.export(&contexts)).ok()?
        } else {
            Handshake::new(script.config.config()).ok()?
        };
        let mut harness = Self {
            script: script.clone(),
            machine: Some(machine),
            incoming: Incoming::new(delivery, script.config.limits.limits().buffer()),
            snapshots: Snapshots::default(),
            starting_tls: false,
            tls: false,
            finished: false,
            granted: None,
            ended: 0,
            end: None,
            query: None,
            received: Vec::new(),
            decisions: Vec::new(),
            reply_starts: Vec::new(),
            outcome: Outcome {
                events: Vec::new(),
                calls: Vec::new(),
                written: Vec::new(),
                error: None,
                negotiated: None,
            },
        };
        if script.config.oldstyle() {
            harness.granted = Some(0);
        }
        harness.resume();
        Some(harness)
    }

    pub fn config(&self) -> &ConfigSetup {
        &self.script.config
    }

    fn machine(&mut self) -> &mut Handshake {
        self.machine.as_mut().expect("a state machine")
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::ClientFlags { flags } => {
                self.receive(&(*flags as u32).to_be_bytes());
            }
            Action::Option { option } => self.receive(&option.bytes()),
            Action::Mutated { option, mutation } => {
                let mut bytes = option.bytes();
                mutation.apply(&mut bytes);
                self.receive(&bytes);
            }
            Action::Raw { bytes } => self.receive(bytes),
            Action::Serve {} => self.serve(),
            Action::Grant { export, space } => self.grant(*export, *space),
            Action::List { export, space } => self.list(*export, *space),
            Action::Done { space } => {
                let decision = Some(Decision::Ended);
                self.call(*space, decision, |machine, _, sink| {
                    machine.finish_list(sink)
                });
            }
            Action::Refuse {
                error,
                message,
                space,
            } => {
                let error = error_type(*error);
                self.refuse(error, name(*message), *space);
            }
            Action::Transmit { space } => self.transmit(*space),
            Action::ShutDown {} => {
                self.machine().shut_down();
                let at = self.received.len() - self.incoming.buffered();
                self.decisions.push(Decision::ShutDown { at });
            }
            Action::TlsEstablished {} => self.tls_established(),
            Action::TlsFailed {} => {
                self.machine().tls_failed();
                self.end = Some(Err(Error::TlsFailed));
            }
            Action::End {} => self.end_of_input(),
        }
        self.resume();
    }

    /// Does what a server does after the last event.
    fn serve(&mut self) {
        self.transmit(9000);
        self.resume();
        let exports = self.script.exports.0.len().min(8) as u8;
        match self.query.as_ref().map(|query| query.event.clone()) {
            Some(Event::List) => {
                (0..exports).for_each(|export| self.list(export, 9000));
                let decision = Some(Decision::Ended);
                self.call(9000, decision, |machine, _, sink| machine.finish_list(sink));
            }
            Some(Event::Query { export, .. }) => {
                let named = |at: &u8| self.named(*at).as_bytes() == export;
                match (0..exports).find(named) {
                    Some(at) => self.grant(at, u64::from(u16::MAX)),
                    None => self.refuse(OptionReplyType::ERR_UNKNOWN, "no such export", 9000),
                }
            }
            _ if self.outcome.events.last() == Some(&Event::StartTls) && !self.tls => {
                self.tls_established();
            }
            _ => {}
        }
    }

    fn named(&self, export: u8) -> &'static str {
        let setup = self.script.exports.0.get(usize::from(export));
        setup.map_or("", |setup| name(setup.name))
    }

    fn grant(&mut self, export: u8, space: u64) {
        self.with_export(export, |harness, export| {
            let decision = Some(Decision::Granted(reference_export(export)));
            let mut starts_transmission = false;
            harness.call(space, decision, |machine, query, sink| {
                let granted = query.with(|query| machine.grant(query, export, sink))?;
                starts_transmission = granted.starts_transmission;
                Ok(granted.written)
            });
            if starts_transmission {
                harness.granted = Some(export.id);
            }
        });
    }

    fn list(&mut self, export: u8, space: u64) {
        self.with_export(export, |harness, export| {
            harness.call(space, None, |machine, _, sink| machine.list(export, sink));
        });
    }

    fn refuse(&mut self, error: OptionReplyType, message: &str, space: u64) {
        let number = error.0.into();
        let decision = Some(Decision::Refused { error: number });
        self.call(space, decision, |machine, _, sink| {
            machine.refuse(error, message, sink)
        });
    }

    fn with_export(&mut self, export: u8, then: impl FnOnce(&mut Self, &Export)) {
        let setup = self.script.exports.0.get(usize::from(export)).cloned();
        if let Some(setup) = setup {
            let contexts = setup.contexts();
            let mut description = setup.export(&contexts);
            description.id = export.into();
            then(self, &description);
        }
    }

    fn transmit(&mut self, space: u64) {
        let decision = Some(Decision::Transmitted);
        self.call(space, decision, |machine, _, sink| machine.transmit(sink));
    }

    /// A call that writes, or fails without an effect.
    fn call(
        &mut self,
        space: u64,
        decision: Option<Decision>,
        call: impl FnOnce(&mut Handshake, &PendingQuery, &mut dyn Sink) -> Result<usize, Misuse>,
    ) {
        let before = self.snapshots.take(&self.machine);
        let failed = matches!(self.end, Some(Err(_)));
        let Some(machine) = &mut self.machine else {
            return;
        };
        let nothing = PendingQuery::none();
        let query = self.query.as_ref().unwrap_or(&nothing);
        let mut buffer = vec![0; space.min(70_000) as usize];
        let space = buffer.len();
        let mut sink = &mut buffer[..];
        let result = call(machine, query, &mut sink);
        let written = space - sink.len();
        buffer.truncate(written);
        // How often `transmit` has nothing to write depends on the delivery.
        if (&result, &decision) != (&Ok(0), &Some(Decision::Transmitted)) {
            self.outcome.calls.push(format!("{result:?}"));
        }
        match result {
            Ok(n) => {
                assert_eq!(n, written);
                assert!(!failed || n == 0, "written after a fatal error");
                if let Some(decision) = decision.filter(|decision| match decision {
                    Decision::Transmitted => n > 0,
                    _ => true,
                }) {
                    self.decide(decision);
                }
                self.outcome.written.extend(&buffer);
            }
            Err(misuse) => {
                assert_eq!(written, 0, "a failed call wrote");
                check_unchanged(before, &self.machine, misuse);
            }
        }
    }

    fn decide(&mut self, decision: Decision) {
        match decision {
            Decision::Transmitted => self.reply_starts.push(self.outcome.written.len()),
            _ => self.query = None,
        }
        self.decisions.push(decision);
    }

    fn tls_established(&mut self) {
        let before = self.snapshots.take(&self.machine);
        let result = self.machine().tls_established();
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(()) => {
                assert!(!self.tls, "TLS twice");
                assert_ne!(self.script.config.tls(), TlsMode::None);
                self.tls = true;
                self.reply_starts.push(self.outcome.written.len());
                let at = self.received.len();
                self.decisions.push(Decision::Tls { at });
            }
            Err(misuse) => check_unchanged(before, &self.machine, misuse),
        }
    }

    fn end_of_input(&mut self) {
        let result = self.machine().end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        assert_eq!(self.machine().end_of_input(), result, "the end, again");
        self.end = Some(result);
    }

    fn end(&mut self) {
        if let Some(Err(error)) = self.end {
            self.outcome.error = Some(error);
            self.check_failed(error);
        }
        let ready = self.outcome.events.last() == Some(&Event::Ready);
        let granted = ready && self.end.is_none();
        let machine = self.machine.take().expect("a state machine");
        let negotiated = machine.into_negotiated().ok();
        assert_eq!(
            negotiated.is_some(),
            granted,
            "negotiated if and only if ready"
        );
        if let Some(negotiated) = &negotiated {
            self.check_negotiated(negotiated);
        }
        self.outcome.negotiated = negotiated;
    }

    fn check_negotiated(&self, negotiated: &Negotiated) {
        let config = &self.script.config;
        assert_eq!(negotiated.tls, self.tls);
        assert!(negotiated.tls || config.tls() != TlsMode::Forced || config.oldstyle());
        let contexts = negotiated.contexts;
        let chunks = negotiated.framing != Framing::Simple;
        assert!(chunks || contexts.is_empty());
        if config.oldstyle() {
            assert_eq!(negotiated.style, HandshakeStyle::Oldstyle);
        } else {
            assert!(
                negotiated.framing <= config.framing(),
                "more than configured"
            );
        }
    }

    /// After a fatal error, all calls fail and change nothing.
    fn check_failed(&mut self, error: Error) {
        let before = self.snapshots.take(&self.machine);
        let bytes = [0x49; 64];
        let mut input = &bytes[..];
        let machine = self.machine();
        assert_eq!(machine.receive(&mut input), Err(error));
        assert_eq!(input.len(), bytes.len(), "consumed after a fatal error");
        assert_eq!(machine.tls_established(), Err(Misuse::Failed(error)));
        assert_eq!(machine.end_of_input(), Err(error));
        let mut out = Vec::new();
        assert_eq!(machine.transmit(&mut out), Ok(0));
        assert_eq!(machine.finish_list(&mut out), Err(Misuse::Failed(error)));
        assert!(!machine.is_negotiating());
        assert!(out.is_empty());
        check_unchanged(before, &self.machine, error);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.deliver(bytes);
    }

    fn record(&mut self, event: &HandshakeEvent, consumed: &[u8]) {
        assert!(self.query.is_none(), "a query during a query");
        assert!(!self.finished, "an event after the last");
        let event = match event {
            HandshakeEvent::List => Event::List,
            HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
                let contexts = matches!(query.option().0, 9 | 10);
                assert_eq!(matches!(event, HandshakeEvent::MetaContexts(_)), contexts);
                query::event(query)
            }
            HandshakeEvent::Aborted => Event::Aborted,
            HandshakeEvent::Ready { export } => {
                assert_eq!(Some(*export), self.granted, "the export of Ready");
                Event::Ready
            }
            _ => panic!("unknown event"),
        };
        self.finished = matches!(event, Event::Aborted | Event::Ready);
        if let Event::List | Event::Query { .. } = event {
            let plain = self.script.config.tls() == TlsMode::Forced && !self.tls;
            assert!(!plain, "a query in plain text");
            self.query = Some(PendingQuery::new(event.clone(), consumed));
            self.reply_starts.push(self.outcome.written.len());
        }
        self.ended += 1;
        self.outcome.events.push(event);
    }
}

impl Driver for Harness {
    fn incoming(&mut self) -> &mut Incoming {
        &mut self.incoming
    }

    fn least_buffer(&self) -> usize {
        self.script.config.limits.limits().buffer()
    }

    fn step(&mut self, buffer: &Buffer) -> Result<Next, Error> {
        let before = buffer.held();
        let step = match buffer.receive(self.machine()) {
            Err(Error::Unanswered) => {
                assert!(self.query.is_some(), "no query is pending");
                return Ok(Next::Caller);
            }
            step => step?,
        };
        let consumed = &before[..before.len() - buffer.held().len()];
        match &step {
            Step::Event(event) => self.record(event, consumed),
            Step::Transmit if self.script.writes_immediately => self.transmit(9000),
            // Written by an action of the script.
            Step::Transmit => return Ok(Next::Caller),
            Step::StartTls if self.starting_tls => {}
            Step::StartTls => {
                let written = self.machine().transmit(&mut Vec::new());
                assert_eq!(written, Ok(0), "TLS before the acknowledgement");
                self.starting_tls = true;
                self.ended += 1;
                self.outcome.events.push(Event::StartTls);
            }
            Step::Finished => assert!(self.finished),
            Step::Read(_) => {}
            Step::Content(_) | Step::ReadPayload { .. } => panic!("payload in a handshake"),
        }
        Ok(Next::after(&step))
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

/// An export, for the reference parser.
fn reference_export(export: &Export) -> options::Export {
    let contexts = export.contexts.iter();
    options::Export {
        size: export.size,
        contexts: contexts
            .map(|context| {
                (
                    context.name.as_bytes().to_vec(),
                    context.width == StatusWidth::Wide,
                )
            })
            .collect(),
        requires_tls: export.requires_tls,
        requires_extended: export.requires_extended,
        requires_block_sizes: export.requires_block_sizes,
    }
}

/// Error replies, and replies that are not errors.
fn error_type(byte: u8) -> OptionReplyType {
    match byte {
        0..=0x7f => OptionReplyType(1 << 31 | u32::from(byte)),
        _ => OptionReplyType(u32::from(byte) & 0x7f),
    }
}
