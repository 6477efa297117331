//! The machines as transcripts drive them.

use nbd_codec::client::connect::{Connect, Plan};
use nbd_codec::client::handshake::Handshake;
use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::wire::Sink;
use nbd_codec::wire::flags::{ClientFlags, CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, OptionType};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Context, Error, Framing, Limits, Misuse, Need, Negotiated, Width};

use super::script::{self, Commands, NoCommands, number, words};
use super::seen::Seen;
use super::transcript::{Machine, play};

/// A sink that grows, with and without the crate's `alloc`.
#[derive(Debug, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Sink for Bytes {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
}

/// Limits that fit a receive buffer of 256 bytes.
pub(crate) fn small() -> Limits {
    let mut limits = Limits::default();
    limits.option_data = 236;
    limits.error_message = 210;
    limits
}

/// Limits that fit a receive buffer of 64 bytes.
pub(crate) fn tiny() -> Limits {
    let mut limits = Limits::default();
    limits.option_data = 44;
    limits.error_message = 18;
    limits
}

// ---------------------------------------------------------------- handshake

/// `C: flags 3`, `C: opt GO 4:32 "disk" 0:16`, `C: tls established`.
pub(crate) struct ByHand {
    pub(crate) handshake: Handshake,
    pub(crate) buffer: usize,
}

impl ByHand {
    pub(crate) fn new(require_tls: bool, limits: Limits) -> Self {
        Self {
            handshake: Handshake::new(require_tls, limits),
            buffer: 20 + usize::try_from(limits.option_data).unwrap(),
        }
    }
}

/// Plays a handshake by hand, without TLS being required.
pub(crate) fn by_hand(transcript: &str) {
    play(|| ByHand::new(false, tiny()), transcript);
}

impl Commands for ByHand {
    fn command(&self, number: usize) -> (u64, u64) {
        NoCommands.command(number)
    }

    fn extended(&self) -> bool {
        NoCommands.extended()
    }
}

impl Machine for ByHand {
    fn client(&mut self, line: &str) {
        let mut sink = Bytes::default();
        let words = words(line);
        match words.as_slice() {
            ["flags", flags] => {
                let wanted = ClientFlags(u32::try_from(number(flags)).unwrap());
                let written = self.handshake.send_client_flags(wanted, &mut sink);
                assert_eq!(written, Ok(4));
                assert_eq!(sink.0, wanted.0.to_be_bytes());
            }
            ["opt", rest @ ..] => {
                let bytes = script::option(rest);
                let option = OptionType(u32::try_from(number(rest[0])).unwrap());
                let request = OptionRequest::decode(option, &bytes[16..]).unwrap();
                let written = self.handshake.send(&request, &mut sink);
                assert_eq!(written, Ok(bytes.len()), "{line}");
                assert_eq!(sink.0, bytes, "{line}");
            }
            ["tls", "established"] => assert_eq!(self.handshake.tls_established(), Ok(())),
            ["tls", "failed"] => self.handshake.tls_failed(),
            _ => panic!("{line:?} is nothing a client does"),
        }
    }

    fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Seen>, Error> {
        let event = self.handshake.receive(input)?;
        Ok(event.map(|event| Seen::Line(format!("{event:?}"))))
    }

    fn need(&self) -> Need {
        self.handshake.need()
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.handshake.end_of_input()
    }

    fn buffer(&self) -> usize {
        self.buffer
    }
}

// ------------------------------------------------------------------ connect

/// `C: 3:32`, `C: opt LIST`: what `transmit` must say, one message a line.
pub(crate) struct ByPlan<'a> {
    pub(crate) connect: Connect<'a>,
    limits: Limits,
}

impl<'a> ByPlan<'a> {
    pub(crate) fn new(plan: Plan<'a>) -> Self {
        Self {
            connect: Connect::new(plan).unwrap(),
            limits: plan.limits,
        }
    }
}

impl Commands for ByPlan<'_> {
    fn command(&self, number: usize) -> (u64, u64) {
        NoCommands.command(number)
    }

    fn extended(&self) -> bool {
        NoCommands.extended()
    }
}

impl Machine for ByPlan<'_> {
    fn client(&mut self, line: &str) {
        let words = words(line);
        let due = match words.as_slice() {
            ["tls", "established"] => return assert_eq!(self.connect.tls_established(), Ok(())),
            ["tls", "failed"] => return self.connect.tls_failed(),
            ["opt", rest @ ..] => script::option(rest),
            words => script::bytes(words, &NoCommands),
        };
        // Without room nothing is written, and nothing is lost.
        let mut room = [0; 3];
        let refused = self.connect.transmit(&mut room.as_mut_slice());
        assert!(matches!(refused, Err(Misuse::Encode(_))), "{refused:?}");
        assert_eq!(room, [0; 3]);
        let mut sink = Bytes::default();
        assert_eq!(self.connect.transmit(&mut sink), Ok(due.len()), "{line}");
        assert_eq!(sink.0, due, "{line}");
    }

    fn assert_silent(&mut self) {
        let mut sink = Bytes::default();
        assert_eq!(self.connect.transmit(&mut sink), Ok(0), "{sink:02x?}");
    }

    fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Seen>, Error> {
        let event = self.connect.receive(input)?;
        Ok(event.map(|event| Seen::Line(format!("{event:?}"))))
    }

    fn need(&self) -> Need {
        self.connect.need()
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.connect.end_of_input()
    }

    fn buffer(&self) -> usize {
        20 + usize::try_from(self.limits.option_data).unwrap()
    }
}

/// Plays a handshake by policy to its end; returns what was agreed on.
pub(crate) fn by_plan(plan: Plan<'_>, transcript: &str) {
    play(|| ByPlan::new(plan), transcript);
}

// ------------------------------------------------------------- transmission

/// Everything a server can advertise.
pub(crate) const ALL: TransmissionFlags =
    TransmissionFlags::KNOWN.difference(TransmissionFlags::READ_ONLY);

/// An export of 1 MiB that can do everything.
pub(crate) fn export(framing: Framing) -> Negotiated {
    Negotiated::new(framing, 1 << 20, ALL)
}

/// The same with metadata contexts 1, 2, ..., all of them narrow.
pub(crate) fn with_contexts(framing: Framing, count: u32) -> Negotiated {
    let mut export = export(framing);
    for id in 1..=count {
        let width = Width::Narrow;
        let id = ContextId(id);
        export.contexts.push(Context { id, width }).unwrap();
    }
    export
}

/// The same with size constraints.
pub(crate) fn with_block_sizes(framing: Framing, minimum: u32, maximum: u32) -> Negotiated {
    let mut export = export(framing);
    let preferred = 4096;
    export.block_sizes = Some(BlockSizes {
        minimum,
        preferred,
        maximum,
    });
    export
}

/// `C: READ 0 4K DF`, `C: FLUSH`, `C: STATUS 0 1M of=1,2`, `C: DISC`.
pub(crate) struct Sending {
    pub(crate) machine: Transmission<Vec<Slot>>,
    pub(crate) buffer: usize,
    /// Cookie and offset of every command but DISC.
    pub(crate) sent: Vec<(Cookie, u64)>,
}

impl Sending {
    pub(crate) fn new(export: Negotiated, limits: Limits) -> Self {
        Self {
            machine: Transmission::new(export, vec![Slot::default(); 8], limits),
            buffer: 64,
            sent: Vec::new(),
        }
    }

    pub(crate) fn lenient(export: Negotiated) -> Self {
        let strict = Self::new(export, tiny());
        Self {
            machine: strict.machine.lenient(),
            ..strict
        }
    }

    fn number(&self, cookie: Cookie) -> usize {
        let found = self.sent.iter().position(|(sent, _)| *sent == cookie);
        found.expect("an event about a command that was sent")
    }
}

/// Plays a transmission; returns what was seen.
pub(crate) fn transmission(export: Negotiated, transcript: &str) -> Vec<String> {
    play(|| Sending::new(export, tiny()), transcript)
}

/// Plays a transmission of a lenient client.
pub(crate) fn lenient(export: Negotiated, transcript: &str) -> Vec<String> {
    play(|| Sending::lenient(export), transcript)
}

/// `C:` line as a request, and the contexts it names.
pub(crate) fn request(line: &str) -> (Request, Vec<ContextId>) {
    let words = words(line);
    let (command, mut rest) = words.split_first().unwrap();
    let mut contexts = Vec::new();
    if let Some((ids, before)) = rest.split_last()
        && let Some(ids) = ids.strip_prefix("of=")
    {
        contexts.extend(ids.split(',').map(|id| ContextId(id.parse().unwrap())));
        rest = before;
    }
    let at = |index: usize| rest.get(index).map_or(0, |word| number(word));
    let request = Request {
        command: Command(u16::try_from(number(command)).unwrap()),
        flags: CommandFlags(rest.get(2).map_or(0, |word| script::flags(word))),
        offset: at(0),
        length: at(1),
    };
    (request, contexts)
}

/// The bytes of a command, from the specification's layout.
fn head(framing: Framing, request: Request, contexts: &[ContextId], cookie: u64) -> Vec<u8> {
    let mut flags = request.flags.0;
    let mut length = request.length;
    let extended = framing == Framing::Extended;
    if extended && request.command == Command::WRITE {
        flags |= 32;
    }
    if !contexts.is_empty() {
        flags |= 32;
        length = 8 + 4 * contexts.len() as u64;
    }
    let mut out = match extended {
        true => 0x21e4_1c71_u32,
        false => 0x2560_9513,
    }
    .to_be_bytes()
    .to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(request.command.0.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(request.offset.to_be_bytes());
    match extended {
        true => out.extend(length.to_be_bytes()),
        false => out.extend(u32::try_from(length).unwrap().to_be_bytes()),
    }
    out
}

impl Commands for Sending {
    fn command(&self, number: usize) -> (u64, u64) {
        let (cookie, offset) = self.sent[number];
        (cookie.0, offset)
    }

    fn extended(&self) -> bool {
        self.machine.negotiated().framing == Framing::Extended
    }
}

impl Machine for Sending {
    fn client(&mut self, line: &str) {
        let framing = self.machine.negotiated().framing;
        let (request, contexts) = request(line);
        let in_flight = self.machine.in_flight();
        if request.command == Command::DISC {
            let made = self.machine.disconnect().unwrap();
            assert_eq!(
                made.as_bytes(),
                head(framing, request, &[], made.cookie().0)
            );
            assert_eq!(self.machine.in_flight(), in_flight);
            return;
        }
        let (made, payload) = if contexts.is_empty() {
            let made = self.machine.submit(request).unwrap_or_else(|misuse| {
                panic!("{line}: {misuse}");
            });
            let writes = request.command == Command::WRITE;
            (made, if writes { request.length } else { 0 })
        } else {
            let Request {
                offset,
                length,
                flags,
                ..
            } = request;
            let mut sink = Bytes::default();
            let made = self
                .machine
                .block_status_of(&contexts, offset, length, flags, &mut sink)
                .unwrap_or_else(|misuse| panic!("{line}: {misuse}"));
            let mut due = length.to_be_bytes().to_vec();
            contexts
                .iter()
                .for_each(|id| due.extend(id.0.to_be_bytes()));
            assert_eq!(sink.0, due, "{line}");
            (made, due.len() as u64)
        };
        let cookie = made.cookie();
        let due = head(framing, request, &contexts, cookie.0);
        assert_eq!(made.as_bytes(), due, "{line}");
        assert_eq!(made.as_ref(), due, "{line}");
        assert_eq!(u64::from(made.payload_length()), payload, "{line}");
        assert_eq!(self.machine.in_flight(), in_flight + 1);
        let again = self.sent.iter().any(|(sent, _)| *sent == cookie);
        assert!(!again, "a cookie was used twice");
        self.sent.push((cookie, request.offset));
    }

    fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Seen>, Error> {
        let event = self.machine.receive(input)?;
        Ok(event.map(|event| Seen::of(event, |cookie| self.number(cookie))))
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    fn advance(&mut self, n: u64) {
        let Need::Payload { length, .. } = self.machine.need() else {
            panic!("no payload is needed");
        };
        let expected = length;
        for too_much in [length + 1, u64::MAX] {
            let refused = Err(Misuse::TooMuchPayload { expected });
            assert_eq!(self.machine.advance(too_much), refused);
        }
        assert_eq!(self.machine.advance(n), Ok(()));
    }

    fn command_of(&self, need: Need) -> usize {
        match need {
            Need::Payload { cookie, .. } => self.number(cookie),
            other => panic!("{other:?} is no payload"),
        }
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.machine.end_of_input()
    }

    /// What is done and what is abandoned is what was sent, each once.
    fn assert_accounted(&mut self, seen: &[Seen]) {
        let mut open: Vec<usize> = (0..self.sent.len()).collect();
        let mut close = |number: usize| {
            let at = open.iter().position(|other| *other == number);
            open.remove(at.unwrap_or_else(|| panic!("#{number} ended twice")));
        };
        for event in seen {
            if let Seen::Line(line) = event
                && let [number, "done", ..] = words(line).as_slice()
            {
                close(number[1..].parse().unwrap());
            }
        }
        while let Some(cookie) = self.machine.abandon() {
            close(self.number(cookie));
        }
        assert!(open.is_empty(), "never ended: {open:?}");
        assert_eq!(self.machine.in_flight(), 0);
    }

    /// Cookies by the number of their command.
    fn error(&self, error: Error) -> String {
        let text = format!("{error:?}");
        let named = |text: String, (number, (cookie, _)): (usize, &(Cookie, u64))| {
            text.replace(&format!("{cookie:?}"), &format!("#{number}"))
        };
        self.sent.iter().enumerate().fold(text, named)
    }

    fn buffer(&self) -> usize {
        self.buffer
    }
}

/// How a fixed newstyle handshake begins.
pub(crate) const FIXED: &str = r#"
    S: "NBDMAGIC" "IHAVEOPT" 3:16
    E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
    C: flags 3
"#;

/// Plays a fixed newstyle handshake by hand, behind its client flags.
pub(crate) fn fixed(transcript: &str) {
    by_hand(&format!("{FIXED}{transcript}"));
}
