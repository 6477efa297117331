//! The handshake: options and replies, each checked as the roles check them.

use super::{Fault, Message, Monitor, Phase, Side, Slot, Step, read};
use crate::client::handshake::recv::{check_length, check_reply};
use crate::client::handshake::send::{check_data, check_turn};
use crate::error::{Misuse, Violation};
use crate::name::Name;
use crate::negotiated::{
    Framing, HandshakeStyle, SelectedContext, SelectedContextsError, StatusWidth,
};
use crate::wire::bytes::{clip, take_slice, wide};
use crate::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::wire::greeting::{ExportNameReply, Greeting, NewstyleGreeting, RESERVED_ZEROES};
use crate::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use crate::wire::option::{OptionHeader, OptionRequest};
use crate::wire::option_reply::{Info, OptionReply, OptionReplyHeader};
use crate::wire::text::Text;

/// `informed`: `NBD_INFO_EXPORT` has come.
const EXPORT: u8 = 1;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Monitor<S> {
    pub(super) fn greeting<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        let greeting = match Greeting::decode_fields(input, true) {
            Err(error) => return self.lose(Side::Server, Fault::Magic(error)),
            Ok(None) => return read(NewstyleGreeting::SIZE.saturating_sub(input.len())),
            Ok(Some(greeting)) => greeting,
        };
        let wrong = match greeting {
            Greeting::Newstyle(NewstyleGreeting { flags }) => {
                self.offered = flags;
                self.phase = Phase::ClientFlags;
                flags.difference(HandshakeFlags::KNOWN)
            }
            Greeting::Oldstyle(greeting) => {
                self.agreed.style = HandshakeStyle::Oldstyle;
                self.agreed.size = greeting.size;
                self.server.payload = wide(RESERVED_ZEROES);
                self.phase = Phase::Transmission;
                self.note_flags(greeting.flags);
                greeting.handshake_flags
            }
        };
        if !wrong.is_empty() {
            self.find(Side::Server, Fault::HandshakeFlags(wrong));
        }
        Step::Message(Message::Greeting(greeting))
    }

    pub(super) fn client_flags<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        let Some(flags) = ClientFlags::decode(input) else {
            return read(ClientFlags::SIZE.saturating_sub(input.len()));
        };
        // The bits are the same in both fields.
        let offered = ClientFlags(u32::from((self.offered & HandshakeFlags::KNOWN).0));
        if !flags.difference(offered).is_empty() {
            self.find(Side::Client, Violation::ClientFlags(flags).into());
        }
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.agreed.style = if flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            HandshakeStyle::FixedNewstyle
        } else {
            HandshakeStyle::Newstyle
        };
        self.phase = Phase::Options;
        Step::Message(Message::ClientFlags(flags))
    }

    pub(super) fn option<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        let mut rest = *input;
        let header = match OptionHeader::decode(&mut rest) {
            Err(error) => return self.lose(Side::Client, Fault::Magic(error)),
            Ok(None) => return read(OptionHeader::SIZE.saturating_sub(input.len())),
            Ok(Some(header)) => header,
        };
        let OptionHeader { option, length } = header;
        let long = length > self.limits.option_data;
        let request = if long {
            self.client.payload = length.into();
            None
        } else {
            let Some(data) = take_slice(&mut rest, clip(length.into())) else {
                return read(clip(length.into()).saturating_sub(rest.len()));
            };
            let decoded = OptionRequest::decode(option, data);
            if let Err(error) = decoded {
                self.find(Side::Client, Fault::OptionData(option, error));
            }
            decoded.ok()
        };
        *input = rest;
        if core::mem::take(&mut self.client.early) {
            self.find(Side::Client, Fault::Early);
        }
        if option == OptionType::ABORT && length > 0 {
            let message = "NBD_OPT_ABORT";
            let error = crate::wire::DecodeError::Trailing { message };
            self.find(Side::Client, Fault::OptionData(option, error));
        }
        let turn = check_turn(option, &self.agreed, false);
        let data = request.map_or(Ok(()), |data| check_data(&data, self.agreed.framing, false));
        match turn.and(data) {
            // Those are rules of this crate.
            Ok(()) | Err(Misuse::TooManyContexts | Misuse::RepeatedQuery) => {}
            Err(misuse) => self.find(Side::Client, Fault::Option { option, misuse }),
        }
        self.asked(option, request.as_ref());
        // What it selects is not known.
        self.unknown_contexts |= long && option == OptionType::SET_META_CONTEXT;
        Step::Message(Message::Option {
            option,
            length,
            request,
        })
    }

    /// What an option changes before it has a reply.
    fn asked(&mut self, option: OptionType, request: Option<&OptionRequest<'_>>) {
        self.informed = 0;
        self.phase = match option {
            OptionType::EXPORT_NAME => Phase::ExportName,
            option => Phase::Replies(option),
        };
        match option {
            OptionType::GO => {
                self.agreed.block_sizes = None;
                self.chosen = None;
            }
            OptionType::EXPORT_NAME => self.chosen = None,
            // Selecting replaces what was selected before, even where it fails.
            OptionType::SET_META_CONTEXT => {
                self.forget_contexts();
                self.contexts_for = None;
            }
            _ => {}
        }
        match request {
            Some(OptionRequest::ExportName(name)) => self.chosen = Some(Name::of(*name)),
            Some(OptionRequest::Go(request)) => self.chosen = Some(Name::of(request.export)),
            Some(OptionRequest::SetMetaContext(request)) => {
                self.contexts_for = Some(Name::of(request.export));
            }
            _ => {}
        }
    }

    pub(super) fn option_reply<'i>(&mut self, sent: OptionType, input: &mut &'i [u8]) -> Step<'i> {
        let mut rest = *input;
        let header = match OptionReplyHeader::decode(&mut rest) {
            Err(error) => return self.lose(Side::Server, Fault::Magic(error)),
            Ok(None) => return read(OptionReplyHeader::SIZE.saturating_sub(input.len())),
            Ok(Some(header)) => header,
        };
        let OptionReplyHeader {
            option,
            reply,
            length,
        } = header;
        let data = if length > self.limits.option_data {
            self.server.payload = length.into();
            None
        } else {
            let Some(data) = take_slice(&mut rest, clip(length.into())) else {
                return read(clip(length.into()).saturating_sub(rest.len()));
            };
            Some(data)
        };
        *input = rest;
        let decoded = data.map(|data| OptionReply::decode(reply, data));
        let data = decoded.and_then(Result::ok);
        if option != sent {
            let answered = option;
            self.find(
                Side::Server,
                Violation::OtherOption { sent, answered }.into(),
            );
        } else if let Err(error) = check_reply(sent, reply) {
            self.find_error(Side::Server, error, Fault::Magic);
        } else {
            if let Err(error) = check_length(header, &self.limits) {
                self.find_error(Side::Server, error, Fault::Magic);
            }
            if let Some(Err(error)) = decoded {
                self.find(Side::Server, Fault::OptionReplyData(reply, error));
            }
            self.replied(sent, reply, data.as_ref());
        }
        Step::Message(Message::OptionReply {
            option,
            reply,
            length,
            data,
        })
    }

    /// What a reply changes.
    fn replied(
        &mut self,
        sent: OptionType,
        reply: OptionReplyType,
        data: Option<&OptionReply<'_>>,
    ) {
        match data {
            Some(OptionReply::Info(info)) => self.note_info(info),
            Some(OptionReply::MetaContext { id, name }) => self.note_context(sent, *id, *name),
            Some(OptionReply::Server { name, description }) => {
                self.check_text(*name);
                self.check_text(*description);
            }
            Some(OptionReply::Error { message, .. }) => self.check_text(*message),
            // It was too long, or malformed.
            None if reply == OptionReplyType::META_CONTEXT => {
                self.unknown_contexts |= sent == OptionType::SET_META_CONTEXT;
            }
            _ => {}
        }
        match reply {
            OptionReplyType::ACK => self.acknowledged(sent),
            error if error.is_error() => self.refused(sent, error),
            _ => {}
        }
    }

    fn acknowledged(&mut self, sent: OptionType) {
        self.phase = Phase::Options;
        match sent {
            OptionType::STARTTLS => {
                self.agreed.forget();
                self.unknown_contexts = false;
                self.contexts_for = None;
                self.phase = Phase::Tls;
            }
            OptionType::STRUCTURED_REPLY => {
                self.agreed.framing = self.agreed.framing.max(Framing::Structured);
            }
            OptionType::EXTENDED_HEADERS => self.agreed.framing = Framing::Extended,
            OptionType::ABORT => self.phase = Phase::Aborted,
            OptionType::INFO if self.informed & EXPORT == 0 => {
                self.find(Side::Server, Violation::NoExportInfo.into());
            }
            OptionType::GO if self.informed & EXPORT == 0 => {
                // Requests cannot be checked against what is not known.
                self.phase = Phase::Opaque;
                self.find(Side::Server, Violation::NoExportInfo.into());
            }
            OptionType::GO => self.begin_transmission(),
            _ => {}
        }
    }

    fn refused(&mut self, option: OptionType, error: OptionReplyType) {
        self.phase = Phase::Options;
        if option == OptionType::SET_META_CONTEXT {
            self.forget_contexts();
        }
        let extended = self.agreed.framing == Framing::Extended;
        let lists = matches!(
            option,
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT
        );
        let allowed = match error {
            OptionReplyType::ERR_TLS_REQD => !self.agreed.tls,
            OptionReplyType::ERR_UNSUP => option != OptionType::GO || !extended,
            OptionReplyType::ERR_EXT_HEADER_REQD => !lists || !extended,
            _ => true,
        };
        if !allowed {
            self.find(Side::Server, Fault::ErrorReply { option, error });
        }
    }

    fn note_info(&mut self, info: &Info<'_>) {
        let kind = match *info {
            Info::Export { size, flags } => {
                self.agreed.size = size;
                self.note_flags(flags);
                InfoType::EXPORT
            }
            Info::BlockSize(sizes) => {
                if !sizes.is_valid() {
                    self.find(Side::Server, Violation::BlockSizes(sizes).into());
                }
                // Alignment is computed with it.
                if sizes.minimum.is_power_of_two() {
                    self.agreed.block_sizes = Some(sizes);
                }
                InfoType::BLOCK_SIZE
            }
            Info::Name(text) => {
                self.check_text(text);
                InfoType::NAME
            }
            Info::Description(text) => {
                self.check_text(text);
                InfoType::DESCRIPTION
            }
            Info::Other { .. } => return,
        };
        let bit = 1u8.wrapping_shl(kind.0.into());
        if self.informed & bit != 0 {
            self.find(Side::Server, Fault::RepeatedInfo(kind));
        }
        self.informed |= bit;
    }

    fn note_context(&mut self, sent: OptionType, id: ContextId, name: Text<'_>) {
        self.check_text(name);
        if sent != OptionType::SET_META_CONTEXT {
            if id.0 != 0 {
                self.find(Side::Server, Fault::ReservedId(id));
            }
            return;
        }
        let width = StatusWidth::of(name);
        let pushed = self.agreed.contexts.push(SelectedContext { id, width });
        match pushed {
            Err(error @ SelectedContextsError::Repeated(_)) => {
                self.find(Side::Server, Violation::from(error).into());
            }
            // The specification has no such limit.
            Err(SelectedContextsError::Full) => self.unknown_contexts = true,
            Ok(()) => {}
        }
    }

    /// No context is selected.
    fn forget_contexts(&mut self) {
        self.agreed.contexts.clear();
        self.unknown_contexts = false;
    }

    pub(super) fn export_name_reply<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        let Some(reply) = ExportNameReply::decode(input) else {
            return read(ExportNameReply::SIZE.saturating_sub(input.len()));
        };
        self.agreed.size = reply.size;
        self.agreed.block_sizes = None;
        self.note_flags(reply.flags);
        if !self.no_zeroes {
            self.server.payload = wide(RESERVED_ZEROES);
        }
        self.begin_transmission();
        Step::Message(Message::ExportName(reply))
    }

    fn begin_transmission(&mut self) {
        match (self.contexts_for, self.chosen) {
            (Some(export), Some(chosen)) if export == chosen => {}
            (Some(_), Some(_)) => self.forget_contexts(),
            (selected, _) => {
                self.agreed.contexts.clear();
                self.unknown_contexts |= selected.is_some();
            }
        }
        self.phase = Phase::Transmission;
    }

    /// Notes the transmission flags; at most one of them is reported as wrong.
    fn note_flags(&mut self, flags: TransmissionFlags) {
        use TransmissionFlags as T;
        self.agreed.flags = flags;
        let framing = self.agreed.framing;
        let has = |flag| flags.contains(flag);
        let wrong = if !has(T::HAS_FLAGS) {
            T::HAS_FLAGS
        } else if has(T::SEND_DF) && framing == Framing::Simple {
            T::SEND_DF
        } else if has(T::SEND_FAST_ZERO) && !has(T::SEND_WRITE_ZEROES) {
            T::SEND_FAST_ZERO
        } else if has(T::BLOCK_STATUS_PAYLOAD) && framing != Framing::Extended {
            T::BLOCK_STATUS_PAYLOAD
        } else {
            return;
        };
        let fault = Fault::TransmissionFlags {
            flags,
            wrong,
            framing,
        };
        self.find(Side::Server, fault);
    }

    fn check_text(&mut self, text: Text<'_>) {
        if let Err(error) = text.to_str() {
            self.find(Side::Server, Fault::Text(error));
        }
    }
}
