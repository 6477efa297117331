//! Whole sessions through an `Inbox` of every size, with every kind of reader:
//! the events and the content are those of the same bytes in one piece, and the
//! number of steps is bounded by the number of bytes.

use std::num::NonZeroUsize;

use nbd_codec::client::{Config, MetaContextQuery, TlsPolicy};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::number::{Cookie, OptionType};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::{Error, Framing, Limits, Step};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::machines::{Automatic, Bytes, Client, Manual, with_contexts};
use super::script::{self, NoCommands};
use super::seen::{Seen, begins};
use super::transcript::{Machine, Taken, once};

// ------------------------------------------------------------------ drivers

/// How a driver reads.
#[derive(Debug, Clone)]
struct Reader {
    /// Into all the space there is, not only as much as the step says.
    ahead: bool,
    /// Payloads past the state machine.
    direct: bool,
    /// Most bytes of one read.
    most: usize,
    /// Takes every step twice: the first time, nothing is done.
    repeats: bool,
    /// Which events it ignores, by a hash of 8 values: one bit for each.
    ignores: u8,
}

impl Reader {
    /// Content is never ignored.
    fn ignores(&self, seen: &Seen) -> bool {
        match seen {
            Seen::Data { .. } => false,
            Seen::Extents { context, .. } => self.ignores & 1 << (context.0 % 8) != 0,
            Seen::Line(line) => {
                !line.contains(" hole ") && self.ignores & 1 << (line.len() % 8) != 0
            }
        }
    }
}

/// What a step asks the driver to do.
#[derive(Debug, Clone, Copy)]
enum Due {
    Send,
    Tls,
}

/// Does what is due, and returns what the server then sends; `None` where the
/// driver has nothing more to send.
type Act<M> = Box<dyn FnMut(&mut M, Due) -> Option<Vec<u8>>>;

/// A state machine, its driver, and what the server sends first.
struct Session<M> {
    machine: M,
    act: Act<M>,
    greeting: Vec<u8>,
}

/// The outcome of a session.
#[derive(Debug, PartialEq)]
struct Outcome {
    seen: Vec<Seen>,
    end: Result<(), Error>,
    /// What the state machine did not consume.
    left: Vec<u8>,
}

impl Outcome {
    /// Before an error some extents more or fewer may have been delivered,
    /// because a batch is checked before it becomes an event; and the error may
    /// be found with fewer bytes offered.
    fn is_that_of(&self, whole: &Self) -> bool {
        match self.end {
            Ok(()) => self == whole,
            Err(Error::Closed | Error::ClosedDuring(_)) => {
                (self.end, &self.seen) == (whole.end, &whole.seen)
            }
            Err(_) => {
                let begins = begins(&whole.seen, &self.seen) || begins(&self.seen, &whole.seen);
                self.end == whole.end && begins
            }
        }
    }
}

/// Offers everything that the server has sent in one piece.
fn whole<M: Machine>(session: Session<M>, reader: &Reader) -> Outcome {
    let Session {
        mut machine,
        mut act,
        greeting: mut arrived,
    } = session;
    let mut seen: Vec<Seen> = Vec::new();
    let end = loop {
        let mut input = arrived.as_slice();
        let step = machine.receive(&mut input);
        arrived = input.to_vec();
        let due = match step {
            Ok(Step::Event(event)) => {
                if !reader.ignores(&event) {
                    event.push(&mut seen);
                }
                continue;
            }
            Ok(Step::Transmit) | Err(Error::Unanswered) => Due::Send,
            Ok(Step::StartTls) => Due::Tls,
            Ok(Step::Finished) => break Ok(()),
            Ok(Step::Read(_) | Step::ReadPayload { .. }) => break machine.end_of_input(),
            Ok(Step::Content(_)) => unreachable!("content is seen as an event"),
            Err(error) => break Err(error),
        };
        match act(&mut machine, due) {
            Some(replies) => arrived.extend(replies),
            None => break machine.end_of_input(),
        }
    };
    Outcome {
        seen,
        end,
        left: arrived,
    }
}

/// A driver with an inbox.
struct Driver<'a, M> {
    machine: M,
    reader: &'a Reader,
    inbox: Inbox<Vec<u8>>,
    /// All that the server has sent, of which the first `read` bytes were read.
    sent: Vec<u8>,
    read: usize,
    seen: Vec<Seen>,
    /// Steps other than reads.
    steps: usize,
    reads: usize,
}

impl<M: Machine> Driver<'_, M> {
    /// Takes the next step. A reader that repeats takes it twice: what a step
    /// asks for is then asked for again, and so is an error returned.
    fn next(&mut self) -> Taken {
        let step = self.machine.receive_from(&self.inbox);
        if self.reader.repeats && !matches!(step, Ok(Step::Event(_))) {
            let held = self.inbox.held().len();
            assert_eq!(self.machine.receive_from(&self.inbox), step);
            assert_eq!(self.inbox.held().len(), held, "a repeated step consumed");
        }
        step
    }

    /// Reads up to `n` bytes. Where the server has sent no more, it closes the
    /// connection.
    fn read(&mut self, n: NonZeroUsize) {
        self.reads += 1;
        let unread = &self.sent[self.read..];
        let space = if self.reader.ahead {
            self.inbox.space()
        } else {
            self.inbox.space_for(n)
        };
        assert!(!space.is_empty(), "no space for the message");
        let n = space.len().min(self.reader.most).min(unread.len());
        space[..n].copy_from_slice(&unread[..n]);
        self.read += n;
        self.inbox.filled(n).unwrap();
    }

    /// Reads what was sent before the driver acts; `false` if that is nothing,
    /// or if there is no space for it.
    fn read_before_acting(&mut self) -> bool {
        let unread = self.sent.len() - self.read;
        match NonZeroUsize::new(unread.min(self.inbox.space().len())) {
            Some(n) => self.read(n),
            None => return false,
        }
        true
    }

    fn read_payload(&mut self, cookie: Cookie, offset: u64, length: u64) {
        let most = usize::try_from(length).unwrap();
        let unread = &self.sent[self.read..];
        let n = most.min(self.reader.most).min(unread.len());
        if !self.reader.direct || n == 0 {
            return self.read(NonZeroUsize::new(most).unwrap());
        }
        Seen::Data {
            command: self.machine.command_of(cookie),
            offset,
            data: unread[..n].to_vec(),
        }
        .push(&mut self.seen);
        self.reads += 1;
        self.read += n;
        self.machine.advance(n as u64, length);
    }

    fn play(&mut self, mut act: Act<M>) -> Outcome {
        let room = self.machine.limits().buffer();
        let end = loop {
            let step = self.next();
            let held = self.inbox.held().len();
            let due = match step {
                Ok(Step::Event(event)) => {
                    self.steps += 1;
                    // What is asked for ends with the message.
                    let message = matches!(event, Seen::Line(_));
                    assert!(self.reader.ahead || !message || held == 0, "{event:?}");
                    if !self.reader.ignores(&event) {
                        event.push(&mut self.seen);
                    }
                    continue;
                }
                Ok(Step::Read(n)) => {
                    assert!(held + n.get() <= room, "{held} and {n} bytes of {room}");
                    self.read(n);
                    continue;
                }
                Ok(Step::ReadPayload {
                    cookie,
                    offset,
                    length,
                }) => {
                    assert_eq!(held, 0, "payload was held back");
                    self.read_payload(cookie, offset, length);
                    continue;
                }
                Ok(Step::Content(_)) => unreachable!("content is seen as an event"),
                Err(error) if error != Error::Unanswered => break Err(error),
                _ if self.read_before_acting() => continue,
                Ok(Step::Finished) => break Ok(()),
                Ok(Step::StartTls) => Due::Tls,
                Ok(Step::Transmit) | Err(_) => Due::Send,
            };
            self.steps += 1;
            match act(&mut self.machine, due) {
                Some(replies) => self.sent.extend(replies),
                None => break self.machine.end_of_input(),
            }
        };
        let bytes = self.sent.len();
        // At most one for each byte, and those to send.
        assert!(self.steps <= bytes + 16, "{} steps", self.steps);
        // At most one for each byte, and the end.
        assert!(self.reads <= bytes + 1, "{} reads", self.reads);
        if let Err(error) = end {
            // It is returned again.
            assert_eq!(self.machine.receive(&mut &b""[..]), Err(error));
            assert_eq!(self.machine.end_of_input(), Err(error));
        }
        Outcome {
            seen: std::mem::take(&mut self.seen),
            end,
            left: [self.inbox.held(), &self.sent[self.read..]].concat(),
        }
    }
}

/// Plays a session whole and by `reader` with an inbox of `size` bytes, and
/// compares.
fn compare<M: Machine>(start: impl Fn(Limits) -> Session<M>, reader: &Reader, size: u32) {
    let limits = Limits::for_buffer(size);
    assert!(limits.buffer() <= size as usize);
    let expected = whole(start(limits), reader);
    let session = start(limits);
    let mut driver = Driver {
        machine: session.machine,
        reader,
        inbox: Inbox::new(vec![0; size as usize]),
        sent: session.greeting,
        read: 0,
        seen: Vec::new(),
        steps: 0,
        reads: 0,
    };
    let outcome = driver.play(session.act);
    assert!(
        outcome.is_that_of(&expected),
        "{outcome:#?}\nwhole: {expected:#?}"
    );
    if reader.ignores == 0 {
        driver.machine.assert_every_command_ended(&outcome.seen);
    }
}

fn reader() -> impl Strategy<Value = Reader> {
    let most = select(vec![1, 2, 7, 61, 1000, usize::MAX]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let ignores = prop_oneof![Just(0), Just(0xff), any::<u8>()];
    (most, flags, ignores).prop_map(|(most, (ahead, direct, repeats), ignores)| Reader {
        ahead,
        direct,
        most,
        repeats,
        ignores,
    })
}

/// Sizes of the inbox: from the least to 64 KiB.
fn buffer() -> impl Strategy<Value = u32> {
    let least = Limits::LEAST_BUFFER;
    prop_oneof![
        Just(least),
        least..300,
        300..9000u32,
        9000..=65_536u32,
        Just(65_536)
    ]
}

// ------------------------------------------------------ what the server sends

/// A fault of the server, in one of its lines or bytes.
#[derive(Debug, Clone)]
enum Fault {
    None,
    /// A header claims this length.
    Length(Index, &'static str),
    /// The first field of 32 bits after the header has this value.
    Field(Index, &'static str),
    /// Bits of one byte are flipped.
    Bits(Index, u8),
    /// The connection is closed after some bytes.
    Closed(Index),
}

impl Fault {
    fn lines(&self, mut lines: Vec<String>) -> Vec<String> {
        if lines.is_empty() {
            return lines;
        }
        match self {
            Self::Length(line, length) => {
                let line = line.get_mut(&mut lines);
                let mut words = script::words(line);
                let claim = format!("len={length}");
                if ["rep", "chunk", "last"].contains(&words[0]) {
                    words.insert(3, &claim);
                }
                *line = words.join(" ");
            }
            Self::Field(line, value) => {
                let line = line.get_mut(&mut lines);
                let field = format!("{value}:32");
                let mut words = script::words(line);
                if let Some(word) = words.iter_mut().find(|word| word.ends_with(":32")) {
                    *word = &field;
                }
                *line = words.join(" ");
            }
            _ => {}
        }
        lines
    }

    fn bytes(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if !bytes.is_empty() {
            match self {
                Self::Bits(at, bits) => *at.get_mut(&mut bytes) ^= bits,
                Self::Closed(at) => bytes.truncate(at.index(bytes.len())),
                _ => {}
            }
        }
        bytes
    }
}

const WORST: [&str; 4] = ["0", "0x10000", "0x1000000", "0xffffffff"];

/// `longest` is the longest length that a header can claim.
fn fault(longest: &'static str) -> impl Strategy<Value = Fault> {
    let lengths = [WORST.as_slice(), &[longest]].concat();
    prop_oneof![
        4 => Just(Fault::None),
        3 => (any::<Index>(), select(lengths)).prop_map(|(line, length)| Fault::Length(line, length)),
        2 => (any::<Index>(), select(&WORST[..])).prop_map(|(line, value)| Fault::Field(line, value)),
        1 => (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Fault::Bits(at, bits)),
        1 => any::<Index>().prop_map(Fault::Closed),
    ]
}

/// Lengths of texts, on both sides of what the smallest buffer and the
/// specification have.
fn text() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 0..100usize,
        1 => select(vec![0, 44, 45, 56, 57, 236, 4096, 4097, 8196, 8197, 10_000]),
    ]
}

// ---------------------------------------------------------------- handshakes

const OPTIONS: [&str; 9] = [
    "STRUCTURED_REPLY",
    "EXTENDED_HEADERS",
    "LIST",
    "LIST_META_CONTEXT",
    "SET_META_CONTEXT",
    "INFO",
    "STARTTLS",
    "GO",
    "EXPORT_NAME",
];

/// The replies to an option.
fn replies(option: &'static str) -> BoxedStrategy<Vec<String>> {
    if option == "EXPORT_NAME" {
        return select(vec!["1M:64 1:16", "1M:64 1:16 00*124", "1M:64"])
            .prop_map(|reply| vec![reply.to_owned()])
            .boxed();
    }
    let body = match option {
        "LIST" => (text(), text())
            .prop_map(|(name, about)| format!("SERVER {name}:32 6e*{name} 64*{about}"))
            .boxed(),
        "LIST_META_CONTEXT" | "SET_META_CONTEXT" => (0..40u32, text())
            .prop_map(|(id, name)| format!("META_CONTEXT {id}:32 \"x:\" 61*{name}"))
            .boxed(),
        "INFO" | "GO" => prop_oneof![
            Just("INFO EXPORT:16 1M:64 1:16".to_owned()),
            Just("INFO BLOCK_SIZE:16 512:32 4K:32 1M:32".to_owned()),
            text().prop_map(|name| format!("INFO NAME:16 6e*{name}")),
            text().prop_map(|about| format!("INFO DESCRIPTION:16 64*{about}")),
            text().prop_map(|data| format!("INFO 0x1234:16 00*{data}")),
        ]
        .boxed(),
        _ => Just("0x7777".to_owned()).boxed(),
    };
    let count = match option {
        "LIST" | "LIST_META_CONTEXT" | "SET_META_CONTEXT" | "INFO" | "GO" => 0..5usize,
        _ => 0..1,
    };
    let errors = select(vec![
        "ERR_UNSUP",
        "ERR_POLICY",
        "ERR_TLS_REQD",
        "ERR_SHUTDOWN",
    ]);
    let end = prop_oneof![
        8 => Just("ACK".to_owned()),
        3 => (errors, text()).prop_map(|(error, text)| format!("{error} 65*{text}")),
        1 => Just(String::new()),
    ];
    (vec(body, count), any::<bool>(), end)
        .prop_map(move |(mut lines, export, end)| {
            if ["INFO", "GO"].contains(&option) && export {
                lines.push("INFO EXPORT:16 1M:64 1:16".to_owned());
            }
            lines.push(end);
            lines.retain(|line| !line.is_empty());
            lines
                .iter()
                .map(|line| format!("rep {option} {line}"))
                .collect()
        })
        .boxed()
}

/// An option, and the bytes of the replies to it.
fn exchange(option: &'static str) -> impl Strategy<Value = (OptionType, Vec<u8>)> {
    let faults = prop_oneof![3 => Just(Fault::None), 1 => fault("0xffffffff")];
    (replies(option), faults).prop_map(move |(lines, fault)| {
        let lines = fault.lines(lines);
        let bytes = lines
            .iter()
            .flat_map(|line| script::server(line, &NoCommands));
        let option = u32::try_from(script::number(option)).unwrap();
        (OptionType(option), fault.bytes(bytes.collect()))
    })
}

fn greeting() -> impl Strategy<Value = Vec<u8>> {
    let newstyle = |flags: u16| format!("\"NBDMAGIC\" \"IHAVEOPT\" {flags}:16");
    let oldstyle = "\"NBDMAGIC\" 0x420281861253:64 1M:64 0:16 1:16 00*124";
    let line = prop_oneof![
        8 => Just(newstyle(3)),
        1 => (0..4u16).prop_map(newstyle),
        1 => Just(oldstyle.to_owned()),
    ];
    let faults = prop_oneof![12 => Just(Fault::None), 1 => fault("0")];
    (line, faults).prop_map(|(line, fault)| fault.bytes(script::server(&line, &NoCommands)))
}

/// The first exchange for an option is the one that is used.
fn connecting(
    config: Config<'static>,
    greeting: &[u8],
    exchanges: &[(OptionType, Vec<u8>)],
    tls: bool,
    limits: Limits,
) -> Session<Automatic<'static>> {
    let exchanges = exchanges.to_vec();
    Session {
        machine: Automatic::with_limits(config, limits),
        act: Box::new(move |automatic, due| {
            let connector = &mut automatic.connector;
            match due {
                Due::Tls if tls => connector.tls_established().unwrap(),
                Due::Tls => connector.tls_failed(),
                Due::Send => {
                    let mut sent = Bytes::default();
                    assert!(connector.transmit(&mut sent).unwrap() > 0);
                    let option = sent.0.strip_prefix(b"IHAVEOPT");
                    let Some(option) = option.and_then(|header| header.first_chunk()) else {
                        // The client flags.
                        return Some(Vec::new());
                    };
                    let option = OptionType(u32::from_be_bytes(*option));
                    let found = exchanges.iter().find(|(sent, _)| *sent == option);
                    return Some(found.map_or(Vec::new(), |(_, replies)| replies.clone()));
                }
            }
            Some(Vec::new())
        }),
        greeting: greeting.to_vec(),
    }
}

/// An option as the client sends it.
fn request(option: OptionType, send: impl FnOnce(&OptionRequest<'_>) -> bool) -> bool {
    let data = match option {
        OptionType::INFO | OptionType::GO => "0:32 1:16 BLOCK_SIZE:16",
        OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => "0:32 1:32 2:32 \"x:\"",
        _ => "",
    };
    let data = script::bytes(&script::words(data), &NoCommands);
    send(&OptionRequest::decode(option, &data).unwrap())
}

/// Sends the options in turn; those that cannot be sent are left out.
fn negotiating(
    greeting: &[u8],
    exchanges: Vec<(OptionType, Vec<u8>)>,
    tls: bool,
    limits: Limits,
) -> Session<Manual> {
    let mut exchanges = exchanges.into_iter();
    let mut greeted = false;
    Session {
        machine: Manual::with_limits(Config::new("").lenient(true), limits),
        act: Box::new(move |manual, due| {
            let handshake = &mut manual.handshake;
            let mut sent = Bytes::default();
            match due {
                Due::Tls if tls => handshake.tls_established().unwrap(),
                Due::Tls => handshake.tls_failed(),
                Due::Send if !greeted => {
                    greeted = true;
                    let written = handshake.send_client_flags(ClientFlags(3), &mut sent);
                    assert_eq!(written, Ok(4));
                }
                Due::Send => loop {
                    let (option, replies) = exchanges.next()?;
                    if request(option, |request| handshake.send(request, &mut sent).is_ok()) {
                        return Some(replies);
                    }
                },
            }
            Some(Vec::new())
        }),
        greeting: greeting.to_vec(),
    }
}

// -------------------------------------------------------------- transmission

const COMMANDS: [&str; 12] = [
    "READ 0 1",
    "READ 0 512",
    "READ 4096 3000",
    "READ 0 64K",
    "READ 512 512 DF",
    "WRITE 0 512",
    "FLUSH",
    "TRIM 0 4K",
    "WRITE_ZEROES 0 4K",
    "STATUS 0 1M",
    "STATUS 4096 64K",
    "STATUS 0 512 REQ_ONE",
];

/// Chunks of content that cover a read, the first of them at `at`.
fn content(at: u64, mut left: u64, pieces: &[(u64, bool)]) -> Vec<String> {
    let mut chunks = Vec::new();
    let mut offset = at;
    for (length, hole) in pieces.iter().copied().chain([(left, false)]) {
        let n = length.min(left);
        if n > 0 && hole {
            chunks.push(format!("OFFSET_HOLE {offset}:64 {n}:32"));
        } else if n > 0 {
            chunks.push(format!("OFFSET_DATA {offset}:64 {:02x}*{n}", offset % 251));
        }
        left -= n;
        offset += n;
    }
    chunks
}

/// A status chunk for context `id`, with extents of these lengths.
fn status(framing: Framing, id: u32, lengths: &[u32]) -> String {
    let count = lengths.len();
    let (start, bits) = match framing {
        Framing::Extended => (format!("BLOCK_STATUS_EXT {id}:32 {count}:32"), 64),
        _ => (format!("BLOCK_STATUS {id}:32"), 32),
    };
    let extent = |length| format!(" {length}:{bits} {}:{bits}", length % 4);
    start + &lengths.iter().map(extent).collect::<String>()
}

/// The chunks of content or status in reply to `command`: type and payload.
fn chunks(framing: Framing, command: &'static str) -> BoxedStrategy<Vec<String>> {
    let words = script::words(command);
    let number = |at: usize| words.get(at).map_or(0, |word| script::number(word));
    let (offset, length) = (number(1), number(2));
    let flagged = words.len() > 3;
    match words[0] {
        "READ" => {
            let pieces = vec(
                (1..length + 1, any::<bool>()),
                if flagged { 0..1 } else { 0..6 },
            );
            let chunks = pieces.prop_map(move |pieces| content(offset, length, &pieces));
            prop_oneof![3 => chunks.clone(), 1 => chunks.prop_shuffle()].boxed()
        }
        "STATUS" => {
            let lengths = vec(1..1000u32, if flagged { 1..2 } else { 1..40 });
            let lengths = lengths.prop_map(move |mut lengths| {
                if flagged {
                    lengths[0] = lengths[0].min(512);
                }
                lengths
            });
            vec(lengths, 2)
                .prop_map(move |contexts| {
                    let contexts = (1..).zip(&contexts);
                    contexts
                        .map(|(id, lengths)| status(framing, id, lengths))
                        .collect()
                })
                .boxed()
        }
        _ => Just(Vec::new()).boxed(),
    }
}

/// The lines of the reply to command `number`.
fn reply(framing: Framing, number: usize, command: &'static str) -> BoxedStrategy<Vec<String>> {
    let words = script::words(command);
    let length = match words[0] {
        "READ" => script::number(words[2]),
        _ => 0,
    };
    let offset = words.get(1).map_or(0, |word| script::number(word));
    if framing == Framing::Simple {
        return prop_oneof![
            4 => Just(vec![format!("simple OK #{number} ab*{length}")]),
            1 => Just(vec![format!("simple EIO #{number}")]),
        ]
        .boxed();
    }
    let error = (text(), 0..100usize, any::<bool>()).prop_map(move |(text, more, place)| {
        if place {
            format!("ERROR_OFFSET EIO:32 {text}:16 65*{text} {offset}:64")
        } else {
            format!("ERROR EIO:32 {text}:16 65*{text} 00*{more}")
        }
    });
    let errors = prop_oneof![3 => Just(Vec::new()), 1 => vec(error, 1..3)];
    (
        chunks(framing, command),
        errors,
        any::<Index>(),
        any::<bool>(),
    )
        .prop_map(move |(mut chunks, errors, at, none)| {
            let at = at.index(chunks.len() + 1);
            chunks.splice(at..at, errors);
            if none || chunks.is_empty() {
                chunks.push("NONE".to_owned());
            }
            let last = chunks.len() - 1;
            let line = |(at, chunk): (usize, &String)| {
                let word = if at == last { "last" } else { "chunk" };
                let (kind, body) = chunk.split_once(' ').unwrap_or((chunk, ""));
                format!("{word} {kind} #{number} {body}")
            };
            chunks.iter().enumerate().map(line).collect()
        })
        .boxed()
}

/// Commands that are all in flight, and the lines of their replies.
#[derive(Debug, Clone)]
struct Transfer {
    framing: Framing,
    commands: Vec<&'static str>,
    lines: Vec<String>,
    fault: Fault,
}

fn transfer() -> impl Strategy<Value = Transfer> {
    let framing = select(vec![
        Framing::Simple,
        Framing::Structured,
        Framing::Extended,
    ]);
    let start = (framing, vec(select(&COMMANDS[..]), 1..6), any::<bool>());
    start.prop_flat_map(|(framing, mut commands, disconnect)| {
        let chunked = |command: &str| command.starts_with("STATUS") || command.ends_with("DF");
        commands.retain(|command| framing != Framing::Simple || !chunked(command));
        let replies = commands.iter().enumerate();
        let replies: Vec<_> = replies
            .map(|(number, command)| reply(framing, number, command))
            .collect();
        if disconnect {
            commands.push("DISC");
        }
        let longest = match framing {
            Framing::Extended => "2^64-1",
            _ => "0xffffffff",
        };
        let turns = vec(any::<Index>(), 64);
        (replies, turns, fault(longest)).prop_map(move |(mut replies, turns, fault)| {
            let mut turns = turns.iter().cycle();
            let mut lines = Vec::new();
            replies.iter_mut().for_each(|reply| reply.reverse());
            while !replies.is_empty() {
                let at = turns.next().unwrap().index(replies.len());
                match replies[at].pop() {
                    Some(line) => lines.push(line),
                    None => drop(replies.swap_remove(at)),
                }
            }
            Transfer {
                framing,
                commands: commands.clone(),
                lines: fault.lines(lines),
                fault,
            }
        })
    })
}

impl Transfer {
    fn start(&self, limits: Limits) -> Session<Client> {
        let mut machine = Client::with_limits(with_contexts(self.framing, 2), limits);
        for command in &self.commands {
            once(&mut machine, &format!("C: {command}"));
        }
        let lines = self.lines.iter();
        let replies = lines.flat_map(|line| script::server(line, &machine));
        let greeting = self.fault.bytes(replies.collect());
        Session {
            machine,
            act: Box::new(|_, due| panic!("{due:?} during transmission")),
            greeting,
        }
    }
}

const CONTEXTS: &[MetaContextQuery<'_>] = &[MetaContextQuery::new("x:")];

fn config() -> impl Strategy<Value = Config<'static>> {
    let framings = select(vec![
        Framing::Simple,
        Framing::Structured,
        Framing::Extended,
    ]);
    let tls = select(vec![
        TlsPolicy::Never,
        TlsPolicy::Prefer,
        TlsPolicy::Require,
    ]);
    (framings, tls, any::<bool>()).prop_map(|(framing, tls, contexts)| {
        let contexts = if contexts { CONTEXTS } else { &[] };
        let config = Config::new("").framing(framing).tls(tls);
        config.contexts(contexts)
    })
}

/// Replies to every option, once.
fn every_option() -> impl Strategy<Value = Vec<(OptionType, Vec<u8>)>> {
    OPTIONS.into_iter().map(exchange).collect::<Vec<_>>()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(1000)
    })]

    #[test]
    fn every_reader_connects_the_same(
        config in config(),
        greeting in greeting(),
        exchanges in every_option(),
        tls in any::<bool>(),
        reader in reader(),
        size in buffer(),
    ) {
        let start = |limits| connecting(config, &greeting, &exchanges, tls, limits);
        compare(start, &reader, size);
    }

    #[test]
    fn every_reader_sees_the_same_options(
        greeting in greeting(),
        chunks in vec(exchange("STRUCTURED_REPLY"), 0..2),
        exchanges in vec(select(&OPTIONS[..]).prop_flat_map(exchange), 0..8),
        tls in any::<bool>(),
        reader in reader(),
        size in buffer(),
    ) {
        let exchanges = [chunks, exchanges].concat();
        let start = |limits| negotiating(&greeting, exchanges.clone(), tls, limits);
        compare(start, &reader, size);
    }

    #[test]
    fn every_reader_sees_the_same_transmission(
        transfer in transfer(),
        reader in reader(),
        size in buffer(),
    ) {
        compare(|limits| transfer.start(limits), &reader, size);
    }
}
