//! Whole sessions through an `Inbox` of every size, with every kind of reader:
//! the events and the content are those of the same bytes in one piece, and the
//! number of steps is bounded by the number of bytes.

use std::fmt::Debug;
use std::num::NonZeroUsize;

use nbd_codec::inbox::Inbox;
use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, MetaContext, TlsMode, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::number::{Cookie, OptionReplyType};
use nbd_codec::{Content, Error, Framing, Limits, Negotiated, Receive, Step};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::requests::WRITABLE;
use crate::script::bytes;

const CONTEXTS: &[MetaContext<'_>] = &[
    MetaContext::narrow("base:allocation"),
    MetaContext::wide("x:y"),
];

const DISK: Export<'_> = {
    let mut export = Export::new("disk", 1 << 20, WRITABLE);
    export.contexts = CONTEXTS;
    export
};

/// What a caller sees and does.
#[derive(Debug, PartialEq, Eq)]
enum Note {
    /// An event of either phase.
    Event(String),
    Data {
        cookie: Cookie,
        offset: u64,
        data: Vec<u8>,
    },
    /// What a handshake writes.
    Writes(Vec<u8>),
    End(Result<(), Error>),
}

/// Notes content; consecutive pieces of one write are joined.
fn note_data(notes: &mut Vec<Note>, cookie: Cookie, offset: u64, piece: &[u8]) {
    assert!(!piece.is_empty(), "content of zero bytes");
    if let Some(Note::Data {
        cookie: last,
        offset: start,
        data,
    }) = notes.last_mut()
        && *last == cookie
        && *start + data.len() as u64 == offset
    {
        data.extend(piece);
        return;
    }
    let data = piece.to_vec();
    notes.push(Note::Data {
        cookie,
        offset,
        data,
    });
}

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
    /// The events of transmission that the caller ignores, in turn.
    ignores: Vec<bool>,
}

impl Reader {
    /// Reads exactly, and ignores nothing.
    const EXACT: Self = Self {
        ahead: false,
        direct: false,
        most: usize::MAX,
        repeats: false,
        ignores: Vec::new(),
    };

    fn ignores(&self, number: usize) -> bool {
        let turn = number.checked_rem(self.ignores.len());
        turn.is_some_and(|turn| self.ignores[turn])
    }
}

/// A client's bytes, and what the driver has done with them.
struct Driver<'a> {
    reader: &'a Reader,
    limits: Limits,
    inbox: Inbox<Vec<u8>>,
    incoming: &'a [u8],
    /// What the client sends over TLS.
    protected: &'a [u8],
    notes: Vec<Note>,
    /// Steps other than reads.
    steps: usize,
    reads: usize,
}

/// What a step asks of the driver; events and content are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Step,
    Read(NonZeroUsize),
    ReadPayload {
        cookie: Cookie,
        offset: u64,
        length: u64,
    },
    Transmit,
    StartTls,
    Finished,
}

impl Next {
    /// A step that repeats until the driver has taken it.
    fn of<E: Debug, D: Debug>(step: &Step<E, D>) -> Self {
        match *step {
            Step::Transmit => Self::Transmit,
            Step::StartTls => Self::StartTls,
            Step::Finished => Self::Finished,
            Step::Read(n) => Self::Read(n),
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => Self::ReadPayload {
                cookie,
                offset,
                length,
            },
            Step::Event(_) | Step::Content(_) => panic!("{step:?}"),
        }
    }
}

impl<'a> Driver<'a> {
    fn new(reader: &'a Reader, limits: Limits, buffer: usize, sent: &'a Sent) -> Self {
        Self {
            reader,
            limits,
            inbox: Inbox::new(vec![0; buffer]),
            incoming: &sent.plain,
            protected: &sent.protected,
            notes: Vec::new(),
            steps: 0,
            reads: 0,
        }
    }

    /// Takes one step. `act` handles its event.
    fn step<M: for<'i> Receive<Event<'i>: Debug>>(
        &mut self,
        machine: &mut M,
        act: impl FnOnce(&Inbox<Vec<u8>>, &mut M, M::Event<'_>, &mut Vec<Note>),
    ) -> Result<Next, Error> {
        self.steps += 1;
        let next = match self.inbox.receive(machine)? {
            Step::Event(event) => {
                act(&self.inbox, machine, event, &mut self.notes);
                return Ok(Next::Step);
            }
            Step::Content(Content::Data {
                cookie,
                offset,
                data,
            }) => {
                note_data(&mut self.notes, cookie, offset, data);
                return Ok(Next::Step);
            }
            Step::Content(Content::Hole { .. }) => panic!("a hole in the data of a write"),
            step => Next::of(&step),
        };
        if self.reader.repeats {
            assert_eq!(Next::of(&self.inbox.receive(machine)?), next);
        }
        match next {
            Next::Read(n) => {
                let needed = self.inbox.held().len() + n.get();
                assert!(needed <= self.limits.buffer(), "{needed} bytes");
                self.read(n);
            }
            Next::ReadPayload {
                cookie,
                offset,
                length,
            } => {
                assert!(length > 0 && self.inbox.held().is_empty());
                if self.reader.direct {
                    self.read_payload(machine, cookie, offset, length)
                } else {
                    self.read(usize::try_from(length).unwrap().try_into().unwrap())
                }
            }
            next => return Ok(next),
        }
        Ok(Next::Step)
    }

    fn read(&mut self, n: NonZeroUsize) {
        let space = if self.reader.ahead {
            self.inbox.space()
        } else {
            self.inbox.space_for(n)
        };
        assert!(!space.is_empty(), "a read of zero bytes");
        let taken = space.len().min(self.reader.most).min(self.incoming.len());
        let (piece, after) = self.incoming.split_at(taken);
        space[..taken].copy_from_slice(piece);
        self.inbox.filled(taken).unwrap();
        self.incoming = after;
        self.reads += 1;
    }

    fn read_payload<M: Receive>(
        &mut self,
        machine: &mut M,
        cookie: Cookie,
        offset: u64,
        length: u64,
    ) {
        let most = self.reader.most.min(self.incoming.len());
        let taken = usize::try_from(length).unwrap().min(most);
        let (piece, after) = self.incoming.split_at(taken);
        self.incoming = after;
        self.reads += 1;
        match taken {
            0 => self.inbox.filled(0).unwrap(),
            _ => note_data(&mut self.notes, cookie, offset, piece),
        }
        machine.advance(taken as u64).unwrap();
    }

    fn handshake(&mut self, config: Config) -> Result<Option<Negotiated>, Error> {
        let mut handshake = Handshake::new(config).unwrap();
        let mut out = Vec::new();
        loop {
            let next = self.step(&mut handshake, |inbox, handshake, event, notes| {
                notes.push(Note::Event(format!("{event:?}")));
                answer(inbox, handshake, event, &mut out);
            });
            match next {
                Ok(Next::Step) => {}
                Ok(other @ (Next::Read(_) | Next::ReadPayload { .. })) => panic!("{other:?}"),
                Ok(Next::Transmit) => assert!(handshake.transmit(&mut out).unwrap() > 0),
                Ok(Next::StartTls) => {
                    assert!(self.inbox.held().is_empty() && self.incoming.is_empty());
                    self.incoming = std::mem::take(&mut self.protected);
                    handshake.tls_established().unwrap();
                }
                Ok(Next::Finished) => break,
                Err(error) => {
                    assert!(error.is_fatal(), "{error}");
                    self.notes.push(Note::Writes(out));
                    return Err(error);
                }
            }
        }
        self.notes.push(Note::Writes(out));
        Ok(handshake.into_negotiated().ok())
    }

    fn transmission(&mut self, negotiated: Negotiated) -> Result<(), Error> {
        let mut server = Transmission::new(negotiated, self.limits).unwrap();
        let mut number = 0;
        let reader = self.reader;
        loop {
            let next = self.step(&mut server, |_, _, event: TransmissionEvent, notes| {
                if !reader.ignores(number) {
                    notes.push(Note::Event(format!("{number} {event:?}")));
                }
                number += 1;
            });
            match next? {
                Next::Step => {}
                Next::Finished => return Ok(()),
                other => panic!("{other:?}"),
            }
        }
    }

    fn session(&mut self, start: &Start) -> Result<(), Error> {
        let negotiated = match *start {
            Start::Handshake(tls) => self.handshake(Config::new().tls(tls).limits(self.limits))?,
            Start::Transmission(framing) => Some(crate::requests::export(framing, WRITABLE)),
        };
        let Some(negotiated) = negotiated else {
            return Ok(());
        };
        if !self.reader.ahead {
            assert!(
                self.inbox.held().is_empty(),
                "bytes of the next phase were read"
            );
        }
        self.transmission(negotiated)
    }

    /// Plays the session, and checks how many steps it took.
    fn play(mut self, start: &Start) -> Vec<Note> {
        let bytes = self.incoming.len() + self.protected.len();
        let result = self.session(start);
        self.notes.push(Note::End(result));
        // The last read is the one that finds the end.
        assert!(self.reads <= bytes + 1, "{} reads", self.reads);
        let others = self.steps - self.reads.min(self.steps);
        assert!(others <= bytes + 8, "{others} steps, {bytes} bytes");
        self.notes
    }
}

/// Answers a query at its second repetition.
fn answer(
    inbox: &Inbox<Vec<u8>>,
    handshake: &mut Handshake,
    event: HandshakeEvent<'_>,
    out: &mut Vec<u8>,
) {
    let waits = !matches!(
        event,
        HandshakeEvent::Aborted | HandshakeEvent::Ready { .. }
    );
    if waits {
        for _ in 0..2 {
            assert_eq!(inbox.receive(handshake), Err(Error::Unanswered));
        }
    }
    match event {
        HandshakeEvent::List => {
            handshake.list(&DISK, out).unwrap();
            handshake.finish_list(out).unwrap();
        }
        HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
            if ["", "disk"].contains(&query.export()) {
                handshake.grant(&query, &DISK, out).unwrap();
            } else {
                let error = OptionReplyType::ERR_UNKNOWN;
                handshake.refuse(error, "no such export", out).unwrap();
            }
        }
        HandshakeEvent::Aborted | HandshakeEvent::Ready { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// The notes of the same bytes in one piece, without an inbox.
fn reference(start: &Start, limits: Limits, ignores: &Reader, sent: &Sent) -> Vec<Note> {
    let reader = Reader {
        ahead: true,
        ignores: ignores.ignores.clone(),
        ..Reader::EXACT
    };
    let buffer = sent.plain.len() + sent.protected.len() + limits.buffer();
    Driver::new(&reader, limits, buffer, sent).play(start)
}

/// With which phase a session begins.
#[derive(Debug, Clone)]
enum Start {
    Handshake(TlsMode),
    Transmission(Framing),
}

/// A length field: the true length, or another one.
fn length_field(exact: usize) -> impl Strategy<Value = u32> {
    let exact = exact as u32;
    prop_oneof![
        8 => Just(exact),
        1 => Just(exact.wrapping_sub(1)),
        1 => Just(exact + 1),
        2 => select(vec![
            0,
            44,
            64,
            4096,
            8196,
            8197,
            1 << 16,
            1 << 25,
            (1 << 25) + 1,
            u32::MAX - 1,
            u32::MAX,
        ]),
    ]
}

/// An option, with lengths that may be wrong.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec![
        "",
        "disk",
        "other",
        "a name of more than forty-four bytes, in all",
    ]);
    let number = select(vec![1, 2, 3, 4, 6, 7, 7, 8, 9, 10, 11, 99]);
    let filler = select(vec![0, 0, 0, 1, 100, 9000, 70_000]);
    (number, name, 0..3u16, filler)
        .prop_flat_map(|(number, name, count, filler)| {
            let data: usize = match number {
                1 => name.len(),
                2 | 3 | 4 | 8 | 11 | 99 => filler,
                6 | 7 => 4 + name.len() + 2 + 2 * usize::from(count),
                _ => 4 + name.len() + 4 + (4 + 15) * usize::from(count),
            };
            let fields = (
                length_field(data),
                length_field(name.len()),
                length_field(15),
            );
            (Just((number, name, count, filler)), fields)
        })
        .prop_map(
            |((number, name, count, filler), (length, name_length, query))| {
                let mut bytes = b"IHAVEOPT".to_vec();
                bytes.extend(u32::to_be_bytes(number));
                bytes.extend(length.to_be_bytes());
                match number {
                    1 => bytes.extend(name.as_bytes()),
                    6 | 7 => {
                        bytes.extend(name_length.to_be_bytes());
                        bytes.extend(name.as_bytes());
                        bytes.extend(count.to_be_bytes());
                        (0..count).for_each(|info| bytes.extend((info + 1).to_be_bytes()));
                    }
                    9 | 10 => {
                        bytes.extend(name_length.to_be_bytes());
                        bytes.extend(name.as_bytes());
                        bytes.extend(u32::from(count).to_be_bytes());
                        for _ in 0..count {
                            bytes.extend(query.to_be_bytes());
                            bytes.extend(b"base:allocation");
                        }
                    }
                    _ => bytes.extend(vec![0; filler]),
                }
                bytes
            },
        )
}

/// The options that agree on a framing and enter the export.
fn enter(framing: Framing) -> Vec<u8> {
    let framing = match framing {
        Framing::Simple => "",
        Framing::Structured => "IHAVEOPT STRUCTURED_REPLY 4{ }",
        Framing::Extended => "IHAVEOPT EXTENDED_HEADERS 4{ }",
    };
    bytes(&format!(
        "{framing} IHAVEOPT SET_META 4{{ 4{{ \"disk\" }} 00000001 4{{ \"base:allocation\" }} }}
         IHAVEOPT GO 4{{ 4{{ \"disk\" }} 0001 0003 }}"
    ))
}

/// A request, with a length that may be wrong; of a length that a client can
/// mean, the payload follows.
fn request(framing: Framing) -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![8 => 0..9u16, 6 => Just(1), 4 => Just(7), 1 => any::<u16>()];
    let flags = prop_oneof![
        6 => Just(0x20), 3 => Just(0), 1 => 0..0x40u16, 1 => any::<u16>(),
    ];
    let offset = prop_oneof![
        4 => select(vec![0, 1, 512, 0xf_f000]),
        1 => select(vec![1 << 20, u64::MAX - 511, u64::MAX]),
    ];
    let length = prop_oneof![
        12 => select(vec![1, 12, 100, 512, 4096]),
        2 => select(vec![0, 8, 40, 136, 140, 65_536, 70_000]),
        1 => select(vec![
            1 << 20, 1 << 25, (1 << 25) + 1, u64::from(u32::MAX), 1 << 32, u64::MAX,
        ]),
    ];
    (command, flags, any::<u64>(), offset, length).prop_map(
        move |(command, flags, cookie, offset, length)| {
            let extended = framing == Framing::Extended;
            let mut bytes = Vec::new();
            bytes.extend(if extended {
                [0x21, 0xe4, 0x1c, 0x71]
            } else {
                [0x25, 0x60, 0x95, 0x13]
            });
            let flags = if extended { flags } else { flags & !0x20 };
            bytes.extend(flags.to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            if extended {
                bytes.extend(length.to_be_bytes());
            } else {
                // Truncated, as a number of 32 bits.
                bytes.extend((length as u32).to_be_bytes());
            }
            let follows = if extended {
                flags & 0x20 != 0
            } else {
                command == 1
            };
            if follows && length <= 70_000 {
                // Block status: an effect length of 4096 and the ids 0, 1, 2 and so on.
                let mut payload = 4096u64.to_be_bytes().to_vec();
                payload.extend((0..length.div_ceil(4) as u32).flat_map(u32::to_be_bytes));
                payload.truncate(length as usize);
                bytes.extend(payload);
            }
            bytes
        },
    )
}

/// The bytes of a client, short in `Debug`.
#[derive(Clone, Default)]
struct Sent {
    plain: Vec<u8>,
    /// What follows once TLS has been started.
    protected: Vec<u8>,
}

impl Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for bytes in [&self.plain, &self.protected] {
            let shown = &bytes[..bytes.len().min(400)];
            write!(f, "{} bytes: {}; ", bytes.len(), shown.escape_ascii())?;
        }
        Ok(())
    }
}

/// A session: how it begins, and what the client sends.
fn session() -> impl Strategy<Value = (Start, Sent)> {
    let framing = select(vec![
        Framing::Simple,
        Framing::Structured,
        Framing::Extended,
    ]);
    let tls = select(vec![TlsMode::None, TlsMode::None, TlsMode::Selective]);
    (framing, tls, any::<bool>())
        .prop_flat_map(|(framing, tls, handshake)| {
            let start = if handshake {
                Start::Handshake(tls)
            } else {
                Start::Transmission(framing)
            };
            let options = vec(option(), 0..if handshake { 5 } else { 1 });
            let requests = vec(request(framing), 0..8);
            (Just((start, framing)), options, requests, any::<bool>())
        })
        .prop_map(|((start, framing), options, requests, disconnects)| {
            let mut sent = Sent::default();
            let mut part = &mut sent.plain;
            if let Start::Handshake(tls) = start {
                part.extend(bytes("00000003"));
                part.extend(options.concat());
                if tls == TlsMode::Selective {
                    part.extend(bytes("IHAVEOPT STARTTLS 4{ }"));
                    part = &mut sent.protected;
                }
                part.extend(enter(framing));
            }
            part.extend(requests.concat());
            if disconnects {
                part.extend(match framing {
                    Framing::Extended => bytes("EXTREQUEST 0000 DISC 00*24"),
                    _ => bytes("REQUEST 0000 DISC 00*20"),
                });
            }
            (start, sent)
        })
}

fn reader() -> impl Strategy<Value = Reader> {
    let most = select(vec![1, 2, 7, 61, 1000, usize::MAX]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (most, flags, vec(any::<bool>(), 1..9)).prop_map(|(most, (ahead, direct, repeats), ignores)| {
        Reader {
            ahead,
            direct,
            most,
            repeats,
            ignores,
        }
    })
}

fn buffer() -> impl Strategy<Value = u32> {
    let least = Limits::LEAST_BUFFER;
    prop_oneof![least..300, 300..9000u32, 9000..=65_536u32]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(2000)
    })]

    #[test]
    fn every_reader_sees_the_same_session(
        (start, sent) in session(),
        reader in reader(),
        size in buffer(),
    ) {
        let limits = Limits::for_buffer(size);
        let buffer = limits.buffer().max(size as usize);
        let expected = reference(&start, limits, &reader, &sent);
        let seen = Driver::new(&reader, limits, buffer, &sent).play(&start);
        prop_assert_eq!(seen, expected);
    }
}
