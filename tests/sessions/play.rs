//! Plays a recorded session to the client's state machines.

use nbd_codec::client::{
    Config, ConnectEvent, Connector, MetaContextQuery, Request, Slot, Transmission,
    TransmissionEvent, slot_index,
};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Content, Framing, Limits, Negotiated, Step};

/// How the server's bytes are given to the state machine.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cut {
    /// As they were received.
    Whole,
    /// This many at a time.
    Every(usize),
    /// In two at this position of the whole session.
    At(usize),
    /// As many as each step asks for, payloads read directly.
    Exact,
    /// As they were received, up to this position; then the connection is
    /// closed.
    End(usize),
}

pub(crate) struct Session {
    pub(crate) export: String,
    pub(crate) framing: Framing,
    pub(crate) contexts: Vec<String>,
    pub(crate) lines: Vec<Line>,
    pub(crate) events: Vec<String>,
}

pub(crate) enum Line {
    Sent(Vec<u8>),
    Received(Vec<u8>),
}

impl Session {
    pub(crate) fn parse(text: &str) -> Self {
        let mut session = Self {
            export: String::new(),
            framing: Framing::Extended,
            contexts: Vec::new(),
            lines: Vec::new(),
            events: Vec::new(),
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once(':').expect("a key and a colon");
            let value = value.trim();
            match key {
                "export" => session.export = value.into(),
                "framing" => {
                    session.framing = match value {
                        "simple" => Framing::Simple,
                        "structured" => Framing::Structured,
                        "extended" => Framing::Extended,
                        other => panic!("no framing: {other}"),
                    }
                }
                "contexts" => session.contexts = value.split_whitespace().map(Into::into).collect(),
                "C" => session.lines.push(Line::Sent(hex(value))),
                "S" => session.lines.push(Line::Received(hex(value))),
                "E" => session.events.push(value.into()),
                other => panic!("no such line: {other}"),
            }
        }
        session
    }

    /// How many bytes the server sent.
    pub(crate) fn received(&self) -> usize {
        let length = |line: &Line| match line {
            Line::Received(bytes) => bytes.len(),
            Line::Sent(_) => 0,
        };
        self.lines.iter().map(length).sum()
    }

    /// The events of the session.
    pub(crate) fn play(&self, cut: Cut) -> Vec<String> {
        let queries: Vec<_> = self
            .contexts
            .iter()
            .map(|name| MetaContextQuery::narrow(name))
            .collect();
        let config = Config::new(&self.export)
            .framing(self.framing)
            .contexts(&queries);
        let connector = Connector::new(config).expect("a configuration that was recorded");
        let mut player = Player {
            machine: Machine::Connect(Box::new(connector)),
            cut,
            held: Vec::new(),
            sent: Vec::new(),
            due: Vec::new(),
            offset: 0,
            limit: None,
            events: Vec::new(),
        };
        player.receive();
        for line in &self.lines {
            match line {
                Line::Sent(bytes) => player.sent(bytes),
                Line::Received(bytes) => {
                    if !player.received(bytes) {
                        break;
                    }
                }
            }
        }
        if let Cut::End(_) = cut {
            player.end();
        } else {
            assert!(player.sent.is_empty(), "the recorded client sent more");
            assert!(player.due.is_empty(), "the state machine sends more");
            assert!(player.held.is_empty(), "bytes were not consumed");
        }
        player.events
    }
}

enum Machine<'a> {
    Connect(Box<Connector<'a>>),
    Transmission(Box<Transmission<Vec<Slot>>>),
}

struct Player<'a> {
    machine: Machine<'a>,
    cut: Cut,
    /// Received and not consumed.
    held: Vec<u8>,
    /// Sent by the recorded client, not yet by the state machine.
    sent: Vec<u8>,
    /// Sent by the state machine, not yet by the recorded client.
    due: Vec<u8>,
    /// How many bytes of the session were received.
    offset: usize,
    /// What the last step asks for.
    limit: Option<Limit>,
    events: Vec<String>,
}

/// A step that asks for bytes.
#[derive(Clone, Copy)]
enum Limit {
    Read(usize),
    /// Payload of this command, to this offset, of this length.
    Payload(Cookie, u64, u64),
}

impl Player<'_> {
    fn sent(&mut self, bytes: &[u8]) {
        self.sent.extend_from_slice(bytes);
        self.compare();
        self.submit();
    }

    /// Both must have sent the same.
    fn compare(&mut self) {
        let n = self.sent.len().min(self.due.len());
        assert_eq!(
            self.sent[..n],
            self.due[..n],
            "the state machine sends other bytes"
        );
        self.sent.drain(..n);
        self.due.drain(..n);
    }

    /// Makes the commands that the recorded client sent.
    fn submit(&mut self) {
        let Machine::Transmission(session) = &mut self.machine else {
            return;
        };
        loop {
            let mut rest = &self.sent[..];
            let (request, payload, header) = match session.negotiated().framing {
                Framing::Extended => {
                    let Ok(Some(request)) = ExtendedRequest::decode(&mut rest) else {
                        return;
                    };
                    let payload = request.payload_length() as usize;
                    (wanted(request), payload, request.encode().to_vec())
                }
                _ => {
                    let Ok(Some(request)) = CompactRequest::decode(&mut rest) else {
                        return;
                    };
                    let payload = request.payload_length() as usize;
                    let wide = ExtendedRequest {
                        flags: request.flags,
                        command: request.command,
                        cookie: request.cookie,
                        offset: request.offset,
                        length: request.length.into(),
                    };
                    (wanted(wide), payload, request.encode().to_vec())
                }
            };
            if rest.len() < payload {
                return;
            }
            let made = match request.command {
                Command::DISC => session.disconnect(),
                _ => session.submit(request),
            };
            let made = made.expect("a command that was sent");
            assert_eq!(
                made.as_bytes(),
                header,
                "the state machine makes another command"
            );
            assert_eq!(made.payload_length() as usize, payload);
            self.sent.drain(..header.len() + payload);
        }
    }

    /// False if the connection is closed within these bytes.
    fn received(&mut self, bytes: &[u8]) -> bool {
        let (from, to) = (self.offset, self.offset + bytes.len());
        self.offset = to;
        match self.cut {
            Cut::Whole => self.take(bytes),
            Cut::Every(n) => bytes.chunks(n).for_each(|piece| self.take(piece)),
            Cut::At(at) if (from..to).contains(&at) => {
                let (a, b) = bytes.split_at(at - from);
                self.take(a);
                self.take(b);
            }
            Cut::At(_) => self.take(bytes),
            Cut::Exact => self.take_exactly(bytes),
            Cut::End(at) if (from..to).contains(&at) => {
                self.take(&bytes[..at - from]);
                return false;
            }
            Cut::End(_) => self.take(bytes),
        }
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        self.receive();
    }

    /// Reads what each step asks for, and not a byte more.
    fn take_exactly(&mut self, mut bytes: &[u8]) {
        self.receive();
        while !bytes.is_empty() {
            let limit = self.limit.expect("a step that asks for bytes");
            let n = match limit {
                Limit::Read(n) => n,
                Limit::Payload(_, _, length) => usize::try_from(length).unwrap(),
            };
            let (now, later) = bytes.split_at(n.min(bytes.len()));
            bytes = later;
            if let (Limit::Payload(cookie, offset, _), Machine::Transmission(session)) =
                (limit, &mut self.machine)
            {
                assert!(self.held.is_empty(), "payload was held back");
                session.advance(now.len() as u64).expect("its own payload");
                note_data(&mut self.events, cookie, offset, now);
            } else {
                self.held.extend_from_slice(now);
            }
            self.receive();
        }
    }

    /// Takes steps until one asks for bytes, or waits for a command.
    fn receive(&mut self) {
        let held = std::mem::take(&mut self.held);
        let mut input = &held[..];
        while self.step(&mut input) {}
        self.held = input.to_vec();
        self.submit();
    }

    /// Takes one step; false if it asks for bytes, or nothing follows.
    fn step(&mut self, input: &mut &[u8]) -> bool {
        self.limit = None;
        match &mut self.machine {
            Machine::Connect(connector) => {
                match connector.receive(input).expect("a recorded server") {
                    Step::Event(ConnectEvent::Ready) => {
                        self.events.push("ready".into());
                        let negotiated = *connector.agreed();
                        self.begin(negotiated);
                    }
                    Step::Event(event) => self.events.push(format!("{event:?}")),
                    Step::Transmit => {
                        let mut out = [0; 1024];
                        let n = connector.transmit(&mut &mut out[..]).expect("room");
                        assert!(n > 0, "nothing to transmit");
                        self.due.extend_from_slice(&out[..n]);
                        self.compare();
                    }
                    Step::Read(n) => {
                        self.limit = Some(Limit::Read(n.get()));
                        return false;
                    }
                    Step::Finished => return false,
                    other => panic!("{:?}", other.unexpected()),
                }
            }
            Machine::Transmission(session) => {
                match session.receive(input).expect("a recorded server") {
                    Step::Event(event) => note(&mut self.events, event),
                    Step::Content(content) => note_content(&mut self.events, content),
                    Step::Read(n) => {
                        self.limit = Some(Limit::Read(n.get()));
                        return false;
                    }
                    Step::ReadPayload {
                        cookie,
                        offset,
                        length,
                    } => {
                        self.limit = Some(Limit::Payload(cookie, offset, length));
                        return false;
                    }
                    Step::Finished => return false,
                    other => panic!("{:?}", other.unexpected()),
                }
            }
        }
        true
    }

    fn begin(&mut self, agreed: Negotiated) {
        let slots = vec![Slot::EMPTY; 64];
        let session = Transmission::new(agreed, slots, Limits::DEFAULT);
        self.events.push(format!(
            "agreed: {} {} size {} [{}] blocks {:?}",
            agreed.style,
            agreed.framing,
            agreed.size,
            agreed.flags,
            agreed
                .block_sizes
                .map(|sizes| (sizes.minimum, sizes.preferred, sizes.maximum)),
        ));
        self.machine = Machine::Transmission(Box::new(session));
    }

    fn end(&mut self) {
        let result = match &mut self.machine {
            Machine::Connect(connector) => connector.end_of_input(),
            Machine::Transmission(session) => session.end_of_input(),
        };
        self.events.push(format!("end: {result:?}"));
    }
}

/// A request as the recorded client submitted it.
pub(crate) fn wanted(request: ExtendedRequest) -> Request {
    Request {
        command: request.command,
        flags: request.flags - CommandFlags::PAYLOAD_LEN,
        offset: request.offset,
        length: request.length,
    }
}

pub(crate) fn note_content(events: &mut Vec<String>, content: Content<&[u8]>) {
    match content {
        Content::Data {
            cookie,
            offset,
            data,
        } => note_data(events, cookie, offset, data),
        Content::Hole {
            cookie,
            offset,
            length,
        } => events.push(format!("hole {} {length} at {offset}", name(cookie))),
    }
}

fn name(cookie: Cookie) -> String {
    format!("#{}", slot_index(cookie))
}

pub(crate) fn note(events: &mut Vec<String>, event: TransmissionEvent<'_>) {
    match event {
        TransmissionEvent::Extents32 {
            cookie,
            context,
            extents,
            ..
        } => events.extend(extents.map(|extent| {
            let (length, flags) = (extent.length, extent.flags);
            format!("narrow {} {context} {length} {flags:#x}", name(cookie))
        })),
        TransmissionEvent::Extents64 {
            cookie,
            context,
            extents,
            ..
        } => events.extend(extents.map(|extent| {
            let (length, flags) = (extent.length, extent.flags);
            format!("wide {} {context} {length} {flags:#x}", name(cookie))
        })),
        TransmissionEvent::Error {
            cookie,
            error,
            offset,
            message,
        } => events.push(format!(
            "error {} {error} at {offset:?} {message:?}",
            name(cookie)
        )),
        TransmissionEvent::Done { cookie, result } => events.push(match result {
            Ok(()) => format!("done {}", name(cookie)),
            Err(error) => format!("done {} {error}", name(cookie)),
        }),
        TransmissionEvent::Fault { cookie, error } => {
            events.push(format!("fault {} {error}", name(cookie)));
        }
        other => panic!("an event this test does not know: {other:?}"),
    }
}

/// Data, joined with the data before it: how much, where, and a checksum.
fn note_data(events: &mut Vec<String>, cookie: Cookie, offset: u64, data: &[u8]) {
    let slot = slot_index(cookie);
    let (mut start, mut length, mut sum) = (offset, 0u64, 0xcbf2_9ce4_8422_2325u64);
    if let Some(last) = events.last().and_then(|text| parse_data(text))
        && (last.0, last.1 + last.2) == (slot, offset)
    {
        (_, start, length, sum) = last;
        events.pop();
    }
    for byte in data {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    length += data.len() as u64;
    events.push(format!("data #{slot} at {start} of {length} {sum:016x}"));
}

fn parse_data(text: &str) -> Option<(usize, u64, u64, u64)> {
    let mut words = text.strip_prefix("data #")?.split(' ');
    let slot = words.next()?.parse().ok()?;
    let start = words.nth(1)?.parse().ok()?;
    let length = words.nth(1)?.parse().ok()?;
    let sum = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((slot, start, length, sum))
}

fn hex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex");
            u8::from_str_radix(pair, 16).expect("hex")
        })
        .collect()
}
