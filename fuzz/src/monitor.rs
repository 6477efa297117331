//! A monitor between the two sides, and what it must agree with.

use nbd_codec::monitor::{ChunkContent, Fault, Finding, Message, Monitor, Order, Side, Slot, Step};
use nbd_codec::{Error, Negotiated};

use crate::client::transmission::Harness;
use crate::script::Setup;

/// What a tap sees: pieces in their order.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    pub pieces: Vec<(Side, Vec<u8>)>,
    /// More was sent, which is not known.
    pub truncated: bool,
}

impl Traffic {
    pub fn push(&mut self, side: Side, bytes: &[u8]) {
        if !self.truncated && !bytes.is_empty() {
            self.pieces.push((side, bytes.to_vec()));
        }
    }
}

/// A monitor, and the bytes that it has not consumed.
pub struct Watcher {
    pub monitor: Monitor<Vec<Slot>>,
    held: [Vec<u8>; 2],
    /// Messages, payload in one piece, and findings.
    seen: Vec<String>,
    payload: [Vec<u8>; 2],
    pub findings: Vec<Finding>,
    /// An error chunk was too long to be told.
    pub opaque_error: bool,
}

impl Watcher {
    pub fn new(monitor: Monitor<Vec<Slot>>) -> Self {
        Self {
            monitor,
            held: Default::default(),
            seen: Vec::new(),
            payload: Default::default(),
            findings: Vec::new(),
            opaque_error: false,
        }
    }

    /// Before the greeting, with few slots.
    pub fn start() -> Self {
        Self::new(Monitor::new(vec![Slot::EMPTY; 2]))
    }

    pub fn offer(&mut self, side: Side, bytes: &[u8]) {
        self.held[side as usize].extend(bytes);
        // Each may wait for the other, also for its answer that more is needed.
        while self.drain(side) | self.drain(side.peer()) {}
    }

    pub fn end(&mut self, side: Side) {
        self.monitor.end_of_input(side);
        self.offer(side, &[]);
    }

    /// Takes steps of one side; whether there were any.
    fn drain(&mut self, side: Side) -> bool {
        let at = side as usize;
        let held = std::mem::take(&mut self.held[at]);
        let mut input = &held[..];
        let mut steps = 0;
        loop {
            let before = input.len();
            match self.monitor.receive(side, &mut input) {
                Step::Message(message) => {
                    if let Message::Chunk { chunk, content, .. } = &message {
                        let opaque = *content == ChunkContent::Opaque;
                        self.opaque_error |= chunk.is_error() && opaque;
                    }
                    assert!(input.len() < before, "a message without bytes");
                    self.seen.push(format!("{side} {message:?} {message}"));
                }
                Step::Payload { bytes, left } => {
                    assert_eq!(before - input.len(), bytes.len());
                    self.payload[at].extend(bytes);
                    if left == 0 {
                        let payload = std::mem::take(&mut self.payload[at]);
                        self.seen.push(format!("{side} {payload:?}"));
                    }
                }
                Step::Violation(finding) => {
                    assert!(!finding.duty().is_empty());
                    self.seen.push(finding.to_string());
                    self.findings.push(finding);
                }
                Step::Opaque(_) => assert!(input.is_empty(), "all of it is opaque"),
                Step::Full => {
                    assert_eq!(before, input.len(), "consumed although full");
                    let slots = self.monitor.slots_mut();
                    let more = slots.len() + 1;
                    slots.resize(more, Slot::EMPTY);
                }
                Step::Read(_) | Step::Wait => {
                    assert_eq!(before, input.len(), "consumed although it waits");
                    break;
                }
            }
            steps += 1;
            assert!(
                steps <= 8 * held.len() + 32,
                "steps are bounded by the input"
            );
        }
        self.held[at] = input.to_vec();
        steps > 0
    }

    /// Findings of a side that the state machine of the other role makes as well:
    /// it does not read texts, and ignores flags that it does not know.
    fn rejected_by_peer(&self, side: Side) -> impl Iterator<Item = Fault> {
        let findings = self
            .findings
            .iter()
            .filter(move |finding| finding.side == side);
        let faults = findings.map(|finding| finding.fault);
        faults.filter(|fault| !matches!(fault, Fault::Text(_) | Fault::ReplyFlags(_)))
    }
}

/// Runs traffic in pieces of this size at most; returns the watcher and what it saw.
fn watch(traffic: &Traffic, start: &dyn Fn() -> Watcher, size: usize) -> Watcher {
    let mut watcher = start();
    for (side, bytes) in &traffic.pieces {
        for piece in bytes.chunks(size) {
            watcher.offer(*side, piece);
        }
    }
    watcher
}

/// Every fragmentation is seen in the same way.
fn check_fragments(traffic: &Traffic, start: &dyn Fn() -> Watcher) -> Watcher {
    let whole = watch(traffic, start, usize::MAX);
    for size in [1, 5, 31] {
        let pieces = watch(traffic, start, size);
        assert_eq!(pieces.seen, whole.seen, "in pieces of {size}");
    }
    whole
}

/// Any bytes of both sides, from the greeting on. A byte says who sends how many.
pub fn check_any(mut bytes: &[u8]) {
    let mut traffic = Traffic::default();
    while let [first, rest @ ..] = bytes {
        let side = match first & 1 {
            0 => Side::Server,
            _ => Side::Client,
        };
        let n = rest.len().min(usize::from(first >> 1));
        let (piece, rest) = rest.split_at(n);
        traffic.push(side, piece);
        bytes = rest;
    }
    check_fragments(&traffic, &Watcher::start);
    // What depends on an order that is not known is not checked.
    let unordered = || Watcher::new(Monitor::new(vec![Slot::EMPTY; 2]).order(Order::Unknown));
    let mut seen = watch(&traffic, &unordered, usize::MAX);
    assert!(
        !seen
            .findings
            .iter()
            .any(|finding| finding.fault == Fault::Early)
    );
    seen.end(Side::Server);
    seen.end(Side::Client);
}

/// The monitor finds a fault of the server if and only if a strict client does, and
/// the same one.
pub fn check_client(setup: &Setup, client: &Harness) {
    let negotiated: Negotiated = setup.negotiated();
    let limits = setup.limits.limits();
    let start = || {
        let slots = vec![Slot::EMPTY; 1];
        Watcher::new(Monitor::after_handshake(negotiated, slots).limits(limits))
    };
    let watcher = check_fragments(&client.traffic, &start);
    if client.traffic.truncated {
        return;
    }
    let faults: Vec<_> = watcher.rejected_by_peer(Side::Client).collect();
    if !faults.is_empty() {
        assert!(setup.lenient, "the client: {faults:?}");
        // What a request means that must not be sent is not the same for both.
        return;
    }
    let first = watcher.rejected_by_peer(Side::Server).next();
    match (client.outcome.error, first) {
        (Some(Error::Violation(violation)), Some(Fault::Violation(found))) => {
            assert_eq!(violation, found);
        }
        (Some(Error::Decode(error)), Some(Fault::Chunk(_, found) | Fault::Magic(found))) => {
            assert_eq!(error, found);
        }
        (Some(Error::Closed) | None, None) => {}
        // The monitor tells a message whole; the client rejects it at its first wrong field.
        (Some(_), None) if !watcher.held[Side::Server as usize].is_empty() => {}
        // Its offset is not told.
        (Some(Error::Violation(_)), _) if watcher.opaque_error => {}
        (client, monitor) => panic!("the client: {client:?}, the monitor: {monitor:?}"),
    }
}
