//! Which side broke which duty.

use core::fmt;

use super::Side;
use crate::error::{Misuse, Violation};
use crate::negotiated::{Framing, SelectedContextsError};
use crate::wire::DecodeError;
use crate::wire::flags::{HandshakeFlags, TransmissionFlags};
use crate::wire::number::{
    ChunkType, Command, ContextId, Cookie, InfoType, OptionReplyType, OptionType,
};
use crate::wire::text::TextError;

/// A side broke a rule of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The side that broke it.
    pub side: Side,
    /// How.
    pub fault: Fault,
    /// The place in the stream is lost: the rest of the connection is opaque.
    pub lost: bool,
}

impl Finding {
    /// The duty that was broken, by its number in the project's
    /// `docs/conformance.md`.
    #[must_use]
    pub fn duty(&self) -> &'static str {
        self.fault.duty(self.side)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Client => "client",
            Side::Server => "server",
        };
        write!(f, "the {side}: {} [{}]", self.fault, self.duty())?;
        if self.lost {
            f.write_str("; what follows cannot be read")
        } else {
            Ok(())
        }
    }
}

/// How a rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A message that the other role's state machine rejects.
    #[error("{0}")]
    Violation(Violation),
    /// An option that a client must not send.
    #[error("{option}: {misuse}")]
    Option {
        /// The option.
        option: OptionType,
        /// Why the client's state machine refuses to send it.
        misuse: Misuse,
    },
    /// A request that a client must not send.
    #[error("{command}: {misuse}")]
    Request {
        /// The command.
        command: Command,
        /// Why the client's state machine refuses to send it.
        misuse: Misuse,
    },
    /// The data of an option is malformed.
    #[error("{0}")]
    OptionData(OptionType, DecodeError),
    /// The data of a reply to an option is malformed.
    #[error("{0}")]
    OptionReplyData(OptionReplyType, DecodeError),
    /// The payload of a chunk is malformed.
    #[error("{0}")]
    Chunk(ChunkType, DecodeError),
    /// Bytes that are no message.
    #[error("{0}")]
    Magic(DecodeError),
    /// An option, or a request, before the reply to the option before it.
    #[error("sent before the reply to the option before it")]
    Early,
    /// Anything after `ABORT` was acknowledged, or after `DISC`.
    #[error("bytes after the end of the session")]
    AfterEnd,
    /// A request with the cookie of another one in flight.
    #[error("cookie {0} is in flight already")]
    CookieInFlight(Cookie),
    /// `PAYLOAD_LEN` is missing on a write.
    #[error("an extended write without PAYLOAD_LEN")]
    NoPayloadLen,
    /// `PAYLOAD_LEN` on a command that has no payload.
    #[error("{0} with PAYLOAD_LEN, which has no payload")]
    PayloadLen(Command),
    /// A block status payload of impossible length.
    #[error("a block status payload of {0} bytes")]
    StatusPayload(u64),
    /// Handshake flags that are not defined; in oldstyle none are.
    #[error("handshake flags {0}, which are not defined here")]
    HandshakeFlags(HandshakeFlags),
    /// Transmission flags that contradict each other, or what was agreed on.
    #[error("transmission flags {flags} with {framing} framing: {wrong} is wrong")]
    TransmissionFlags {
        /// All of them.
        flags: TransmissionFlags,
        /// The one that is missing or must not be there.
        wrong: TransmissionFlags,
        /// What was agreed on.
        framing: Framing,
    },
    /// A piece of information twice.
    #[error("{0} twice in the replies to one option")]
    RepeatedInfo(InfoType),
    /// An error reply that the server must not send here.
    #[error("{error} in reply to {option} is not allowed here")]
    ErrorReply {
        /// The option.
        option: OptionType,
        /// The error.
        error: OptionReplyType,
    },
    /// A context in a list has an id, which is reserved.
    #[error("id {0} in a list of metadata contexts, where it is zero")]
    ReservedId(ContextId),
    /// A text of the server is no string.
    #[error("a text of the server is invalid: {0}")]
    Text(TextError),
    /// Reply flags that are not defined.
    #[error("reply flags {0:#x}, which are not defined")]
    ReplyFlags(u16),
    /// The connection was closed within a message.
    #[error("closed the connection within a message")]
    Truncated,
    /// The connection was closed and must not be.
    #[error("closed the connection without {}", if *.handshake { "NBD_OPT_ABORT or a reply" } else { "NBD_CMD_DISC" })]
    Closed {
        /// During the handshake.
        handshake: bool,
    },
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl Fault {
    /// The duty that `side` breaks so, as [`Finding::duty`].
    #[must_use]
    pub fn duty(&self, side: Side) -> &'static str {
        match *self {
            Self::Violation(violation) => broken(side, violation),
            Self::Option { option, misuse } => option_duty(option, misuse),
            Self::Request { command, misuse } => request_duty(command, misuse),
            Self::OptionData(option, _) => data_duty(option),
            Self::OptionReplyData(reply, error) => reply_data_duty(reply, error),
            Self::Chunk(chunk, error) => chunk_duty(chunk, error),
            // Bytes that are no message have no duty of their own.
            Self::Magic(_) => "H13",
            Self::Early => "H9",
            Self::AfterEnd => "R113",
            Self::CookieInFlight(_) => "T3",
            Self::NoPayloadLen => "T11",
            Self::PayloadLen(_) => "R1",
            Self::StatusPayload(_) => "R147",
            Self::HandshakeFlags(_) => "O4",
            Self::TransmissionFlags { wrong, .. } => match wrong {
                TransmissionFlags::SEND_DF => "O16",
                TransmissionFlags::SEND_FAST_ZERO => "O20",
                TransmissionFlags::BLOCK_STATUS_PAYLOAD => "O22",
                _ => "O14",
            },
            Self::RepeatedInfo(_) => "O113",
            Self::ErrorReply { option, error } => match (option, error) {
                (_, OptionReplyType::ERR_TLS_REQD) => "L15",
                (OptionType::GO, _) => "O57",
                _ => "O71",
            },
            Self::ReservedId(_) => "O83",
            Self::Text(error) => text_duty(error),
            Self::ReplyFlags(_) => "R17",
            Self::Truncated => "T38",
            Self::Closed { handshake: true } => match side {
                Side::Client => "H15",
                Side::Server => "H17",
            },
            Self::Closed { handshake: false } => "T38",
        }
    }
}

fn text_duty(error: TextError) -> &'static str {
    match error {
        TextError::Nul => "C1",
        TextError::TooLong => "C2",
        TextError::Utf8 => "C3",
    }
}

/// The duty of the side that sent the message.
fn broken(side: Side, violation: Violation) -> &'static str {
    use Violation as V;
    match violation {
        V::PlaintextAfterStartTls => "L10",
        V::NoExportInfo => "O48",
        V::BlockSizes(sizes) if !sizes.minimum.is_power_of_two() || sizes.minimum > 1 << 16 => {
            "S10"
        }
        V::BlockSizes(sizes) if sizes.maximum < sizes.preferred => "S15",
        V::BlockSizes(_) => "S13",
        V::SelectedContexts(SelectedContextsError::Repeated(_)) => "O94",
        V::OtherFraming { negotiated } if side == Side::Client => match negotiated {
            Framing::Extended => "O105",
            _ => "O104",
        },
        V::OtherFraming { negotiated } => match negotiated {
            Framing::Simple => "T1",
            Framing::Structured => "T21",
            Framing::Extended => "O107",
        },
        V::UnknownCookie(_) => "T4",
        V::SimpleReply(Command::READ) => "T22",
        V::SimpleReply(_) => "T21",
        V::OtherOffset(_) => "T29",
        V::OtherWidth { framing, .. } => match framing {
            Framing::Extended => "R59",
            _ => "R51",
        },
        V::NoneNotDone => "R15",
        V::ChunkTooLong { .. } => "R20",
        V::OutOfBounds(_) => "R26",
        V::Overlap(_) => "R28",
        V::Incomplete(_) => "R93",
        V::Fragmented(_) => "R102",
        V::UnknownContext(_) | V::RepeatedContext(_) | V::MissingContext(_) => "R39",
        V::NotOne(_) => "R43",
        V::ExtentBeyond(_) => "R45",
        V::StatusTooWide(_) => "R61",
        V::ClientFlags(_) => "O10",
        V::PayloadTooLong { .. } => "S19",
        V::NoRange(_) => "R114",
        // A name or a text is too long.
        V::OptionReplyTooLong { .. } => "C2",
        // A type that does not belong there.
        V::UnexpectedChunk { .. } | V::UnknownChunk(_) => "R19",
        _ => "H13",
    }
}

fn option_duty(option: OptionType, misuse: Misuse) -> &'static str {
    match (misuse, option) {
        (Misuse::NotFixed(_), OptionType::STARTTLS) => "L24",
        (Misuse::NotFixed(_), _) => "O26",
        (Misuse::NeedsChunks(_), OptionType::LIST_META_CONTEXT) => "O69",
        (Misuse::NeedsChunks(_), _) => "O85",
        (Misuse::ExportNameWithExtended, _) => "O28",
        (Misuse::RepeatedInfo, _) => "O44",
        (Misuse::Query, OptionType::LIST_META_CONTEXT) => "O72",
        (Misuse::Query, _) => "O91",
        (Misuse::Text(error), _) => text_duty(error),
        (Misuse::State(_), OptionType::STARTTLS) => "L25",
        _ => "H10",
    }
}

fn request_duty(command: Command, misuse: Misuse) -> &'static str {
    match (misuse, command) {
        (Misuse::NotAdvertised(_), Command::FLUSH) => "R116",
        (Misuse::NotAdvertised(_), Command::TRIM) => "R121",
        (Misuse::NotAdvertised(_), Command::WRITE_ZEROES) => "R128",
        (Misuse::NoContext, _) => "M4",
        (Misuse::Context(_), _) => "R146",
        (Misuse::Misaligned { .. }, _) => "S22",
        (Misuse::OutOfBounds { .. }, _) => "S24",
        (Misuse::TooLarge { .. }, _) => "S19",
        (Misuse::NoRange(_), _) => "R117",
        (Misuse::ZeroLength, Command::READ) => "R79",
        (Misuse::ZeroLength, Command::WRITE) => "R108",
        (Misuse::ZeroLength, Command::TRIM) => "R118",
        (Misuse::ZeroLength, Command::WRITE_ZEROES) => "R125",
        (Misuse::ZeroLength, Command::BLOCK_STATUS) => "R141",
        // Flags, and commands on a read-only export.
        _ => "O13",
    }
}

fn data_duty(option: OptionType) -> &'static str {
    match option {
        OptionType::ABORT => "O31",
        OptionType::LIST => "O35",
        OptionType::STARTTLS => "O37",
        OptionType::STRUCTURED_REPLY => "O62",
        OptionType::EXTENDED_HEADERS => "O97",
        _ => "O42",
    }
}

fn reply_data_duty(reply: OptionReplyType, error: DecodeError) -> &'static str {
    match (reply, error) {
        (OptionReplyType::SERVER, _) => "O110",
        (
            OptionReplyType::INFO,
            DecodeError::Overrun { message } | DecodeError::Trailing { message },
        ) if message == "NBD_INFO_BLOCK_SIZE" => "O120",
        (OptionReplyType::META_CONTEXT, _) => "O82",
        _ => "O116",
    }
}

fn chunk_duty(chunk: ChunkType, error: DecodeError) -> &'static str {
    match (chunk, error) {
        (ChunkType::NONE, _) => "R21",
        (ChunkType::OFFSET_DATA, _) => "R24",
        (ChunkType::OFFSET_HOLE, DecodeError::EmptyHole) => "R34",
        (ChunkType::OFFSET_HOLE, _) => "R30",
        (ChunkType::BLOCK_STATUS, DecodeError::EmptyExtent) => "R41",
        (ChunkType::BLOCK_STATUS, _) => "R37",
        (ChunkType::BLOCK_STATUS_EXT, DecodeError::EmptyExtent) => "R57",
        (ChunkType::BLOCK_STATUS_EXT, DecodeError::Count { .. }) => "R53",
        (ChunkType::BLOCK_STATUS_EXT, _) => "R49",
        (ChunkType::ERROR_OFFSET, DecodeError::NoError) => "R75",
        (_, DecodeError::NoError) => "R67",
        (ChunkType::ERROR_OFFSET, _) => "R69",
        _ => "R63",
    }
}
