//! The greeting and the replies to options, each checked against its option.

use super::{Handshake, HandshakeEvent, State};
use crate::error::{Error, Violation};
use crate::features;
use crate::limits::Limits;
use crate::negotiated::{Framing, HandshakeStyle, SelectedContext, StatusWidth};
use crate::wire::DecodeError;
use crate::wire::bytes::{clip, take, take_slice};
use crate::wire::flags::HandshakeFlags;
use crate::wire::greeting::{Greeting, NewstyleGreeting, OldstyleGreeting, RESERVED_ZEROES};
use crate::wire::number::{ContextId, OptionReplyType, OptionType};
use crate::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};
use crate::wire::text::Text;

/// What the replies have.
pub(super) enum Flow<'i> {
    Event(HandshakeEvent<'i>),
    /// Something was consumed: look again.
    Again,
    Short,
}

impl Handshake {
    pub(super) fn greeting<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<HandshakeEvent<'i>>, Error> {
        let Some(greeting) = Greeting::decode_fields(input, features::OLDSTYLE)? else {
            // A newstyle greeting would be whole by then.
            if input.len() >= NewstyleGreeting::SIZE {
                require_oldstyle()?;
                self.want = OldstyleGreeting::FIELDS;
            }
            return Ok(None);
        };
        let fixed = match greeting {
            Greeting::Oldstyle(greeting) => {
                self.agreed.style = HandshakeStyle::Oldstyle;
                self.agreed.size = greeting.size;
                self.agreed.flags = greeting.flags;
                self.state = State::Zeroes(RESERVED_ZEROES);
                false
            }
            Greeting::Newstyle(NewstyleGreeting { flags }) => {
                self.server = flags;
                self.state = State::ClientFlags;
                flags.contains(HandshakeFlags::FIXED_NEWSTYLE)
            }
        };
        // Without fixed newstyle there is no STARTTLS.
        if self.require_tls && !fixed {
            return Err(Error::TlsUnavailable);
        }
        if !fixed {
            require_oldstyle()?;
        }
        Ok(Some(HandshakeEvent::Greeting(greeting)))
    }

    pub(super) fn reply<'i>(
        &mut self,
        sent: OptionType,
        input: &mut &'i [u8],
    ) -> Result<Flow<'i>, Error> {
        let mut rest = *input;
        self.want = OptionReplyHeader::SIZE;
        let Some(header) = OptionReplyHeader::decode(&mut rest)? else {
            return Ok(Flow::Short);
        };
        if header.option != sent {
            return Err(Violation::OtherOption {
                sent,
                answered: header.option,
            }
            .into());
        }
        check_reply(sent, header.reply)?;
        // Checked before the data has arrived, which may never happen.
        if header.reply == OptionReplyType::ACK && header.length > 0 {
            return Err(DecodeError::Trailing {
                message: "NBD_REP_ACK",
            }
            .into());
        }
        check_length(header, &self.limits)?;
        let length = clip(u64::from(header.length));
        let least = match header.reply {
            OptionReplyType::INFO => LONGEST_FIXED,
            _ => 0,
        };
        if header.length > self.limits.option_data.max(least) {
            return self.begin_discard(header, rest, input);
        }
        let Some(data) = take_slice(&mut rest, length) else {
            self.want = OptionReplyHeader::SIZE.saturating_add(length);
            return Ok(Flow::Short);
        };
        let reply = OptionReply::decode(header.reply, data)?;
        let flow = self.apply(sent, reply)?;
        *input = rest;
        Ok(flow)
    }

    /// A reply that is longer than the caller has room for. What the state
    /// machine must know of it are its first bytes.
    fn begin_discard<'i>(
        &mut self,
        header: OptionReplyHeader,
        mut rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> Result<Flow<'i>, Error> {
        let mut left = header.length;
        if features::STRUCTURED && header.reply == OptionReplyType::META_CONTEXT {
            let Some(after_id) = left.checked_sub(4) else {
                return Err(DecodeError::Overrun {
                    message: "NBD_REP_META_CONTEXT",
                }
                .into());
            };
            let Some(id) = take::<4>(&mut rest) else {
                self.want = OptionReplyHeader::SIZE.saturating_add(4);
                return Ok(Flow::Short);
            };
            left = after_id;
            let id = ContextId(u32::from_be_bytes(*id));
            self.note_context(header.option, id, StatusWidth::Wide)?;
        }
        *input = rest;
        self.state = State::Discard {
            reply: header,
            left,
        };
        Ok(Flow::Again)
    }

    pub(super) fn discarded(&mut self, header: OptionReplyHeader) -> HandshakeEvent<'static> {
        let OptionReplyHeader {
            option,
            reply,
            length,
        } = header;
        if reply.is_error() {
            return self.refused(option, reply, None);
        }
        HandshakeEvent::Discarded { reply, length }
    }

    fn apply<'i>(&mut self, sent: OptionType, reply: OptionReply<'i>) -> Result<Flow<'i>, Error> {
        Ok(Flow::Event(match reply {
            OptionReply::Ack => return self.ack(sent),
            OptionReply::Server { name, description } => {
                HandshakeEvent::Server { name, description }
            }
            OptionReply::Info(info) => {
                self.note_info(info)?;
                HandshakeEvent::Info(info)
            }
            OptionReply::MetaContext { id, name } => {
                self.note_context(sent, id, StatusWidth::of(name))?;
                HandshakeEvent::MetaContext { id, name }
            }
            OptionReply::Error { error, message } => self.refused(sent, error, Some(message)),
            OptionReply::Other { reply, data } => HandshakeEvent::Other { reply, data },
        }))
    }

    fn ack(&mut self, sent: OptionType) -> Result<Flow<'static>, Error> {
        self.state = State::Idle;
        match sent {
            OptionType::STARTTLS if features::TLS => {
                // TLS is handed over here. What was negotiated in plain text
                // counts for nothing.
                self.agreed.forget();
                self.contexts_for = None;
                self.state = State::Tls;
                return Ok(Flow::Again);
            }
            OptionType::INFO | OptionType::GO if !self.informed => {
                return Err(Violation::NoExportInfo.into());
            }
            OptionType::GO => {
                self.drop_foreign_contexts();
                self.state = State::Ready { reported: false };
            }
            OptionType::STRUCTURED_REPLY if features::STRUCTURED => {
                self.agreed.framing = self.agreed.framing.max(Framing::Structured);
            }
            OptionType::EXTENDED_HEADERS if features::EXTENDED => {
                self.agreed.framing = Framing::Extended;
            }
            OptionType::ABORT => self.state = State::Aborted,
            _ => {}
        }
        Ok(Flow::Event(HandshakeEvent::Ack(sent)))
    }

    fn refused<'i>(
        &mut self,
        option: OptionType,
        error: OptionReplyType,
        message: Option<Text<'i>>,
    ) -> HandshakeEvent<'i> {
        if features::STRUCTURED && option == OptionType::SET_META_CONTEXT {
            // "If an error is returned, the client MUST disregard any context
            // replies that may have been sent."
            self.agreed.contexts.clear();
        }
        self.state = State::Idle;
        HandshakeEvent::Refused {
            option,
            error,
            message,
        }
    }

    fn note_info(&mut self, info: Info<'_>) -> Result<(), Error> {
        match info {
            Info::Export { size, flags } => {
                self.agreed.size = size;
                self.agreed.flags = flags;
                self.informed = true;
            }
            Info::BlockSize(sizes) if is_possible(sizes) => {
                self.agreed.block_sizes = Some(sizes);
            }
            Info::BlockSize(sizes) if self.strict => {
                return Err(Violation::BlockSizes(sizes).into());
            }
            _ => {}
        }
        Ok(())
    }

    fn note_context(
        &mut self,
        option: OptionType,
        id: ContextId,
        width: StatusWidth,
    ) -> Result<(), Error> {
        if !features::STRUCTURED || option != OptionType::SET_META_CONTEXT {
            return Ok(());
        }
        self.agreed
            .contexts
            .push(SelectedContext { id, width })
            .map_err(|error| Violation::from(error).into())
    }

    /// Contexts hold only for the export they were selected for.
    pub(super) fn drop_foreign_contexts(&mut self) {
        if features::STRUCTURED && self.contexts_for != Some(self.chosen) {
            self.agreed.contexts.clear();
        }
    }
}

/// Refuses a handshake older than fixed newstyle, unless it is compiled.
fn require_oldstyle() -> Result<(), Error> {
    if features::OLDSTYLE {
        Ok(())
    } else {
        Err(Error::NotFixedNewstyle)
    }
}

/// Whether `option` has replies of the type `reply`.
#[inline(never)]
pub(crate) fn check_reply(option: OptionType, reply: OptionReplyType) -> Result<(), Error> {
    let expected = match reply {
        OptionReplyType::ACK => true,
        error if error.is_error() => true,
        OptionReplyType::SERVER => option == OptionType::LIST,
        OptionReplyType::INFO => matches!(option, OptionType::INFO | OptionType::GO),
        OptionReplyType::META_CONTEXT => matches!(
            option,
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT
        ),
        // What the reply to an unknown option means is not known.
        _ => !option.is_known(),
    };
    if expected || !option.is_known() {
        Ok(())
    } else {
        Err(Violation::UnexpectedReply { option, reply }.into())
    }
}

/// Whether a reply can be as long as it is.
#[inline]
pub(crate) fn check_length(header: OptionReplyHeader, limits: &Limits) -> Result<(), Error> {
    let OptionReplyHeader { reply, length, .. } = header;
    if length > limits.option_data.max(LONGEST_DEFINED) {
        Err(Violation::OptionReplyTooLong { reply, length }.into())
    } else {
        Ok(())
    }
}

/// Whether block sizes follow every rule but one: a preferred size below 512 is
/// harmless, and servers send it.
fn is_possible(sizes: BlockSizes) -> bool {
    let harmless = BlockSizes {
        preferred: sizes.preferred.max(512),
        maximum: sizes.maximum.max(512),
        ..sizes
    };
    let ordered = sizes.preferred >= sizes.minimum && sizes.maximum >= sizes.preferred;
    harmless.is_valid() && ordered
}

/// Length of the longest reply that the specification defines, in bytes: the name
/// and the description of an export, in reply to `LIST`.
const LONGEST_DEFINED: u32 = Limits::DEFAULT.option_data;

/// Length of the longest information that the state machine itself needs, the
/// block sizes, in bytes.
const LONGEST_FIXED: u32 = 14;
