//! Option haggling, client side: the header and data of every option
//! (specification, "Newstyle negotiation" and "Option types").

use nom::{IResult, Parser};

use super::bytes::{bytes, field, take, take_slice};
use super::greeting::OPTION_MAGIC;
use super::header::header;
use super::list::{list, list_traits};
use super::number::{InfoType, OptionType};
use super::sink::{all_or_nothing, measure};
use super::text::Text;
use super::{DecodeError, EncodeError, Sink};

header! {
    /// The header of an option (specification, "Newstyle negotiation").
    ///
    /// ```text
    /// C: IHAVEOPT:64 option:32 length:32 [data]
    /// ```
    OptionHeader(16, OPTION_MAGIC, "option") {
        /// The type of the option.
        option: OptionType,
        /// Length of the data in bytes.
        length: u32,
    }
}

/// An option with its data (specification, "Option types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OptionRequest<'a> {
    /// `NBD_OPT_EXPORT_NAME`: start transmission with the export of this name.
    ///
    /// ```text
    /// C: name
    /// ```
    ExportName(Text<'a>),
    /// `NBD_OPT_ABORT`: end the session. Data is ignored.
    Abort,
    /// `NBD_OPT_LIST`: list the exports. No data.
    List,
    /// `NBD_OPT_STARTTLS`: start TLS. No data.
    StartTls,
    /// `NBD_OPT_INFO`: describe an export.
    Info(InfoRequest<'a>),
    /// `NBD_OPT_GO`: describe an export and start transmission.
    Go(InfoRequest<'a>),
    /// `NBD_OPT_STRUCTURED_REPLY`: use structured replies. No data.
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`: list metadata contexts.
    ListMetaContext(MetaContextRequest<'a>),
    /// `NBD_OPT_SET_META_CONTEXT`: select metadata contexts.
    SetMetaContext(MetaContextRequest<'a>),
    /// `NBD_OPT_EXTENDED_HEADERS`: use extended headers. No data.
    ExtendedHeaders,
    /// Any option with any data: undefined options, and malformed data in
    /// tests.
    Other {
        /// The type of the option.
        option: OptionType,
        /// The data.
        data: &'a [u8],
    },
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO` (specification, "Option types").
///
/// ```text
/// C: name_length:32 name count:16 (info_type:16)*count
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InfoRequest<'a> {
    /// Name of the export; empty for the default export.
    pub export: Text<'a>,
    /// The requested types of information.
    pub requests: InfoTypes<'a>,
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`
/// (specification, "Option types" and "Metadata querying").
///
/// ```text
/// C: name_length:32 name count:32 (query_length:32 query)*count
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetaContextRequest<'a> {
    /// Name of the export; empty for the default export.
    pub export: Text<'a>,
    /// The queries for contexts.
    pub queries: Queries<'a>,
}

impl<'a> OptionRequest<'a> {
    /// Decodes the data of an option; `data` is the whole of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Overrun`] or [`DecodeError::Trailing`] if the data is
    /// malformed. The stream stays in sync: the server replies
    /// `NBD_REP_ERR_INVALID` and continues.
    pub fn decode(option: OptionType, data: &'a [u8]) -> Result<Self, DecodeError> {
        let message = option.name().unwrap_or("option");
        let without_data = |request: Self| {
            if data.is_empty() {
                Ok(request)
            } else {
                Err(DecodeError::Trailing { message })
            }
        };
        match option {
            OptionType::EXPORT_NAME => Ok(Self::ExportName(Text::new(data))),
            OptionType::ABORT => Ok(Self::Abort),
            OptionType::LIST => without_data(Self::List),
            OptionType::STARTTLS => without_data(Self::StartTls),
            OptionType::STRUCTURED_REPLY => without_data(Self::StructuredReply),
            OptionType::EXTENDED_HEADERS => without_data(Self::ExtendedHeaders),
            OptionType::INFO => body(message, info_request, data).map(Self::Info),
            OptionType::GO => body(message, info_request, data).map(Self::Go),
            OptionType::LIST_META_CONTEXT => {
                body(message, meta_context_request, data).map(Self::ListMetaContext)
            }
            OptionType::SET_META_CONTEXT => {
                body(message, meta_context_request, data).map(Self::SetMetaContext)
            }
            _ => Ok(Self::Other { option, data }),
        }
    }

    /// The type of the option.
    #[must_use]
    pub const fn option(&self) -> OptionType {
        match self {
            Self::ExportName(_) => OptionType::EXPORT_NAME,
            Self::Abort => OptionType::ABORT,
            Self::List => OptionType::LIST,
            Self::StartTls => OptionType::STARTTLS,
            Self::Info(_) => OptionType::INFO,
            Self::Go(_) => OptionType::GO,
            Self::StructuredReply => OptionType::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionType::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionType::SET_META_CONTEXT,
            Self::ExtendedHeaders => OptionType::EXTENDED_HEADERS,
            Self::Other { option, .. } => *option,
        }
    }

    /// Encodes header and data into `sink`; returns how many bytes were
    /// written.
    ///
    /// # Errors
    ///
    /// [`EncodeError::TooLong`] if there are more than 65,535 types of
    /// information or 4 GiB of data, or [`EncodeError::NoRoom`]; nothing was
    /// written.
    pub fn encode(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        if let Self::Info(request) | Self::Go(request) = self {
            u16::try_from(request.requests.len()).map_err(|_| EncodeError::TooLong)?;
        }
        encode_with(self.option(), sink, &|sink| self.put_data(sink))
    }

    fn put_data(&self, sink: &mut dyn Sink) {
        match self {
            Self::ExportName(name) => sink.put(name.as_bytes()),
            Self::Info(request) | Self::Go(request) => {
                put_info(sink, request.export, request.requests.iter());
            }
            Self::ListMetaContext(request) | Self::SetMetaContext(request) => {
                put_meta_context(sink, request.export, request.queries.iter());
            }
            Self::Other { data, .. } => sink.put(data),
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders => {}
        }
    }
}

/// Encodes an option; `put_data` writes its data.
pub(crate) fn encode_with(
    option: OptionType,
    sink: &mut dyn Sink,
    put_data: &dyn Fn(&mut dyn Sink),
) -> Result<usize, EncodeError> {
    let length = u32::try_from(measure(put_data)).map_err(|_| EncodeError::TooLong)?;
    let header = OptionHeader { option, length };
    all_or_nothing(sink, &|sink| {
        sink.put(&header.encode());
        put_data(sink);
    })
}

/// Writes the data of an [`InfoRequest`].
pub(crate) fn put_info(
    sink: &mut dyn Sink,
    export: Text<'_>,
    requests: impl Iterator<Item = InfoType> + Clone,
) {
    put_text(sink, export);
    sink.put(&saturate16(requests.clone().count()).to_be_bytes());
    for info in requests {
        sink.put(&info.0.to_be_bytes());
    }
}

/// Writes the data of a [`MetaContextRequest`].
pub(crate) fn put_meta_context<'q>(
    sink: &mut dyn Sink,
    export: Text<'_>,
    queries: impl Iterator<Item = Text<'q>> + Clone,
) {
    put_text(sink, export);
    sink.put(&saturate32(queries.clone().count()).to_be_bytes());
    for query in queries {
        put_text(sink, query);
    }
}

/// Writes a string after its 32-bit length. The callers check that the whole
/// message, and with it the string, is shorter than 4 GiB.
pub(super) fn put_text(sink: &mut dyn Sink, text: Text<'_>) {
    sink.put(&saturate32(text.len()).to_be_bytes());
    sink.put(text.as_bytes());
}

fn saturate32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn saturate16(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// Runs `parser` over a body, which it must consume wholly.
pub(super) fn body<'a, T>(
    message: &'static str,
    mut parser: impl Parser<&'a [u8], Output = T, Error = ()>,
    data: &'a [u8],
) -> Result<T, DecodeError> {
    match parser.parse(data) {
        Ok(([], value)) => Ok(value),
        Ok(_) => Err(DecodeError::Trailing { message }),
        Err(_) => Err(DecodeError::Overrun { message }),
    }
}

/// A string after its 32-bit length.
pub(super) fn text(input: &[u8]) -> IResult<&[u8], Text<'_>, ()> {
    let (input, length) = field(input)?;
    bytes(length).map(Text::new).parse(input)
}

fn info_request(input: &[u8]) -> IResult<&[u8], InfoRequest<'_>, ()> {
    let (input, export) = text(input)?;
    let (input, count) = field::<u16>(input)?;
    let (input, requests) = bytes(u32::from(count).saturating_mul(2)).parse(input)?;
    let requests = InfoTypes::on_wire(requests);
    Ok((input, InfoRequest { export, requests }))
}

fn meta_context_request(input: &[u8]) -> IResult<&[u8], MetaContextRequest<'_>, ()> {
    let (input, export) = text(input)?;
    let (queries, count) = field(input)?;
    let mut rest = queries;
    // Each pass consumes at least four bytes or fails: a large count costs no
    // more time than the data is long.
    for _ in 0..count {
        (rest, _) = text(rest)?;
    }
    let queries = Queries(List::Wire {
        count,
        bytes: queries,
    });
    Ok((rest, MetaContextRequest { export, queries }))
}

list! {
    /// A list of information types, on the wire or in memory.
    ///
    /// ```text
    /// C: (info_type:16)*
    /// ```
    InfoTypes of InfoType(2)
}

/// A list of metadata context queries, on the wire or in memory (specification,
/// "Metadata querying").
///
/// ```text
/// C: (query_length:32 query)*
/// ```
#[derive(Clone, Copy)]
pub struct Queries<'a>(List<'a>);

#[derive(Clone, Copy)]
enum List<'a> {
    Wire { count: u32, bytes: &'a [u8] },
    Memory(&'a [&'a str]),
}

impl<'a> Queries<'a> {
    /// No query: `LIST_META_CONTEXT` lists all contexts, `SET_META_CONTEXT`
    /// selects none.
    pub const NONE: Self = Self(List::Memory(&[]));

    /// The queries in order.
    pub fn iter(&self) -> impl Iterator<Item = Text<'a>> + Clone + 'a {
        let (mut wire, memory): (&'a [u8], &'a [&'a str]) = match self.0 {
            List::Wire { bytes, .. } => (bytes, &[]),
            List::Memory(texts) => (&[], texts),
        };
        let wire = core::iter::from_fn(move || {
            let length = u32::from_be_bytes(*take::<4>(&mut wire)?);
            take_slice(&mut wire, usize::try_from(length).ok()?).map(Text::new)
        });
        wire.chain(memory.iter().map(|text| Text::from(*text)))
    }

    /// The number of queries.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            List::Wire { count, .. } => usize::try_from(count).unwrap_or(usize::MAX),
            List::Memory(texts) => texts.len(),
        }
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [&'a str]> for Queries<'a> {
    fn from(texts: &'a [&'a str]) -> Self {
        Self(List::Memory(texts))
    }
}

list_traits!(Queries);

/// The longest prefix of generated bytes that is a list of queries: a list in
/// memory needs an owner.
#[cfg(feature = "arbitrary")]
impl<'a> arbitrary::Arbitrary<'a> for Queries<'a> {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        let bytes: &[u8] = u.arbitrary()?;
        let (mut rest, mut count) = (bytes, 0u32);
        while let Ok((after, _)) = text(rest) {
            rest = after;
            count = count.saturating_add(1);
        }
        let length = bytes.len().saturating_sub(rest.len());
        let bytes = bytes.get(..length).unwrap_or_default();
        Ok(Self(List::Wire { count, bytes }))
    }
}
