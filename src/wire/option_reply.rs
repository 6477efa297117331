//! Option haggling, server side: the header and data of every reply
//! (specification, "Fixed newstyle negotiation" and "Option reply types").

use nom::Parser;

use super::bytes::{field, rest};
use super::flags::TransmissionFlags;
use super::header::header;
use super::number::{ContextId, InfoType, OptionReplyType, OptionType};
use super::option::{body, put_text, text};
use super::sink::{all_or_nothing, measure};
use super::text::Text;
use super::{DecodeError, EncodeError, Sink};

/// Magic number of an option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

header! {
    /// The header of a reply to an option (specification, "Fixed newstyle
    /// negotiation").
    ///
    /// ```text
    /// S: magic:64 option:32 type:32 length:32 [data]
    /// ```
    OptionReplyHeader(20, OPTION_REPLY_MAGIC, "option reply") {
        /// The option that the server replies to.
        option: OptionType,
        /// The type of the reply.
        reply: OptionReplyType,
        /// Length of the data in bytes.
        length: u32,
    }
}

/// A reply to an option, without the header (specification, "Option reply
/// types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OptionReply<'a> {
    /// `NBD_REP_ACK`: accepted, or the end of a list. No data.
    Ack,
    /// `NBD_REP_SERVER`: one export.
    ///
    /// ```text
    /// S: name_length:32 name description
    /// ```
    Server {
        /// Name of the export.
        name: Text<'a>,
        /// A description for humans; often empty.
        description: Text<'a>,
    },
    /// `NBD_REP_INFO`: one piece of information.
    Info(Info<'a>),
    /// `NBD_REP_META_CONTEXT`: one metadata context.
    ///
    /// ```text
    /// S: id:32 name
    /// ```
    MetaContext {
        /// The context ID; reserved in a reply to `LIST_META_CONTEXT`.
        id: ContextId,
        /// The name, such as `base:allocation`.
        name: Text<'a>,
    },
    /// `NBD_REP_ERR_*`: the option failed.
    ///
    /// ```text
    /// S: message
    /// ```
    Error {
        /// The type of the error; bit 31 is set.
        error: OptionReplyType,
        /// A message for humans; often empty.
        message: Text<'a>,
    },
    /// Any reply with any data.
    Other {
        /// The type of the reply.
        reply: OptionReplyType,
        /// The data.
        data: &'a [u8],
    },
}

impl<'a> OptionReply<'a> {
    /// Decodes the data of a reply; `data` is the whole of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Overrun`] or [`DecodeError::Trailing`] if the data is
    /// malformed.
    pub fn decode(reply: OptionReplyType, data: &'a [u8]) -> Result<Self, DecodeError> {
        let message = reply.name().unwrap_or("option reply");
        match reply {
            OptionReplyType::ACK if data.is_empty() => Ok(Self::Ack),
            OptionReplyType::ACK => Err(DecodeError::Trailing { message }),
            OptionReplyType::SERVER => body(
                message,
                (text, rest.map(Text::new))
                    .map(|(name, description)| Self::Server { name, description }),
                data,
            ),
            OptionReplyType::INFO => Info::decode(data).map(Self::Info),
            OptionReplyType::META_CONTEXT => body(
                message,
                (field, rest.map(Text::new)).map(|(id, name)| Self::MetaContext { id, name }),
                data,
            ),
            error if error.is_error() => Ok(Self::Error {
                error,
                message: Text::new(data),
            }),
            _ => Ok(Self::Other { reply, data }),
        }
    }

    /// The type of the reply.
    #[must_use]
    pub const fn reply(&self) -> OptionReplyType {
        match self {
            Self::Ack => OptionReplyType::ACK,
            Self::Server { .. } => OptionReplyType::SERVER,
            Self::Info(_) => OptionReplyType::INFO,
            Self::MetaContext { .. } => OptionReplyType::META_CONTEXT,
            Self::Error { error, .. } => *error,
            Self::Other { reply, .. } => *reply,
        }
    }

    /// Encodes header and data, as a reply to `option`, into `sink`; returns
    /// how many bytes were written.
    ///
    /// # Errors
    ///
    /// [`EncodeError::TooLong`] for 4 GiB of data or more, or
    /// [`EncodeError::NoRoom`]; nothing was written.
    pub fn encode(&self, option: OptionType, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        let header = self.header(option)?;
        all_or_nothing(sink, &|sink| {
            sink.put(&header.encode());
            self.put_data(sink);
        })
    }

    /// As [`encode`](Self::encode); the caller checked that the reply fits.
    pub(crate) fn put(&self, option: OptionType, sink: &mut dyn Sink) {
        if let Ok(header) = self.header(option) {
            sink.put(&header.encode());
            self.put_data(sink);
        }
    }

    fn header(&self, option: OptionType) -> Result<OptionReplyHeader, EncodeError> {
        let length = measure(&|sink| self.put_data(sink));
        Ok(OptionReplyHeader {
            option,
            reply: self.reply(),
            length: u32::try_from(length).map_err(|_| EncodeError::TooLong)?,
        })
    }

    fn put_data(&self, sink: &mut dyn Sink) {
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                put_text(sink, *name);
                sink.put(description.as_bytes());
            }
            Self::Info(info) => info.put_data(sink),
            Self::MetaContext { id, name } => {
                sink.put(&id.0.to_be_bytes());
                sink.put(name.as_bytes());
            }
            Self::Error { message, .. } => sink.put(message.as_bytes()),
            Self::Other { data, .. } => sink.put(data),
        }
    }
}

/// A piece of information about an export (specification, `NBD_REP_INFO`).
///
/// ```text
/// S: info_type:16 payload
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Info<'a> {
    /// `NBD_INFO_EXPORT`: the same fields as the reply to `EXPORT_NAME`.
    ///
    /// ```text
    /// S: 0:16 size:64 flags:16
    /// ```
    Export {
        /// Size of the export in bytes.
        size: u64,
        /// What the export supports.
        flags: TransmissionFlags,
    },
    /// `NBD_INFO_NAME`: the canonical name of the export.
    ///
    /// ```text
    /// S: 1:16 name
    /// ```
    Name(Text<'a>),
    /// `NBD_INFO_DESCRIPTION`: a description for humans.
    ///
    /// ```text
    /// S: 2:16 description
    /// ```
    Description(Text<'a>),
    /// `NBD_INFO_BLOCK_SIZE`: the size constraints.
    BlockSize(BlockSizes),
    /// Any information with any payload.
    Other {
        /// The type of the information.
        info: InfoType,
        /// The payload.
        data: &'a [u8],
    },
}

impl<'a> Info<'a> {
    /// Decodes the data of an `NBD_REP_INFO`; `data` is the whole of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Overrun`] or [`DecodeError::Trailing`] if the length is
    /// wrong for the type.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let (info, data) = body("NBD_REP_INFO", (field, rest), data)?;
        match info {
            InfoType::EXPORT => body(
                "NBD_INFO_EXPORT",
                (field, field).map(|(size, flags)| Self::Export { size, flags }),
                data,
            ),
            InfoType::NAME => Ok(Self::Name(Text::new(data))),
            InfoType::DESCRIPTION => Ok(Self::Description(Text::new(data))),
            InfoType::BLOCK_SIZE => body(
                "NBD_INFO_BLOCK_SIZE",
                (field, field, field).map(|(minimum, preferred, maximum)| {
                    Self::BlockSize(BlockSizes {
                        minimum,
                        preferred,
                        maximum,
                    })
                }),
                data,
            ),
            _ => Ok(Self::Other { info, data }),
        }
    }

    /// The type of the information.
    #[must_use]
    pub const fn info(&self) -> InfoType {
        match self {
            Self::Export { .. } => InfoType::EXPORT,
            Self::Name(_) => InfoType::NAME,
            Self::Description(_) => InfoType::DESCRIPTION,
            Self::BlockSize(_) => InfoType::BLOCK_SIZE,
            Self::Other { info, .. } => *info,
        }
    }

    fn put_data(&self, sink: &mut dyn Sink) {
        sink.put(&self.info().0.to_be_bytes());
        match self {
            Self::Export { size, flags } => {
                sink.put(&size.to_be_bytes());
                sink.put(&flags.0.to_be_bytes());
            }
            Self::Name(text) | Self::Description(text) => sink.put(text.as_bytes()),
            Self::BlockSize(sizes) => {
                sink.put(&sizes.minimum.to_be_bytes());
                sink.put(&sizes.preferred.to_be_bytes());
                sink.put(&sizes.maximum.to_be_bytes());
            }
            Self::Other { data, .. } => sink.put(data),
        }
    }
}

/// Size constraints of an export, in bytes (specification, "Size
/// constraints").
///
/// ```text
/// S: 3:16 minimum:32 preferred:32 maximum:32
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSizes {
    /// Offsets and lengths of requests are multiples of it.
    pub minimum: u32,
    /// Requests at multiples of it are efficient.
    pub preferred: u32,
    /// Maximum length of the payload of a request or reply.
    pub maximum: u32,
}

impl BlockSizes {
    /// The constraints if a server sends none: 1, 4096 and 32 MiB.
    pub const DEFAULT: Self = Self {
        minimum: 1,
        preferred: 4096,
        maximum: 1 << 25,
    };

    /// Whether the specification allows them: `minimum` is a power of two of at
    /// most 65,536; `preferred` is a power of two, at least 512 and at least
    /// `minimum`; `maximum` is at least `preferred`.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= 1 << 16
            && self.preferred.is_power_of_two()
            && self.preferred >= 512
            && self.preferred >= self.minimum
            && self.maximum >= self.preferred
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}
