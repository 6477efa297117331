//! What the two sides say.

use core::fmt;

use crate::wire::extent::{Extent32, Extent64};
use crate::wire::flags::{ClientFlags, CommandFlags, ReplyFlags};
use crate::wire::greeting::{ExportNameReply, Greeting};
use crate::wire::number::{
    ChunkType, Command, ContextId, Cookie, ErrorValue, OptionReplyType, OptionType,
};
use crate::wire::option::OptionRequest;
use crate::wire::option_reply::{Info, OptionReply};
use crate::wire::request::BlockStatusPayload;
use crate::wire::text::Text;

/// A message, with its fields; the side that sent it follows from its type. What
/// follows it as payload is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'i> {
    /// The server's first message. In oldstyle 124 bytes of payload follow.
    Greeting(Greeting),
    /// The client's first message.
    ClientFlags(ClientFlags),
    /// An option of the client.
    Option {
        /// Its type.
        option: OptionType,
        /// Length of its data in bytes.
        length: u32,
        /// Its data; `None` if it is malformed, or if it is too long and follows
        /// as payload.
        request: Option<OptionRequest<'i>>,
    },
    /// A reply of the server to an option.
    OptionReply {
        /// The option that it names.
        option: OptionType,
        /// Its type.
        reply: OptionReplyType,
        /// Length of its data in bytes.
        length: u32,
        /// Its data, as that of [`Option`](Self::Option).
        data: Option<OptionReply<'i>>,
    },
    /// The reply to `EXPORT_NAME`. Without `NO_ZEROES` 124 bytes of payload follow.
    ExportName(ExportNameReply),
    /// A request of the client.
    Request {
        /// Whether it has an extended header.
        extended: bool,
        /// Its flags.
        flags: CommandFlags,
        /// The command.
        command: Command,
        /// Its cookie.
        cookie: Cookie,
        /// Offset in bytes from the start of the export.
        offset: u64,
        /// The field of the length, in bytes.
        length: u64,
        /// Bytes of payload that follow.
        payload: u64,
        /// The payload of a block status request; it does not follow.
        contexts: Option<BlockStatusPayload<'i>>,
    },
    /// A simple reply.
    SimpleReply {
        /// Zero for success.
        error: ErrorValue,
        /// The cookie of the request.
        cookie: Cookie,
        /// Bytes of payload that follow: the data of a read.
        payload: u64,
    },
    /// A chunk of a structured or extended reply.
    Chunk {
        /// Its type.
        chunk: ChunkType,
        /// Its flags.
        flags: ReplyFlags,
        /// The cookie of the request.
        cookie: Cookie,
        /// The offset in an extended header, in bytes from the start of the export.
        offset: Option<u64>,
        /// Length of the payload in bytes.
        length: u64,
        /// The fields of the payload.
        content: ChunkContent<'i>,
    },
    /// An extent of the narrow status chunk before it.
    Extent32 {
        /// The cookie of the request.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where it begins, in bytes from the start of the export.
        offset: u64,
        /// The extent.
        extent: Extent32,
    },
    /// An extent of the wide status chunk before it.
    Extent64 {
        /// The cookie of the request.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where it begins, in bytes from the start of the export.
        offset: u64,
        /// The extent.
        extent: Extent64,
    },
}

/// The fields of a chunk's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChunkContent<'i> {
    /// There are none.
    None,
    /// Data of a read, which follows as payload.
    Data {
        /// Offset in bytes from the start of the export.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Zeroes of a read.
    Hole {
        /// Offset in bytes from the start of the export.
        offset: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Block status: `count` [`Message::Extent32`]s or [`Message::Extent64`]s follow.
    Extents {
        /// The metadata context.
        context: ContextId,
        /// How many.
        count: u32,
    },
    /// An error.
    Error {
        /// What happened.
        error: ErrorValue,
        /// For people.
        message: Text<'i>,
        /// Where, in bytes from the start of the export.
        offset: Option<u64>,
    },
    /// Not understood: the chunk breaks a rule, or is too long to be told. The
    /// whole payload follows as such.
    Opaque,
}

impl Message<'_> {
    /// The name of the message in the specification, or a description.
    fn name(&self) -> &'static str {
        match self {
            Self::Greeting(_) => "greeting",
            Self::ClientFlags(_) => "client flags",
            Self::Option { .. } => "option",
            Self::OptionReply { .. } => "reply",
            Self::ExportName(_) => "export",
            Self::Request { extended, .. } => {
                if *extended {
                    "extended request"
                } else {
                    "request"
                }
            }
            Self::SimpleReply { .. } => "simple reply",
            Self::Chunk { offset, .. } => match offset {
                Some(_) => "extended chunk",
                None => "chunk",
            },
            Self::Extent32 { .. } => "extent",
            Self::Extent64 { .. } => "wide extent",
        }
    }
}

/// One line, without what follows as payload. It is for people; texts of the
/// peers are escaped.
impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Greeting(Greeting::Oldstyle(greeting)) => write!(
                f,
                " oldstyle {}, size {} [{}]",
                greeting.handshake_flags, greeting.size, greeting.flags
            ),
            Self::Greeting(Greeting::Newstyle(greeting)) => {
                write!(f, " newstyle {}", greeting.flags)
            }
            Self::ClientFlags(flags) => write!(f, " {flags}"),
            Self::Option {
                option,
                length,
                request,
            } => {
                write!(f, " {option}")?;
                match request {
                    Some(request) => write_option(f, request),
                    None => write!(f, " {length} bytes"),
                }
            }
            Self::OptionReply {
                option,
                reply,
                length,
                data,
            } => {
                write!(f, " {reply} to {option}")?;
                match data {
                    Some(data) => write_reply(f, data),
                    None => write!(f, " {length} bytes"),
                }
            }
            Self::ExportName(reply) => write!(f, " size {} [{}]", reply.size, reply.flags),
            Self::Request {
                flags,
                command,
                cookie,
                offset,
                length,
                contexts,
                ..
            } => {
                write!(f, " {command} {cookie} offset {offset} length {length}")?;
                if !flags.is_empty() {
                    write!(f, " [{flags}]")?;
                }
                match contexts {
                    Some(payload) => write!(
                        f,
                        " effect {} of contexts {:?}",
                        payload.effect_length, payload.contexts
                    ),
                    None => Ok(()),
                }
            }
            Self::SimpleReply { error, cookie, .. } => {
                if error.is_error() {
                    write!(f, " {cookie} {error}")
                } else {
                    write!(f, " {cookie}")
                }
            }
            Self::Chunk {
                chunk,
                flags,
                cookie,
                length,
                content,
                ..
            } => {
                write!(f, " {chunk} {cookie}")?;
                if !flags.is_empty() {
                    write!(f, " [{flags}]")?;
                }
                match content {
                    ChunkContent::None => Ok(()),
                    ChunkContent::Data { offset, length } => {
                        write!(f, " offset {offset} length {length}")
                    }
                    ChunkContent::Hole { offset, length } => {
                        write!(f, " offset {offset} length {length}")
                    }
                    ChunkContent::Extents { context, count } => {
                        write!(f, " context {context}, {count} extents")
                    }
                    ChunkContent::Error {
                        error,
                        message,
                        offset,
                    } => {
                        write!(f, " {error} {message:?}")?;
                        offset.map_or(Ok(()), |offset| write!(f, " at {offset}"))
                    }
                    ChunkContent::Opaque => write!(f, " {length} bytes"),
                }
            }
            Self::Extent32 {
                context,
                offset,
                extent: Extent32 { length, flags },
                ..
            } => write_extent(f, *context, *offset, length, flags),
            Self::Extent64 {
                context,
                offset,
                extent: Extent64 { length, flags },
                ..
            } => write_extent(f, *context, *offset, length, flags),
        }
    }
}

fn write_extent<N: fmt::Display + fmt::LowerHex>(
    f: &mut fmt::Formatter<'_>,
    context: ContextId,
    offset: u64,
    length: N,
    flags: N,
) -> fmt::Result {
    write!(
        f,
        " context {context} offset {offset} length {length} status {flags:#x}"
    )
}

fn write_option(f: &mut fmt::Formatter<'_>, request: &OptionRequest<'_>) -> fmt::Result {
    match request {
        OptionRequest::ExportName(name) => write!(f, " {name:?}"),
        OptionRequest::Info(request) | OptionRequest::Go(request) => {
            write!(f, " {:?} {:?}", request.export, request.requests)
        }
        OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request) => {
            write!(f, " {:?} {:?}", request.export, request.queries)
        }
        OptionRequest::Other { data, .. } => write!(f, " {} bytes", data.len()),
        _ => Ok(()),
    }
}

fn write_reply(f: &mut fmt::Formatter<'_>, reply: &OptionReply<'_>) -> fmt::Result {
    match reply {
        OptionReply::Ack => Ok(()),
        OptionReply::Server { name, description } => write!(f, ": {name:?} {description:?}"),
        OptionReply::Info(info) => match info {
            Info::Export { size, flags } => write!(f, ": export size {size} [{flags}]"),
            Info::Name(name) => write!(f, ": name {name:?}"),
            Info::Description(text) => write!(f, ": description {text:?}"),
            Info::BlockSize(sizes) => write!(
                f,
                ": block sizes {} {} {}",
                sizes.minimum, sizes.preferred, sizes.maximum
            ),
            Info::Other { info, data } => write!(f, ": {info} {} bytes", data.len()),
        },
        OptionReply::MetaContext { id, name } => write!(f, ": {id} {name:?}"),
        OptionReply::Error { message, .. } if message.is_empty() => Ok(()),
        OptionReply::Error { message, .. } => write!(f, ": {message:?}"),
        OptionReply::Other { data, .. } => write!(f, ": {} bytes", data.len()),
    }
}
