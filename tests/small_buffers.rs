//! How little memory is enough: 64 bytes to receive in during transmission,
//! with every framing, and 256 bytes for a whole handshake.

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, ReplyFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Context, Framing, Limits, Need, Negotiated, Style, Width};

const TRANSMISSION: usize = 64;
const HANDSHAKE: usize = 256;

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// How a driver reads.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// What the machine needs, and not a byte more.
    Needed,
    /// As much as the buffer holds.
    Full,
    /// One byte at a time.
    Byte,
}

const PACES: [Pace; 3] = [Pace::Needed, Pace::Full, Pace::Byte];

/// The machine wants more, and the buffer is full.
#[derive(Debug, PartialEq)]
struct Stalled;

/// A receive buffer of `N` bytes at the end of a line.
struct Receiver<const N: usize> {
    buffer: [u8; N],
    held: usize,
    pace: Pace,
    /// What the peer sent and is not read yet.
    line: Vec<u8>,
}

impl<const N: usize> Receiver<N> {
    fn new(pace: Pace, line: Vec<u8>) -> Self {
        Self {
            buffer: [0; N],
            held: 0,
            pace,
            line,
        }
    }

    fn held(&self) -> &[u8] {
        &self.buffer[..self.held]
    }

    /// The machine left so much of what is held.
    fn keep(&mut self, left: usize) {
        self.buffer.copy_within(self.held - left..self.held, 0);
        self.held = left;
    }

    /// Reads a little; false if the line is silent.
    fn read(&mut self, need: Need) -> Result<bool, Stalled> {
        if self.line.is_empty() {
            return Ok(false);
        }
        let room = N - self.held;
        let wanted = match need {
            Need::Header(n) => n.saturating_sub(self.held),
            Need::Payload { length, .. } => usize::try_from(length).unwrap(),
            Need::Nothing => return Ok(false),
        };
        assert!(wanted > 0, "needs nothing, and took nothing");
        let n = match self.pace {
            Pace::Needed => wanted.min(room),
            Pace::Full => room,
            Pace::Byte => room.min(1),
        };
        if n == 0 {
            return Err(Stalled);
        }
        let n = n.min(self.line.len());
        let arrived: Vec<u8> = self.line.drain(..n).collect();
        self.buffer[self.held..][..n].copy_from_slice(&arrived);
        self.held += n;
        Ok(true)
    }
}

/// What a reply says, however it was cut.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Data(u64, Vec<u8>),
    Hole(u64, u32),
    Extents(Vec<Extent64>),
    Error(ErrorValue, Option<u64>, Option<String>),
    Done(Result<(), ErrorValue>),
}

/// Takes the event out, and joins it to the one before if it carries that on.
fn say(said: &mut Vec<Said>, event: Event<'_>) {
    let extents: Vec<Extent64> = match event {
        Event::Extents32 { extents, .. } => extents.map(Extent64::from).collect(),
        Event::Extents64 { extents, .. } => extents.collect(),
        Event::Data { offset, data, .. } => {
            if let Some(Said::Data(start, before)) = said.last_mut()
                && *start + before.len() as u64 == offset
            {
                before.extend_from_slice(data);
            } else {
                said.push(Said::Data(offset, data.to_vec()));
            }
            return;
        }
        Event::Hole { offset, length, .. } => return said.push(Said::Hole(offset, length)),
        Event::Error {
            error,
            offset,
            message,
            ..
        } => {
            let message = message.map(|text| text.to_str().unwrap().to_owned());
            return said.push(Said::Error(error, offset, message));
        }
        Event::Done { result, .. } => return said.push(Said::Done(result)),
        other => panic!("{other:?}"),
    };
    match said.last_mut() {
        Some(Said::Extents(before)) => before.extend(extents),
        _ => said.push(Said::Extents(extents)),
    }
}

/// Receives all of `line` in `N` bytes; payloads go straight into their place
/// if `direct`.
fn receive_all<const N: usize>(
    session: &mut Transmission<[Slot; 1]>,
    line: &[u8],
    pace: Pace,
    direct: bool,
) -> Result<Vec<Said>, Stalled> {
    let mut receiver = Receiver::<N>::new(pace, line.to_vec());
    let mut said = Vec::new();
    loop {
        let mut input = receiver.held();
        while let Some(event) = session.receive(&mut input).unwrap() {
            say(&mut said, event);
        }
        let left = input.len();
        receiver.keep(left);
        let need = session.need();
        if let (
            true,
            Need::Payload {
                cookie,
                offset,
                length,
            },
        ) = (direct, need)
        {
            let n = receiver.line.len().min(usize::try_from(length).unwrap());
            let data: Vec<u8> = receiver.line.drain(..n).collect();
            session.advance(n as u64).unwrap();
            let data = &data[..];
            say(
                &mut said,
                Event::Data {
                    cookie,
                    offset,
                    data,
                },
            );
        } else if !receiver.read(need)? {
            assert_eq!(receiver.held, 0, "left over");
            return Ok(said);
        }
    }
}

fn session(framing: Framing) -> Transmission<[Slot; 1]> {
    let mut negotiated = Negotiated::new(framing, 1 << 40, TransmissionFlags::KNOWN);
    negotiated.flags = negotiated.flags - TransmissionFlags::READ_ONLY;
    if framing != Framing::Simple {
        let context = Context {
            id: CONTEXT,
            width: Width::Narrow,
        };
        negotiated.contexts.push(context).unwrap();
    }
    let mut limits = Limits::default();
    limits.error_message = 18; // and 46 bytes: 64
    Transmission::new(negotiated, [Slot::EMPTY], limits)
}

const CONTEXT: ContextId = ContextId(7);
const LAST: bool = true;
const MORE: bool = false;

/// S: a chunk.
fn chunk(framing: Framing, cookie: Cookie, offset: u64, last: bool, chunk: Chunk<'_>) -> Vec<u8> {
    let mut room = [0; 8192];
    let n = chunk.encode(&mut &mut room[..]).unwrap();
    let payload = &room[..n];
    let flags = match last {
        true => ReplyFlags::DONE,
        false => ReplyFlags::NONE,
    };
    let length = payload.len();
    let mut bytes = match framing {
        Framing::Simple => panic!("simple replies have no chunks"),
        Framing::Structured => StructuredHeader {
            flags,
            chunk: chunk.chunk(),
            cookie,
            length: u32::try_from(length).unwrap(),
        }
        .encode()
        .to_vec(),
        Framing::Extended => ExtendedHeader {
            flags,
            chunk: chunk.chunk(),
            cookie,
            offset,
            length: length as u64,
        }
        .encode()
        .to_vec(),
    };
    bytes.extend(payload);
    bytes
}

/// A request, the reply, and what it says.
type Exchange = (Request, Reply, Vec<Said>);
type Reply = Box<dyn Fn(Cookie) -> Vec<u8>>;

fn simple() -> Vec<Exchange> {
    let simple = |error| move |cookie| SimpleReply { error, cookie }.encode().to_vec();
    let data: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let (sent, done) = (data.clone(), Said::Done(Ok(())));
    let ok = simple(ErrorValue::NONE);
    vec![
        (
            Request::read(4096, 1000),
            Box::new(move |cookie| [ok(cookie), sent.clone()].concat()),
            vec![Said::Data(4096, data), done.clone()],
        ),
        (
            Request::write(0, 512),
            Box::new(simple(ErrorValue::NONE)),
            vec![done],
        ),
        (
            Request::flush(),
            Box::new(simple(ErrorValue::EIO)),
            vec![Said::Done(Err(ErrorValue::EIO))],
        ),
    ]
}

fn chunks(framing: Framing) -> Vec<Exchange> {
    let data: Vec<u8> = (0..=255).cycle().take(700).collect();
    let sent = data.clone();
    let extents: Vec<Extent64> = (1..=50)
        .map(|n| Extent64 {
            length: n * 4096,
            flags: n % 4,
        })
        .collect();
    let described = extents.clone();
    let long = "x".repeat(4096);
    let error = move |message: &'static str, offset| Chunk::ErrorOffset {
        error: ErrorValue::EIO,
        message: message.into(),
        offset,
        rest: &[],
    };
    vec![
        (
            // Behind its place, before it, and zeroes.
            Request::read(4096, 1000),
            Box::new(move |cookie| {
                let (front, back) = sent.split_at(300);
                let part = |offset, data| Chunk::OffsetData { offset, data };
                let (offset, length) = (4096 + 300, 300);
                let hole = Chunk::OffsetHole { offset, length };
                [
                    chunk(framing, cookie, 4096, MORE, part(4096 + 600, back)),
                    chunk(framing, cookie, 4096, MORE, part(4096, front)),
                    chunk(framing, cookie, 4096, MORE, hole),
                    chunk(framing, cookie, 4096, LAST, Chunk::None),
                ]
                .concat()
            }),
            vec![
                Said::Data(4096 + 600, data[300..].to_vec()),
                Said::Data(4096, data[..300].to_vec()),
                Said::Hole(4096 + 300, 300),
                Said::Done(Ok(())),
            ],
        ),
        (
            // Texts: as long as there is room for, and far longer.
            Request::read(0, 512),
            Box::new(move |cookie| {
                let long = Chunk::Error {
                    chunk: nbd_codec::wire::number::ChunkType::ERROR,
                    error: ErrorValue::ENOMEM,
                    message: long.as_str().into(),
                    rest: &[],
                };
                [
                    chunk(framing, cookie, 0, MORE, error("eighteen bytes, so", 511)),
                    chunk(framing, cookie, 0, MORE, error("one more than there", 3)),
                    chunk(framing, cookie, 0, LAST, long),
                ]
                .concat()
            }),
            vec![
                Said::Error(
                    ErrorValue::EIO,
                    Some(511),
                    Some("eighteen bytes, so".into()),
                ),
                Said::Error(ErrorValue::EIO, Some(3), None),
                Said::Error(ErrorValue::ENOMEM, None, None),
                Said::Done(Err(ErrorValue::EIO)),
            ],
        ),
        (
            Request::block_status(0, 1 << 30),
            Box::new(move |cookie| {
                let (mut narrow, mut wide) = (Vec::new(), Vec::new());
                for extent in &described {
                    narrow.extend(Extent32::try_from(*extent).unwrap().encode());
                    wide.extend(extent.encode());
                }
                let context = CONTEXT;
                let status = match framing {
                    Framing::Extended => Chunk::BlockStatusExt {
                        context,
                        extents: Extents64::split(&wide).0,
                    },
                    _ => Chunk::BlockStatus {
                        context,
                        extents: Extents32::split(&narrow).0,
                    },
                };
                chunk(framing, cookie, 0, LAST, status)
            }),
            vec![Said::Extents(extents), Said::Done(Ok(()))],
        ),
        (
            Request::flush(),
            Box::new(move |cookie| chunk(framing, cookie, 0, LAST, Chunk::None)),
            vec![Said::Done(Ok(()))],
        ),
    ]
}

#[test]
fn sixty_four_bytes_are_enough_for_transmission() {
    for framing in FRAMINGS {
        let exchanges = match framing {
            Framing::Simple => simple(),
            _ => chunks(framing),
        };
        for pace in PACES {
            for direct in [false, true] {
                if direct && !matches!(pace, Pace::Needed) {
                    continue; // what is read beyond a header is not read directly
                }
                let mut session = session(framing);
                for (request, reply, expected) in &exchanges {
                    let head = session.submit(*request).unwrap();
                    let line = reply(head.cookie());
                    let said = receive_all::<TRANSMISSION>(&mut session, &line, pace, direct);
                    let case = format!("{framing}, {pace:?}, {request:?}");
                    assert_eq!(said.as_ref(), Ok(expected), "{case}");
                }
            }
        }
    }
}

/// Without the limit the same text stops the driver: the buffer is what it is.
#[test]
fn a_text_that_is_not_limited_does_not_fit() {
    for framing in [Framing::Structured, Framing::Extended] {
        let negotiated = Negotiated::new(framing, 1 << 20, TransmissionFlags::HAS_FLAGS);
        let mut session = Transmission::new(negotiated, [Slot::EMPTY], Limits::default());
        let head = session.submit(Request::read(0, 512)).unwrap();
        let (_, reply, _) = &chunks(framing)[1];
        let line = reply(head.cookie());
        let said = receive_all::<TRANSMISSION>(&mut session, &line, Pace::Full, false);
        assert_eq!(said, Err(Stalled), "{framing}");
    }
}

/// Lengths are 64 bits wide where `usize` is not.
#[test]
fn a_payload_may_be_longer_than_memory() {
    const LENGTH: u64 = (5 << 30) + 3;
    let mut session = session(Framing::Extended).lenient();
    let cookie = session.submit(Request::read(9, LENGTH)).unwrap().cookie();
    let mut header = ExtendedHeader {
        flags: ReplyFlags::DONE,
        chunk: nbd_codec::wire::number::ChunkType::OFFSET_DATA,
        cookie,
        offset: 9,
        length: LENGTH + 8,
    }
    .encode()
    .to_vec();
    header.extend(9u64.to_be_bytes());
    let mut input = &header[..];
    assert_eq!(session.receive(&mut input), Ok(None));
    let all = Need::Payload {
        cookie,
        offset: 9,
        length: LENGTH,
    };
    assert_eq!(session.need(), all);
    session.advance(LENGTH - 2).unwrap();
    let rest = Need::Payload {
        cookie,
        offset: 9 + LENGTH - 2,
        length: 2,
    };
    assert_eq!(session.need(), rest);
    let mut input = &[1, 2][..];
    let data = Event::Data {
        cookie,
        offset: 9 + LENGTH - 2,
        data: &[1, 2],
    };
    assert_eq!(session.receive(&mut input), Ok(Some(data)));
    let result = Ok(());
    assert_eq!(
        session.receive(&mut input),
        Ok(Some(Event::Done { cookie, result }))
    );
}

/// What a server answers to an option.
type Server = fn(OptionType, &mut Vec<u8>);

fn reply(option: OptionType, reply: OptionReply<'_>, line: &mut Vec<u8>) {
    let mut room = [0; 8192];
    let n = reply.encode(option, &mut &mut room[..]).unwrap();
    line.extend_from_slice(&room[..n]);
}

fn refuse(option: OptionType, message: &str, line: &mut Vec<u8>) {
    let error = OptionReply::Error {
        error: OptionReplyType::ERR_UNSUP,
        message: message.into(),
    };
    reply(option, error, line);
}

/// Everything it can say, in the longest words it can find.
fn talkative(option: OptionType, line: &mut Vec<u8>) {
    let long = "x".repeat(4096);
    match option {
        OptionType::EXTENDED_HEADERS => return refuse(option, &long, line),
        OptionType::SET_META_CONTEXT => {
            let id = CONTEXT;
            let name = long.as_str().into();
            reply(option, OptionReply::MetaContext { id, name }, line);
            let (id, name) = (ContextId(8), "base:allocation".into());
            reply(option, OptionReply::MetaContext { id, name }, line);
        }
        OptionType::GO => {
            let fits = "d".repeat(234); // and 2 and 20 bytes: 256
            let sizes = BlockSizes {
                minimum: 512,
                ..BlockSizes::DEFAULT
            };
            let export = Info::Export {
                size: 1 << 20,
                flags: TransmissionFlags::HAS_FLAGS,
            };
            for info in [
                Info::Name(long.as_str().into()),
                export,
                Info::Description(long.as_str().into()),
                Info::Description(fits.as_str().into()),
                Info::BlockSize(sizes),
            ] {
                reply(option, OptionReply::Info(info), line);
            }
        }
        _ => {}
    }
    reply(option, OptionReply::Ack, line);
}

/// As `talkative`, with a server that has everything.
fn able(option: OptionType, line: &mut Vec<u8>) {
    match option {
        OptionType::EXTENDED_HEADERS => reply(option, OptionReply::Ack, line),
        _ => talkative(option, line),
    }
}

/// Only what there was before options had replies to speak of.
fn old(option: OptionType, line: &mut Vec<u8>) {
    match option {
        OptionType::EXPORT_NAME => {
            let size = 1 << 20;
            let flags = TransmissionFlags::HAS_FLAGS;
            line.extend(ExportNameReply { size, flags }.encode());
            line.extend([0; 124]);
        }
        _ => refuse(option, "no such option", line),
    }
}

/// The option in what the client has written.
fn option(mut written: &[u8]) -> OptionType {
    let header = OptionHeader::decode(&mut written).unwrap().unwrap();
    assert_eq!(header.length as usize, written.len());
    header.option
}

/// Runs a handshake with one buffer of `N` bytes, which also holds what is to
/// be sent; returns what was agreed on, and the description.
fn handshake<const N: usize>(
    greeting: &[u8],
    server: Server,
    pace: Pace,
    limits: Limits,
) -> Result<(Negotiated, String), Stalled> {
    let contexts = [ContextQuery::narrow("base:allocation")];
    let mut plan = Plan::new(match greeting.len() {
        OldstyleGreeting::SIZE => "",
        _ => "disk",
    });
    plan.contexts = &contexts;
    plan.describe = true;
    plan.limits = limits;
    let mut connect = Connect::new(plan).unwrap();
    let mut receiver = Receiver::<N>::new(pace, greeting.to_vec());
    let mut answered = false;
    let mut description = String::new();
    loop {
        let mut input = receiver.held();
        let mut ready = false;
        while let Some(event) = connect.receive(&mut input).unwrap() {
            match event {
                connect::Event::Ready => ready = true,
                connect::Event::Failed { reason, .. } => panic!("{reason}"),
                connect::Event::Info(Info::Description(text)) => {
                    description = text.to_str().unwrap().to_owned();
                }
                _ => {}
            }
        }
        let left = input.len();
        receiver.keep(left);
        if ready {
            assert_eq!((receiver.held, receiver.line.len()), (0, 0), "left over");
            return Ok((connect.into_negotiated().unwrap(), description));
        }
        let mut room = &mut receiver.buffer[receiver.held..];
        let n = connect.transmit(&mut room).unwrap();
        let written = receiver.buffer[receiver.held..][..n].to_vec();
        match n {
            0 => {}
            ClientFlags::SIZE if !answered => answered = true,
            _ => server(option(&written), &mut receiver.line),
        }
        // After the client's flags it is the client's turn again.
        if n != ClientFlags::SIZE {
            let more = receiver.read(connect.need())?;
            assert!(more, "both sides wait");
        }
    }
}

fn small() -> Limits {
    let mut limits = Limits::default();
    limits.option_data = 236; // and 20 bytes: 256
    limits
}

fn newstyle(flags: HandshakeFlags) -> Vec<u8> {
    NewstyleGreeting { flags }.encode().to_vec()
}

#[test]
fn two_hundred_and_fifty_six_bytes_are_enough_for_a_handshake() {
    let fixed = newstyle(HandshakeFlags::KNOWN);
    let zeroes = newstyle(HandshakeFlags::FIXED_NEWSTYLE);
    let newstyle = newstyle(HandshakeFlags::NONE);
    let size = 1 << 20;
    let oldstyle = OldstyleGreeting {
        size,
        handshake_flags: HandshakeFlags::NONE,
        flags: TransmissionFlags::HAS_FLAGS,
    }
    .encode()
    .to_vec();
    let cases: [(&[u8], Server, Style, Framing, usize); 5] = [
        (
            &fixed,
            talkative,
            Style::FixedNewstyle,
            Framing::Structured,
            2,
        ),
        (&fixed, able, Style::FixedNewstyle, Framing::Extended, 2),
        (&zeroes, old, Style::FixedNewstyle, Framing::Simple, 0),
        (&newstyle, old, Style::Newstyle, Framing::Simple, 0),
        (&oldstyle, old, Style::Oldstyle, Framing::Simple, 0),
    ];
    for (greeting, server, style, framing, contexts) in cases {
        for pace in PACES {
            let (agreed, description) =
                handshake::<HANDSHAKE>(greeting, server, pace, small()).unwrap();
            let case = format!("{style}, {framing}, {pace:?}");
            assert_eq!((agreed.style, agreed.framing), (style, framing), "{case}");
            assert_eq!(agreed.size, size, "{case}");
            assert_eq!(agreed.contexts.len(), contexts, "{case}");
            let described = if contexts > 0 {
                "d".repeat(234)
            } else {
                String::new()
            };
            assert_eq!(description, described, "{case}");
        }
    }
}

/// The reply that just fits is the one that stops a buffer of one byte less.
#[test]
fn limits_say_exactly_what_a_handshake_needs() {
    let greeting = newstyle(HandshakeFlags::KNOWN);
    for pace in PACES {
        let enough = handshake::<256>(&greeting, talkative, pace, small());
        assert!(enough.is_ok(), "{pace:?}");
        let less = handshake::<255>(&greeting, talkative, pace, small());
        assert_eq!(less, Err(Stalled), "{pace:?}");
    }
}
