//! Runs a script against the server's handshake machine, and checks on every
//! step what holds whatever happens.

mod question;
pub mod script;

use std::fmt::Debug;

use nbd_codec::server::handshake::Event;
use nbd_codec::server::{Export, Handshake, Offer, TlsMode};
use nbd_codec::wire::Sink;
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Error, Framing, Misuse, Need, Negotiated, Style, Width};

use self::question::Question;
use self::script::{Reception, ReceptionStep};
use crate::delivery::{Delivery, Feed, Machine};
use crate::reader::options::{self, Decision};
use crate::talk::name;

/// What the caller was asked, in plain numbers and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    List,
    Asked {
        option: u64,
        export: Vec<u8>,
        requests: Vec<u64>,
        queries: Vec<Vec<u8>>,
    },
    StartTls,
    Aborted,
    Ready,
}

/// How a handshake ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub told: Vec<Told>,
    pub calls: Vec<String>,
    /// Everything the server has said.
    pub written: Vec<u8>,
    pub error: Option<Error>,
    pub negotiated: Option<Negotiated>,
}

/// The machine, and what must be true of it.
pub struct Host {
    reception: Reception,
    machine: Option<Handshake>,
    feed: Feed,
    looks: usize,
    tls: bool,
    aborted: bool,
    heard: usize,
    question: Option<Question>,
    /// Everything the client has said, and what the caller did between.
    pub stream: Vec<u8>,
    pub decisions: Vec<Decision>,
    /// How much the server had said when it began to answer, for each option;
    /// and when TLS began.
    pub starts: Vec<usize>,
    pub outcome: Outcome,
}

/// Runs a script to its end. `None` for an offer that is refused.
pub fn run(reception: &Reception, delivery: &Delivery) -> Option<Host> {
    let mut host = Host::new(reception, delivery)?;
    for step in &reception.steps.0 {
        host.step(step);
        if host.outcome.error.is_some() {
            break;
        }
    }
    host.end();
    Some(host)
}

impl Host {
    fn new(reception: &Reception, delivery: &Delivery) -> Option<Self> {
        let machine = match reception.offer.oldstyle() {
            false => Handshake::new(reception.offer.offer()).ok()?,
            true => {
                let setup = reception.exports.0.first()?;
                let contexts = setup.contexts();
                Handshake::oldstyle(&setup.export(&contexts)).ok()?
            }
        };
        let mut host = Self {
            reception: reception.clone(),
            machine: Some(machine),
            feed: Feed::new(delivery),
            looks: 16,
            tls: false,
            aborted: false,
            heard: 0,
            question: None,
            stream: Vec::new(),
            decisions: Vec::new(),
            starts: Vec::new(),
            outcome: Outcome {
                told: Vec::new(),
                calls: Vec::new(),
                written: Vec::new(),
                error: None,
                negotiated: None,
            },
        };
        if reception.prompt {
            host.transmit(9000);
            host.pump();
        }
        Some(host)
    }

    pub fn offer(&self) -> Offer {
        self.reception.offer.offer()
    }

    pub fn is_oldstyle(&self) -> bool {
        self.reception.offer.oldstyle()
    }

    fn machine(&mut self) -> &mut Handshake {
        self.machine.as_mut().expect("a machine until the end")
    }

    fn step(&mut self, step: &ReceptionStep) {
        match step {
            ReceptionStep::ClientFlags { flags } => {
                self.deliver(&(*flags as u32).to_be_bytes());
            }
            ReceptionStep::Option { option } => self.deliver(&option.bytes()),
            ReceptionStep::Tweaked { option, tweak } => {
                let mut bytes = option.bytes();
                tweak.apply(&mut bytes);
                self.deliver(&bytes);
            }
            ReceptionStep::Raw { bytes } => self.deliver(bytes),
            ReceptionStep::Serve {} => self.serve(),
            ReceptionStep::Grant { export, room } => self.grant(*export, *room),
            ReceptionStep::List { export, room } => self.list(*export, *room),
            ReceptionStep::Done { room } => {
                let decision = Some(Decision::Ended);
                self.call(*room, decision, |machine, _, sink| machine.done(sink));
            }
            ReceptionStep::Refuse {
                error,
                message,
                room,
            } => {
                let error = error_type(*error);
                self.refuse(error, name(*message), *room);
            }
            ReceptionStep::Transmit { room } => self.transmit(*room),
            ReceptionStep::ShutDown {} => {
                self.machine().shut_down();
                let at = self.stream.len() - self.feed.held();
                self.decisions.push(Decision::ShutDown { at });
            }
            ReceptionStep::TlsEstablished {} => self.tls_established(),
            ReceptionStep::TlsFailed {} => {
                self.machine().tls_failed();
                self.outcome.error = Some(Error::TlsFailed);
            }
            ReceptionStep::End {} => self.end_of_input(),
        }
        self.pump();
    }

    /// What a server does with what it was told last.
    fn serve(&mut self) {
        self.transmit(9000);
        self.pump();
        let exports = self.reception.exports.0.len().min(8) as u8;
        match self.question.as_ref().map(|question| question.told.clone()) {
            Some(Told::List) => {
                (0..exports).for_each(|export| self.list(export, 9000));
                let decision = Some(Decision::Ended);
                self.call(9000, decision, |machine, _, sink| machine.done(sink));
            }
            Some(Told::Asked { export, .. }) => {
                let named = |at: &u8| self.named(*at).as_bytes() == export;
                match (0..exports).find(named) {
                    Some(at) => self.grant(at, u64::from(u16::MAX)),
                    None => self.refuse(OptionReplyType::ERR_UNKNOWN, "no such export", 9000),
                }
            }
            _ if self.outcome.told.last() == Some(&Told::StartTls) && !self.tls => {
                self.tls_established();
            }
            _ => {}
        }
    }

    fn named(&self, export: u8) -> &'static str {
        let setup = self.reception.exports.0.get(usize::from(export));
        setup.map_or("", |setup| name(setup.name))
    }

    fn grant(&mut self, export: u8, room: u64) {
        self.with_export(export, |host, export| {
            let decision = Some(Decision::Granted(in_numbers(export)));
            host.call(room, decision, |machine, question, sink| {
                question.with(|inquiry| machine.grant(inquiry, export, sink))
            });
        });
    }

    fn list(&mut self, export: u8, room: u64) {
        self.with_export(export, |host, export| {
            host.call(room, None, |machine, _, sink| machine.list(export, sink));
        });
    }

    fn refuse(&mut self, error: OptionReplyType, message: &str, room: u64) {
        let number = error.0.into();
        let decision = Some(Decision::Refused { error: number });
        self.call(room, decision, |machine, _, sink| {
            machine.refuse(error, message, sink)
        });
    }

    fn with_export(&mut self, export: u8, then: impl FnOnce(&mut Self, &Export)) {
        let setup = self.reception.exports.0.get(usize::from(export)).cloned();
        if let Some(setup) = setup {
            let contexts = setup.contexts();
            then(self, &setup.export(&contexts));
        }
    }

    fn transmit(&mut self, room: u64) {
        let decision = Some(Decision::Transmitted);
        self.call(room, decision, |machine, _, sink| machine.transmit(sink));
    }

    /// A call that writes, or is refused.
    fn call(
        &mut self,
        room: u64,
        decision: Option<Decision>,
        call: impl FnOnce(&mut Handshake, &Question, &mut dyn Sink) -> Result<usize, Misuse>,
    ) {
        let before = self.look();
        let failed = self.outcome.error.is_some();
        let Some(machine) = &mut self.machine else {
            return;
        };
        let nothing = Question::none();
        let question = self.question.as_ref().unwrap_or(&nothing);
        let mut buffer = vec![0; room.min(70_000) as usize];
        let space = buffer.len();
        let mut sink = &mut buffer[..];
        let result = call(machine, question, &mut sink);
        let written = space - sink.len();
        buffer.truncate(written);
        // How often there is nothing to say depends on the delivery.
        if (&result, &decision) != (&Ok(0), &Some(Decision::Transmitted)) {
            self.outcome.calls.push(format!("{result:?}"));
        }
        match result {
            Ok(n) => {
                assert_eq!(n, written);
                assert!(!failed || n == 0, "written behind the end");
                if let Some(decision) = decision.filter(|decision| match decision {
                    Decision::Transmitted => n > 0,
                    _ => true,
                }) {
                    self.decide(decision);
                }
                self.outcome.written.extend(&buffer);
                if n > 0 {
                    self.check_need_behind_call();
                }
            }
            Err(misuse) => {
                assert_eq!(written, 0, "written and refused");
                self.check_unchanged(before, misuse);
            }
        }
    }

    /// What is needed behind a call is what is needed when it was looked.
    fn check_need_behind_call(&mut self) {
        let need = self.need();
        if need == Need::Nothing || need == Need::Header(0) {
            return;
        }
        assert_eq!(self.machine().receive(&mut &[][..]), Ok(None));
        assert_eq!(self.need(), need, "behind a call, and a look");
    }

    fn decide(&mut self, decision: Decision) {
        match decision {
            Decision::Transmitted => self.starts.push(self.outcome.written.len()),
            _ => self.question = None,
        }
        self.decisions.push(decision);
    }

    fn tls_established(&mut self) {
        let before = self.look();
        let result = self.machine().tls_established();
        self.outcome.calls.push(format!("{result:?}"));
        match result {
            Ok(()) => {
                assert!(!self.tls, "TLS twice");
                assert_ne!(self.reception.offer.offer().tls, TlsMode::None);
                self.tls = true;
                self.starts.push(self.outcome.written.len());
                let at = self.stream.len();
                self.decisions.push(Decision::Tls { at });
            }
            Err(misuse) => self.check_unchanged(before, misuse),
        }
    }

    fn end_of_input(&mut self) {
        let result = self.machine().end_of_input();
        self.outcome.calls.push(format!("{result:?}"));
        let again = self.machine().end_of_input();
        assert!(again.is_err(), "the end, twice");
        self.outcome.error = again.err();
    }

    fn end(&mut self) {
        if let Some(error) = self.outcome.error {
            self.check_sticky(error);
        }
        let ready = self.outcome.told.last() == Some(&Told::Ready);
        let granted = ready && self.outcome.error.is_none();
        let machine = self.machine.take().expect("a machine until the end");
        let negotiated = machine.into_negotiated().ok();
        assert_eq!(negotiated.is_some(), granted, "ready, or not");
        if let Some(negotiated) = &negotiated {
            self.check_negotiated(negotiated);
        }
        self.outcome.negotiated = negotiated;
    }

    fn check_negotiated(&self, negotiated: &Negotiated) {
        let offer = self.reception.offer.offer();
        assert_eq!(negotiated.tls, self.tls);
        assert!(negotiated.tls || offer.tls != TlsMode::Forced || self.reception.offer.oldstyle());
        let contexts = negotiated.contexts;
        let chunks = negotiated.framing != Framing::Simple;
        assert!(chunks || contexts.is_empty());
        if self.reception.offer.oldstyle() {
            assert_eq!(negotiated.style, Style::Oldstyle);
        } else {
            assert!(negotiated.framing <= offer.framing, "more than was offered");
        }
    }

    /// A fatal error stays, and nothing moves any more.
    fn check_sticky(&mut self, error: Error) {
        let before = self.look();
        let bytes = [0x49; 64];
        let mut input = &bytes[..];
        let machine = self.machine();
        assert_eq!(machine.receive(&mut input), Err(error));
        assert_eq!(input.len(), bytes.len(), "consumed behind the end");
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

    fn look(&mut self) -> Option<String> {
        self.looks = self.looks.checked_sub(1)?;
        Some(format!("{:?}", self.machine))
    }

    fn check_unchanged(&self, before: Option<String>, why: impl Debug) {
        if let Some(before) = before {
            assert_eq!(format!("{:?}", self.machine), before, "in spite of {why:?}");
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.stream.extend(bytes);
        self.fed(|feed, host| feed.deliver(host, bytes));
    }

    fn pump(&mut self) {
        self.fed(|feed, host| {
            feed.pump(host);
        });
    }

    fn fed(&mut self, feed: impl FnOnce(&mut Feed, &mut Self)) {
        if self.outcome.error.is_some() {
            return;
        }
        let mut mine = std::mem::take(&mut self.feed);
        feed(&mut mine, self);
        self.outcome.error = self.outcome.error.or(mine.error);
        self.feed = mine;
    }

    fn note(&mut self, event: &Event, consumed: &[u8]) {
        assert!(self.question.is_none(), "a question while one waits");
        assert!(!self.aborted, "an event behind the last");
        let told = match event {
            Event::List => Told::List,
            Event::Export(inquiry) | Event::MetaContexts(inquiry) => {
                let told = question::told(inquiry);
                let contexts = matches!(inquiry.option().0, 9 | 10);
                assert_eq!(matches!(event, Event::MetaContexts(_)), contexts);
                told
            }
            Event::StartTls => Told::StartTls,
            Event::Aborted => {
                self.aborted = true;
                Told::Aborted
            }
            Event::Ready => {
                self.aborted = true;
                Told::Ready
            }
            _ => panic!("an event that this driver does not know"),
        };
        if let Told::List | Told::Asked { .. } = told {
            let plain = self.reception.offer.offer().tls == TlsMode::Forced && !self.tls;
            assert!(!plain, "asked in plain text");
            self.question = Some(Question::new(told.clone(), consumed));
            self.starts.push(self.outcome.written.len());
        }
        self.heard += 1;
        self.outcome.told.push(told);
    }
}

impl Machine for Host {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let before = *input;
        let prompt = self.reception.prompt;
        let event = self.machine().receive(input)?;
        if let Some(event) = &event {
            let consumed = &before[..before.len() - input.len()];
            self.note(event, consumed);
            return Ok(true);
        }
        // What the machine has to say comes before what it hears.
        let length = self.outcome.written.len();
        if prompt {
            self.transmit(9000);
        }
        Ok(self.outcome.written.len() > length)
    }

    fn need(&self) -> Need {
        let machine = self.machine.as_ref().expect("a machine until the end");
        machine.need()
    }

    fn check_need(&self, need: Need, held: usize) {
        match need {
            Need::Header(n) => assert!(n > held, "{n} bytes needed, {held} are there"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            // Something is to be said, or answered, or it is over.
            Need::Nothing => {
                let last = self.outcome.told.last();
                let tls = last == Some(&Told::StartTls);
                let waits = self.question.is_some() || self.aborted || tls;
                assert!(waits || !self.reception.prompt, "bytes that nobody needs");
            }
        }
    }

    fn read_past(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.heard
    }
}

/// An export, as the reader knows it.
fn in_numbers(export: &Export) -> options::Export {
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

/// Errors in reply to an option, and what is none.
fn error_type(byte: u8) -> OptionReplyType {
    match byte {
        0..=0x7f => OptionReplyType(1 << 31 | u32::from(byte)),
        _ => OptionReplyType(u32::from(byte) & 0x7f),
    }
}
