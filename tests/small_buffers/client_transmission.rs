//! A client: replies in 64 bytes.

use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{ReplyFlags, TransmissionFlags};
use nbd_codec::wire::number::{ChunkType, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Content, Error, Framing, Limits, Negotiated, SelectedContext, StatusWidth, Step};

use crate::{FRAMINGS, PACES, Pace, Receiver, TRANSMISSION};

/// What a reply says, in any fragmentation.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Data(u64, Vec<u8>),
    Hole(u64, u32),
    Extents(Vec<Extent64>),
    Error(ErrorValue, Option<u64>, Option<String>),
    Done(Result<(), ErrorValue>),
}

/// Appends content, or joins it to the data before.
fn content(said: &mut Vec<Said>, content: Content<&[u8]>) {
    match (said.last_mut(), content) {
        (Some(Said::Data(start, before)), Content::Data { offset, data, .. })
            if *start + before.len() as u64 == offset =>
        {
            before.extend_from_slice(data);
        }
        (_, Content::Data { offset, data, .. }) => said.push(Said::Data(offset, data.to_vec())),
        (_, Content::Hole { offset, length, .. }) => said.push(Said::Hole(offset, length)),
    }
}

/// Appends an event, or joins it to the extents before.
fn event(said: &mut Vec<Said>, event: TransmissionEvent<'_>) {
    let extents: Vec<Extent64> = match event {
        TransmissionEvent::Extents32 { extents, .. } => extents.map(Extent64::from).collect(),
        TransmissionEvent::Extents64 { extents, .. } => extents.collect(),
        TransmissionEvent::Error {
            error,
            offset,
            message,
            ..
        } => {
            let message = message.map(|text| text.to_str().unwrap().to_owned());
            return said.push(Said::Error(error, offset, message));
        }
        TransmissionEvent::Done { result, .. } => return said.push(Said::Done(result)),
        other => panic!("{other:?}"),
    };
    match said.last_mut() {
        Some(Said::Extents(before)) => before.extend(extents),
        _ => said.push(Said::Extents(extents)),
    }
}

/// Receives `bytes` in a buffer of `N`; payloads go straight into their place
/// if `direct`.
fn receive_all<const N: usize>(
    session: &mut Transmission<[Slot; 1]>,
    bytes: &[u8],
    pace: Pace,
    direct: bool,
) -> Result<Vec<Said>, Error> {
    let mut receiver = Receiver::<N>::new(pace, bytes.to_vec());
    let mut said = Vec::new();
    loop {
        match receiver.inbox.receive(session)? {
            Step::Event(one) => event(&mut said, one),
            Step::Content(one) => content(&mut said, one),
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } if direct => {
                let data = receiver.read_payload(length);
                session.advance(data.len() as u64).unwrap();
                let data = data.as_slice();
                let one = Content::Data {
                    cookie,
                    offset,
                    data,
                };
                content(&mut said, one);
            }
            step => {
                let limit = step.read_limit().expect("a step that reads");
                if !receiver.read(limit) {
                    assert!(receiver.is_empty());
                    return Ok(said);
                }
            }
        }
    }
}

fn session(framing: Framing) -> Transmission<[Slot; 1]> {
    let mut negotiated = Negotiated::new(framing, 1 << 40, TransmissionFlags::KNOWN);
    negotiated.flags = negotiated.flags - TransmissionFlags::READ_ONLY;
    if framing != Framing::Simple {
        let context = SelectedContext {
            id: CONTEXT,
            width: StatusWidth::Narrow,
        };
        negotiated.contexts.push(context).unwrap();
    }
    Transmission::new(negotiated, [Slot::EMPTY], Limits::for_buffer(64))
}

const CONTEXT: ContextId = ContextId(7);
const LAST: bool = true;
const MORE: bool = false;

/// S: a chunk.
fn chunk(framing: Framing, cookie: Cookie, offset: u64, last: bool, chunk: Chunk<'_>) -> Vec<u8> {
    let mut room = [0; 8192];
    let n = chunk.encode(&mut &mut room[..]).unwrap();
    let payload = &room[..n];
    let flags = if last {
        ReplyFlags::DONE
    } else {
        ReplyFlags::NONE
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

/// A request, the reply to it, and what it says.
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
    // The longest message that fits 64 bytes with its offset.
    let fits = "m".repeat(56);
    let message = fits.clone();
    vec![
        (
            // The end first, then the beginning, and a hole between them.
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
            // Messages: the longest that fits, one byte more, far more.
            Request::read(0, 512),
            Box::new(move |cookie| {
                let error = |message, offset| Chunk::ErrorOffset {
                    error: ErrorValue::EIO,
                    message,
                    offset,
                    rest: &[],
                };
                let (fits, exceeds) = (fits.as_str(), &long[..57]);
                let long = Chunk::Error {
                    chunk: ChunkType::ERROR,
                    error: ErrorValue::ENOMEM,
                    message: long.as_str().into(),
                    rest: &[],
                };
                [
                    chunk(framing, cookie, 0, MORE, error(fits.into(), 511)),
                    chunk(framing, cookie, 0, MORE, error(exceeds.into(), 3)),
                    chunk(framing, cookie, 0, LAST, long),
                ]
                .concat()
            }),
            vec![
                Said::Error(ErrorValue::EIO, Some(511), Some(message)),
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
                if direct && pace != Pace::Exact {
                    continue; // payload is in the buffer already
                }
                let mut session = session(framing);
                for (request, reply, expected) in &exchanges {
                    let header = session.submit(*request).unwrap();
                    let bytes = reply(header.cookie());
                    let said = receive_all::<TRANSMISSION>(&mut session, &bytes, pace, direct);
                    let case = format!("{framing}, {pace:?}, {request:?}");
                    assert_eq!(said.as_ref(), Ok(expected), "{case}");
                }
            }
        }
    }
}

/// Without the limit the same messages do not fit: the inbox says how large it
/// has to be.
#[test]
fn unlimited_messages_do_not_fit() {
    for framing in [Framing::Structured, Framing::Extended] {
        let negotiated = Negotiated::new(framing, 1 << 20, TransmissionFlags::HAS_FLAGS);
        let mut session = Transmission::new(negotiated, [Slot::EMPTY], Limits::default());
        let header = session.submit(Request::read(0, 512)).unwrap();
        let (_, reply, _) = &chunks(framing)[1];
        let bytes = reply(header.cookie());
        let said = receive_all::<TRANSMISSION>(&mut session, &bytes, Pace::ReadAhead, false);
        // The message of 57 bytes, and its offset.
        assert_eq!(said, Err(Error::BufferFull { needed: 65 }), "{framing}");
    }
}

/// Lengths have 64 bits, also where `usize` has 32.
#[test]
fn a_payload_may_be_longer_than_memory() {
    const LENGTH: u64 = (5 << 30) + 3;
    let mut session = session(Framing::Extended).lenient();
    let cookie = session.submit(Request::read(9, LENGTH)).unwrap().cookie();
    let mut header = ExtendedHeader {
        flags: ReplyFlags::DONE,
        chunk: ChunkType::OFFSET_DATA,
        cookie,
        offset: 9,
        length: LENGTH + 8,
    }
    .encode()
    .to_vec();
    header.extend(9u64.to_be_bytes());
    let payload = |offset, length| Step::ReadPayload {
        cookie,
        offset,
        length,
    };
    let step = session.receive(&mut &header[..]);
    assert_eq!(step, Ok(payload(9, LENGTH)));
    session.advance(LENGTH - 2).unwrap();
    let last = 9 + LENGTH - 2;
    assert_eq!(session.receive(&mut &b""[..]), Ok(payload(last, 2)));
    let mut input = &[1, 2][..];
    let data = Content::Data {
        cookie,
        offset: last,
        data: &[1, 2][..],
    };
    assert_eq!(session.receive(&mut input), Ok(Step::Content(data)));
    let result = Ok(());
    let done = TransmissionEvent::Done { cookie, result };
    assert_eq!(session.receive(&mut input), Ok(Step::Event(done)));
}
