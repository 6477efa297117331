//! The state machines as transcripts drive them.

use std::convert::Infallible;

use nbd_codec::client::{
    Config, Connector, Handshake, Request, Slot, Transmission, TransmissionEvent,
};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::Sink;
use nbd_codec::wire::flags::{ClientFlags, CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, OptionType};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Error, Framing, Limits, Misuse, Negotiated, SelectedContext, StatusWidth, Step};

use super::script::{self, Commands, NoCommands, number, words};
use super::seen::Seen;
use super::transcript::{Machine, Taken, once, play};

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

/// The limits for a receive buffer of 64 bytes, which most transcripts are
/// played with.
pub(crate) const LIMITS: Limits = Limits::for_buffer(64);

/// A handshake event as a transcript has it, by its `Debug`.
macro_rules! step {
    ($step:expr) => {
        Ok(Seen::step(
            $step?,
            |event| Seen::Line(format!("{event:?}")),
            |cookie| panic!("handshakes have no commands, {cookie}"),
        ))
    };
}

// --------------------------------------------------------- manual handshake

/// `C: flags 3`, `C: opt GO 4:32 "disk" 0:16`, `C: tls established`.
pub(crate) struct Manual {
    pub(crate) handshake: Handshake,
    limits: Limits,
    /// The smallest receive buffer that is enough.
    buffer: usize,
}

impl Manual {
    pub(crate) fn new(config: Config<'_>) -> Self {
        Self::with_limits(config, LIMITS)
    }

    pub(crate) fn with_limits(config: Config<'_>, limits: Limits) -> Self {
        Self {
            handshake: Handshake::new(&config.limits(limits)),
            limits,
            buffer: limits.buffer(),
        }
    }

    /// Played with a receive buffer of `n` bytes.
    pub(crate) fn with_buffer(mut self, n: usize) -> Self {
        self.buffer = n;
        self
    }

    /// After a fixed newstyle greeting and its client flags.
    pub(crate) fn greeted(config: Config<'_>) -> Self {
        let mut manual = Self::new(config);
        once(&mut manual, FIXED_NEWSTYLE);
        manual
    }
}

/// Plays a manual handshake of a strict client; without a fault, that of any other
/// is the same.
pub(crate) fn manual(transcript: &str) {
    play(|| Manual::new(Config::new("").strict(true)), transcript);
    if !has_fault(transcript) {
        tolerant_manual(transcript);
    }
}

/// Plays a manual handshake of a client that is not strict.
pub(crate) fn tolerant_manual(transcript: &str) {
    play(|| Manual::new(Config::new("")), transcript);
}

/// Whether a transcript ends with an error.
fn has_fault(transcript: &str) -> bool {
    transcript
        .lines()
        .any(|line| line.trim_start().starts_with('!'))
}

/// How a fixed newstyle handshake begins.
pub(crate) const FIXED_NEWSTYLE: &str = r#"
    S: "NBDMAGIC" "IHAVEOPT" 3:16
    E: Greeting(Newstyle(NewstyleGreeting { flags: HandshakeFlags(FIXED_NEWSTYLE | NO_ZEROES) }))
    C: flags 3
"#;

/// Plays a manual fixed newstyle handshake, after its client flags.
pub(crate) fn fixed_newstyle(transcript: &str) {
    manual(&format!("{FIXED_NEWSTYLE}{transcript}"));
}

impl Commands for Manual {
    fn command(&self, number: usize) -> (u64, u64) {
        NoCommands.command(number)
    }

    fn extended(&self) -> bool {
        NoCommands.extended()
    }
}

impl Machine for Manual {
    fn client(&mut self, line: &str) {
        let mut sink = Bytes::default();
        let words = words(line);
        let waits = self.receive(&mut &b""[..]);
        match words.as_slice() {
            ["flags", flags] => {
                assert_eq!(waits, Err(Error::Unanswered), "{line}");
                let wanted = ClientFlags(u32::try_from(number(flags)).unwrap());
                let written = self.handshake.send_client_flags(wanted, &mut sink);
                assert_eq!(written, Ok(4));
                assert_eq!(sink.0, wanted.0.to_be_bytes());
            }
            ["opt", rest @ ..] => {
                assert_eq!(waits, Err(Error::Unanswered), "{line}");
                let bytes = script::option(rest);
                let option = OptionType(u32::try_from(number(rest[0])).unwrap());
                let request = OptionRequest::decode(option, &bytes[16..]).unwrap();
                let written = self.handshake.send(&request, &mut sink);
                assert_eq!(written, Ok(bytes.len()), "{line}");
                assert_eq!(sink.0, bytes, "{line}");
            }
            ["tls", outcome] => {
                assert_eq!(waits, Ok(Step::StartTls), "{line}");
                match *outcome {
                    "established" => assert_eq!(self.handshake.tls_established(), Ok(())),
                    _ => self.handshake.tls_failed(),
                }
            }
            _ => panic!("{line:?} is nothing a client does"),
        }
    }

    fn receive(&mut self, input: &mut &[u8]) -> Taken {
        step!(self.handshake.receive(input))
    }

    fn receive_from(&mut self, inbox: &Inbox<Vec<u8>>) -> Taken {
        step!(inbox.receive(&mut self.handshake))
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.handshake.end_of_input()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn buffer(&self) -> usize {
        self.buffer
    }
}

// ------------------------------------------------------ automatic handshake

/// `C: 3:32`, `C: opt LIST`: what `transmit` must write, one message a line.
pub(crate) struct Automatic<'a> {
    pub(crate) connector: Connector<'a>,
    limits: Limits,
}

impl<'a> Automatic<'a> {
    pub(crate) fn new(config: Config<'a>) -> Self {
        Self::with_limits(config, LIMITS)
    }

    pub(crate) fn with_limits(config: Config<'a>, limits: Limits) -> Self {
        Self {
            connector: Connector::new(config.limits(limits)).unwrap(),
            limits,
        }
    }
}

impl Commands for Automatic<'_> {
    fn command(&self, number: usize) -> (u64, u64) {
        NoCommands.command(number)
    }

    fn extended(&self) -> bool {
        NoCommands.extended()
    }
}

impl Machine for Automatic<'_> {
    fn client(&mut self, line: &str) {
        let words = words(line);
        let due = match words.as_slice() {
            ["tls", outcome] => {
                assert_eq!(self.receive(&mut &b""[..]), Ok(Step::StartTls), "{line}");
                match *outcome {
                    "established" => assert_eq!(self.connector.tls_established(), Ok(())),
                    _ => self.connector.tls_failed(),
                }
                return;
            }
            ["opt", rest @ ..] => script::option(rest),
            words => script::bytes(words, &NoCommands),
        };
        assert_eq!(self.receive(&mut &b""[..]), Ok(Step::Transmit), "{line}");
        // Without room nothing is written, and nothing is lost.
        let mut room = [0; 3];
        let refused = self.connector.transmit(&mut room.as_mut_slice());
        assert!(matches!(refused, Err(Misuse::Encode(_))), "{refused:?}");
        assert_eq!(room, [0; 3]);
        assert_eq!(self.receive(&mut &b""[..]), Ok(Step::Transmit), "{line}");
        let mut sink = Bytes::default();
        assert_eq!(self.connector.transmit(&mut sink), Ok(due.len()), "{line}");
        assert_eq!(sink.0, due, "{line}");
    }

    /// Where the step is not to transmit, there is nothing to transmit.
    fn receive(&mut self, input: &mut &[u8]) -> Taken {
        let taken = step!(self.connector.receive(input));
        if !matches!(taken, Ok(Step::Transmit | Step::Event(_))) {
            let mut sink = Bytes::default();
            assert_eq!(self.connector.transmit(&mut sink), Ok(0), "{sink:02x?}");
        }
        taken
    }

    fn receive_from(&mut self, inbox: &Inbox<Vec<u8>>) -> Taken {
        step!(inbox.receive(&mut self.connector))
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.connector.end_of_input()
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

/// Plays an automatic handshake to its end.
pub(crate) fn automatic(config: Config<'_>, transcript: &str) {
    play(|| Automatic::new(config), transcript);
}

// ------------------------------------------------------------- transmission

pub(crate) const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// The framings whose replies have chunks.
pub(crate) const CHUNKED: [Framing; 2] = [Framing::Structured, Framing::Extended];

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
        let width = StatusWidth::Narrow;
        let id = ContextId(id);
        export.contexts.push(SelectedContext { id, width }).unwrap();
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
pub(crate) struct Client {
    pub(crate) machine: Transmission<Vec<Slot>>,
    limits: Limits,
    /// Cookie and offset of every command but DISC.
    pub(crate) sent: Vec<(Cookie, u64)>,
}

impl Client {
    pub(crate) fn new(export: Negotiated) -> Self {
        Self::with_limits(export, LIMITS)
    }

    pub(crate) fn with_limits(export: Negotiated, limits: Limits) -> Self {
        Self {
            machine: Transmission::new(export, vec![Slot::default(); 8], limits),
            limits,
            sent: Vec::new(),
        }
    }

    pub(crate) fn lenient(export: Negotiated) -> Self {
        Self::new(export).map(Transmission::lenient)
    }

    pub(crate) fn strict(export: Negotiated) -> Self {
        Self::new(export).map(Transmission::strict)
    }

    fn map(mut self, f: impl FnOnce(Transmission<Vec<Slot>>) -> Transmission<Vec<Slot>>) -> Self {
        self.machine = f(self.machine);
        self
    }

    fn seen(&self, step: Step<TransmissionEvent<'_>, &[u8]>) -> Step<Seen, Infallible> {
        let number = |cookie| self.number(cookie);
        Seen::step(step, |event| Seen::of(event, number), number)
    }

    fn number(&self, cookie: Cookie) -> usize {
        let found = self.sent.iter().position(|(sent, _)| *sent == cookie);
        found.expect("an event about a command that was sent")
    }
}

/// Plays a transmission of a strict client; without a fault, that of any other is
/// the same. Returns what was seen.
pub(crate) fn transmission(export: Negotiated, transcript: &str) -> Vec<String> {
    if !has_fault(transcript) {
        tolerant(export, transcript);
    }
    play(|| Client::strict(export), transcript)
}

/// Plays a transmission of a client that is not strict.
pub(crate) fn tolerant(export: Negotiated, transcript: &str) {
    play(|| Client::new(export), transcript);
}

/// Plays a transmission of a client that is lenient and strict.
pub(crate) fn lenient(export: Negotiated, transcript: &str) -> Vec<String> {
    let start = || Client::lenient(export);
    if !has_fault(transcript) {
        play(start, transcript);
    }
    play(|| start().map(Transmission::strict), transcript)
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
fn header(framing: Framing, request: Request, contexts: &[ContextId], cookie: u64) -> Vec<u8> {
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
    let mut out = if extended {
        0x21e4_1c71_u32
    } else {
        0x2560_9513
    }
    .to_be_bytes()
    .to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(request.command.0.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(request.offset.to_be_bytes());
    if extended {
        out.extend(length.to_be_bytes())
    } else {
        out.extend(u32::try_from(length).unwrap().to_be_bytes())
    }
    out
}

impl Commands for Client {
    fn command(&self, number: usize) -> (u64, u64) {
        let (cookie, offset) = self.sent[number];
        (cookie.0, offset)
    }

    fn extended(&self) -> bool {
        self.machine.negotiated().framing == Framing::Extended
    }
}

impl Machine for Client {
    fn client(&mut self, line: &str) {
        let framing = self.machine.negotiated().framing;
        let (request, contexts) = request(line);
        let in_flight = self.machine.in_flight();
        if request.command == Command::DISC {
            let made = self.machine.disconnect().unwrap();
            assert_eq!(
                made.as_bytes(),
                header(framing, request, &[], made.cookie().0)
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
        let due = header(framing, request, &contexts, cookie.0);
        assert_eq!(made.as_bytes(), due, "{line}");
        assert_eq!(made.as_ref(), due, "{line}");
        assert_eq!(u64::from(made.payload_length()), payload, "{line}");
        assert_eq!(self.machine.in_flight(), in_flight + 1);
        let again = self.sent.iter().any(|(sent, _)| *sent == cookie);
        assert!(!again, "a cookie was used twice");
        self.sent.push((cookie, request.offset));
    }

    fn receive(&mut self, input: &mut &[u8]) -> Taken {
        let step = self.machine.receive(input)?;
        Ok(self.seen(step))
    }

    fn receive_from(&mut self, inbox: &Inbox<Vec<u8>>) -> Taken {
        let step = inbox.receive(&mut self.machine)?;
        Ok(self.seen(step))
    }

    fn advance(&mut self, n: u64, expected: u64) {
        for too_much in [expected + 1, u64::MAX] {
            let refused = Err(Misuse::TooMuchPayload { expected });
            assert_eq!(self.machine.advance(too_much), refused);
        }
        assert_eq!(self.machine.advance(n), Ok(()));
    }

    fn command_of(&self, cookie: Cookie) -> usize {
        self.number(cookie)
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.machine.end_of_input()
    }

    /// Each command that was sent is done or unanswered, once.
    fn assert_every_command_ended(&mut self, seen: &[Seen]) {
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
        while let Some(cookie) = self.machine.pop_unanswered() {
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

    fn limits(&self) -> Limits {
        self.limits
    }
}
