//! The handshake of a pair: both sides as their drivers would have it.

use nbd_codec::client::connect::{self, Connect, Plan, TlsPolicy};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::server::handshake::Event;
use nbd_codec::server::{Export, Handshake, TlsMode};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Error, Framing, Limits, Need, Negotiated};

use super::script::{Meeting, Pair};
use crate::delivery::{Feed, Machine};
use crate::handshake::queries;
use crate::script::framing;
use crate::talk::name;

/// What the two agreed on, each in its own words.
pub(super) struct Met {
    pub(super) client: Negotiated,
    pub(super) server: Negotiated,
}

struct Caller<'a> {
    machine: Connect<'a>,
    out: Vec<u8>,
    /// It will not come to an agreement.
    failed: bool,
    ready: bool,
    /// TLS is to be started.
    tls: bool,
    heard: usize,
}

struct Listener<'a> {
    machine: Handshake,
    export: &'a Export<'a>,
    out: Vec<u8>,
    ready: bool,
    tls: bool,
    heard: usize,
}

/// Runs the handshake; `None` if it led to nothing.
pub(super) fn meet(pair: &Pair) -> Option<Met> {
    let meeting = &pair.meeting;
    let contexts = meeting.export.contexts();
    let export = meeting.export.export(&contexts);
    let wanted = wanted(meeting);
    let plan = plan(meeting, &wanted);
    let mut offer = meeting.offer.offer();
    offer.limits = Limits::DEFAULT;
    let server = match meeting.offer.oldstyle() {
        true => Handshake::oldstyle(&export).ok()?,
        false => Handshake::new(offer).ok()?,
    };
    let mut caller = Caller {
        machine: Connect::new(plan).ok()?,
        out: Vec::new(),
        failed: false,
        ready: false,
        tls: false,
        heard: 0,
    };
    let mut listener = Listener {
        machine: server,
        export: &export,
        out: Vec::new(),
        ready: false,
        tls: false,
        heard: 0,
    };
    let (mut up, mut down) = (Feed::new(&pair.up), Feed::new(&pair.down));
    let mut left = match meeting.cut {
        0 => u64::MAX,
        cut => cut,
    };
    listener.say();
    let whole = loop {
        let sent = pass(&mut listener.out, &mut down, &mut caller, &mut left);
        caller.say();
        let answered = pass(&mut caller.out, &mut up, &mut listener, &mut left);
        if caller.tls && listener.tls {
            assert!(caller.out.is_empty() && listener.out.is_empty());
            caller.tls = false;
            listener.tls = false;
            assert_eq!(caller.machine.tls_established(), Ok(()));
            assert_eq!(listener.machine.tls_established(), Ok(()));
            caller.say();
        }
        down.pump(&mut caller);
        up.pump(&mut listener);
        if left == 0 || up.error.is_some() || down.error.is_some() {
            break left > 0;
        }
        let quiet = caller.out.is_empty() && listener.out.is_empty();
        if !sent && !answered && quiet {
            break true;
        }
    };
    check_errors(down.error, up.error);
    if whole && possible(&plan, meeting, &export) {
        assert!(caller.ready && listener.ready, "they do not come together");
    }
    if !(caller.ready && listener.ready) {
        part(caller, listener, whole);
        return None;
    }
    assert_eq!((up.held(), down.held()), (0, 0), "bytes that nobody needs");
    let client = caller.machine.into_negotiated().expect("a client");
    let server = listener.machine.into_negotiated().expect("a server");
    compare(&client, &server);
    Some(Met { client, server })
}

/// The client knows which contexts are wide, or knows that it does not.
fn wanted(meeting: &Meeting) -> Vec<ContextQuery<'static>> {
    let mut setup = meeting.plan.contexts.0.clone();
    for query in &mut setup {
        if query.name == 3 && query.width % 3 == 0 {
            query.width = 2;
        }
    }
    queries(&setup)
}

fn plan<'a>(meeting: &Meeting, wanted: &'a [ContextQuery<'a>]) -> Plan<'a> {
    let mut plan = Plan::new(name(meeting.plan.export));
    plan.contexts = wanted;
    plan.framing = framing(meeting.plan.framing);
    plan.describe = meeting.plan.describe;
    plan.tls = match meeting.tls % 3 {
        0 => TlsPolicy::Never,
        1 => TlsPolicy::Prefer,
        _ => TlsPolicy::Require,
    };
    plan
}

/// Passes on what was said, as far as the link holds; true if anything was.
fn pass(out: &mut Vec<u8>, feed: &mut Feed, to: &mut impl Machine, left: &mut u64) -> bool {
    let n = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= n as u64;
    let bytes: Vec<u8> = out.drain(..n).collect();
    feed.deliver(to, &bytes);
    n > 0
}

/// Neither says anything that the other one must not hear; but an export that
/// is asked for by name alone is refused by closing.
fn check_errors(client: Option<Error>, server: Option<Error>) {
    let quiet = [None, Some(Error::TlsUnavailable)];
    assert!(quiet.contains(&client), "the client: {client:?}");
    let quiet = [None, Some(Error::ExportRefused), Some(Error::TlsRequired)];
    assert!(quiet.contains(&server), "the server: {server:?}");
}

/// Whether the two have to come to an agreement.
fn possible(plan: &Plan, meeting: &Meeting, export: &Export) -> bool {
    let offer = meeting.offer.offer();
    if meeting.offer.oldstyle() || !offer.fixed || plan.export != export.name {
        return false;
    }
    let tls = match (plan.tls, offer.tls) {
        (TlsPolicy::Never, TlsMode::Forced) | (TlsPolicy::Require, TlsMode::None) => return false,
        (TlsPolicy::Never, _) | (_, TlsMode::None) => false,
        _ => true,
    };
    let extended = plan.framing.min(offer.framing) == Framing::Extended;
    (tls || !export.requires_tls) && (extended || !export.requires_extended)
}

/// They part; each knows whether that was in order.
fn part(mut caller: Caller, mut listener: Listener, whole: bool) {
    let client = caller.machine.end_of_input();
    let _ = listener.machine.end_of_input();
    if caller.failed {
        assert_eq!(client, Ok(()), "the client gave up by itself");
    }
    if whole && !caller.failed && !caller.ready {
        assert!(client.is_err(), "the client waits for nothing");
    }
    let ready = caller.ready && client.is_ok();
    assert_eq!(caller.machine.into_negotiated().is_ok(), ready);
}

fn compare(client: &Negotiated, server: &Negotiated) {
    assert_eq!(client.framing, server.framing);
    assert_eq!(client.size, server.size);
    assert_eq!(client.flags, server.flags);
    assert_eq!(client.tls, server.tls);
    assert_eq!(client.style, server.style);
    let ids = |negotiated: &Negotiated| -> Vec<_> {
        negotiated
            .contexts
            .iter()
            .map(|context| context.id)
            .collect()
    };
    assert_eq!(ids(client), ids(server));
    if client.block_sizes.is_some() {
        assert_eq!(client.block_sizes, server.block_sizes);
    }
}

impl Caller<'_> {
    fn say(&mut self) {
        while self.machine.transmit(&mut self.out).expect("room") > 0 {}
    }
}

impl Listener<'_> {
    fn say(&mut self) {
        self.machine.transmit(&mut self.out).expect("room");
    }
}

impl Machine for Caller<'_> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let Some(event) = self.machine.receive(input)? else {
            let before = self.out.len();
            self.say();
            return Ok(self.out.len() > before);
        };
        match event {
            connect::Event::StartTls => self.tls = true,
            connect::Event::Ready => self.ready = true,
            connect::Event::Failed { .. } => self.failed = true,
            _ => {}
        }
        self.heard += 1;
        Ok(true)
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    fn check_need(&self, need: Need, held: usize) {
        match need {
            Need::Header(n) => assert!(n > held, "{n} bytes needed, {held} are there"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            Need::Nothing => assert!(held == 0, "bytes that nobody needs"),
        }
    }

    fn read_past(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.heard
    }
}

impl Machine for Listener<'_> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let Some(event) = self.machine.receive(input)? else {
            let before = self.out.len();
            self.say();
            return Ok(self.out.len() > before);
        };
        match event {
            Event::List => {
                self.machine
                    .list(self.export, &mut self.out)
                    .expect("an export");
                self.machine.done(&mut self.out).expect("the end of a list");
            }
            Event::Export(inquiry) | Event::MetaContexts(inquiry) => {
                let result = match inquiry.export() == self.export.name {
                    true => self.machine.grant(&inquiry, self.export, &mut self.out),
                    false => {
                        let unknown = OptionReplyType::ERR_UNKNOWN;
                        self.machine
                            .refuse(unknown, "no such export", &mut self.out)
                    }
                };
                result.expect("an answer");
            }
            Event::StartTls => self.tls = true,
            Event::Ready => self.ready = true,
            _ => {}
        }
        self.heard += 1;
        Ok(true)
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    fn check_need(&self, need: Need, held: usize) {
        match need {
            Need::Header(n) => assert!(n > held, "{n} bytes needed, {held} are there"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            Need::Nothing => assert!(held == 0, "bytes that nobody needs"),
        }
    }

    fn read_past(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.heard
    }
}
