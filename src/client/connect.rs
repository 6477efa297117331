//! The automatic handshake: best framing, TLS, contexts, one export, and every
//! fallback the specification names.

use super::config::{Config, MetaContextQuery, TlsPolicy};
use super::handshake::{Handshake, HandshakeEvent};
use crate::error::{Error, Misuse};
use crate::features;
use crate::negotiated::{Framing, HandshakeStyle, Negotiated};
use crate::step::{Step, receive};
use crate::wire::Sink;
use crate::wire::flags::{ClientFlags, HandshakeFlags};
use crate::wire::greeting::Greeting;
use crate::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use crate::wire::option::{put_info, put_meta_context};
use crate::wire::option_reply::Info;
use crate::wire::text::Text;

impl Config<'_> {
    /// The data of an option.
    fn put_data(&self, option: OptionType, framing: Framing, sink: &mut dyn Sink) {
        let export = Text::from(self.export);
        match option {
            OptionType::SET_META_CONTEXT if features::STRUCTURED => {
                put_meta_context(sink, export, admissible(self.contexts, framing));
            }
            OptionType::GO => {
                let all = [InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION];
                let wanted = if self.describe { all.len() } else { 1 };
                put_info(sink, export, all.into_iter().take(wanted));
            }
            OptionType::EXPORT_NAME if features::OLDSTYLE => sink.put(export.as_bytes()),
            _ => {}
        }
    }
}

/// What happens while connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectEvent<'i> {
    /// The server refused something that there is a fallback for.
    Fallback {
        /// Which option.
        option: OptionType,
        /// Why.
        error: OptionReplyType,
        /// For people; `None` if it was too long.
        message: Option<Text<'i>>,
    },
    /// A wanted context was granted. If [`Fallback`](Self::Fallback) for
    /// `SET_META_CONTEXT` follows, it was not: the server refused them all.
    Context {
        /// Which of [`Config::contexts`], if the name is one of them.
        wanted: Option<usize>,
        /// Its number during transmission.
        id: ContextId,
        /// Its name.
        name: Text<'i>,
    },
    /// A piece of information about the export.
    Info(Info<'i>),
    /// Transmission begins: [`Connector::into_negotiated`].
    Ready,
    /// There will be no transmission. `ABORT` is due where the server can be
    /// told ([`Step::Transmit`]); then close the connection.
    Failed {
        /// Why.
        reason: ConnectError,
        /// What the server said, for people; often empty.
        message: Option<Text<'i>>,
    },
}

/// Why connecting failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server has no such export, or hides it.
    #[error("the server has no such export")]
    UnknownExport,
    /// The server insists on TLS, and the configuration says never, or TLS was refused.
    #[error("the server requires TLS for this export")]
    ServerRequiresTls,
    /// The configuration insists on TLS, and the server refused to start it.
    #[error("TLS is required, and the server refused to start it ({0})")]
    TlsRefused(OptionReplyType),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Shutdown,
    /// An oldstyle server has one export without a name, and the configuration names
    /// one: whether it is the same cannot be known.
    #[error("the server speaks oldstyle, which has no export names; ask for the export \"\"")]
    NoExportNames,
    /// The server insists on extended headers, and the configuration excludes
    /// them, or they were refused.
    #[error("the server requires extended headers for this export")]
    ServerRequiresExtended,
    /// The server refused the export for another reason.
    #[error("the server refused the export ({0})")]
    Refused(OptionReplyType),
}

/// What an error in reply to `INFO` or `GO` means for the export.
impl From<OptionReplyType> for ConnectError {
    fn from(error: OptionReplyType) -> Self {
        match error {
            OptionReplyType::ERR_UNKNOWN => Self::UnknownExport,
            OptionReplyType::ERR_TLS_REQD => Self::ServerRequiresTls,
            OptionReplyType::ERR_SHUTDOWN => Self::Shutdown,
            OptionReplyType::ERR_EXT_HEADER_REQD => Self::ServerRequiresExtended,
            error => Self::Refused(error),
        }
    }
}

/// What is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    ClientFlags,
    Option(OptionType),
}

/// Drives a [`Handshake`] by a [`Config`]: the automatic handshake.
///
/// Offer what arrives to [`receive`](Self::receive) and take the step that it
/// answers with. [`ConnectEvent::Ready`] and [`ConnectEvent::Failed`] end it.
/// The loop of a driver is in [the guide](crate::guide).
#[derive(Debug)]
pub struct Connector<'a> {
    config: Config<'a>,
    handshake: Handshake,
    next: Option<Next>,
    /// `Failed` was reported.
    ended: bool,
}

type ConnectStep<'i> = Step<ConnectEvent<'i>, &'i [u8]>;

receive!([] Connector<'_>, ConnectEvent<'i>);

impl<'a> Connector<'a> {
    /// Before the server's greeting.
    ///
    /// # Errors
    ///
    /// [`Misuse::Text`], [`Misuse::Query`], [`Misuse::TooManyContexts`] and
    /// [`Misuse::RepeatedQuery`] for a configuration that cannot be sent.
    pub fn new(config: Config<'a>) -> Result<Self, Misuse> {
        config.check()?;
        Ok(Self {
            config,
            handshake: Handshake::new(&config),
            next: None,
            ended: false,
        })
    }

    /// Writes the message that is due into `sink`; returns how many bytes, zero
    /// if none is due.
    ///
    /// # Errors
    ///
    /// [`Misuse::Encode`] if it does not fit, [`Misuse::Failed`] if the session is
    /// over; nothing was written.
    pub fn transmit(&mut self, sink: &mut dyn Sink) -> Result<usize, Misuse> {
        let Some(next) = self.next else {
            return Ok(0);
        };
        let written = match next {
            Next::ClientFlags => {
                let first = self.handshake.send_client_flags(ClientFlags::KNOWN, sink)?;
                self.next = Some(Next::Option(self.first_option()));
                return Ok(first);
            }
            Next::Option(option) => {
                let (config, framing) = (&self.config, self.framing());
                let put_data = |sink: &mut dyn Sink| config.put_data(option, framing, sink);
                let export = Text::from(config.export);
                self.handshake.send_data(option, export, &put_data, sink)?
            }
        };
        self.next = None;
        Ok(written)
    }

    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call returns the same.
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<ConnectStep<'i>, Error> {
        loop {
            match self.handshake.poll(input) {
                Ok(Some(event)) => {
                    if let Some(event) = self.react(event) {
                        return Ok(Step::Event(event));
                    }
                }
                Ok(None) => break,
                Err(Error::Closed) if self.ended => return Ok(Step::Finished),
                Err(error) => return Err(error),
            }
        }
        match self.handshake.wait(input.len()) {
            Err(Error::Unanswered) if self.next.is_some() => Ok(Step::Transmit),
            Err(Error::Unanswered) => Ok(Step::Finished),
            step => step,
        }
    }

    /// Reports that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], or [`Error::ClosedDuring`] with the option that was
    /// not replied to; unless [`ConnectEvent::Failed`] was reported. Later
    /// calls return the same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        match self.handshake.end_of_input() {
            Err(Error::Closed) if self.ended => Ok(()),
            result => result,
        }
    }

    /// States that TLS protects the connection from here on.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] unless the last step was [`Step::StartTls`].
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        self.handshake.tls_established()?;
        self.next = Some(Next::Option(self.framing_option()));
        Ok(())
    }

    /// States that TLS could not be started. The session is over: there is no
    /// way back to plain text.
    pub fn tls_failed(&mut self) {
        self.handshake.tls_failed();
    }

    /// What was agreed on so far.
    #[must_use]
    pub fn agreed(&self) -> &Negotiated {
        self.handshake.agreed()
    }

    /// What was agreed on, to start a
    /// [`Transmission`](super::Transmission) from.
    ///
    /// # Errors
    ///
    /// The connector itself, if it has not come to [`ConnectEvent::Ready`].
    #[expect(
        clippy::result_large_err,
        reason = "the connector is the caller's, and comes back whole"
    )]
    pub fn into_negotiated(self) -> Result<Negotiated, Self> {
        match self.handshake.ready() {
            // An oldstyle server is ready whatever it was told.
            Some(negotiated) if !self.ended => Ok(*negotiated),
            _ => Err(self),
        }
    }

    /// Which of [`Config::contexts`] cannot be asked for with the negotiated
    /// framing: contexts known to need 64 bits of status without extended headers,
    /// and any with simple replies.
    pub fn unsupported_contexts(&self) -> impl Iterator<Item = usize> {
        let framing = self.framing();
        let contexts = self.config.contexts.iter().enumerate();
        contexts
            .filter(move |(_, query)| !query.can_be_asked(framing))
            .map(|(index, _)| index)
    }

    fn framing(&self) -> Framing {
        self.handshake.agreed().framing
    }

    fn react<'i>(&mut self, event: HandshakeEvent<'i>) -> Option<ConnectEvent<'i>> {
        use HandshakeEvent as E;
        match event {
            E::Greeting(Greeting::Newstyle(_)) => {
                self.next = Some(Next::ClientFlags);
                None
            }
            E::Greeting(Greeting::Oldstyle(_)) => match self.config.export {
                "" => None,
                // Oldstyle has no ABORT.
                _ => self.fail(ConnectError::NoExportNames, None),
            },
            // An oldstyle server whose export is not wanted.
            E::Ready if self.ended => None,
            E::Ready => Some(ConnectEvent::Ready),
            E::Info(info) => Some(ConnectEvent::Info(info)),
            E::MetaContext { id, name } if features::STRUCTURED => Some(self.granted(id, name)),
            E::Ack(OptionType::ABORT) => None,
            E::Ack(option) => {
                self.next = self.after(option, true);
                None
            }
            E::Refused {
                option,
                error,
                message,
            } => self.refused(option, error, message),
            E::MetaContext { .. } | E::Server { .. } | E::Other { .. } | E::Discarded { .. } => {
                None
            }
        }
    }

    fn granted<'i>(&mut self, id: ContextId, name: Text<'i>) -> ConnectEvent<'i> {
        let wanted = self
            .config
            .contexts
            .iter()
            .position(|query| query.name.as_bytes() == name.as_bytes());
        // What the caller calls narrow is held to it; of what a wildcard
        // selected, only the name is known.
        let width = wanted
            .and_then(|index| self.config.contexts.get(index))
            .and_then(|query| query.width);
        if let Some(width) = width {
            self.handshake.set_width(id, width);
        }
        ConnectEvent::Context { wanted, id, name }
    }

    fn refused<'i>(
        &mut self,
        option: OptionType,
        error: OptionReplyType,
        message: Option<Text<'i>>,
    ) -> Option<ConnectEvent<'i>> {
        let reason = match (option, error) {
            (OptionType::ABORT, _) => return None,
            (_, error @ OptionReplyType::ERR_SHUTDOWN) => error.into(),
            (OptionType::STARTTLS, error)
                if features::TLS && self.config.tls == TlsPolicy::Require =>
            {
                ConnectError::TlsRefused(error)
            }
            (OptionType::STARTTLS, _) => return self.fall_back(option, error, message),
            (_, error @ OptionReplyType::ERR_TLS_REQD) => error.into(),
            (OptionType::GO, OptionReplyType::ERR_UNSUP)
                if features::OLDSTYLE && !self.framing().is_extended() =>
            {
                return self.fall_back(option, error, message);
            }
            (OptionType::GO, error) => error.into(),
            _ => return self.fall_back(option, error, message),
        };
        self.fail(reason, message)
    }

    fn fall_back<'i>(
        &mut self,
        option: OptionType,
        error: OptionReplyType,
        message: Option<Text<'i>>,
    ) -> Option<ConnectEvent<'i>> {
        self.next = self.after(option, false);
        Some(ConnectEvent::Fallback {
            option,
            error,
            message,
        })
    }

    fn fail<'i>(
        &mut self,
        reason: ConnectError,
        message: Option<Text<'i>>,
    ) -> Option<ConnectEvent<'i>> {
        self.ended = true;
        if self.handshake.agreed().style == HandshakeStyle::FixedNewstyle {
            self.next = Some(Next::Option(OptionType::ABORT));
        }
        Some(ConnectEvent::Failed { reason, message })
    }

    /// The first option of a newstyle handshake.
    fn first_option(&self) -> OptionType {
        let fixed = self.handshake.agreed().style == HandshakeStyle::FixedNewstyle;
        if features::OLDSTYLE && !fixed {
            return OptionType::EXPORT_NAME;
        }
        match self.config.tls {
            TlsPolicy::Prefer | TlsPolicy::Require if features::TLS => OptionType::STARTTLS,
            _ => self.framing_option(),
        }
    }

    /// The first option after TLS.
    fn framing_option(&self) -> OptionType {
        match self.config.most_able_framing().compiled() {
            Framing::Extended => OptionType::EXTENDED_HEADERS,
            Framing::Structured => OptionType::STRUCTURED_REPLY,
            Framing::Simple => self.config.entry(),
        }
    }

    /// What follows an option that was accepted or refused.
    fn after(&self, option: OptionType, accepted: bool) -> Option<Next> {
        Some(Next::Option(match option {
            OptionType::STARTTLS if features::TLS => self.framing_option(),
            OptionType::EXTENDED_HEADERS if features::EXTENDED && !accepted => {
                OptionType::STRUCTURED_REPLY
            }
            OptionType::EXTENDED_HEADERS | OptionType::STRUCTURED_REPLY if features::STRUCTURED => {
                let any = admissible(self.config.contexts, self.framing()).next();
                if any.is_some() {
                    OptionType::SET_META_CONTEXT
                } else {
                    self.config.entry()
                }
            }
            OptionType::SET_META_CONTEXT if features::STRUCTURED => self.config.entry(),
            OptionType::GO if features::OLDSTYLE && !accepted => OptionType::EXPORT_NAME,
            _ => return None,
        }))
    }
}

/// The names of the contexts that can be asked for with a framing.
fn admissible<'a>(
    contexts: &'a [MetaContextQuery<'a>],
    framing: Framing,
) -> impl Iterator<Item = Text<'a>> + Clone {
    contexts
        .iter()
        .filter(move |query| query.can_be_asked(framing))
        .map(|query| Text::from(query.name))
}

/// The flags that [`Connector`] agrees to are all there are.
const _: () = assert!(
    ClientFlags::KNOWN.0 == 3 && HandshakeFlags::KNOWN.0 == 3,
    "a new handshake flag needs a decision"
);
