//! The wire layer: a value that decodes encodes to the same bytes, and a value
//! that encodes decodes to the same value.

use std::fmt::Debug;

use arbitrary::{Arbitrary, Result, Unstructured};
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::greeting::{ExportNameReply, Greeting, RESERVED_ZEROES};
use nbd_codec::wire::number::{ChunkType, OptionReplyType, OptionType};
use nbd_codec::wire::option::{OptionHeader, OptionRequest};
use nbd_codec::wire::option_reply::{Info, OptionReply, OptionReplyHeader};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use nbd_codec::wire::text::Text;
use nbd_codec::wire::{DecodeError, EncodeError, Sink};

/// Runs every decoder on `bytes`.
pub fn decode(bytes: &[u8]) {
    headers(bytes);
    for option in (0..=12).map(OptionType) {
        if let Ok(request) = OptionRequest::decode(option, bytes) {
            assert_eq!(request.option(), option);
            let encoded = encoded(|sink| request.encode(sink));
            // The data of ABORT is ignored.
            let data = match option {
                OptionType::ABORT => &[],
                _ => bytes,
            };
            let length = data.len() as u32;
            let header = OptionHeader { option, length };
            assert_eq!(encoded, [&header.encode()[..], data].concat());
        }
    }
    for reply in (0..=5)
        .chain(0x8000_0000..=0x8000_000b)
        .map(OptionReplyType)
    {
        if let Ok(value) = OptionReply::decode(reply, bytes) {
            assert_eq!(value.reply(), reply);
            let option = OptionType::GO;
            let encoded = encoded(|sink| value.encode(option, sink));
            let length = bytes.len() as u32;
            let header = OptionReplyHeader {
                option,
                reply,
                length,
            };
            assert_eq!(encoded, [&header.encode()[..], bytes].concat());
        }
    }
    if let Ok(info) = Info::decode(bytes) {
        let reply = OptionReply::Info(info);
        let encoded = encoded(|sink| reply.encode(OptionType::INFO, sink));
        assert_eq!(encoded[OptionReplyHeader::SIZE..], *bytes);
    }
    for chunk in (0..=7).chain(0x8000..=0x8003).map(ChunkType) {
        if let Ok(value) = Chunk::decode(chunk, bytes) {
            assert_eq!(value.chunk(), chunk);
            assert_eq!(encoded(|sink| value.encode(sink)), bytes);
        }
    }
    if let Ok(payload) = BlockStatusPayload::decode(bytes) {
        assert_eq!(encoded(|sink| payload.encode(sink)), bytes);
        assert_eq!(payload.contexts.iter().count(), payload.contexts.len());
    }
    extents(bytes);
    let text = Text::new(bytes);
    assert!(!text.to_string().chars().any(char::is_control));
    assert!(text.to_str().is_err() || text.to_str() == Ok(str::from_utf8(bytes).unwrap()));
}

fn headers(bytes: &[u8]) {
    header(bytes, Greeting::decode, |greeting| match greeting {
        Greeting::Newstyle(greeting) => greeting.encode().to_vec(),
        // The reserved bytes are ignored.
        Greeting::Oldstyle(greeting) => {
            let mut encoded = greeting.encode().to_vec();
            let reserved = encoded.len() - RESERVED_ZEROES;
            encoded[reserved..].copy_from_slice(&bytes[reserved..][..RESERVED_ZEROES]);
            encoded
        }
    });
    header(bytes, OptionHeader::decode, |value| value.encode().to_vec());
    header(bytes, OptionReplyHeader::decode, |value| {
        value.encode().to_vec()
    });
    header(bytes, CompactRequest::decode, |value| {
        value.encode().to_vec()
    });
    header(bytes, ExtendedRequest::decode, |value| {
        value.encode().to_vec()
    });
    header(bytes, SimpleReply::decode, |value| value.encode().to_vec());
    header(bytes, StructuredHeader::decode, |value| {
        value.encode().to_vec()
    });
    header(bytes, ExtendedHeader::decode, |value| {
        value.encode().to_vec()
    });
    let without_magic = |input: &mut &[u8]| Ok(ClientFlags::decode(input));
    header(bytes, without_magic, |value| value.encode().to_vec());
    let without_magic = |input: &mut &[u8]| Ok(ExportNameReply::decode(input));
    header(bytes, without_magic, |value| value.encode().to_vec());
}

/// A message at the front of a stream: complete, and each proper prefix.
fn header<T: Debug + PartialEq>(
    bytes: &[u8],
    decode: impl Fn(&mut &[u8]) -> std::result::Result<Option<T>, DecodeError>,
    encode: impl Fn(T) -> Vec<u8>,
) {
    let mut input = bytes;
    let result = decode(&mut input);
    let consumed = bytes.len() - input.len();
    for end in 0..bytes.len().min(200) {
        let mut part = &bytes[..end];
        let result_of_part = decode(&mut part);
        match (&result, result_of_part) {
            // More bytes neither resolve an error nor cause one.
            (Err(error), Err(early)) => assert_eq!(*error, early),
            (_, Err(_)) => panic!("more bytes resolve an error"),
            (Ok(Some(_)), Ok(Some(_))) => assert!(end >= consumed),
            (Ok(Some(_)), Ok(None)) => assert!(end < consumed),
            (_, Ok(Some(_))) => panic!("more bytes cause an error"),
            (_, Ok(None)) => assert_eq!(part.len(), end, "consumed an incomplete message"),
        }
    }
    match result {
        Ok(Some(value)) => assert_eq!(encode(value), bytes[..consumed]),
        Ok(None) | Err(_) => assert_eq!(consumed, 0),
    }
}

fn extents(bytes: &[u8]) {
    let (narrow, rest) = Extents32::split(bytes);
    assert_eq!([narrow.as_bytes(), rest].concat(), bytes);
    assert!(rest.len() < Extent32::SIZE);
    for extent in narrow {
        let wide = Extent64::from(extent);
        assert_eq!(Extent32::try_from(wide), Ok(extent));
    }
    let (wide, rest) = Extents64::split(bytes);
    assert_eq!([wide.as_bytes(), rest].concat(), bytes);
    assert!(rest.len() < Extent64::SIZE);
    for extent in wide {
        match Extent32::try_from(extent) {
            Ok(narrow) => assert_eq!(Extent64::from(narrow), extent),
            Err(error) => assert_eq!(error.0, extent),
        }
    }
}

/// The encoded message. A sink that is one byte too small is left unchanged.
fn encoded(encode: impl Fn(&mut dyn Sink) -> std::result::Result<usize, EncodeError>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = encode(&mut bytes).expect("what was decoded can be encoded");
    assert_eq!(written, bytes.len());
    if let Some(room) = written.checked_sub(1) {
        let mut small = vec![0xa5; room];
        let mut sink = &mut small[..];
        let needed = written;
        assert_eq!(encode(&mut sink), Err(EncodeError::NoRoom { needed }));
        assert!(
            small.iter().all(|byte| *byte == 0xa5),
            "a failed call wrote"
        );
    }
    bytes
}

/// An arbitrary value of one of the message types.
pub fn round_trip(u: &mut Unstructured) -> Result<()> {
    match u.int_in_range(0..=15)? {
        0 => front(u, Greeting::decode, |value| match value {
            Greeting::Newstyle(greeting) => greeting.encode().to_vec(),
            Greeting::Oldstyle(greeting) => greeting.encode().to_vec(),
        }),
        1 => front(u, OptionHeader::decode, |value| value.encode().to_vec()),
        2 => front(u, OptionReplyHeader::decode, |value| {
            value.encode().to_vec()
        }),
        3 => front(u, CompactRequest::decode, |value| value.encode().to_vec()),
        4 => front(u, ExtendedRequest::decode, |value| value.encode().to_vec()),
        5 => front(u, SimpleReply::decode, |value| value.encode().to_vec()),
        6 => front(u, StructuredHeader::decode, |value| value.encode().to_vec()),
        7 => front(u, ExtendedHeader::decode, |value| value.encode().to_vec()),
        8 => front(
            u,
            |input| Ok(ExportNameReply::decode(input)),
            |value: ExportNameReply| value.encode().to_vec(),
        ),
        9 => front(
            u,
            |input| Ok(ClientFlags::decode(input)),
            |value: ClientFlags| value.encode().to_vec(),
        ),
        10 | 11 => option_request(&u.arbitrary()?),
        12 | 13 => option_reply(&u.arbitrary()?, u.arbitrary()?),
        14 => chunk(&u.arbitrary()?),
        _ => {
            let payload: BlockStatusPayload = u.arbitrary()?;
            let bytes = encoded(|sink| payload.encode(sink));
            assert_eq!(BlockStatusPayload::decode(&bytes), Ok(payload));
            Ok(())
        }
    }
}

/// A message at the front of a stream.
fn front<'a, T: Arbitrary<'a> + Copy + Debug + PartialEq>(
    u: &mut Unstructured<'a>,
    decode: impl Fn(&mut &[u8]) -> std::result::Result<Option<T>, DecodeError>,
    encode: impl Fn(T) -> Vec<u8>,
) -> Result<()> {
    let value: T = u.arbitrary()?;
    let mut bytes = encode(value);
    bytes.extend([1, 2, 3]);
    let mut input = &bytes[..];
    assert_eq!(decode(&mut input), Ok(Some(value)));
    assert_eq!(input, [1, 2, 3]);
    Ok(())
}

fn option_request(request: &OptionRequest) -> Result<()> {
    let bytes = encoded(|sink| request.encode(sink));
    let mut data = &bytes[..];
    let header = OptionHeader::decode(&mut data).unwrap().unwrap();
    assert_eq!(header.option, request.option());
    assert_eq!(header.length as usize, data.len());
    assert_eq!(OptionRequest::decode(header.option, data), Ok(*request));
    Ok(())
}

fn option_reply(reply: &OptionReply, option: OptionType) -> Result<()> {
    let bytes = encoded(|sink| reply.encode(option, sink));
    let mut data = &bytes[..];
    let header = OptionReplyHeader::decode(&mut data).unwrap().unwrap();
    assert_eq!((header.option, header.reply), (option, reply.reply()));
    assert_eq!(header.length as usize, data.len());
    assert_eq!(OptionReply::decode(header.reply, data), Ok(*reply));
    Ok(())
}

fn chunk(chunk: &Chunk) -> Result<()> {
    // A value that no peer may send decodes to an error.
    let broken = match chunk {
        Chunk::OffsetData { data: [], .. } => true,
        Chunk::OffsetHole { length: 0, .. } => true,
        Chunk::BlockStatus { extents, .. } => (*extents).is_empty() || extents.total().is_err(),
        Chunk::BlockStatusExt { extents, .. } => (*extents).is_empty() || extents.total().is_err(),
        Chunk::Error { error, .. } | Chunk::ErrorOffset { error, .. } => !error.is_error(),
        _ => false,
    };
    let bytes = encoded(|sink| chunk.encode(sink));
    match Chunk::decode(chunk.chunk(), &bytes) {
        Ok(decoded) => assert_eq!((decoded, broken), (chunk.clone(), false)),
        Err(error) => assert!(broken, "{error}"),
    }
    Ok(())
}
