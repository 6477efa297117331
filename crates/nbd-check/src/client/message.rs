//! What the scripted server sends: any message, right or wrong.

use nbd_codec::Framing;
use nbd_codec::wire::flags::ReplyFlags;
use nbd_codec::wire::number::{ChunkType, Cookie, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::wire::option_reply::{OPTION_REPLY_MAGIC, OptionReply};
use nbd_codec::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};

/// A message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Any bytes, with their meaning.
    Bytes(Vec<u8>, String),
    /// A reply to an option.
    Option {
        option: OptionType,
        reply: OptionReplyType,
        data: Vec<u8>,
        /// The length field, if it is not the length of the data.
        length: Option<u32>,
    },
    /// A simple reply, with the data of a read.
    Simple {
        error: ErrorValue,
        cookie: Cookie,
        data: Vec<u8>,
    },
    Chunk(Chunk),
    /// Nothing more is sent, for this connection.
    Silence,
    /// The server closes the connection.
    Close,
    /// The message is sent again and again, for a while; then the server closes.
    Flood(Box<Self>),
}

/// A chunk, structured or extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) framing: Framing,
    pub(crate) flags: ReplyFlags,
    pub(crate) chunk: ChunkType,
    pub(crate) cookie: Cookie,
    /// The offset of the request, for an extended header.
    pub(crate) offset: u64,
    pub(crate) payload: Vec<u8>,
    /// The length field, if it is not the length of the payload.
    pub(crate) length: Option<u64>,
}

impl Message {
    /// A reply to an option, as it should be.
    pub(crate) fn option(option: OptionType, reply: &OptionReply<'_>) -> Self {
        let mut bytes = Vec::new();
        // The sink grows, and no text is 4 GiB long.
        let _ = reply.encode(option, &mut bytes);
        Self::Option {
            option,
            reply: reply.reply(),
            data: bytes.split_off(HEADER.min(bytes.len())),
            length: None,
        }
    }

    pub(crate) fn ack(option: OptionType) -> Self {
        Self::option(option, &OptionReply::Ack)
    }

    /// An error reply to an option.
    pub(crate) fn refusal(option: OptionType, error: OptionReplyType) -> Self {
        let message = "refused by nbd-check".into();
        Self::option(option, &OptionReply::Error { error, message })
    }

    /// Any bytes.
    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>, meaning: &str) -> Self {
        Self::Bytes(bytes.into(), meaning.to_owned())
    }

    /// The bytes on the wire; none for what is no message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes, _) => bytes.clone(),
            Self::Option {
                option,
                reply,
                data,
                length,
            } => {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                bytes.extend(option.0.to_be_bytes());
                bytes.extend(reply.0.to_be_bytes());
                let length = length.unwrap_or(u32::try_from(data.len()).unwrap_or(u32::MAX));
                bytes.extend(length.to_be_bytes());
                bytes.extend(data);
                bytes
            }
            Self::Simple {
                error,
                cookie,
                data,
            } => {
                let (error, cookie) = (*error, *cookie);
                let mut bytes = SimpleReply { error, cookie }.encode().to_vec();
                bytes.extend(data);
                bytes
            }
            Self::Chunk(chunk) => chunk.encode(),
            Self::Flood(message) => message.encode(),
            Self::Silence | Self::Close => Vec::new(),
        }
    }

    /// For transcripts.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bytes(_, meaning) => meaning.clone(),
            Self::Option {
                option,
                reply,
                data,
                length,
            } => {
                let length = length.map_or(String::new(), |length| {
                    format!(", with the length {length} in its header")
                });
                format!(
                    "reply to {option}: {reply}, {} bytes of data{length}",
                    data.len()
                )
            }
            Self::Simple {
                error,
                cookie,
                data,
            } => format!("simple reply to {cookie}: {error}, {} bytes", data.len()),
            Self::Chunk(chunk) => chunk.describe(),
            Self::Flood(message) => message.describe(),
            Self::Silence | Self::Close => String::new(),
        }
    }
}

/// The size of the header of a reply to an option.
const HEADER: usize = 20;

impl Chunk {
    fn encode(&self) -> Vec<u8> {
        let Self {
            flags,
            chunk,
            cookie,
            offset,
            ..
        } = *self;
        let length = self.length.unwrap_or(wide(self.payload.len()));
        let mut bytes = if self.framing == Framing::Extended {
            let header = ExtendedHeader {
                flags,
                chunk,
                cookie,
                offset,
                length,
            };
            header.encode().to_vec()
        } else {
            let header = StructuredHeader {
                flags,
                chunk,
                cookie,
                length: u32::try_from(length).unwrap_or(u32::MAX),
            };
            header.encode().to_vec()
        };
        bytes.extend(&self.payload);
        bytes
    }

    fn describe(&self) -> String {
        let mut text = format!("{}, {} bytes", self.chunk, self.payload.len());
        if let (ChunkType::OFFSET_DATA, Some(offset)) = (self.chunk, self.payload.first_chunk()) {
            let data = self.payload.len() - 8;
            text.push_str(&format!(": {} + {data}", u64::from_be_bytes(*offset)));
        }
        if let Some(length) = self.length {
            text.push_str(&format!(", with the length {length} in its header"));
        }
        if !self.flags.is_empty() {
            text.push_str(&format!(", {}", self.flags));
        }
        format!("{text}, for {}", self.cookie)
    }
}

/// The magic numbers of replies.
pub(crate) const REPLY_MAGICS: [u32; 3] = [
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    EXTENDED_REPLY_MAGIC,
];

pub(crate) fn wide(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
