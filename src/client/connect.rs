//! The whole handshake by policy: best framing, TLS, contexts, one export, and
//! every fallback the specification names.

use super::handshake::{self, ContextQuery, Handshake, is_query};
use crate::error::{Error, Misuse};
use crate::limits::Limits;
use crate::need::Need;
use crate::negotiated::{Contexts, Framing, Negotiated, Style, Width};
use crate::wire::Sink;
use crate::wire::flags::{ClientFlags, HandshakeFlags};
use crate::wire::greeting::Greeting;
use crate::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use crate::wire::option::{put_info, put_meta_context};
use crate::wire::option_reply::Info;
use crate::wire::text::{Text, check_str};

/// What the caller wants of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsPolicy {
    /// Plain text only.
    #[default]
    Never,
    /// TLS where the server has it. Somebody between client and server can
    /// pretend that it has not.
    Prefer,
    /// TLS or nothing: the name of the export is not sent in plain text.
    Require,
}

/// What is to be negotiated.
///
/// ```
/// use nbd_codec::Framing;
/// use nbd_codec::client::connect::{Plan, TlsPolicy};
/// use nbd_codec::client::handshake::ContextQuery;
///
/// let mut plan = Plan::new("disk");
/// plan.framing = Framing::Structured; // not extended, whatever the server has
/// plan.contexts = &[ContextQuery::narrow("base:allocation")];
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Plan<'a> {
    /// Name of the export; empty for the default export.
    pub export: &'a str,
    /// The metadata contexts wanted, at most [`Contexts::CAPACITY`].
    pub contexts: &'a [ContextQuery<'a>],
    /// What is wanted of TLS.
    pub tls: TlsPolicy,
    /// The most able framing wanted.
    pub framing: Framing,
    /// Whether the server's canonical name and description of the export are
    /// asked for.
    pub describe: bool,
    /// Caps on what the server sends.
    pub limits: Limits,
}

impl<'a> Plan<'a> {
    /// The export with no contexts, no TLS, the best framing the server has.
    #[must_use]
    pub const fn new(export: &'a str) -> Self {
        Self {
            export,
            contexts: &[],
            tls: TlsPolicy::Never,
            framing: Framing::Extended,
            describe: false,
            limits: Limits::DEFAULT,
        }
    }
}

impl Plan<'_> {
    /// The data of an option.
    fn put_data(&self, option: OptionType, framing: Framing, sink: &mut dyn Sink) {
        let export = Text::from(self.export);
        match option {
            OptionType::SET_META_CONTEXT => {
                put_meta_context(sink, export, admissible(self.contexts, framing));
            }
            OptionType::GO => {
                let all = [InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION];
                let wanted = if self.describe { all.len() } else { 1 };
                put_info(sink, export, all.into_iter().take(wanted));
            }
            OptionType::EXPORT_NAME => sink.put(export.as_bytes()),
            _ => {}
        }
    }
}

/// What happens on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'i> {
    /// Run the TLS handshake on the connection now, and state its outcome with
    /// [`Connect::tls_established`] or [`Connect::tls_failed`].
    StartTls,
    /// The server refused something that there is a fallback for.
    Fallback {
        /// Which option.
        option: OptionType,
        /// Why.
        error: OptionReplyType,
        /// For people; `None` if it was too long.
        message: Option<Text<'i>>,
    },
    /// A wanted context was granted.
    Context {
        /// Which of [`Plan::contexts`], if the name is one of them.
        wanted: Option<usize>,
        /// Its number during transmission.
        id: ContextId,
        /// Its name.
        name: Text<'i>,
    },
    /// A piece of information about the export.
    Info(Info<'i>),
    /// Transmission begins: [`Connect::into_negotiated`].
    Ready,
    /// There will be no transmission. Write what [`Connect::transmit`] has to
    /// say and close the connection.
    Failed {
        /// Why.
        reason: Failure,
        /// What the server said, for people; often empty.
        message: Option<Text<'i>>,
    },
}

/// Why a server and a plan do not come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The server has no such export, or hides it.
    #[error("the server has no such export")]
    UnknownExport,
    /// The server insists on TLS, and the plan says never, or TLS was refused.
    #[error("the server requires TLS for this export")]
    ServerRequiresTls,
    /// The plan insists on TLS, and the server refused to start it.
    #[error("TLS is required, and the server refused to start it ({0})")]
    TlsRefused(OptionReplyType),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Shutdown,
    /// An oldstyle server has one export without a name, and the plan names
    /// one: whether it is the same cannot be known.
    #[error("the server speaks oldstyle, which has no export names; ask for the export \"\"")]
    NoExportNames,
    /// The server insists on extended headers, and the plan does not want
    /// them, or they were refused.
    #[error("the server requires extended headers for this export")]
    ServerRequiresExtended,
    /// The server refused the export for another reason.
    #[error("the server refused the export ({0})")]
    Refused(OptionReplyType),
}

/// What an error in reply to `INFO` or `GO` means for the export.
impl From<OptionReplyType> for Failure {
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
enum Step {
    ClientFlags,
    Option(OptionType),
}

/// Drives a [`Handshake`] by a [`Plan`].
///
/// The loop of a driver, spelled out in the [crate's guide](crate): offer what
/// arrived to [`receive`](Self::receive). On `None` write what
/// [`transmit`](Self::transmit) puts out; only if that is nothing, read more.
/// [`Event::Ready`] and [`Event::Failed`] end it.
#[derive(Debug)]
pub struct Connect<'a> {
    plan: Plan<'a>,
    handshake: Handshake,
    next: Option<Step>,
    ended: bool,
}

impl<'a> Connect<'a> {
    /// Before the server's greeting.
    ///
    /// # Errors
    ///
    /// [`Misuse::Text`], [`Misuse::Query`] and [`Misuse::TooManyContexts`] for a
    /// plan that cannot be sent.
    pub fn new(plan: Plan<'a>) -> Result<Self, Misuse> {
        check_str(plan.export)?;
        if plan.contexts.len() > Contexts::CAPACITY {
            return Err(Misuse::TooManyContexts);
        }
        for query in plan.contexts {
            check_str(query.name)?;
            if !is_query(Text::from(query.name)) {
                return Err(Misuse::Query);
            }
        }
        Ok(Self {
            plan,
            handshake: Handshake::new(plan.tls == TlsPolicy::Require, plan.limits),
            next: None,
            ended: false,
        })
    }

    /// What to read next. Call [`transmit`](Self::transmit) first: a server
    /// says nothing before it was asked.
    pub fn need(&self) -> Need {
        self.handshake.need()
    }

    /// Writes what is to be sent into `sink`; returns how many bytes, zero if
    /// it is the server's turn. One message a call: a driver that reads without
    /// asking [`need`](Self::need) calls it until it returns zero.
    ///
    /// # Errors
    ///
    /// [`Misuse::Encode`] if it does not fit; nothing was written.
    pub fn transmit(&mut self, sink: &mut dyn Sink) -> Result<usize, Misuse> {
        let Some(step) = self.next else {
            return Ok(0);
        };
        let written = match step {
            Step::ClientFlags => {
                let first = self.handshake.send_client_flags(ClientFlags::KNOWN, sink)?;
                self.next = Some(Step::Option(self.first_option()));
                return Ok(first);
            }
            Step::Option(option) => {
                let (plan, framing) = (&self.plan, self.framing());
                let put_data = |sink: &mut dyn Sink| plan.put_data(option, framing, sink);
                let export = Text::from(plan.export);
                self.handshake.send_data(option, export, &put_data, sink)?
            }
        };
        self.next = None;
        Ok(written)
    }

    /// Takes the next event out of `input`, which is advanced past what was
    /// consumed. `Ok(None)` means that what is left is incomplete, or that
    /// [`transmit`](Self::transmit) has something to send.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call says the same.
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        while let Some(event) = self.handshake.receive(input)? {
            if let Some(event) = self.react(event) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Says that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], unless the session had ended.
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
    /// [`Misuse::State`] unless [`Event::StartTls`] was the last event.
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        self.handshake.tls_established()?;
        self.next = Some(Step::Option(self.framing_option()));
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
    /// The machine itself, if it has not come to [`Event::Ready`].
    #[expect(
        clippy::result_large_err,
        reason = "the machine is the caller's, and comes back whole"
    )]
    pub fn into_negotiated(self) -> Result<Negotiated, Self> {
        match self.handshake.ready() {
            // An oldstyle server is ready whatever it was told.
            Some(negotiated) if !self.ended => Ok(*negotiated),
            _ => Err(self),
        }
    }

    /// Which of [`Plan::contexts`] cannot be asked for with the framing agreed
    /// on: contexts known to need 64 bits of status without extended headers,
    /// and any with simple replies.
    pub fn out_of_reach(&self) -> impl Iterator<Item = usize> {
        let framing = self.framing();
        let contexts = self.plan.contexts.iter().enumerate();
        contexts
            .filter(move |(_, query)| !query.can_be_asked(framing))
            .map(|(index, _)| index)
    }

    fn framing(&self) -> Framing {
        self.handshake.agreed().framing
    }

    fn react<'i>(&mut self, event: handshake::Event<'i>) -> Option<Event<'i>> {
        use handshake::Event as E;
        match event {
            E::Greeting(Greeting::Newstyle(_)) => {
                self.next = Some(Step::ClientFlags);
                None
            }
            E::Greeting(Greeting::Oldstyle(_)) => match self.plan.export {
                "" => None,
                // Oldstyle has no way to say goodbye either.
                _ => self.fail(Failure::NoExportNames, None),
            },
            // An oldstyle server that was turned down is not ready for anything.
            E::Ready if self.ended => None,
            E::Ready => Some(Event::Ready),
            E::StartTls => Some(Event::StartTls),
            E::Info(info) => Some(Event::Info(info)),
            E::MetaContext { id, name } => Some(self.granted(id, name)),
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
            E::Server { .. } | E::Other { .. } | E::Skipped { .. } => None,
        }
    }

    fn granted<'i>(&mut self, id: ContextId, name: Text<'i>) -> Event<'i> {
        let wanted = self
            .plan
            .contexts
            .iter()
            .position(|query| query.name.as_bytes() == name.as_bytes());
        // What the caller calls narrow is held to it; of what a wildcard
        // brought in nothing is known.
        let width = wanted
            .and_then(|index| self.plan.contexts.get(index))
            .and_then(|query| query.width)
            .unwrap_or(Width::Wide);
        self.handshake.set_width(id, width);
        Event::Context { wanted, id, name }
    }

    fn refused<'i>(
        &mut self,
        option: OptionType,
        error: OptionReplyType,
        message: Option<Text<'i>>,
    ) -> Option<Event<'i>> {
        let reason = match (option, error) {
            (OptionType::ABORT, _) => return None,
            (_, error @ OptionReplyType::ERR_SHUTDOWN) => error.into(),
            (OptionType::STARTTLS, error) if self.plan.tls == TlsPolicy::Require => {
                Failure::TlsRefused(error)
            }
            (OptionType::STARTTLS, _) => return self.fall_back(option, error, message),
            (_, error @ OptionReplyType::ERR_TLS_REQD) => error.into(),
            (OptionType::GO, OptionReplyType::ERR_UNSUP) if self.framing() != Framing::Extended => {
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
    ) -> Option<Event<'i>> {
        self.next = self.after(option, false);
        Some(Event::Fallback {
            option,
            error,
            message,
        })
    }

    fn fail<'i>(&mut self, reason: Failure, message: Option<Text<'i>>) -> Option<Event<'i>> {
        self.ended = true;
        if self.handshake.agreed().style == Style::FixedNewstyle {
            self.next = Some(Step::Option(OptionType::ABORT));
        }
        Some(Event::Failed { reason, message })
    }

    /// The first option of a newstyle handshake.
    fn first_option(&self) -> OptionType {
        if self.handshake.agreed().style != Style::FixedNewstyle {
            return OptionType::EXPORT_NAME;
        }
        match self.plan.tls {
            TlsPolicy::Never => self.framing_option(),
            TlsPolicy::Prefer | TlsPolicy::Require => OptionType::STARTTLS,
        }
    }

    /// The first option behind TLS.
    fn framing_option(&self) -> OptionType {
        match self.plan.framing {
            Framing::Extended => OptionType::EXTENDED_HEADERS,
            Framing::Structured => OptionType::STRUCTURED_REPLY,
            Framing::Simple => OptionType::GO,
        }
    }

    /// What follows an option that was accepted or refused.
    fn after(&self, option: OptionType, accepted: bool) -> Option<Step> {
        Some(Step::Option(match option {
            OptionType::STARTTLS => self.framing_option(),
            OptionType::EXTENDED_HEADERS if !accepted => OptionType::STRUCTURED_REPLY,
            OptionType::EXTENDED_HEADERS | OptionType::STRUCTURED_REPLY => {
                let any = admissible(self.plan.contexts, self.framing()).next();
                match any.is_some() {
                    true => OptionType::SET_META_CONTEXT,
                    false => OptionType::GO,
                }
            }
            OptionType::SET_META_CONTEXT => OptionType::GO,
            OptionType::GO if !accepted => OptionType::EXPORT_NAME,
            _ => return None,
        }))
    }
}

/// The names of the contexts that can be asked for with a framing.
fn admissible<'a>(
    contexts: &'a [ContextQuery<'a>],
    framing: Framing,
) -> impl Iterator<Item = Text<'a>> + Clone {
    contexts
        .iter()
        .filter(move |query| query.can_be_asked(framing))
        .map(|query| Text::from(query.name))
}

/// The flags that [`Connect`] agrees to are all there are.
const _: () = assert!(
    ClientFlags::KNOWN.0 == 3 && HandshakeFlags::KNOWN.0 == 3,
    "a new handshake flag needs a decision"
);
