//! What a client sends: its flags and its options. The state machine replies
//! to most of them by itself; the others become events.

use super::{Asked, ExportQuery, Handshake, HandshakeEvent, HandshakeStep, Pending, State};
use crate::error::{Error, Violation};
use crate::features;
use crate::limits::Limits;
use crate::name::Name;
use crate::negotiated::{Framing, HandshakeStyle, SelectedContexts};
use crate::server::config::TlsMode;
use crate::server::export::is_query;
use crate::step::Step;
use crate::wire::bytes::{clip, take_slice};
use crate::wire::flags::ClientFlags;
use crate::wire::list::has_repeated;
use crate::wire::number::{InfoType, OptionReplyType, OptionType};
use crate::wire::option::{OptionHeader, OptionRequest, Queries};
use crate::wire::option_reply::OptionReply;
use crate::wire::text::{MAX_TEXT, Text};
use crate::wire::{EncodeError, Sink};

/// The reply to an option that needs no decision of the caller.
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
pub(super) enum Action {
    /// Take its data.
    Take,
    /// Discard its data and send this reply.
    Discard(OptionReplyType, &'static str),
}

impl Handshake {
    /// Takes messages until there is an event, a reply to transmit, or no whole
    /// message.
    pub(super) fn next_step<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<HandshakeStep<'i>, Error> {
        loop {
            if features::TLS && matches!(self.state, State::Tls { .. }) && !input.is_empty() {
                return Err(Violation::PlaintextAfterStartTls.into());
            }
            if self.pending.is_some() {
                return self.wait(input.len());
            }
            match self.state {
                State::ClientFlags => {
                    let Some(flags) = ClientFlags::decode(input) else {
                        return self.wait(input.len());
                    };
                    self.client_flags(flags)?;
                }
                State::Option => {
                    let before = input.len();
                    if let Some(event) = self.option(input)? {
                        return Ok(Step::Event(event));
                    }
                    if input.len() == before {
                        return self.wait(input.len());
                    }
                }
                State::Discard { answer, left } => {
                    let n = clip(u64::from(left)).min(input.len());
                    let _ = take_slice(input, n);
                    let left = left.saturating_sub(u32::try_from(n).unwrap_or(left));
                    if left > 0 {
                        self.state = State::Discard { answer, left };
                        return self.wait(input.len());
                    }
                    self.answer(answer);
                }
                State::Aborted { reported: false } => {
                    self.state = State::Aborted { reported: true };
                    return Ok(Step::Event(HandshakeEvent::Aborted));
                }
                State::Ready {
                    export,
                    reported: false,
                } => {
                    self.state = State::Ready {
                        export,
                        reported: true,
                    };
                    return Ok(Step::Event(HandshakeEvent::Ready { export }));
                }
                State::Asked(_)
                | State::Tls { .. }
                | State::Aborted { reported: true }
                | State::Ready { reported: true, .. } => return self.wait(input.len()),
            }
        }
    }

    fn client_flags(&mut self, flags: ClientFlags) -> Result<(), Error> {
        let offered = |config, flag| if config { flag } else { ClientFlags::NONE };
        let known = offered(self.config.fixed_newstyle, ClientFlags::FIXED_NEWSTYLE)
            | offered(self.config.no_zeroes, ClientFlags::NO_ZEROES);
        if !flags.difference(known).is_empty() {
            return Err(Violation::ClientFlags(flags).into());
        }
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.agreed.style = if flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            HandshakeStyle::FixedNewstyle
        } else {
            HandshakeStyle::Newstyle
        };
        if !features::OLDSTYLE && self.agreed.style != HandshakeStyle::FixedNewstyle {
            return Err(Error::NotFixedNewstyle);
        }
        self.state = State::Option;
        Ok(())
    }

    /// Takes an option: its header and data together, or its header alone
    /// where the data does not matter.
    fn option<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<HandshakeEvent<'i>>, Error> {
        let mut rest = *input;
        self.want = OptionHeader::SIZE;
        let Some(header) = OptionHeader::decode(&mut rest)? else {
            return Ok(None);
        };
        let option = header.option;
        let length = clip(u64::from(header.length));
        let request = match self.action(header)? {
            Action::Discard(reply, message) => {
                self.begin(option);
                *input = rest;
                let answer = Answer {
                    option,
                    reply,
                    message,
                };
                let left = header.length;
                self.state = State::Discard { answer, left };
                return Ok(None);
            }
            Action::Take => {
                let Some(data) = take_slice(&mut rest, length) else {
                    self.want = OptionHeader::SIZE.saturating_add(length);
                    return Ok(None);
                };
                OptionRequest::decode(option, data)
            }
        };
        self.begin(option);
        *input = rest;
        let Ok(request) = request else {
            self.answer(Answer::invalid(option, "malformed option"));
            return Ok(None);
        };
        self.apply(request)
    }

    /// Selecting contexts replaces those selected before, even where it fails.
    fn begin(&mut self, option: OptionType) {
        if features::STRUCTURED && option == OptionType::SET_META_CONTEXT {
            self.agreed.contexts = SelectedContexts::new();
        }
    }

    fn apply<'i>(
        &mut self,
        request: OptionRequest<'i>,
    ) -> Result<Option<HandshakeEvent<'i>>, Error> {
        let option = request.option();
        let mut query = ExportQuery {
            option,
            export: "",
            requests: [].as_slice().into(),
            queries: Queries::NONE,
        };
        let name = match request {
            OptionRequest::List => {
                self.ask(&query);
                return Ok(Some(HandshakeEvent::List));
            }
            OptionRequest::StructuredReply | OptionRequest::ExtendedHeaders
                if features::STRUCTURED =>
            {
                self.agreed.framing = framing_of(option);
                return Ok(self.acknowledge(option));
            }
            OptionRequest::StartTls if features::TLS => {
                // What was negotiated in plain text counts for nothing.
                self.agreed.forget();
                return Ok(self.acknowledge(option));
            }
            OptionRequest::ExportName(name) if features::OLDSTYLE => {
                query.export = name.to_str().map_err(Violation::ExportName)?;
                self.ask(&query);
                return Ok(Some(HandshakeEvent::Export(query)));
            }
            OptionRequest::Info(request) | OptionRequest::Go(request) => {
                if self.config.strict && has_repeated(request.requests.iter()) {
                    self.answer(Answer::invalid(option, "information is requested twice"));
                    return Ok(None);
                }
                query.requests = request.requests;
                request.export
            }
            OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request)
                if features::STRUCTURED =>
            {
                if !request.queries.iter().all(is_query) {
                    self.answer(Answer::invalid(option, "a query is namespace:leaf"));
                    return Ok(None);
                }
                query.queries = request.queries;
                request.export
            }
            // Their data was discarded: ABORT, and what is not offered.
            _ => return Ok(None),
        };
        let Ok(name) = name.to_str() else {
            self.answer(Answer::invalid(option, "the export's name is no string"));
            return Ok(None);
        };
        query.export = name;
        self.ask(&query);
        Ok(Some(match option {
            OptionType::INFO | OptionType::GO => HandshakeEvent::Export(query),
            _ => HandshakeEvent::MetaContexts(query),
        }))
    }

    /// The caller's answer is due.
    fn ask(&mut self, query: &ExportQuery<'_>) {
        self.state = State::Asked(Asked {
            option: query.option,
            block_sizes: query.wants(InfoType::BLOCK_SIZE),
            name: Name::of(Text::from(query.export)),
        });
    }

    fn acknowledge<'i>(&mut self, option: OptionType) -> Option<HandshakeEvent<'i>> {
        self.answer(Answer {
            option,
            reply: OptionReplyType::ACK,
            message: "",
        });
        None
    }

    /// Makes an answer due; the next option, or what it acknowledges, follows.
    fn answer(&mut self, answer: Answer) {
        self.state = match (answer.option, answer.reply) {
            (OptionType::ABORT, _) => State::Aborted { reported: false },
            // TLS is handed over here, when the reply has been transmitted.
            (OptionType::STARTTLS, OptionReplyType::ACK) if features::TLS => {
                State::Tls { asked: false }
            }
            _ => State::Option,
        };
        self.want = OptionHeader::SIZE;
        self.pending = Some(Pending::Answer(answer));
    }

    /// What is to be done with an option, by its header. The reply to an
    /// unknown option is made here.
    fn action(&self, header: OptionHeader) -> Result<Action, Error> {
        let OptionHeader { option, length } = header;
        let too_long = Violation::OptionTooLong { option, length };
        let fixed = !features::OLDSTYLE || self.agreed.style == HandshakeStyle::FixedNewstyle;
        if !fixed && option != OptionType::EXPORT_NAME {
            return Err(Violation::NotFixed(option).into());
        }
        if length > self.limits().payload.max(self.limits().option_data) {
            return Err(too_long.into());
        }
        let plain = features::TLS && self.config.tls == TlsMode::Forced && !self.agreed.tls;
        if features::OLDSTYLE && option == OptionType::EXPORT_NAME {
            if plain {
                return Err(Error::TlsRequired);
            }
            if self.shutting_down {
                return Err(Error::ExportRefused);
            }
            if self.agreed.framing.is_extended() {
                return Err(Violation::ExportNameWithExtended.into());
            }
            if length > self.limits().option_data || clip(u64::from(length)) > MAX_TEXT {
                return Err(too_long.into());
            }
            return Ok(Action::Take);
        }
        if option == OptionType::ABORT {
            return Ok(Action::Discard(OptionReplyType::ACK, ""));
        }
        let refusal = if plain && option != OptionType::STARTTLS {
            Some((OptionReplyType::ERR_TLS_REQD, "start TLS first"))
        } else if self.shutting_down {
            Some((OptionReplyType::ERR_SHUTDOWN, "the server is shutting down"))
        } else if !self.offers(option) {
            Some((OptionReplyType::ERR_UNSUP, "unsupported option"))
        } else if length > self.limits().option_data {
            Some((OptionReplyType::ERR_TOO_BIG, "the option is too long"))
        } else if length > 0 && is_bare(option) {
            Some((OptionReplyType::ERR_INVALID, "the option takes no data"))
        } else {
            self.out_of_turn(option)
        };
        Ok(refusal.map_or(Action::Take, |(reply, message)| {
            Action::Discard(reply, message)
        }))
    }

    /// Whether the server knows the option at all.
    fn offers(&self, option: OptionType) -> bool {
        if features::check_option(option).is_err() {
            return false;
        }
        match option {
            OptionType::STRUCTURED_REPLY
            | OptionType::LIST_META_CONTEXT
            | OptionType::SET_META_CONTEXT => self.config.framing.has_chunks(),
            OptionType::EXTENDED_HEADERS => self.config.framing.is_extended(),
            OptionType::LIST | OptionType::STARTTLS | OptionType::INFO | OptionType::GO => true,
            _ => false,
        }
    }

    /// An option that cannot be granted now.
    fn out_of_turn(&self, option: OptionType) -> Option<(OptionReplyType, &'static str)> {
        match option {
            OptionType::STARTTLS if features::TLS && self.agreed.tls => {
                Some((OptionReplyType::ERR_INVALID, "TLS was started already"))
            }
            OptionType::STARTTLS if features::TLS && self.config.tls == TlsMode::None => {
                Some((OptionReplyType::ERR_POLICY, "the server has no TLS"))
            }
            OptionType::STRUCTURED_REPLY if self.agreed.framing.is_extended() => Some((
                OptionReplyType::ERR_EXT_HEADER_REQD,
                "extended headers were agreed on already",
            )),
            OptionType::STRUCTURED_REPLY | OptionType::EXTENDED_HEADERS
                if features::STRUCTURED
                    && self.config.strict
                    && self.agreed.framing == framing_of(option) =>
            {
                Some((OptionReplyType::ERR_INVALID, "agreed on already"))
            }
            OptionType::SET_META_CONTEXT | OptionType::LIST_META_CONTEXT
                if features::STRUCTURED
                    && self.agreed.framing.is_simple()
                    && (self.config.strict || option == OptionType::SET_META_CONTEXT) =>
            {
                Some((
                    OptionReplyType::ERR_INVALID,
                    "agree on structured replies or extended headers first",
                ))
            }
            _ => None,
        }
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }
}

/// The framing that an option agrees on.
fn framing_of(option: OptionType) -> Framing {
    match option {
        OptionType::EXTENDED_HEADERS => Framing::Extended,
        _ => Framing::Structured,
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
