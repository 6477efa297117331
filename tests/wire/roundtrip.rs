//! Properties: a value decodes from its encoding, and decoded bytes encode to
//! themselves.

use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{
    ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags,
};
use nbd_codec::wire::greeting::{ExportNameReply, Greeting, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{
    ChunkType, Command, ContextId, Cookie, ErrorValue, InfoType, OptionReplyType, OptionType,
};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionHeader, OptionRequest};
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::encoded;

/// Mostly small numbers, which are defined, and any others.
fn near_zero() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..16_u32, 1 => any::<u32>()]
}

/// Bytes that are likely to begin with a valid length field.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![3 => Just(0_u8), 2 => 0..9_u8, 1 => any::<u8>()];
    prop_oneof![vec(small, 0..48), vec(any::<u8>(), 0..100)]
}

/// Checks a message that is followed by `after`.
macro_rules! check {
    ($kind:ty, $value:expr, $after:expr) => {{
        let value = $value;
        let bytes = [&value.encode()[..], &$after].concat();
        let mut input = &bytes[..];
        prop_assert_eq!(<$kind>::decode(&mut input), Ok(Some(value)));
        prop_assert_eq!(input, &$after[..]);
    }};
}

/// Checks that a decoder accepts any bytes after its magic number, and consumes
/// a whole message or nothing.
macro_rules! decodes_all_or_nothing {
    ($kind:ty, $magic:expr, $data:expr) => {{
        let bytes = [&$magic[..], &$data].concat();
        let mut input = &bytes[..];
        match <$kind>::decode(&mut input) {
            Ok(Some(value)) => prop_assert_eq!([&value.encode()[..], input].concat(), bytes),
            other => {
                prop_assert_eq!((other, input), (Ok(None), &bytes[..]));
                prop_assert!(bytes.len() < <$kind>::SIZE);
            }
        }
    }};
}

proptest! {
    #[test]
    fn greetings(size: u64, bits: (u16, u16, u32), after: [u8; 3]) {
        let (handshake, flags) = (HandshakeFlags(bits.0), TransmissionFlags(bits.1));
        let oldstyle = OldstyleGreeting { size, handshake_flags: handshake, flags };
        let newstyle = NewstyleGreeting { flags: handshake };
        for (bytes, value) in [
            (oldstyle.encode().to_vec(), Greeting::Oldstyle(oldstyle)),
            (newstyle.encode().to_vec(), Greeting::Newstyle(newstyle)),
        ] {
            let bytes = [&bytes[..], &after].concat();
            let mut input = &bytes[..];
            prop_assert_eq!(Greeting::decode(&mut input), Ok(Some(value)));
            prop_assert_eq!(input, &after);
        }
        let client = ClientFlags(bits.2);
        prop_assert_eq!(ClientFlags::decode(&mut &client.encode()[..]), Some(client));
        let reply = ExportNameReply { size, flags };
        prop_assert_eq!(ExportNameReply::decode(&mut &reply.encode()[..]), Some(reply));
    }

    #[test]
    fn option_headers(option in near_zero(), reply: u32, length: u32, after: [u8; 3]) {
        let (option, reply) = (OptionType(option), OptionReplyType(reply));
        check!(OptionHeader, OptionHeader { option, length }, after);
        check!(OptionReplyHeader, OptionReplyHeader { option, reply, length }, after);
    }

    #[test]
    fn requests(
        fields: (u16, u16, u64, u64), compact: u32, extended: u64, after: [u8; 3],
    ) {
        let (flags, command) = (CommandFlags(fields.0), Command(fields.1));
        let (cookie, offset) = (Cookie(fields.2), fields.3);
        let request = CompactRequest { flags, command, cookie, offset, length: compact };
        check!(CompactRequest, request, after);
        let request = ExtendedRequest { flags, command, cookie, offset, length: extended };
        check!(ExtendedRequest, request, after);
    }

    #[test]
    fn replies(
        fields: (u16, u16, u64, u64), error: u32, structured: u32, extended: u64, after: [u8; 3],
    ) {
        let (flags, chunk) = (ReplyFlags(fields.0), ChunkType(fields.1));
        let (cookie, offset) = (Cookie(fields.2), fields.3);
        check!(SimpleReply, SimpleReply { error: ErrorValue(error), cookie }, after);
        let header = StructuredHeader { flags, chunk, cookie, length: structured };
        check!(StructuredHeader, header, after);
        let header = ExtendedHeader { flags, chunk, cookie, offset, length: extended };
        check!(ExtendedHeader, header, after);
    }

    #[test]
    fn extents(length: u64, flags: u64) {
        let wide = Extent64 { length, flags };
        prop_assert_eq!(Extent64::decode(&wide.encode()), wide);
        match Extent32::try_from(wide) {
            Ok(narrow) => prop_assert_eq!(Extent64::from(narrow), wide),
            Err(_) => prop_assert!(length > u32::MAX.into() || flags > u32::MAX.into()),
        }
        let narrow = Extent32 { length: length as u32, flags: flags as u32 };
        prop_assert_eq!(Extent32::decode(&narrow.encode()), narrow);
    }

    #[test]
    fn info_requests(export: String, types in vec(any::<u16>(), 0..20), go: bool) {
        let types: Vec<_> = types.into_iter().map(InfoType).collect();
        let request = InfoRequest { export: export.as_str().into(), requests: types[..].into() };
        let value = if go { OptionRequest::Go(request) } else { OptionRequest::Info(request) };
        let bytes = encoded(|sink| value.encode(sink));
        prop_assert_eq!(OptionRequest::decode(value.option(), &bytes[16..]), Ok(value));
    }

    #[test]
    fn meta_context_requests(export: String, queries: Vec<String>, set: bool) {
        let queries: Vec<_> = queries.iter().map(String::as_str).collect();
        let request =
            MetaContextRequest { export: export.as_str().into(), queries: queries[..].into() };
        let value = if set {
            OptionRequest::SetMetaContext(request)
        } else {
            OptionRequest::ListMetaContext(request)
        };
        let bytes = encoded(|sink| value.encode(sink));
        prop_assert_eq!(OptionRequest::decode(value.option(), &bytes[16..]), Ok(value));
    }

    #[test]
    fn option_replies(
        option: u32, texts: (Vec<u8>, Vec<u8>), numbers: (u32, u32, u32), size: u64, flags: u16,
    ) {
        let (one, other) = (texts.0[..].into(), texts.1[..].into());
        let sizes = BlockSizes { minimum: numbers.0, preferred: numbers.1, maximum: numbers.2 };
        for value in [
            OptionReply::Ack,
            OptionReply::Server { name: one, description: other },
            OptionReply::Info(Info::Export { size, flags: TransmissionFlags(flags) }),
            OptionReply::Info(Info::Name(one)),
            OptionReply::Info(Info::Description(other)),
            OptionReply::Info(Info::BlockSize(sizes)),
            OptionReply::MetaContext { id: ContextId(numbers.0), name: one },
            OptionReply::Error { error: OptionReplyType(numbers.1 | 1 << 31), message: other },
        ] {
            let bytes = encoded(|sink| value.encode(OptionType(option), sink));
            prop_assert_eq!(OptionReply::decode(value.reply(), &bytes[20..]), Ok(value));
        }
    }

    #[test]
    fn chunks(
        offset: u64, context: u32, error in 1..=u32::MAX, texts: (Vec<u8>, Vec<u8>),
        data in vec(any::<u8>(), 1..100), lengths in vec((1..=u64::MAX, any::<u64>()), 1..9),
    ) {
        let narrow: Vec<u8> = lengths
            .iter()
            .flat_map(|(length, flags)| {
                Extent32 { length: *length as u32 | 1, flags: *flags as u32 }.encode()
            })
            .collect();
        let wide: Vec<u8> = lengths
            .iter()
            .flat_map(|(length, flags)| Extent64 { length: *length, flags: *flags }.encode())
            .collect();
        let (error, context) = (ErrorValue(error), ContextId(context));
        let (message, rest) = (texts.0[..].into(), &texts.1[..]);
        for value in [
            Chunk::OffsetData { offset, data: &data },
            Chunk::OffsetHole { offset, length: error.0 },
            Chunk::BlockStatus { context, extents: Extents32::split(&narrow).0 },
            Chunk::BlockStatusExt { context, extents: Extents64::split(&wide).0 },
            Chunk::Error { chunk: ChunkType::ERROR, error, message, rest },
            Chunk::ErrorOffset { error, message, offset, rest },
        ] {
            let bytes = encoded(|sink| value.encode(sink));
            prop_assert_eq!(Chunk::decode(value.chunk(), &bytes), Ok(value));
        }
    }

    #[test]
    fn any_option_data(option in near_zero(), data in data()) {
        let option = OptionType(option);
        match OptionRequest::decode(option, &data) {
            // Its data is ignored.
            Ok(OptionRequest::Abort) => prop_assert_eq!(option, OptionType::ABORT),
            Ok(value) => {
                prop_assert_eq!(value.option(), option);
                prop_assert_eq!(&encoded(|sink| value.encode(sink))[16..], &data[..]);
            }
            Err(_) => prop_assert!(option.name().is_some()),
        }
    }

    #[test]
    fn any_option_reply_data(reply in near_zero(), error: bool, data in data()) {
        let reply = OptionReplyType(reply | u32::from(error) << 31);
        match OptionReply::decode(reply, &data) {
            Ok(value) => {
                let bytes = encoded(|sink| value.encode(OptionType::GO, sink));
                prop_assert_eq!(value.reply(), reply);
                prop_assert_eq!(&bytes[20..], &data[..]);
            }
            Err(_) => prop_assert!((1..=4).contains(&reply.0)),
        }
    }

    #[test]
    fn any_chunk_payload(chunk in 0..9_u16, error: bool, data in data()) {
        let chunk = ChunkType(chunk | u16::from(error) << 15);
        match Chunk::decode(chunk, &data) {
            Ok(value) => {
                prop_assert_eq!(value.chunk(), chunk);
                prop_assert_eq!(encoded(|sink| value.encode(sink)), data);
            }
            Err(_) => prop_assert!(chunk.is_error() || chunk.name().is_some()),
        }
    }

    #[test]
    fn any_block_status_payload(data in data()) {
        match BlockStatusPayload::decode(&data) {
            Ok(value) => prop_assert_eq!(encoded(|sink| value.encode(sink)), data),
            Err(_) => prop_assert!(data.len() < 8 || data.len() % 4 != 0),
        }
    }

    #[test]
    fn any_bytes_after_a_magic_number(data in vec(any::<u8>(), 0..40)) {
        decodes_all_or_nothing!(OptionHeader, b"IHAVEOPT", data);
        decodes_all_or_nothing!(OptionReplyHeader, 0x0003_e889_0455_65a9_u64.to_be_bytes(), data);
        decodes_all_or_nothing!(CompactRequest, 0x2560_9513_u32.to_be_bytes(), data);
        decodes_all_or_nothing!(ExtendedRequest, 0x21e4_1c71_u32.to_be_bytes(), data);
        decodes_all_or_nothing!(SimpleReply, 0x6744_6698_u32.to_be_bytes(), data);
        decodes_all_or_nothing!(StructuredHeader, 0x668e_33ef_u32.to_be_bytes(), data);
        decodes_all_or_nothing!(ExtendedHeader, 0x6e8a_278c_u32.to_be_bytes(), data);
    }
}
