//! Options by their headers: what the machine answers by itself, and what a
//! client must not send at all.

use super::Handshake;
use crate::error::{Error, Violation};
use crate::limits::Limits;
use crate::negotiated::{Framing, Style};
use crate::server::config::TlsMode;
use crate::wire::bytes::clip;
use crate::wire::number::{OptionReplyType, OptionType};
use crate::wire::option::OptionHeader;
use crate::wire::option_reply::OptionReply;
use crate::wire::text::{MAX_TEXT, Text};
use crate::wire::{EncodeError, Sink};

/// What the machine answers to an option by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) option: OptionType,
    pub(super) reply: OptionReplyType,
    pub(super) message: &'static str,
}

impl Answer {
    pub(super) fn invalid(option: OptionType, message: &'static str) -> Self {
        Self {
            option,
            reply: OptionReplyType::ERR_INVALID,
            message,
        }
    }

    pub(super) fn encode(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        let reply = match self.reply {
            OptionReplyType::ACK => OptionReply::Ack,
            error => OptionReply::Error {
                error,
                message: Text::from(self.message),
            },
        };
        reply.encode(self.option, sink)
    }
}

/// What to do with an option, by its header.
pub(super) enum Verdict {
    /// Take its data.
    Take,
    /// Skip its data, answer this.
    Skip(OptionReplyType, &'static str),
}

impl Handshake {
    /// What is to be done with an option, as far as its header says.
    pub(super) fn judge(&self, header: OptionHeader) -> Result<Verdict, Error> {
        let OptionHeader { option, length } = header;
        let too_long = Violation::OptionTooLong { option, length };
        if self.agreed.style != Style::FixedNewstyle && option != OptionType::EXPORT_NAME {
            return Err(Violation::NotFixed(option).into());
        }
        if length > self.limits().payload.max(self.limits().option_data) {
            return Err(too_long.into());
        }
        let plain = self.offer.tls == TlsMode::Forced && !self.agreed.tls;
        if option == OptionType::EXPORT_NAME {
            if plain {
                return Err(Error::TlsRequired);
            }
            if self.shutting_down {
                return Err(Error::ExportRefused);
            }
            if self.agreed.framing == Framing::Extended {
                return Err(Violation::ExportNameWithExtended.into());
            }
            if length > self.limits().option_data || clip(u64::from(length)) > MAX_TEXT {
                return Err(too_long.into());
            }
            return Ok(Verdict::Take);
        }
        if option == OptionType::ABORT {
            return Ok(Verdict::Skip(OptionReplyType::ACK, ""));
        }
        let refusal = match () {
            () if plain && option != OptionType::STARTTLS => {
                Some((OptionReplyType::ERR_TLS_REQD, "start TLS first"))
            }
            () if self.shutting_down => {
                Some((OptionReplyType::ERR_SHUTDOWN, "the server is shutting down"))
            }
            () if !self.offers(option) => Some((OptionReplyType::ERR_UNSUP, "unsupported option")),
            () if length > self.limits().option_data => {
                Some((OptionReplyType::ERR_TOO_BIG, "the option is too long"))
            }
            () if length > 0 && is_bare(option) => {
                Some((OptionReplyType::ERR_INVALID, "the option takes no data"))
            }
            () => self.untimely(option),
        };
        Ok(refusal.map_or(Verdict::Take, |(reply, message)| {
            Verdict::Skip(reply, message)
        }))
    }

    /// Whether the server knows the option at all.
    fn offers(&self, option: OptionType) -> bool {
        match option {
            OptionType::STRUCTURED_REPLY
            | OptionType::LIST_META_CONTEXT
            | OptionType::SET_META_CONTEXT => self.offer.framing >= Framing::Structured,
            OptionType::EXTENDED_HEADERS => self.offer.framing == Framing::Extended,
            OptionType::LIST | OptionType::STARTTLS | OptionType::INFO | OptionType::GO => true,
            _ => false,
        }
    }

    /// An option that cannot be granted now.
    fn untimely(&self, option: OptionType) -> Option<(OptionReplyType, &'static str)> {
        match option {
            OptionType::STARTTLS if self.agreed.tls => {
                Some((OptionReplyType::ERR_INVALID, "TLS was started already"))
            }
            OptionType::STARTTLS if self.offer.tls == TlsMode::None => {
                Some((OptionReplyType::ERR_POLICY, "the server has no TLS"))
            }
            OptionType::STRUCTURED_REPLY if self.agreed.framing == Framing::Extended => Some((
                OptionReplyType::ERR_EXT_HEADER_REQD,
                "extended headers were agreed on already",
            )),
            OptionType::SET_META_CONTEXT if self.agreed.framing == Framing::Simple => Some((
                OptionReplyType::ERR_INVALID,
                "agree on structured replies or extended headers first",
            )),
            _ => None,
        }
    }

    fn limits(&self) -> &Limits {
        &self.offer.limits
    }
}

/// Options without data.
fn is_bare(option: OptionType) -> bool {
    matches!(
        option,
        OptionType::LIST
            | OptionType::STARTTLS
            | OptionType::STRUCTURED_REPLY
            | OptionType::EXTENDED_HEADERS
    )
}
