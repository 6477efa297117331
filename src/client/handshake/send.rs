//! Options: checked, and made.

use super::{Handshake, State};
use crate::client::config::{MetaContextQuery, check_distinct, is_query};
use crate::error::Misuse;
use crate::features;
use crate::name::Name;
use crate::negotiated::{Framing, HandshakeStyle, Negotiated, SelectedContexts};
use crate::wire::flags::{ClientFlags, HandshakeFlags};
use crate::wire::greeting::ExportNameReply;
use crate::wire::list::has_repeated;
use crate::wire::number::OptionType;
use crate::wire::option::{MetaContextRequest, OptionRequest, encode_with, put_meta_context};
use crate::wire::option_reply::OptionReplyHeader;
use crate::wire::text::{MAX_TEXT, Text, TextError};
use crate::wire::{Sink, put_whole};

impl Handshake {
    /// Answers a newstyle greeting with what both sides can do of `wanted`;
    /// returns how many bytes were written to `sink`, 4.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] if no newstyle greeting came, or it was answered.
    pub fn send_client_flags(
        &mut self,
        wanted: ClientFlags,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        self.check_state(
            State::ClientFlags,
            "client flags follow a newstyle greeting",
        )?;
        let mut flags = ClientFlags::NONE;
        if self.server.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            flags |= wanted & ClientFlags::FIXED_NEWSTYLE;
        }
        if self.server.contains(HandshakeFlags::NO_ZEROES) {
            flags |= wanted & ClientFlags::NO_ZEROES;
        }
        let written = put_whole(&flags.encode(), sink)?;
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.agreed.style = if flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            HandshakeStyle::FixedNewstyle
        } else {
            HandshakeStyle::Newstyle
        };
        self.state = State::Idle;
        Ok(written)
    }

    /// Sends an option; returns how many bytes were written to `sink`.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if an option is under way, or the specification forbids this
    /// one here; nothing was written and nothing has changed.
    pub fn send(
        &mut self,
        option: &OptionRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        // An option sent by its number has the meaning of the number.
        let meaning = match *option {
            OptionRequest::Other { option, data } => OptionRequest::decode(option, data),
            known => Ok(known),
        };
        self.check_option(option.option())?;
        if let Ok(request) = &meaning {
            check_data(request, self.agreed.framing, self.lenient)?;
        }
        let written = option.encode(sink)?;
        self.sent(option.option());
        match meaning {
            Ok(OptionRequest::ExportName(name)) => self.chosen = Name::of(name),
            Ok(OptionRequest::Go(request)) => self.chosen = Name::of(request.export),
            Ok(OptionRequest::SetMetaContext(request)) => self.select_for(Some(request.export)),
            // The server may select contexts, for no export known here.
            Err(_) if option.option() == OptionType::SET_META_CONTEXT => self.select_for(None),
            Err(_) if option.option() == OptionType::GO => self.contexts_for = None,
            _ => {}
        }
        Ok(written)
    }

    /// Sends `SET_META_CONTEXT`, unless a context is known to need extended headers;
    /// returns how many bytes were written to `sink`.
    ///
    /// The widths are not kept: of the contexts that are granted, those of the
    /// namespace `base:` are held to 32 bits of status.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`Misuse::NeedsExtended`] for a wide
    /// context without extended headers: a server could only leave it out.
    pub fn set_meta_contexts(
        &mut self,
        export: Text<'_>,
        contexts: &[MetaContextQuery<'_>],
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        self.check_option(OptionType::SET_META_CONTEXT)?;
        if contexts.len() > SelectedContexts::CAPACITY {
            return Err(Misuse::TooManyContexts);
        }
        for query in contexts {
            check_query(query.name.into(), self.lenient)?;
            if !query.can_be_asked(self.agreed.framing) {
                return Err(Misuse::NeedsExtended);
            }
        }
        check_name(export)?;
        let names = contexts.iter().map(|query| Text::from(query.name));
        check_distinct(names.clone())?;
        let put_data = |sink: &mut dyn Sink| put_meta_context(sink, export, names.clone());
        self.send_data(OptionType::SET_META_CONTEXT, export, &put_data, sink)
    }

    /// As [`send`](Self::send), with data that was checked and that `put_data`
    /// writes; `export` is what `GO`, `EXPORT_NAME` and
    /// `SET_META_CONTEXT` name.
    pub(in crate::client) fn send_data(
        &mut self,
        option: OptionType,
        export: Text<'_>,
        put_data: &dyn Fn(&mut dyn Sink),
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        self.check_option(option)?;
        let written = encode_with(option, sink, put_data)?;
        self.sent(option);
        match option {
            // For which export the contexts are.
            _ if !features::STRUCTURED => {}
            OptionType::EXPORT_NAME | OptionType::GO => self.chosen = Name::of(export),
            OptionType::SET_META_CONTEXT => self.select_for(Some(export)),
            _ => {}
        }
        Ok(written)
    }

    fn sent(&mut self, option: OptionType) {
        self.state = match option {
            OptionType::EXPORT_NAME => State::ExportName,
            option => State::Replies(option),
        };
        self.want = match option {
            OptionType::EXPORT_NAME => ExportNameReply::SIZE,
            _ => OptionReplyHeader::SIZE,
        };
        self.informed = false;
        if option == OptionType::GO {
            self.agreed.block_sizes = None;
        }
    }

    /// Selecting contexts replaces those selected before, even where it fails.
    fn select_for(&mut self, export: Option<Text<'_>>) {
        self.agreed.contexts.clear();
        self.contexts_for = export.map(Name::of);
    }

    fn check_option(&self, option: OptionType) -> Result<(), Misuse> {
        self.check_state(State::Idle, "the option before has not been replied to")?;
        features::check_option(option)?;
        let before_tls = matches!(option, OptionType::STARTTLS | OptionType::ABORT);
        if self.require_tls && !self.agreed.tls && !before_tls {
            return Err(Misuse::TlsRequired);
        }
        check_turn(option, &self.agreed, self.lenient)
    }
}

/// Whether an option can be sent after what was agreed on.
#[inline]
pub(crate) fn check_turn(
    option: OptionType,
    agreed: &Negotiated,
    lenient: bool,
) -> Result<(), Misuse> {
    if agreed.style != HandshakeStyle::FixedNewstyle && option != OptionType::EXPORT_NAME {
        return Err(Misuse::NotFixed(option));
    }
    if option == OptionType::STARTTLS && agreed.tls {
        return Err(Misuse::State("TLS was started already"));
    }
    let framing = agreed.framing;
    match option {
        OptionType::SET_META_CONTEXT if framing.is_simple() => Err(Misuse::NeedsChunks(option)),
        _ if lenient => Ok(()),
        OptionType::LIST_META_CONTEXT if framing.is_simple() => Err(Misuse::NeedsChunks(option)),
        OptionType::STRUCTURED_REPLY if framing == Framing::Structured => AGREED,
        OptionType::EXTENDED_HEADERS if framing.is_extended() => AGREED,
        _ => Ok(()),
    }
}

/// Whether an option can have this data.
#[inline]
pub(crate) fn check_data(
    request: &OptionRequest<'_>,
    framing: Framing,
    lenient: bool,
) -> Result<(), Misuse> {
    match request {
        OptionRequest::ExportName(name) => {
            check_name(*name)?;
            if framing.is_extended() {
                return Err(Misuse::ExportNameWithExtended);
            }
        }
        OptionRequest::Info(request) | OptionRequest::Go(request) => {
            check_name(request.export)?;
            if !lenient && has_repeated(request.requests.iter()) {
                return Err(Misuse::RepeatedInfo);
            }
        }
        OptionRequest::ListMetaContext(request) => check_queries(request, lenient)?,
        OptionRequest::SetMetaContext(request) => {
            check_queries(request, lenient)?;
            check_distinct(request.queries.iter())?;
        }
        _ => {}
    }
    Ok(())
}

fn check_queries(request: &MetaContextRequest<'_>, lenient: bool) -> Result<(), Misuse> {
    let MetaContextRequest { export, queries } = request;
    check_name(*export)?;
    queries
        .iter()
        .try_for_each(|query| check_query(query, lenient))?;
    if queries.len() > SelectedContexts::CAPACITY {
        Err(Misuse::TooManyContexts)
    } else {
        Ok(())
    }
}

fn check_query(query: Text<'_>, lenient: bool) -> Result<(), Misuse> {
    check_name(query)?;
    if lenient || is_query(query) {
        Ok(())
    } else {
        Err(Misuse::Query)
    }
}

const AGREED: Result<(), Misuse> = Err(Misuse::State("the framing is agreed on already"));

fn check_name(name: Text<'_>) -> Result<(), Misuse> {
    if name.len() > MAX_TEXT {
        Err(TextError::TooLong.into())
    } else {
        name.to_str().map(|_| ()).map_err(Misuse::from)
    }
}
