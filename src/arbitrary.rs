//! Values for fuzzers and property tests: `Arbitrary` for what is on the wire,
//! and for what a session starts from.
//!
//! Numbers and flags are mostly known ones, so that tests get behind the first
//! check. Nothing else is tidied up: extents may be empty, an error may be
//! zero, block sizes may be impossible. A value that must be valid says so:
//! [`BlockSizes::is_valid`], [`Text::to_str`], `total` of a list of extents.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::client::Request;
use crate::limits::Limits;
use crate::negotiated::{
    Framing, HandshakeStyle, Negotiated, SelectedContext, SelectedContexts, StatusWidth,
};
use crate::wire::chunk::Chunk;
use crate::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use crate::wire::flags::{
    AllocationFlags, ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags,
};
use crate::wire::greeting::{ExportNameReply, Greeting, NewstyleGreeting, OldstyleGreeting};
use crate::wire::number::{
    ChunkType, Command, ContextId, Cookie, ErrorValue, InfoType, OptionReplyType, OptionType,
};
use crate::wire::option::{InfoRequest, MetaContextRequest, OptionHeader, OptionRequest};
use crate::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};
use crate::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use crate::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use crate::wire::text::Text;

/// Mostly one of the values listed, sometimes any.
macro_rules! numbers {
    ($($name:ident($repr:ty): $($known:expr),+;)*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                match u.ratio(7u8, 8u8)? {
                    true => {
                        let known = u.choose(&[$($known),+])?.clone();
                        u.int_in_range(known).map(Self)
                    }
                    false => u.arbitrary().map(Self),
                }
            }
        }
    )*};
}

numbers! {
    OptionType(u32): 1..=11;
    OptionReplyType(u32): 1..=4, (1 << 31 | 1)..=(1 << 31 | 10);
    InfoType(u16): 0..=3;
    Command(u16): 0..=8;
    ChunkType(u16): 0..=2, 5..=6, (1 << 15 | 1)..=(1 << 15 | 2);
    ErrorValue(u32): 0..=1, 5..=5, 12..=12, 22..=22, 28..=28, 75..=75, 95..=95, 108..=108;
}

/// Mostly flags that are known, sometimes any.
macro_rules! flags {
    ($($name:ident)*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                let all = u.ratio(1u8, 8u8)?;
                let flags = Self(u.arbitrary()?);
                Ok(match all {
                    true => flags,
                    false => flags & Self::KNOWN,
                })
            }
        }
    )*};
}

flags! { HandshakeFlags ClientFlags TransmissionFlags CommandFlags ReplyFlags AllocationFlags }

/// Structures of public fields, each of them arbitrary.
macro_rules! structures {
    ($($name:ident $(<$lifetime:lifetime>)? { $($field:ident),+ })*) => {$(
        impl<'a> Arbitrary<'a> for $name $(<$lifetime>)? {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                Ok(Self { $($field: u.arbitrary()?),+ })
            }
        }
    )*};
}

structures! {
    OldstyleGreeting { size, handshake_flags, flags }
    NewstyleGreeting { flags }
    ExportNameReply { size, flags }
    OptionHeader { option, length }
    OptionReplyHeader { option, reply, length }
    InfoRequest<'a> { export, requests }
    MetaContextRequest<'a> { export, queries }
    BlockSizes { minimum, preferred, maximum }
    CompactRequest { flags, command, cookie, offset, length }
    ExtendedRequest { flags, command, cookie, offset, length }
    BlockStatusPayload<'a> { effect_length, contexts }
    SimpleReply { error, cookie }
    StructuredHeader { flags, chunk, cookie, length }
    ExtendedHeader { flags, chunk, cookie, offset, length }
    Extent32 { length, flags }
    Extent64 { length, flags }
    SelectedContext { id, width }
    Limits { option_data, error_message, payload, max_effect_length, extents }
    Request { command, flags, offset, length }
    Negotiated { framing, size, flags, block_sizes, contexts, style, tls }
}

impl<'a> Arbitrary<'a> for Cookie {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.arbitrary().map(Self)
    }
}

impl<'a> Arbitrary<'a> for ContextId {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.arbitrary().map(Self)
    }
}

impl<'a> Arbitrary<'a> for Framing {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.choose(&[Self::Simple, Self::Structured, Self::Extended])
            .copied()
    }
}

impl<'a> Arbitrary<'a> for HandshakeStyle {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.choose(&[Self::Oldstyle, Self::Newstyle, Self::FixedNewstyle])
            .copied()
    }
}

impl<'a> Arbitrary<'a> for StatusWidth {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.choose(&[Self::Narrow, Self::Wide]).copied()
    }
}

/// As many as there is room for; a number that is there already is left out.
impl<'a> Arbitrary<'a> for SelectedContexts {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut contexts = Self::new();
        for context in u.arbitrary_iter()?.take(Self::CAPACITY) {
            let _ = contexts.push(context?);
        }
        Ok(contexts)
    }
}

/// Any bytes, or a text that keeps the rules of UTF-8.
impl<'a> Arbitrary<'a> for Text<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        match u.ratio(3u8, 4u8)? {
            true => u.arbitrary::<&str>().map(Self::from),
            false => u.arbitrary().map(Self::new),
        }
    }
}

impl<'a> Arbitrary<'a> for Greeting {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        match u.arbitrary()? {
            true => u.arbitrary().map(Self::Newstyle),
            false => u.arbitrary().map(Self::Oldstyle),
        }
    }
}

impl<'a> Arbitrary<'a> for Extents32<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.arbitrary().map(|bytes| Self::split(bytes).0)
    }
}

impl<'a> Arbitrary<'a> for Extents64<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.arbitrary().map(|bytes| Self::split(bytes).0)
    }
}

impl<'a> Arbitrary<'a> for OptionRequest<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary()? {
            OptionType::EXPORT_NAME => Self::ExportName(u.arbitrary()?),
            OptionType::ABORT => Self::Abort,
            OptionType::LIST => Self::List,
            OptionType::STARTTLS => Self::StartTls,
            OptionType::INFO => Self::Info(u.arbitrary()?),
            OptionType::GO => Self::Go(u.arbitrary()?),
            OptionType::STRUCTURED_REPLY => Self::StructuredReply,
            OptionType::LIST_META_CONTEXT => Self::ListMetaContext(u.arbitrary()?),
            OptionType::SET_META_CONTEXT => Self::SetMetaContext(u.arbitrary()?),
            OptionType::EXTENDED_HEADERS => Self::ExtendedHeaders,
            option => Self::Other {
                option,
                data: u.arbitrary()?,
            },
        })
    }
}

impl<'a> Arbitrary<'a> for OptionReply<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary()? {
            OptionReplyType::ACK => Self::Ack,
            OptionReplyType::SERVER => Self::Server {
                name: u.arbitrary()?,
                description: u.arbitrary()?,
            },
            OptionReplyType::INFO => Self::Info(u.arbitrary()?),
            OptionReplyType::META_CONTEXT => Self::MetaContext {
                id: u.arbitrary()?,
                name: u.arbitrary()?,
            },
            error if error.is_error() => Self::Error {
                error,
                message: u.arbitrary()?,
            },
            reply => Self::Other {
                reply,
                data: u.arbitrary()?,
            },
        })
    }
}

impl<'a> Arbitrary<'a> for Info<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary()? {
            InfoType::EXPORT => Self::Export {
                size: u.arbitrary()?,
                flags: u.arbitrary()?,
            },
            InfoType::NAME => Self::Name(u.arbitrary()?),
            InfoType::DESCRIPTION => Self::Description(u.arbitrary()?),
            InfoType::BLOCK_SIZE => Self::BlockSize(u.arbitrary()?),
            info => Self::Other {
                info,
                data: u.arbitrary()?,
            },
        })
    }
}

impl<'a> Arbitrary<'a> for Chunk<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary()? {
            ChunkType::NONE => Self::None,
            ChunkType::OFFSET_DATA => Self::OffsetData {
                offset: u.arbitrary()?,
                data: u.arbitrary()?,
            },
            ChunkType::OFFSET_HOLE => Self::OffsetHole {
                offset: u.arbitrary()?,
                length: u.arbitrary()?,
            },
            ChunkType::BLOCK_STATUS => Self::BlockStatus {
                context: u.arbitrary()?,
                extents: u.arbitrary()?,
            },
            ChunkType::BLOCK_STATUS_EXT => Self::BlockStatusExt {
                context: u.arbitrary()?,
                extents: u.arbitrary()?,
            },
            ChunkType::ERROR_OFFSET => Self::ErrorOffset {
                error: u.arbitrary()?,
                message: u.arbitrary()?,
                offset: u.arbitrary()?,
                rest: u.arbitrary()?,
            },
            chunk if chunk.is_error() => Self::Error {
                chunk,
                error: u.arbitrary()?,
                message: u.arbitrary()?,
                rest: u.arbitrary()?,
            },
            chunk => Self::Other {
                chunk,
                data: u.arbitrary()?,
            },
        })
    }
}
