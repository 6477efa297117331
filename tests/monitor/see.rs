//! What a monitor sees of a transcript.
//!
//! | line | meaning |
//! |---|---|
//! | `C: …`, `S: …` | the side sends this, in the notation of the server's tests |
//! | `C: end`, `S: end` | the side closes its direction |
//! | `tls` | TLS is established, and its content is offered |

use nbd_codec::monitor::{Monitor, Order, Side, Slot, Step};

use super::script;

/// What happens on the connection.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Bytes(Side, Vec<u8>),
    End(Side),
    Tls,
}

/// A monitor, and the bytes that it has not consumed.
pub(crate) struct Seer {
    pub(crate) monitor: Monitor<Vec<Slot>>,
    held: [Vec<u8>; 2],
    lines: Vec<String>,
    /// The bytes of the payload under way, of each side.
    payload: [usize; 2],
}

impl Seer {
    pub(crate) fn new(order: Order, slots: usize) -> Self {
        Self {
            monitor: Monitor::new(vec![Slot::EMPTY; slots]).order(order),
            held: [vec![], vec![]],
            lines: vec![],
            payload: [0; 2],
        }
    }

    pub(crate) fn offer(&mut self, side: Side, bytes: &[u8]) {
        self.held[side as usize].extend(bytes);
        // Each may wait for the other, also for its answer that more is needed.
        while self.drain(side) | self.drain(side.peer()) {}
    }

    pub(crate) fn end(&mut self, side: Side) {
        self.monitor.end_of_input(side);
        self.offer(side, &[]);
    }

    /// Takes steps of one side; whether there were any.
    fn drain(&mut self, side: Side) -> bool {
        let at = side as usize;
        let held = std::mem::take(&mut self.held[at]);
        let mut input = &held[..];
        let mut any = false;
        loop {
            let before = input.len();
            match self.monitor.receive(side, &mut input) {
                Step::Message(message) => {
                    self.lines.push(format!("{side}: {message}"));
                }
                Step::Payload { bytes, left } => {
                    self.payload[at] += bytes.len();
                    if left == 0 {
                        let n = std::mem::take(&mut self.payload[at]);
                        self.lines.push(format!("{side}: {n} bytes of payload"));
                    }
                }
                Step::Violation(finding) => {
                    self.lines.push(format!("! {finding}"));
                }
                Step::Opaque(_) => {}
                Step::Read(n) => {
                    assert!(n.get() <= 1 << 25 || before == 0, "{n} bytes are needed");
                    break;
                }
                Step::Wait => break,
                Step::Full => {
                    let slots = self.monitor.slots_mut();
                    let more = slots.len() * 2 + 1;
                    slots.resize(more, Slot::EMPTY);
                }
            }
            any = true;
        }
        self.held[at] = input.to_vec();
        any
    }
}

/// Runs events; `cut` is the length of each piece of bytes.
fn run(events: &[Event], order: Order, cut: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Vec<String> {
    let mut seer = Seer::new(order, 2);
    for event in events {
        match event {
            Event::Bytes(side, bytes) => {
                for piece in cut(bytes) {
                    seer.offer(*side, &piece);
                }
            }
            Event::End(side) => seer.end(*side),
            Event::Tls => seer.monitor.tls_established().expect("TLS"),
        }
    }
    if order == Order::Unknown {
        // The sides are seen independently of each other.
        seer.lines.sort_by_key(|line| line.starts_with('S'));
    }
    seer.lines
}

/// What is seen in every fragmentation.
pub(crate) fn see(events: &[Event], order: Order) -> Vec<String> {
    let whole = run(events, order, |bytes| vec![bytes.to_vec()]);
    let pieces = |n: usize| move |bytes: &[u8]| bytes.chunks(n).map(<[u8]>::to_vec).collect();
    for n in [1, 3, 7] {
        assert_eq!(run(events, order, pieces(n)), whole, "in pieces of {n}");
    }
    let longest = events.iter().map(|event| match event {
        Event::Bytes(_, bytes) => bytes.len(),
        _ => 0,
    });
    for at in 1..longest.max().unwrap_or(0).min(300) {
        let cut = |bytes: &[u8]| {
            let (a, b) = bytes.split_at(at.min(bytes.len()));
            vec![a.to_vec(), b.to_vec()]
        };
        assert_eq!(run(events, order, cut), whole, "cut at {at}");
    }
    whole
}

/// The lines of a text that are not empty.
pub(crate) fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).collect()
}

/// The events of a transcript.
pub(crate) fn parse(transcript: &str) -> Vec<Event> {
    let event = |line| match str::split_at(line, 2) {
        ("C:", text) => happens(Side::Client, text.trim()),
        ("S:", text) => happens(Side::Server, text.trim()),
        _ if line == "tls" => Event::Tls,
        _ => panic!("neither C, S nor tls: {line}"),
    };
    lines(transcript).into_iter().map(event).collect()
}

fn happens(side: Side, text: &str) -> Event {
    match text {
        "end" => Event::End(side),
        text => Event::Bytes(side, script::bytes(text)),
    }
}

/// The findings of a transcript, as `C O13`.
#[track_caller]
pub(crate) fn findings(transcript: &str) -> Vec<String> {
    let lines = see(&parse(transcript), Order::Seen);
    let findings = lines.iter().filter_map(|line| line.strip_prefix("! the "));
    findings
        .map(|line| {
            let side = line[..1].to_uppercase();
            let from = line.find('[').expect("a duty");
            let duty = line.rfind('[').map_or("", |at| &line[at + 1..]);
            let lost = if line.contains("cannot be read") {
                " lost"
            } else {
                ""
            };
            assert!(from > 0, "{line}");
            format!(
                "{side} {}{lost}",
                duty.split(']').next().unwrap_or_default()
            )
        })
        .collect()
}

/// A handshake of fixed newstyle to the end of its flags.
pub(crate) const FIXED: &str = "
    S: NBDMAGIC IHAVEOPT 0003
    C: 0000_0003
";

/// A session that agreed on simple framing: 1 MiB, and all that it may have.
pub(crate) fn simple() -> String {
    entered("", "0d7d")
}

/// As [`simple`], with structured replies and `base:allocation`, whose id is 7.
pub(crate) fn structured() -> String {
    let option = "C: IHAVEOPT STRUCTURED_REPLY 4{ }\nS: REPLY STRUCTURED_REPLY ACK 4{ }\n";
    entered(&format!("{option}{CONTEXT}"), "0dfd")
}

/// As [`structured`], with extended headers.
pub(crate) fn extended() -> String {
    let option = "C: IHAVEOPT EXTENDED_HEADERS 4{ }\nS: REPLY EXTENDED_HEADERS ACK 4{ }\n";
    entered(&format!("{option}{CONTEXT}"), "1dfd")
}

const CONTEXT: &str = "
    C: IHAVEOPT SET_META 4{ 4{ \"disk\" } 0000_0001 4{ \"base:allocation\" } }
    S: REPLY SET_META REP_META 4{ 0000_0007 \"base:allocation\" }
    S: REPLY SET_META ACK 4{ }
";

fn entered(options: &str, flags: &str) -> String {
    format!(
        "{FIXED}{options}
        C: IHAVEOPT GO 4{{ 4{{ \"disk\" }} 0001 0003 }}
        S: REPLY GO REP_INFO 4{{ 0000 0000_0000_0010_0000 {flags} }}
        S: REPLY GO REP_INFO 4{{ 0003 0000_0200 0000_1000 0200_0000 }}
        S: REPLY GO ACK 4{{ }}
        "
    )
}

/// A compact request: flags, command, cookie, offset and length.
pub(crate) fn request(command: &str, cookie: u64, offset: u64, length: u32) -> String {
    flagged("0000", command, cookie, offset, length)
}

pub(crate) fn flagged(flags: &str, command: &str, cookie: u64, offset: u64, length: u32) -> String {
    format!("C: REQUEST {flags} {command} {cookie:016x} {offset:016x} {length:08x}\n")
}

/// An extended request.
pub(crate) fn wide(flags: &str, command: &str, cookie: u64, offset: u64, length: u64) -> String {
    format!("C: EXTREQUEST {flags} {command} {cookie:016x} {offset:016x} {length:016x}\n")
}
