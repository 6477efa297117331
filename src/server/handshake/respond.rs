//! The caller's answers to options.

use super::{Asked, ExportQuery, Handshake, State};
use crate::error::{Error, Misuse};
use crate::features;
use crate::name::Name;
use crate::negotiated::{SelectedContext, StatusWidth};
use crate::server::config::TlsMode;
use crate::server::export::{Export, MetaContext, cap};
use crate::wire::flags::TransmissionFlags;
use crate::wire::greeting::{ExportNameReply, RESERVED_ZEROES};
use crate::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use crate::wire::option_reply::{Info, OptionReply};
use crate::wire::text::{MAX_TEXT, Text};
use crate::wire::{Sink, all_or_nothing};

/// An error reply that follows from the description of an export.
type Obstacle = (OptionReplyType, &'static str);

/// What became of a query that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Granted {
    /// How many bytes were written.
    pub written: usize,
    /// Whether transmission begins:
    /// [`HandshakeEvent::Ready`](super::HandshakeEvent::Ready) follows. It does
    /// not where the export requires more than was negotiated.
    pub starts_transmission: bool,
}

impl Handshake {
    /// Names an export in answer to [`HandshakeEvent::List`](super::HandshakeEvent);
    /// returns how many bytes were written to `sink`. An export that requires
    /// TLS is left out while there is none.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if `LIST` does not wait for an answer, or the export cannot
    /// be described; nothing was written and nothing has changed.
    pub fn list(&mut self, export: &Export<'_>, sink: &mut dyn Sink) -> Result<usize, Misuse> {
        self.asked(OptionType::LIST)?;
        export.check()?;
        if features::TLS && export.requires_tls && !self.agreed.tls {
            return Ok(0);
        }
        let reply = OptionReply::Server {
            name: export.name.into(),
            description: export.description.into(),
        };
        Ok(reply.encode(OptionType::LIST, sink)?)
    }

    /// Ends the answer to [`HandshakeEvent::List`](super::HandshakeEvent); returns how
    /// many bytes were written to `sink`.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if `LIST` does not wait for an answer; nothing was written
    /// and nothing has changed.
    pub fn finish_list(&mut self, sink: &mut dyn Sink) -> Result<usize, Misuse> {
        self.asked(OptionType::LIST)?;
        let written = OptionReply::Ack.encode(OptionType::LIST, sink)?;
        self.state = State::Option;
        Ok(written)
    }

    /// Answers a query with what the export is.
    ///
    /// What the export requires and the client has not negotiated is answered
    /// with the error that says so (for `EXPORT_NAME`, by ending the session).
    /// [`Granted`] says what became of it.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if the query does not wait for an answer, or the export
    /// cannot be described; [`Misuse::ContextsChanged`] if transmission would
    /// begin without contexts that this export granted at `SET_META_CONTEXT`.
    /// Nothing was written and nothing has changed.
    pub fn grant(
        &mut self,
        query: &ExportQuery<'_>,
        export: &Export<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Granted, Misuse> {
        let asked = self.asked(query.option)?;
        if asked.name != Name::of(Text::from(query.export)) {
            return Err(Misuse::State("another export is asked about"));
        }
        export.check()?;
        if let Some(obstacle) = self.obstacle(&asked, export) {
            let written = self.refuse_obstacle(&asked, export, obstacle, sink)?;
            return Ok(Granted {
                written,
                starts_transmission: false,
            });
        }
        let selected = !features::STRUCTURED || self.has_selected(&asked, export);
        if query.starts_transmission() && !selected {
            return Err(Misuse::ContextsChanged);
        }
        let written = match query.option {
            OptionType::EXPORT_NAME if features::OLDSTYLE => {
                self.grant_export_name(&asked, export, sink)
            }
            OptionType::LIST_META_CONTEXT if features::STRUCTURED => {
                self.grant_list(query, export, sink)
            }
            OptionType::SET_META_CONTEXT if features::STRUCTURED => {
                self.grant_set(query, &asked, export, sink)
            }
            _ => self.grant_info(query, &asked, export, sink),
        }?;
        Ok(Granted {
            written,
            starts_transmission: query.starts_transmission(),
        })
    }

    /// Answers the option under way with an error, and a message for people
    /// (cut after 4096 bytes); returns how many bytes were written to `sink`.
    ///
    /// `EXPORT_NAME` has no reply for that: nothing is written, and the session
    /// is over with [`Error::ExportRefused`].
    ///
    /// # Errors
    ///
    /// [`Misuse::Answer`] for a reply that the specification does not have
    /// here: no error, `ERR_TLS_REQD` where TLS cannot be started or it is not
    /// about entering an export, `ERR_BLOCK_SIZE_REQD` to a client that asked
    /// for them, `ERR_EXT_HEADER_REQD` to one that has them, `ERR_UNSUP` to
    /// `GO` with extended headers. [`Misuse::State`] if nothing waits. Nothing
    /// was written and nothing has changed.
    pub fn refuse(
        &mut self,
        error: OptionReplyType,
        message: &str,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        let asked = self.waiting()?;
        if !self.may_refuse_with(&asked, error) {
            return Err(Misuse::Answer(error));
        }
        if features::OLDSTYLE && asked.option == OptionType::EXPORT_NAME {
            self.failed = Some(Error::ExportRefused);
            return Ok(0);
        }
        let message = Text::from(cap(message, MAX_TEXT));
        let written = OptionReply::Error { error, message }.encode(asked.option, sink)?;
        self.state = State::Option;
        Ok(written)
    }

    fn may_refuse_with(&self, asked: &Asked, error: OptionReplyType) -> bool {
        let option = asked.option;
        let starts_transmission = matches!(option, OptionType::GO | OptionType::EXPORT_NAME);
        let describes = starts_transmission || option == OptionType::INFO;
        let extended = self.agreed.framing.is_extended();
        match error {
            OptionReplyType::ERR_TLS_REQD => {
                features::TLS
                    && describes
                    && self.config.tls == TlsMode::Selective
                    && !self.agreed.tls
            }
            OptionReplyType::ERR_BLOCK_SIZE_REQD => describes && !asked.block_sizes,
            OptionReplyType::ERR_EXT_HEADER_REQD => option != OptionType::LIST && !extended,
            OptionReplyType::ERR_UNSUP => !(option == OptionType::GO && extended),
            error => error.is_error(),
        }
    }

    fn waiting(&self) -> Result<Asked, Misuse> {
        if let Some(error) = self.failed {
            return Err(Misuse::Failed(error));
        }
        match self.state {
            State::Asked(asked) => Ok(asked),
            _ => Err(Misuse::State("no option waits for an answer")),
        }
    }

    fn asked(&self, option: OptionType) -> Result<Asked, Misuse> {
        let asked = self.waiting()?;
        if asked.option == option {
            Ok(asked)
        } else {
            Err(Misuse::State("another option waits for an answer"))
        }
    }

    /// What the export requires and the connection does not have.
    fn obstacle(&self, asked: &Asked, export: &Export<'_>) -> Option<Obstacle> {
        let contexts = matches!(
            asked.option,
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT
        );
        if features::TLS && export.requires_tls && !self.agreed.tls {
            return Some(match self.config.tls {
                // ERR_TLS_REQD is for options that describe an export. These
                // look as if there were none.
                _ if contexts => (OptionReplyType::ERR_UNKNOWN, "no such export"),
                TlsMode::None => (OptionReplyType::ERR_POLICY, "the export needs TLS"),
                _ => (OptionReplyType::ERR_TLS_REQD, "start TLS first"),
            });
        }
        if contexts {
            return None;
        }
        if features::EXTENDED && export.requires_extended && !self.agreed.framing.is_extended() {
            return Some((
                OptionReplyType::ERR_EXT_HEADER_REQD,
                "agree on extended headers first",
            ));
        }
        if export.requires_block_sizes && !asked.block_sizes {
            return Some((
                OptionReplyType::ERR_BLOCK_SIZE_REQD,
                "ask for the block sizes",
            ));
        }
        None
    }

    fn refuse_obstacle(
        &mut self,
        asked: &Asked,
        export: &Export<'_>,
        (error, message): Obstacle,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        if features::OLDSTYLE && asked.option == OptionType::EXPORT_NAME {
            self.failed = Some(match error {
                OptionReplyType::ERR_TLS_REQD => Error::TlsRequired,
                _ => Error::ExportRefused,
            });
            return Ok(0);
        }
        let message = Text::from(message);
        let written = all_or_nothing(sink, &|sink| {
            if error == OptionReplyType::ERR_BLOCK_SIZE_REQD {
                // So that the client can go on without another round trip.
                let info = Info::BlockSize(export.block_sizes);
                put(OptionReply::Info(info), asked.option, sink);
            }
            put(OptionReply::Error { error, message }, asked.option, sink);
        })?;
        self.state = State::Option;
        Ok(written)
    }

    fn grant_export_name(
        &mut self,
        asked: &Asked,
        export: &Export<'_>,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        let flags = self.flags_of(asked, export);
        let reply = ExportNameReply {
            size: export.size,
            flags,
        };
        let zeroes: &[u8] = if self.no_zeroes {
            &[]
        } else {
            &[0; RESERVED_ZEROES]
        };
        let written = all_or_nothing(sink, &|sink| {
            sink.put(&reply.encode());
            sink.put(zeroes);
        })?;
        self.enter(asked, export, flags);
        Ok(written)
    }

    fn grant_info(
        &mut self,
        query: &ExportQuery<'_>,
        asked: &Asked,
        export: &Export<'_>,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        let flags = self.flags_of(asked, export);
        let option = query.option;
        let written = all_or_nothing(sink, &|sink| {
            let mut info = |info| put(OptionReply::Info(info), option, sink);
            info(Info::Export {
                size: export.size,
                flags,
            });
            if query.wants(InfoType::NAME) {
                info(Info::Name(export.name.into()));
            }
            if query.wants(InfoType::DESCRIPTION) && !export.description.is_empty() {
                info(Info::Description(export.description.into()));
            }
            if query.wants(InfoType::BLOCK_SIZE) {
                info(Info::BlockSize(export.block_sizes));
            }
            put(OptionReply::Ack, option, sink);
        })?;
        match option {
            OptionType::GO => self.enter(asked, export, flags),
            _ => self.state = State::Option,
        }
        Ok(written)
    }

    fn grant_list(
        &mut self,
        query: &ExportQuery<'_>,
        export: &Export<'_>,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        let option = query.option;
        // What needs extended headers can only be selected where they are to
        // be had.
        let reachable = |context: &&MetaContext<'_>| {
            context.width == StatusWidth::Narrow || self.config.framing.is_extended()
        };
        let found = || {
            let contexts = export.contexts.iter().filter(reachable);
            contexts.filter(|context| query.finds(context))
        };
        let extended = self.agreed.framing.is_extended();
        let beyond = !extended && found().any(|context| context.width == StatusWidth::Wide);
        let last = if beyond {
            OptionReply::Error {
                error: OptionReplyType::ERR_EXT_HEADER_REQD,
                message: Text::from("some contexts need extended headers"),
            }
        } else {
            OptionReply::Ack
        };
        let written = all_or_nothing(sink, &|sink| {
            for context in found() {
                put_context(ContextId(0), context, option, sink);
            }
            put(last, option, sink);
        })?;
        self.state = State::Option;
        Ok(written)
    }

    fn grant_set(
        &mut self,
        query: &ExportQuery<'_>,
        asked: &Asked,
        export: &Export<'_>,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        let option = query.option;
        let extended = self.agreed.framing.is_extended();
        let expressible =
            |context: &MetaContext<'_>| context.width == StatusWidth::Narrow || extended;
        let found = || {
            let numbered = (0u32..).map(ContextId).zip(export.contexts);
            numbered.filter(|(_, context)| expressible(context) && query.finds(context))
        };
        let written = all_or_nothing(sink, &|sink| {
            for (id, context) in found() {
                put_context(id, context, option, sink);
            }
            put(OptionReply::Ack, option, sink);
        })?;
        self.agreed.contexts.clear();
        for (id, context) in found() {
            let width = context.width;
            // There is room for all of an export, and each has its number.
            let _ = self.agreed.contexts.push(SelectedContext { id, width });
        }
        self.contexts_for = Some(asked.name);
        self.state = State::Option;
        Ok(written)
    }

    /// Whether the export has every context that was selected for its name, as
    /// the client was told.
    fn has_selected(&self, asked: &Asked, export: &Export<'_>) -> bool {
        let mut contexts = self.agreed.contexts.iter();
        self.contexts_for != Some(asked.name) || contexts.all(|own| export.has(own))
    }

    /// The flags that hold if transmission begins with this export.
    fn flags_of(&self, asked: &Asked, export: &Export<'_>) -> TransmissionFlags {
        let mut contexts = self.agreed.contexts.iter();
        let any = features::STRUCTURED
            && self.contexts_for == Some(asked.name)
            && contexts.any(|own| export.has(own));
        export.effective_flags(self.agreed.framing, any)
    }

    /// Transmission begins with this export, and these flags of it. The contexts
    /// that were selected hold only if the client names it now as it did then.
    fn enter(&mut self, asked: &Asked, export: &Export<'_>, flags: TransmissionFlags) {
        if features::STRUCTURED && self.contexts_for != Some(asked.name) {
            self.agreed.contexts.clear();
        }
        self.agreed.size = export.size;
        self.agreed.flags = flags;
        self.agreed.block_sizes = Some(export.block_sizes);
        self.state = State::Ready {
            export: export.id,
            reported: false,
        };
    }
}

fn put_context(id: ContextId, context: &MetaContext<'_>, option: OptionType, sink: &mut dyn Sink) {
    let name = context.name.into();
    put(OptionReply::MetaContext { id, name }, option, sink);
}

/// Writes a reply where there is room: the whole answer was measured before.
fn put(reply: OptionReply<'_>, option: OptionType, sink: &mut dyn Sink) {
    reply.put(option, sink);
}
