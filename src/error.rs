//! What ends a session, and what does not.
//!
//! | type | at fault | afterwards |
//! |---|---|---|
//! | [`Error`] | the peer, or the connection | the session is over: the same error is returned again (but for two, [`Error::is_fatal`]) |
//! | [`Misuse`] | the caller | nothing has changed |
//!
//! What a peer *reports* (`NBD_EIO`, `NBD_REP_ERR_UNKNOWN`) is neither: it is
//! an event.

use crate::negotiated::{Framing, SelectedContextsError};
use crate::wire::flags::ClientFlags;
use crate::wire::number::{ChunkType, Command, ContextId, Cookie, OptionReplyType, OptionType};
use crate::wire::option_reply::BlockSizes;
use crate::wire::text::TextError;
use crate::wire::{DecodeError, EncodeError};

/// Why nothing more is received.
///
/// All but two of them end the session and are returned again by every later
/// call. [`Unanswered`](Self::Unanswered) and [`BufferFull`](Self::BufferFull)
/// are the driver's: nothing was consumed, and the session goes on when their
/// cause is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent bytes that are not a message of the protocol.
    #[error("the peer sent bytes that are not an NBD message: {0}")]
    Decode(DecodeError),
    /// The peer sent a message that it must not send here.
    #[error("the peer broke the protocol: {0}")]
    Violation(Violation),
    /// The peer closed the connection before the session was over.
    #[error("the peer closed the connection while a message was expected of it")]
    Closed,
    /// The peer closed the connection while it owed the reply to an option.
    /// Some servers do so at options that they do not know: leave the option
    /// out and connect again.
    #[error(
        "the peer closed the connection instead of replying to {0}; a server that does not know this option may do so, try without it"
    )]
    ClosedDuring(OptionType),
    /// TLS is required and the peer's handshake has no `STARTTLS`: nothing was
    /// sent.
    #[error("TLS is required, and the peer's handshake has no way to start it")]
    TlsUnavailable,
    /// The caller stated that starting TLS failed: there is no way back to
    /// plain text.
    #[error("TLS could not be started")]
    TlsFailed,
    /// The peer's handshake is older than fixed newstyle, and the feature
    /// `oldstyle` is not compiled.
    #[error(
        "the peer's handshake is older than fixed newstyle: nbd-codec needs its feature \"oldstyle\""
    )]
    NotFixedNewstyle,
    /// A session in a framing that is not compiled.
    #[error("{0} framing is not compiled: nbd-codec needs its feature for it")]
    Framing(Framing),
    /// Server: TLS is required, and the client asked to enter transmission
    /// without it by `EXPORT_NAME`, which has no error reply.
    #[error("TLS is required, and NBD_OPT_EXPORT_NAME asked for an export without it")]
    TlsRequired,
    /// Server: the export asked for by `EXPORT_NAME` was refused; the only way
    /// to say so is to close the connection.
    #[error("the export was refused, and NBD_OPT_EXPORT_NAME has no error reply")]
    ExportRefused,
    /// The driver's, not fatal: the state machine waits for the caller. A
    /// server has not granted or refused what the client asked for; a client
    /// has not sent the next option.
    #[error(
        "the state machine waits for the caller: answer the last event, or send the next option"
    )]
    Unanswered,
    /// The driver's, not fatal: the receive buffer is full and the message
    /// under way is longer.
    #[error(
        "the receive buffer is too small: the message needs {needed} bytes; use a larger one, or Limits::for_buffer"
    )]
    BufferFull {
        /// Size of the message in bytes, as far as it is known.
        needed: usize,
    },
}

impl Error {
    /// Whether the session is over. It is not where the driver can go on:
    /// [`Unanswered`](Self::Unanswered), [`BufferFull`](Self::BufferFull).
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        !matches!(self, Self::Unanswered | Self::BufferFull { .. })
    }
}

// Each of these says its cause in its own text, so `source` must not name the
// cause again: who prints the chain would read it twice.

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<TextError> for Misuse {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}

/// A message that is well formed, and that the peer must not send here.
///
/// Whether it ends the session, ends its command or is accepted,
/// [the guide](crate::guide::faults) says for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Bytes that nothing was sent for.
    #[error("bytes that nothing was sent for")]
    Unsolicited,
    /// Bytes after `STARTTLS` or its acknowledgement that are not protected by
    /// TLS: an attacker may have injected them.
    #[error("plain text after STARTTLS")]
    PlaintextAfterStartTls,
    /// A reply to an option other than the one that was sent.
    #[error("{sent} was answered by a reply to {answered}")]
    OtherOption {
        /// The option that waits for its reply.
        sent: OptionType,
        /// The option that the reply names.
        answered: OptionType,
    },
    /// A reply of a type that the option does not have.
    #[error("{option} was answered by {reply}, which is not a reply to it")]
    UnexpectedReply {
        /// The option.
        option: OptionType,
        /// The reply.
        reply: OptionReplyType,
    },
    /// A reply to an option that is longer than any the specification defines,
    /// and than [`Limits::option_data`](crate::Limits::option_data).
    #[error("{reply} of {length} bytes is beyond the limit")]
    OptionReplyTooLong {
        /// The reply.
        reply: OptionReplyType,
        /// The length of its data in bytes.
        length: u32,
    },
    /// `INFO` or `GO` succeeded without `NBD_INFO_EXPORT`.
    #[error("an export was granted without its size and flags (NBD_INFO_EXPORT)")]
    NoExportInfo,
    /// Block sizes that break the rules of "Size constraints". Only where the
    /// client is strict: else they are ignored.
    #[error(
        "impossible block sizes: minimum {}, preferred {}, maximum {}",
        .0.minimum, .0.preferred, .0.maximum
    )]
    BlockSizes(BlockSizes),
    /// Invalid metadata contexts.
    #[error(transparent)]
    SelectedContexts(#[from] SelectedContextsError),
    /// A message in a framing that was not negotiated.
    #[error("a message of another framing than {negotiated}, which was negotiated")]
    OtherFraming {
        /// What was negotiated.
        negotiated: Framing,
    },
    /// A reply to no command in flight: never sent, or completed already.
    #[error("a reply for cookie {0}, which is not in flight")]
    UnknownCookie(Cookie),
    /// A simple reply of success to a read that is to be answered by chunks:
    /// whether data follows is not known. Where the client is strict, any simple
    /// reply where chunks are due or under way.
    #[error("a simple reply to {0}, which needs a structured one")]
    SimpleReply(Command),
    /// The offset of an extended header is not the request's.
    #[error("the reply for cookie {0} repeats another offset than the request had")]
    OtherOffset(Cookie),
    /// A status chunk of the width that was not negotiated.
    #[error("{chunk} with {framing} framing")]
    OtherWidth {
        /// The chunk's type.
        chunk: ChunkType,
        /// What was negotiated.
        framing: Framing,
    },
    /// A chunk type that does not answer the command.
    #[error("{chunk} in reply to {command}")]
    UnexpectedChunk {
        /// The chunk's type.
        chunk: ChunkType,
        /// The command.
        command: Command,
    },
    /// An unknown chunk type that is not an error.
    #[error("unknown {0}")]
    UnknownChunk(ChunkType),
    /// `NBD_REPLY_TYPE_NONE` that is not the last chunk.
    #[error("NBD_REPLY_TYPE_NONE without the DONE flag")]
    NoneNotDone,
    /// A chunk that is longer than [`Limits`](crate::Limits) allow.
    #[error("{chunk} of {length} bytes is beyond the limit")]
    ChunkTooLong {
        /// The chunk's type.
        chunk: ChunkType,
        /// Its length in bytes, or its number of extents.
        length: u64,
    },
    /// Content, or the offset of an error, outside the request.
    #[error("a chunk for cookie {0} is outside the request")]
    OutOfBounds(Cookie),
    /// Content chunks of one reply overlap.
    #[error("content chunks for cookie {0} overlap")]
    Overlap(Cookie),
    /// A read was declared complete with parts missing.
    #[error("the read with cookie {0} was declared complete with parts missing")]
    Incomplete(Cookie),
    /// More than one content chunk although the read forbade fragments.
    #[error("the read with cookie {0} was fragmented despite DF")]
    Fragmented(Cookie),
    /// A status chunk for a context that was not selected, or not asked for.
    #[error("block status for metadata context {0}, which was not asked for")]
    UnknownContext(ContextId),
    /// A second status chunk for one context in one reply.
    #[error("block status for metadata context {0} twice in one reply")]
    RepeatedContext(ContextId),
    /// A block status reply was declared complete with contexts missing.
    #[error("the block status reply for cookie {0} lacks a metadata context")]
    MissingContext(Cookie),
    /// More than one extent, or a longer one, although one was asked for.
    #[error("the block status reply for cookie {0} ignores REQ_ONE")]
    NotOne(Cookie),
    /// An extent that begins past the end of the request.
    #[error("an extent for cookie {0} begins past the end of the request")]
    ExtentBeyond(Cookie),
    /// More than 32 bits of status in a context that has no more.
    #[error("64-bit status in metadata context {0}, which has 32 bits")]
    StatusTooWide(ContextId),
    /// Server: client flags that are unknown, or were not offered.
    #[error("client flags that were not offered: {0}")]
    ClientFlags(ClientFlags),
    /// Server: another option than `EXPORT_NAME` without fixed newstyle.
    #[error("{0} without fixed newstyle")]
    NotFixed(OptionType),
    /// Server: `EXPORT_NAME` although extended headers were agreed on.
    #[error("NBD_OPT_EXPORT_NAME with extended headers")]
    ExportNameWithExtended,
    /// Server: an export's name in `EXPORT_NAME` that breaks the rules for
    /// strings. (Other options are answered instead.)
    #[error("the name of the export is invalid: {0}")]
    ExportName(TextError),
    /// Server: option data of implausible length.
    #[error("{option} with {length} bytes of data is beyond the limit")]
    OptionTooLong {
        /// The option.
        option: OptionType,
        /// The length of its data in bytes.
        length: u32,
    },
    /// Server: `DISC` with an offset or a length, which are reserved. (Only if the
    /// server is [strict](crate::server::Transmission::strict).)
    #[error("{0} with an offset or a length")]
    NoRange(Command),
    /// Server: a payload beyond the maximum, which a client must not send.
    #[error("{command} with a payload of {length} bytes is beyond the limit")]
    PayloadTooLong {
        /// The command.
        command: Command,
        /// The length of the payload in bytes.
        length: u64,
    },
}

/// A call that is not possible now, or not with these arguments. Nothing was
/// sent, nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// The call is not possible in this state.
    #[error("not possible now: {0}")]
    State(&'static str),
    /// The message does not fit the sink, or has no encoding.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A name breaks the rules for strings.
    #[error("the name is invalid: {0}")]
    Text(TextError),
    /// The option needs fixed newstyle, which the server does not speak.
    #[error("{0} needs fixed newstyle, which the server does not speak")]
    NotFixed(OptionType),
    /// TLS is required, and not started: only `STARTTLS` and `ABORT` can be
    /// sent.
    #[error("TLS is required and was not started yet")]
    TlsRequired,
    /// The option needs structured replies or extended headers first.
    #[error("{0} needs structured replies or extended headers first")]
    NeedsChunks(OptionType),
    /// A metadata context of more than 32 bits of status needs extended headers
    /// first.
    #[error("a metadata context with 64-bit status needs extended headers first")]
    NeedsExtended,
    /// `EXPORT_NAME` is forbidden once extended headers are agreed on.
    #[error("EXPORT_NAME is not allowed with extended headers; use GO")]
    ExportNameWithExtended,
    /// The same information is asked for twice.
    #[error("the same information is requested twice")]
    RepeatedInfo,
    /// A metadata query without a namespace and a colon at its front.
    #[error("a metadata query begins with a namespace and a colon")]
    Query,
    /// Too many metadata contexts.
    #[error("more than 32 metadata contexts")]
    TooManyContexts,
    /// The same metadata context is to be selected twice.
    #[error("the same metadata context is selected twice")]
    RepeatedQuery,
    /// The server did not advertise the command, or it is unknown.
    #[error("{0} is not advertised by the server")]
    NotAdvertised(Command),
    /// A command flag the server did not advertise, or that the command does
    /// not have.
    #[error("command flag not advertised, or not one of this command")]
    Flag,
    /// The export is read-only.
    #[error("the export is read-only")]
    ReadOnly,
    /// No metadata context was selected, as none can be with simple framing.
    #[error("no metadata context was selected during the handshake")]
    NoContext,
    /// A metadata context that was not selected, or named twice.
    #[error("metadata context {0} was not selected, or is named twice")]
    Context(ContextId),
    /// Offset or length is no multiple of the minimum block size.
    #[error("offset or length is not a multiple of the minimum block size, {minimum} bytes")]
    Misaligned {
        /// The minimum block size in bytes.
        minimum: u32,
    },
    /// The range ends past the end of the export.
    #[error("the range ends past the end of the export, which has {size} bytes")]
    OutOfBounds {
        /// The export's size in bytes.
        size: u64,
    },
    /// The payload is longer than the server takes.
    #[error("longer than the maximum payload, {maximum} bytes")]
    TooLarge {
        /// The maximum payload in bytes.
        maximum: u32,
    },
    /// A range in a command that has none: its fields are reserved, and zero.
    #[error("{0} has no range; offset and length are zero")]
    NoRange(Command),
    /// A length of zero, whose meaning the specification leaves open.
    #[error("a length of zero has no defined meaning")]
    ZeroLength,
    /// The framing has no way to say it, as a length of 4 GiB in 32 bits.
    #[error("{framing} framing cannot express the request; split it")]
    NotExpressible {
        /// What was negotiated.
        framing: Framing,
    },
    /// As many commands are in flight as there are slots.
    #[error("every slot is in flight; wait for a reply, or give more slots")]
    Full,
    /// A resize and commands in the range it changes exclude one another.
    #[error("a resize and a command in the range it changes exclude one another")]
    Resizing,
    /// More payload was reported than is expected.
    #[error("more payload than is expected, {expected} bytes")]
    TooMuchPayload {
        /// What is expected, in bytes.
        expected: u64,
    },
    /// Server: the export lacks metadata contexts that were granted for its name
    /// before, or their width is another. The client relies on them.
    #[error(
        "the export lacks metadata contexts that SET_META_CONTEXT granted for its name; an export has the same list every time"
    )]
    ContextsChanged,
    /// Server: the receive buffer does not hold the longest request that the
    /// client may send.
    #[error(
        "the receive buffer is too small for the requests of this export: {needed} bytes are needed"
    )]
    BufferTooSmall {
        /// Fewest bytes of the buffer.
        needed: usize,
    },
    /// More bytes were reported than the inbox had space for.
    #[error("more bytes were reported than the inbox had space for, {space} bytes")]
    Overfilled {
        /// The space in bytes.
        space: usize,
    },
    /// Server: this reply is not a reply to the option under way.
    #[error("{0} is not a reply to the option under way")]
    Answer(OptionReplyType),
    /// Server: block sizes that break the rules of "Size constraints".
    #[error(
        "impossible block sizes: minimum {}, preferred {}, maximum {}",
        .0.minimum, .0.preferred, .0.maximum
    )]
    BlockSizes(BlockSizes),
    /// Server: a metadata context's name is not `namespace:leaf`, or it is one
    /// of `base:` and said to have more than 32 bits of status.
    #[error("a metadata context is called namespace:leaf, and is narrow in base:")]
    ContextName,
    /// Server: a chunk outside the request it answers.
    #[error("the chunk is outside the request")]
    OutsideRequest,
    /// Server: content that was sent already, or that holds an error that was
    /// reported already.
    #[error("content chunks of one reply must not overlap, nor follow an error they hold")]
    Overlap,
    /// Server: a second content chunk although the read forbids fragments.
    #[error("the read forbids fragments (DF): one content chunk only")]
    Fragmented,
    /// Server: a read declared complete with parts missing.
    #[error("the read is not complete; send what is missing, or fail it")]
    Incomplete,
    /// Server: the request wants one extent within it for each context.
    #[error("the request wants one extent, not longer than itself (REQ_ONE)")]
    NotOne,
    /// Server: a status chunk without extents, or an extent without length.
    #[error("a status chunk has at least one extent, and none is empty")]
    EmptyExtent,
    /// Server: an extent that begins past the end of the request.
    #[error("an extent begins past the end of the request; truncate the list")]
    ExtentBeyond,
    /// Server: more extents than one chunk may have.
    #[error("more than {maximum} extents in one chunk")]
    TooManyExtents {
        /// How many there may be.
        maximum: u32,
    },
    /// Server: more than 32 bits of status in a context that has no more.
    #[error("64-bit status in metadata context {0}, which has 32 bits")]
    StatusTooWide(ContextId),
    /// A part of the protocol that is not compiled: it needs a feature of this
    /// crate.
    #[error("not compiled: the crate nbd-codec needs its feature \"{feature}\" for it")]
    NotCompiled {
        /// The feature.
        feature: &'static str,
    },
    /// The session is over.
    #[error("the session is over: {0}")]
    Failed(Error),
}
