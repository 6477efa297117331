//! A client: replies in 64 bytes.

use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{ReplyFlags, TransmissionFlags};
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Context, Framing, Limits, Need, Negotiated, Width};

use crate::{FRAMINGS, PACES, Pace, Receiver, Stalled, TRANSMISSION};

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
