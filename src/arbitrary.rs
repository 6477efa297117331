//! `Arbitrary` for fuzzers and property tests: for every value on the wire, and
//! for the values from which a session starts.
//!
//! Distribution: 7 of 8 numbers and flag fields are defined ones, so that tests
//! pass the first check; the others are any bits. 3 of 4 strings are UTF-8. All
//! other fields are uniform, and nothing else is valid by construction: an
//! extent can be empty, an error number zero, block sizes impossible. Filter
//! with [`BlockSizes::is_valid`], [`Text::to_str`] or `total` of a list of
//! extents.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::client::Request;
use crate::limits::Limits;
use crate::negotiated::{
    Framing, HandshakeStyle, Negotiated, SelectedContext, SelectedContexts, StatusWidth,
};
use crate::wire::chunk::Chunk;
use crate::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use crate::wire::flags::{
    AllocationFlags, ClientFlags, CommandFlags, DirtyBitmapFlags, HandshakeFlags, ReplyFlags,
    TransmissionFlags,
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

/// 7 of 8 values are in one of the ranges of defined numbers, the others are
/// any numbers.
macro_rules! numbers {
    ($($name:ident($repr:ty): $($known:expr),+;)*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                if u.ratio(7u8, 8u8)? {
                    let known = u.choose(&[$($known),+])?.clone();
                    u.int_in_range(known).map(Self)
                } else {
                    u.arbitrary().map(Self)
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

/// 7 of 8 values have defined flags only, the others have any bits.
macro_rules! flags {
    ($($name:ident)*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                let any = u.ratio(1u8, 8u8)?;
                let flags = Self(u.arbitrary()?);
                Ok(if any { flags } else { flags & Self::KNOWN })
            }
        }
    )*};
}

flags! {
    HandshakeFlags ClientFlags TransmissionFlags CommandFlags ReplyFlags
    AllocationFlags DirtyBitmapFlags
}

/// Structures whose fields are all arbitrary.
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

/// Newtypes of any number.
macro_rules! newtypes {
    ($($name:ident)*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                u.arbitrary().map(Self)
            }
        }
    )*};
}

newtypes! { Cookie ContextId }

/// One of the variants without fields.
macro_rules! variants {
    ($($name:ident { $($variant:ident),+ })*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                u.choose(&[$(Self::$variant),+]).copied()
            }
        }
    )*};
}

variants! {
    Framing { Simple, Structured, Extended }
    HandshakeStyle { Oldstyle, Newstyle, FixedNewstyle }
    StatusWidth { Narrow, Wide }
}

/// At most [`SelectedContexts::CAPACITY`], each with another id.
impl<'a> Arbitrary<'a> for SelectedContexts {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut contexts = Self::new();
        for context in u.arbitrary_iter()?.take(Self::CAPACITY) {
            let _ = contexts.push(context?);
        }
        Ok(contexts)
    }
}

/// 3 of 4 texts are UTF-8, the others are any bytes.
impl<'a> Arbitrary<'a> for Text<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        if u.ratio(3u8, 4u8)? {
            u.arbitrary::<&str>().map(Self::from)
        } else {
            u.arbitrary().map(Self::new)
        }
    }
}

impl<'a> Arbitrary<'a> for Greeting {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        if u.arbitrary()? {
            u.arbitrary().map(Self::Newstyle)
        } else {
            u.arbitrary().map(Self::Oldstyle)
        }
    }
}

/// The whole descriptors of generated bytes.
macro_rules! extents {
    ($($name:ident)*) => {$(
        impl<'a> Arbitrary<'a> for $name<'a> {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                u.arbitrary().map(|bytes| Self::split(bytes).0)
            }
        }
    )*};
}

extents! { Extents32 Extents64 }

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
