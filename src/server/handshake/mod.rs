//! Handshake, server side: options in, replies out (specification,
//! "Handshake" and "TLS support").

mod query;
mod recv;
mod respond;

pub use self::query::ExportQuery;
use self::recv::Answer;
pub use self::respond::Granted;
use super::config::Config;
use super::export::Export;
use crate::error::{Error, Misuse};
use crate::features;
use crate::name::Name;
use crate::negotiated::{Framing, HandshakeStyle, Negotiated};
use crate::step::{Step, receive};
use crate::wire::bytes::clip;
use crate::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::wire::greeting::{NewstyleGreeting, OldstyleGreeting, RESERVED_ZEROES};
use crate::wire::number::OptionType;
use crate::wire::option::OptionHeader;
use crate::wire::{EncodeError, Sink, all_or_nothing, put_whole};

/// What the client wants and the caller decides. To everything else the state
/// machine replies by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeEvent<'i> {
    /// `LIST`: [`list`](Handshake::list) the exports one by one, then call
    /// [`finish_list`](Handshake::finish_list); or [`refuse`](Handshake::refuse).
    List,
    /// `INFO`, `GO`, `EXPORT_NAME`: [`grant`](Handshake::grant) it or
    /// [`refuse`](Handshake::refuse). [`Ready`](Self::Ready) follows if it was
    /// granted and [starts transmission](ExportQuery::starts_transmission).
    Export(ExportQuery<'i>),
    /// `LIST_META_CONTEXT`, `SET_META_CONTEXT`: to be answered like
    /// [`Export`](Self::Export). No reason to open an export yet.
    MetaContexts(ExportQuery<'i>),
    /// The client has ended the session with `ABORT`, which was acknowledged:
    /// close the connection.
    Aborted,
    /// Transmission begins: [`Handshake::into_negotiated`]. What is left of
    /// the input belongs to it.
    Ready {
        /// [`Export::id`] of the export that was granted.
        export: usize,
    },
}

/// Where in the handshake the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client's flags are due.
    ClientFlags,
    /// An option is due.
    Option,
    /// In the data of an option that is refused or needs none, which is
    /// discarded.
    Discard { answer: Answer, left: u32 },
    /// The caller's answer is due.
    Asked(Asked),
    /// The outcome of TLS is due, once the caller has been asked for it: then
    /// the input was seen to be empty.
    Tls { asked: bool },
    /// `Aborted` is due, or was reported.
    Aborted { reported: bool },
    /// `Ready` is due, or was reported.
    Ready { export: usize, reported: bool },
}

/// The option that waits for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    option: OptionType,
    /// Its information requests have the block sizes.
    block_sizes: bool,
    /// The export it names.
    name: Name,
}

/// What [`Handshake::transmit`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Greeting,
    Answer(Answer),
}

/// The server's side of the handshake phase.
///
/// Offer what arrives to [`receive`](Self::receive) and take the step that it
/// answers with, until [`HandshakeEvent::Ready`]. The first one is
/// [`Step::Transmit`]: the greeting.
#[derive(Debug)]
pub struct Handshake {
    config: Config,
    state: State,
    /// How much of the next option must be there, as far as it is known.
    want: usize,
    failed: Option<Error>,
    pending: Option<Pending>,
    no_zeroes: bool,
    shutting_down: bool,
    /// What is agreed on so far.
    agreed: Negotiated,
    /// For which export the contexts were selected, if there are any.
    contexts_for: Option<Name>,
}

type HandshakeStep<'i> = Step<HandshakeEvent<'i>, &'i [u8]>;

receive!([] Handshake, HandshakeEvent<'i>);

impl Handshake {
    /// A newstyle handshake, before its greeting.
    ///
    /// # Errors
    ///
    /// [`Misuse::NotFixed`] for TLS without fixed newstyle.
    pub fn new(config: Config) -> Result<Self, Misuse> {
        config.check()?;
        Ok(Self::start(config, State::ClientFlags))
    }

    /// An oldstyle handshake, before its greeting: the greeting is all of it,
    /// and [`HandshakeEvent::Ready`] follows. Such a server is for one export, and the
    /// port of newstyle is not for it.
    ///
    /// # Errors
    ///
    /// [`Misuse`] for an export that cannot be described, or that requires
    /// what oldstyle does not have.
    pub fn oldstyle(export: &Export<'_>) -> Result<Self, Misuse> {
        features::require(features::OLDSTYLE, "oldstyle")?;
        export.check()?;
        if export.requires_tls {
            return Err(Misuse::TlsRequired);
        }
        if export.requires_extended || export.requires_block_sizes {
            return Err(Misuse::State("the export requires more than oldstyle has"));
        }
        let ready = State::Ready {
            export: export.id,
            reported: false,
        };
        let mut this = Self::start(Config::new(), ready);
        this.agreed = export.oldstyle();
        Ok(this)
    }

    fn start(config: Config, state: State) -> Self {
        Self {
            config,
            state,
            want: OptionHeader::SIZE,
            failed: None,
            pending: Some(Pending::Greeting),
            no_zeroes: false,
            shutting_down: false,
            agreed: Negotiated::new(Framing::Simple, 0, TransmissionFlags::NONE),
            contexts_for: None,
        }
    }

    /// Writes the message that is due into `sink`: the greeting, or a reply that
    /// needs no decision. Returns how many bytes, zero if none is due. Nothing
    /// is received before it is written.
    ///
    /// # Errors
    ///
    /// [`Misuse::Encode`] if it does not fit; nothing was written.
    pub fn transmit(&mut self, sink: &mut dyn Sink) -> Result<usize, Misuse> {
        let Some(pending) = self.pending.filter(|_| self.failed.is_none()) else {
            return Ok(0);
        };
        let written = match pending {
            Pending::Greeting => self.greet(sink)?,
            Pending::Answer(answer) => answer.encode(sink)?,
        };
        self.pending = None;
        Ok(written)
    }

    #[inline(never)]
    fn greet(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        if features::OLDSTYLE && self.agreed.style == HandshakeStyle::Oldstyle {
            let greeting = OldstyleGreeting {
                size: self.agreed.size,
                handshake_flags: HandshakeFlags::NONE,
                flags: self.agreed.flags,
            };
            return all_or_nothing(sink, &|sink| {
                sink.put(&greeting.encode_fields());
                sink.put(&[0; RESERVED_ZEROES]);
            });
        }
        let mut flags = HandshakeFlags::NONE;
        if !features::OLDSTYLE || self.config.fixed_newstyle {
            flags |= HandshakeFlags::FIXED_NEWSTYLE;
        }
        if self.config.no_zeroes {
            flags |= HandshakeFlags::NO_ZEROES;
        }
        put_whole(&NewstyleGreeting { flags }.encode(), sink)
    }

    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call returns the same;
    /// but for [`Error::Unanswered`] while an event waits for its answer.
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<HandshakeStep<'i>, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.next_step(input);
        if let Err(error) = result
            && error.is_fatal()
        {
            self.failed = Some(error);
        }
        result
    }

    /// The step while no event is due: `held` bytes of the next message have
    /// arrived.
    fn wait<'i>(&mut self, held: usize) -> Result<HandshakeStep<'i>, Error> {
        if self.pending.is_some() {
            return Ok(Step::Transmit);
        }
        let missing = match self.state {
            State::ClientFlags => ClientFlags::SIZE.saturating_sub(held),
            State::Option => self.want.saturating_sub(held),
            State::Discard { left, .. } => clip(u64::from(left)).min(self.config.limits.buffer()),
            State::Tls { .. } if features::TLS => {
                self.state = State::Tls { asked: true };
                return Ok(Step::StartTls);
            }
            State::Tls { .. } | State::Aborted { .. } | State::Ready { .. } => {
                return Ok(Step::Finished);
            }
            State::Asked(_) => return Err(Error::Unanswered),
        };
        Ok(Step::read(missing))
    }

    /// Reports that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], unless the client had ended the session with `ABORT`
    /// (whose acknowledgement it need not wait for). Later calls return the
    /// same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        match (self.failed, self.state) {
            (Some(error), _) => Err(error),
            (None, State::Aborted { .. }) => Ok(()),
            _ => {
                self.failed = Some(Error::Closed);
                Err(Error::Closed)
            }
        }
    }

    /// Whether the client has still to come to an end with its options: what a
    /// server limits in time.
    #[must_use]
    pub fn is_negotiating(&self) -> bool {
        self.failed.is_none()
            && !matches!(
                self.state,
                State::Ready { reported: true, .. } | State::Aborted { .. }
            )
    }

    /// From now on every option but `ABORT` is answered `ERR_SHUTDOWN`. An
    /// option that waits for its answer can be [refused](Self::refuse) so.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// States that TLS protects the connection from here on.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] unless the last step was [`Step::StartTls`].
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        if let Some(error) = self.failed {
            return Err(Misuse::Failed(error));
        }
        if self.state != (State::Tls { asked: true }) {
            return Err(Misuse::State("no TLS handshake is under way"));
        }
        self.agreed.tls = true;
        self.state = State::Option;
        Ok(())
    }

    /// States that TLS could not be started. The session is over: there is no
    /// way back to plain text.
    pub fn tls_failed(&mut self) {
        if self.failed.is_none() {
            self.failed = Some(Error::TlsFailed);
        }
    }

    /// What was agreed on so far. Size, flags and block sizes are those of no
    /// export before [`HandshakeEvent::Ready`].
    #[must_use]
    pub fn agreed(&self) -> &Negotiated {
        &self.agreed
    }

    /// What was agreed on, to start a
    /// [`Transmission`](super::Transmission) from.
    ///
    /// # Errors
    ///
    /// The handshake itself, if it has not come to [`HandshakeEvent::Ready`].
    #[expect(
        clippy::result_large_err,
        reason = "the handshake is the caller's, and comes back whole"
    )]
    pub fn into_negotiated(self) -> Result<Negotiated, Self> {
        match (self.state, self.failed) {
            (State::Ready { reported: true, .. }, None) => Ok(self.agreed),
            _ => Err(self),
        }
    }
}
