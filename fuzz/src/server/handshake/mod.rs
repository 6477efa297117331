//! Runs a script against the server's `Handshake`, and checks invariants after
//! each action.

mod query;
pub mod script;

use std::fmt::Debug;

use nbd_codec::server::handshake::Event as HandshakeEvent;
use nbd_codec::server::{Export, Handshake, Offer, TlsMode};
use nbd_codec::wire::Sink;
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Error, Framing, Misuse, Need, Negotiated, Style, Width};

use self::query::PendingQuery;
use self::script::{Action, Script};
use crate::delivery::{Delivery, Driver, Incoming};
use crate::reference::options::{self, Decision};
use crate::script::name;

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
#[derive(Debug, PartialEq, Eq)]
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
    snapshots_left: usize,
    tls: bool,
    aborted: bool,
    ended: usize,
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
        if harness.outcome.error.is_some() {
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
            incoming: Incoming::new(delivery),
            snapshots_left: 16,
            tls: false,
            aborted: false,
            ended: 0,
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
        if script.writes_immediately {
            harness.transmit(9000);
            harness.receive_all();
        }
        Some(harness)
    }

    pub fn config(&self) -> Offer {
        self.script.config.config()
    }

    pub fn is_oldstyle(&self) -> bool {
        self.script.config.oldstyle()
    }

    fn machine(&mut self) -> &mut Handshake {
        self.machine.as_mut().expect("a state machine")
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::ClientFlags { flags } => {
                self.deliver(&(*flags as u32).to_be_bytes());
            }
            Action::Option { option } => self.deliver(&option.bytes()),
            Action::Mutated { option, mutation } => {
                let mut bytes = option.bytes();
                mutation.apply(&mut bytes);
                self.deliver(&bytes);
            }
            Action::Raw { bytes } => self.deliver(bytes),
            Action::Serve {} => self.serve(),
            Action::Grant { export, space } => self.grant(*export, *space),
            Action::List { export, space } => self.list(*export, *space),
            Action::Done { space } => {
                let decision = Some(Decision::Ended);
                self.call(*space, decision, |machine, _, sink| machine.done(sink));
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
                self.outcome.error = Some(Error::TlsFailed);
            }
            Action::End {} => self.end_of_input(),
        }
        self.receive_all();
    }

    /// Does what a server does after the last event.
    fn serve(&mut self) {
        self.transmit(9000);
        self.receive_all();
        let exports = self.script.exports.0.len().min(8) as u8;
        match self.query.as_ref().map(|query| query.event.clone()) {
            Some(Event::List) => {
                (0..exports).for_each(|export| self.list(export, 9000));
                let decision = Some(Decision::Ended);
                self.call(9000, decision, |machine, _, sink| machine.done(sink));
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
            harness.call(space, decision, |machine, query, sink| {
                query.with(|query| machine.grant(query, export, sink))
            });
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
            then(self, &setup.export(&contexts));
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
        let before = self.snapshot();
        let failed = self.outcome.error.is_some();
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
                if n > 0 {
                    self.check_need_after_call();
                }
            }
            Err(misuse) => {
                assert_eq!(written, 0, "a failed call wrote");
                self.check_unchanged(before, misuse);
            }
        }
    }

    /// A `receive` without input does not change what is needed.
    fn check_need_after_call(&mut self) {
        let need = self.need();
        if need == Need::Nothing || need == Need::Header(0) {
            return;
        }
        assert_eq!(self.machine().receive(&mut &[][..]), Ok(None));
        assert_eq!(self.need(), need, "after a call and a receive");
    }

    fn decide(&mut self, decision: Decision) {
        match decision {
            Decision::Transmitted => self.reply_starts.push(self.outcome.written.len()),
            _ => self.query = None,
        }
        self.decisions.push(decision);
    }

    fn tls_established(&mut self) {
        let before = self.snapshot();
        let result = self.machine().tls_established();
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(()) => {
                assert!(!self.tls, "TLS twice");
                assert_ne!(self.script.config.config().tls, TlsMode::None);
                self.tls = true;
                self.reply_starts.push(self.outcome.written.len());
                let at = self.received.len();
                self.decisions.push(Decision::Tls { at });
            }
            Err(misuse) => self.check_unchanged(before, misuse),
        }
    }

    fn end_of_input(&mut self) {
        let result = self.machine().end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        let again = self.machine().end_of_input();
        assert!(again.is_err(), "end_of_input succeeds twice");
        self.outcome.error = again.err();
    }

    fn end(&mut self) {
        if let Some(error) = self.outcome.error {
            self.check_failed(error);
        }
        let ready = self.outcome.events.last() == Some(&Event::Ready);
        let granted = ready && self.outcome.error.is_none();
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
        let config = self.script.config.config();
        assert_eq!(negotiated.tls, self.tls);
        assert!(negotiated.tls || config.tls != TlsMode::Forced || self.script.config.oldstyle());
        let contexts = negotiated.contexts;
        let chunks = negotiated.framing != Framing::Simple;
        assert!(chunks || contexts.is_empty());
        if self.script.config.oldstyle() {
            assert_eq!(negotiated.style, Style::Oldstyle);
        } else {
            assert!(negotiated.framing <= config.framing, "more than configured");
        }
    }

    /// After a fatal error, all calls fail and change nothing.
    fn check_failed(&mut self, error: Error) {
        let before = self.snapshot();
        let bytes = [0x49; 64];
        let mut input = &bytes[..];
        let machine = self.machine();
        assert_eq!(machine.receive(&mut input), Err(error));
        assert_eq!(input.len(), bytes.len(), "consumed after a fatal error");
        assert_eq!(machine.tls_established(), Err(Misuse::Failed(error)));
        assert_eq!(machine.end_of_input(), Err(error));
        assert_eq!(machine.need(), Need::Nothing);
        let mut out = Vec::new();
        assert_eq!(machine.transmit(&mut out), Ok(0));
        assert_eq!(machine.done(&mut out), Err(Misuse::Failed(error)));
        assert!(!machine.is_negotiating());
        assert!(out.is_empty());
        self.check_unchanged(before, error);
    }

    fn snapshot(&mut self) -> Option<String> {
        self.snapshots_left = self.snapshots_left.checked_sub(1)?;
        Some(format!("{:?}", self.machine))
    }

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
        self.with_incoming(|incoming, harness| incoming.deliver(harness, bytes));
    }

    fn receive_all(&mut self) {
        self.with_incoming(|incoming, harness| {
            incoming.receive_all(harness);
        });
    }

    fn with_incoming(&mut self, incoming: impl FnOnce(&mut Incoming, &mut Self)) {
        if self.outcome.error.is_some() {
            return;
        }
        let mut mine = std::mem::take(&mut self.incoming);
        incoming(&mut mine, self);
        self.outcome.error = self.outcome.error.or(mine.error);
        self.incoming = mine;
    }

    fn record(&mut self, event: &HandshakeEvent, consumed: &[u8]) {
        assert!(self.query.is_none(), "a query during a query");
        assert!(!self.aborted, "an event after the last");
        let events = match event {
            HandshakeEvent::List => Event::List,
            HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
                let events = query::event(query);
                let contexts = matches!(query.option().0, 9 | 10);
                assert_eq!(matches!(event, HandshakeEvent::MetaContexts(_)), contexts);
                events
            }
            HandshakeEvent::StartTls => Event::StartTls,
            HandshakeEvent::Aborted => {
                self.aborted = true;
                Event::Aborted
            }
            HandshakeEvent::Ready => {
                self.aborted = true;
                Event::Ready
            }
            _ => panic!("unknown event"),
        };
        if let Event::List | Event::Query { .. } = events {
            let plain = self.script.config.config().tls == TlsMode::Forced && !self.tls;
            assert!(!plain, "a query in plain text");
            self.query = Some(PendingQuery::new(events.clone(), consumed));
            self.reply_starts.push(self.outcome.written.len());
        }
        self.ended += 1;
        self.outcome.events.push(events);
    }
}

impl Driver for Harness {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let before = *input;
        let writes_immediately = self.script.writes_immediately;
        let event = self.machine().receive(input)?;
        if let Some(event) = &event {
            let consumed = &before[..before.len() - input.len()];
            self.record(event, consumed);
            return Ok(true);
        }
        // The state machine's own messages come before further events.
        let length = self.outcome.written.len();
        if writes_immediately {
            self.transmit(9000);
        }
        Ok(self.outcome.written.len() > length)
    }

    fn need(&self) -> Need {
        let machine = self.machine.as_ref().expect("a state machine");
        machine.need()
    }

    fn check_need(&self, need: Need, buffered: usize) {
        match need {
            Need::Header(n) => assert!(n > buffered, "needs {n} bytes, has {buffered}"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            // Waiting for `transmit` or for the caller, or finished.
            Need::Nothing => {
                let last = self.outcome.events.last();
                let tls = last == Some(&Event::StartTls);
                let waits = self.query.is_some() || self.aborted || tls;
                assert!(waits || !self.script.writes_immediately, "unused bytes");
            }
        }
    }

    fn read_directly(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
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
                    context.width == Width::Wide,
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
