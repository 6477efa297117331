//! The transcript of a connection: a line for each message, for each payload and for
//! each rule that a side broke.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use anyhow::{Result, anyhow};
use clap::Args;
use nbd_codec::monitor::{Finding, Message, Monitor, Order, Side, Slot, Step};
use serde_json::{Map, Value, json};

use super::fields;

/// How a transcript is printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Style {
    /// Print the bytes of each message, too
    #[arg(long, conflicts_with = "json")]
    hex: bool,
    /// Print JSON, an object for each line
    #[arg(long)]
    json: bool,
    /// Print only what breaks a rule
    #[arg(long)]
    quiet: bool,
}

/// Whether standard output takes colours.
pub fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && std::io::stdout().is_terminal()
}

const CYAN: &str = "\x1b[36m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[1;31m";
const RESET: &str = "\x1b[0m";

/// Fewer requests are in flight on most connections.
const SLOTS: usize = 64;

/// Most bytes of one side that are held because it waits for the other.
const MOST_HELD: usize = 1 << 26;

/// The bytes of a payload that are printed.
const FIRST: usize = 16;

pub struct Transcript {
    monitor: Monitor<Vec<Slot>>,
    style: Style,
    colours: bool,
    /// The number of the connection, from 1.
    number: u64,
    client: Direction,
    server: Direction,
    /// How many rules were broken.
    broken: u64,
    /// Nothing more is followed.
    over: bool,
    /// What is to be printed.
    out: String,
}

#[derive(Default)]
struct Direction {
    /// What was not consumed.
    held: Vec<u8>,
    payload: Payload,
    /// Something was opaque.
    opaque: bool,
}

/// The payload under way.
#[derive(Default)]
struct Payload {
    length: u64,
    hash: u64,
    first: Vec<u8>,
    /// With `--hex`: bytes of a line that is not whole.
    line: Vec<u8>,
}

impl Transcript {
    pub fn new(number: u64, style: Style, colours: bool) -> Self {
        Self {
            monitor: Monitor::new(vec![Slot::EMPTY; SLOTS]).order(Order::Seen),
            style,
            colours,
            number,
            client: Direction::default(),
            server: Direction::default(),
            broken: 0,
            over: false,
            out: String::new(),
        }
    }

    /// Offers bytes of a side, in the order in which they were seen.
    pub fn offer(&mut self, side: Side, bytes: &[u8]) {
        if self.over {
            return;
        }
        self.direction(side).held.extend_from_slice(bytes);
        // Each side may wait for the other, also for its answer that more is needed.
        while self.drain(side) | self.drain(side.peer()) {}
        if self.direction(side).held.len() > MOST_HELD {
            self.give_up(side, "too far ahead of the other side");
        }
    }

    /// Reports that a side closed its direction.
    pub fn end(&mut self, side: Side) {
        if self.over {
            return;
        }
        self.monitor.end_of_input(side);
        while self.drain(side) | self.drain(side.peer()) {}
    }

    /// Ends the transcript, because of a side.
    pub fn give_up(&mut self, side: Side, reason: &str) {
        let text = format!("{reason}; the transcript ends here");
        if self.style.json {
            let mut fields = Map::new();
            fields.insert("type".into(), json!("end"));
            fields.insert("text".into(), json!(text));
            self.json(side, fields);
        } else {
            self.line(side, text);
        }
        self.over = true;
        (self.client.held, self.server.held) = (Vec::new(), Vec::new());
    }

    /// What is to be printed since the last call.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// How many rules were broken.
    pub fn broken(&self) -> u64 {
        self.broken
    }

    fn direction(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Takes steps of one side; whether there were any.
    fn drain(&mut self, side: Side) -> bool {
        let mut held = std::mem::take(&mut self.direction(side).held);
        let mut input = &held[..];
        let mut any = false;
        loop {
            let before = input;
            match self.monitor.receive(side, &mut input) {
                Step::Message(message) => {
                    let n = before.len().saturating_sub(input.len());
                    self.message(side, &message, before.get(..n).unwrap_or_default());
                }
                Step::Payload { bytes, left } => self.payload(side, bytes, left),
                Step::Violation(finding) => self.finding(&finding),
                Step::Opaque(_) => self.opaque(side),
                Step::Full => {
                    let slots = self.monitor.slots_mut();
                    let more = slots.len().saturating_mul(2);
                    slots.resize(more, Slot::EMPTY);
                }
                Step::Read(_) | Step::Wait => break,
            }
            any = true;
        }
        let consumed = held.len().saturating_sub(input.len());
        held.drain(..consumed);
        self.direction(side).held = held;
        any
    }

    fn message(&mut self, side: Side, message: &Message<'_>, bytes: &[u8]) {
        if self.style.quiet {
            return;
        }
        if self.style.json {
            return self.json(side, fields::of(message));
        }
        self.line(side, message);
        if self.style.hex {
            for line in bytes.chunks(FIRST) {
                self.line(side, format_args!("  {}", hex(line)));
            }
        }
    }

    fn payload(&mut self, side: Side, bytes: &[u8], left: u64) {
        if self.style.quiet {
            return;
        }
        let dump = self.style.hex;
        let payload = &mut self.direction(side).payload;
        payload.add(bytes);
        let mut lines = Vec::new();
        if dump {
            payload.line.extend_from_slice(bytes);
            let whole = match left {
                0 => payload.line.len(),
                _ => payload.line.len() & !(FIRST.wrapping_sub(1)),
            };
            let rest = payload.line.split_off(whole);
            lines = std::mem::replace(&mut payload.line, rest);
        }
        for line in lines.chunks(FIRST) {
            self.line(side, format_args!("  {}", hex(line)));
        }
        if left > 0 {
            return;
        }
        let Payload {
            length,
            hash,
            first,
            ..
        } = std::mem::take(&mut self.direction(side).payload);
        let first = hex(&first);
        if self.style.json {
            let fields = [
                ("type", json!("payload")),
                ("length", json!(length)),
                ("hash", json!(format!("{hash:016x}"))),
                ("begins", json!(first)),
            ];
            return self.json(
                side,
                fields
                    .map(|(key, value)| (key.into(), value))
                    .into_iter()
                    .collect(),
            );
        }
        self.line(
            side,
            format_args!("  payload of {length} bytes, hash {hash:016x}, begins {first}"),
        );
    }

    fn finding(&mut self, finding: &Finding) {
        self.broken = self.broken.saturating_add(1);
        if self.style.json {
            let fields = [
                ("type", json!("violation")),
                ("duty", json!(finding.duty())),
                ("lost", json!(finding.lost)),
                ("text", json!(finding.fault.to_string())),
            ];
            let fields = fields.map(|(key, value)| (key.into(), value));
            return self.json(finding.side, fields.into_iter().collect());
        }
        self.print("!", RED, finding);
    }

    fn opaque(&mut self, side: Side) {
        let opaque = &mut self.direction(side).opaque;
        if !std::mem::replace(opaque, true) && !self.style.quiet {
            if self.style.json {
                self.json(
                    side,
                    [("type".into(), json!("opaque"))].into_iter().collect(),
                )
            } else {
                self.line(side, "bytes that cannot be read")
            }
        }
    }

    fn line(&mut self, side: Side, text: impl std::fmt::Display) {
        let colour = match side {
            Side::Client => CYAN,
            Side::Server => YELLOW,
        };
        let actor = match side {
            Side::Client => "C:",
            Side::Server => "S:",
        };
        self.print(actor, colour, text);
    }

    fn print(&mut self, actor: &str, colour: &str, text: impl std::fmt::Display) {
        let (colour, reset) = if self.colours {
            (colour, RESET)
        } else {
            ("", "")
        };
        let out = &mut self.out;
        // The first connection, often the only one, has no number.
        let written = match self.number {
            1 => Ok(()),
            number => write!(out, "{number} "),
        };
        let written = written.and_then(|()| writeln!(out, "{colour}{actor} {text}{reset}"));
        written.unwrap_or_default();
    }

    fn json(&mut self, side: Side, fields: Map<String, Value>) {
        let mut object = Map::new();
        object.insert("connection".into(), json!(self.number));
        object.insert("side".into(), json!(side.to_string()));
        object.extend(fields);
        writeln!(self.out, "{}", Value::Object(object)).unwrap_or_default();
    }
}

impl Payload {
    /// FNV-1a: enough to compare transcripts.
    fn add(&mut self, bytes: &[u8]) {
        if self.length == 0 {
            self.hash = 0xcbf2_9ce4_8422_2325;
        }
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let room = FIRST.saturating_sub(self.first.len());
        self.first.extend(bytes.iter().take(room));
        self.length = self.length.saturating_add(bytes.len() as u64);
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap_or_default();
    }
    text
}

/// The result of a program that has printed transcripts.
pub fn outcome(broken: u64) -> Result<()> {
    match broken {
        0 => Ok(()),
        1 => Err(anyhow!("a rule of the protocol was broken")),
        n => Err(anyhow!("rules of the protocol were broken {n} times")),
    }
}
