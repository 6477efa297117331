//! Handshake, client side: one option at a time, in any order the caller likes
//! (specification, "Handshake").

pub(crate) mod recv;
pub(crate) mod send;

use self::recv::Flow;
use super::config::{Config, TlsPolicy};
use crate::error::{Error, Misuse, Violation};
use crate::features;
use crate::limits::Limits;
use crate::name::Name;
use crate::negotiated::{Framing, Negotiated, StatusWidth};
use crate::step::{Step, receive};
use crate::wire::bytes::{clip, take_slice};
use crate::wire::flags::{HandshakeFlags, TransmissionFlags};
use crate::wire::greeting::{ExportNameReply, Greeting, NewstyleGreeting, RESERVED_ZEROES};
use crate::wire::number::{ContextId, OptionReplyType, OptionType};
use crate::wire::option_reply::{Info, OptionReplyHeader};
use crate::wire::text::Text;

/// What the server replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeEvent<'i> {
    /// The server's first message. After a newstyle one call
    /// [`Handshake::send_client_flags`]; an oldstyle one is the whole
    /// handshake, and [`Ready`](Self::Ready) follows.
    Greeting(Greeting),
    /// An export, in reply to `LIST`.
    Server {
        /// Its name.
        name: Text<'i>,
        /// For people; often empty.
        description: Text<'i>,
    },
    /// A piece of information, in reply to `INFO` and `GO`.
    Info(Info<'i>),
    /// A metadata context, in reply to `LIST_META_CONTEXT` and
    /// `SET_META_CONTEXT`. If [`Refused`](Self::Refused) follows, none of those
    /// before it is selected.
    MetaContext {
        /// Its number during transmission; means nothing for
        /// `LIST_META_CONTEXT`.
        id: ContextId,
        /// Its name.
        name: Text<'i>,
    },
    /// A reply to an option that this crate does not know.
    Other {
        /// What the reply is.
        reply: OptionReplyType,
        /// Its data.
        data: &'i [u8],
    },
    /// A reply longer than [`Limits::option_data`], whose data was discarded.
    /// What its type alone says holds all the same.
    Discarded {
        /// What the reply is.
        reply: OptionReplyType,
        /// How long its data was, in bytes.
        length: u32,
    },
    /// The option was accepted, or its replies have ended.
    Ack(OptionType),
    /// The option was refused.
    Refused {
        /// Which option.
        option: OptionType,
        /// Why.
        error: OptionReplyType,
        /// For people; `None` if it was longer than [`Limits::option_data`]
        /// and discarded.
        message: Option<Text<'i>>,
    },
    /// Transmission begins: [`Handshake::into_negotiated`].
    Ready,
}

/// Where in the handshake the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the greeting.
    Greeting,
    /// The client's flags are due.
    ClientFlags,
    /// The caller may send an option.
    Idle,
    /// Replies to an option are due.
    Replies(OptionType),
    /// The reply to `EXPORT_NAME` is due.
    ExportName,
    /// In reserved zeroes, before transmission.
    Zeroes(usize),
    /// In the data of a reply that is too long, which is discarded.
    Discard { reply: OptionReplyHeader, left: u32 },
    /// The outcome of TLS is due.
    Tls,
    /// `Ready` is due, or was reported.
    Ready { reported: bool },
    /// `ABORT` was acknowledged.
    Aborted,
}

/// The client's side of the handshake phase.
///
/// Offer what arrives to [`receive`](Self::receive); after a newstyle greeting
/// call [`send_client_flags`](Self::send_client_flags); then
/// [`send`](Self::send) one option after the other, each when the replies to
/// the one before have ended with [`HandshakeEvent::Ack`] or
/// [`HandshakeEvent::Refused`]. Where the client has to send, `receive` returns
/// [`Error::Unanswered`].
#[derive(Debug)]
pub struct Handshake {
    limits: Limits,
    require_tls: bool,
    lenient: bool,
    strict: bool,
    state: State,
    want: usize,
    failed: Option<Error>,
    server: HandshakeFlags,
    no_zeroes: bool,
    /// What is agreed on so far.
    agreed: Negotiated,
    /// Whether the option under way has brought `NBD_INFO_EXPORT`.
    informed: bool,
    /// For which export the contexts were selected, and which one `GO` or
    /// `EXPORT_NAME` asks for. Both names are the caller's own: the server
    /// cannot forge one that is taken for the other.
    contexts_for: Option<Name>,
    chosen: Name,
}

type HandshakeStep<'i> = Step<HandshakeEvent<'i>, &'i [u8]>;

receive!([] Handshake, HandshakeEvent<'i>);

impl Handshake {
    /// Before the server's greeting. Of the configuration it uses
    /// [`limits`](Config::limits), [`tls`](Config::tls),
    /// [`lenient`](Config::lenient) and [`strict`](Config::strict).
    ///
    /// Where TLS is required, nothing but `STARTTLS` and `ABORT` is sent in
    /// plain text, and a server that cannot start TLS ends the session.
    #[must_use]
    pub fn new(config: &Config<'_>) -> Self {
        Self {
            limits: config.limits,
            require_tls: config.tls == TlsPolicy::Require,
            lenient: config.lenient,
            strict: config.strict,
            state: State::Greeting,
            want: NewstyleGreeting::SIZE,
            failed: None,
            server: HandshakeFlags::NONE,
            no_zeroes: false,
            agreed: Negotiated::new(Framing::Simple, 0, TransmissionFlags::NONE),
            informed: false,
            contexts_for: None,
            chosen: Name::of(Text::EMPTY),
        }
    }

    /// States that TLS protects the connection from here on.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] unless the last step was [`Step::StartTls`].
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        self.check_state(State::Tls, "no TLS handshake is under way")?;
        self.agreed.tls = true;
        self.state = State::Idle;
        Ok(())
    }

    /// States that TLS could not be started. The session is over.
    pub fn tls_failed(&mut self) {
        if self.failed.is_none() {
            self.failed = Some(Error::TlsFailed);
        }
    }

    /// States whether a metadata context that was granted has at most 32 bits
    /// of status; until then its name tells.
    pub(super) fn set_width(&mut self, id: ContextId, width: StatusWidth) {
        self.agreed.contexts.set_width(id, width);
    }

    /// What was agreed on so far.
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
        match self.ready() {
            Some(negotiated) => Ok(*negotiated),
            None => Err(self),
        }
    }

    /// What was agreed on, if [`HandshakeEvent::Ready`] was reported.
    pub(super) fn ready(&self) -> Option<&Negotiated> {
        match (self.state, self.failed) {
            (State::Ready { reported: true }, None) => Some(&self.agreed),
            _ => None,
        }
    }

    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call returns the same;
    /// but for [`Error::Unanswered`] where the client has to send.
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<HandshakeStep<'i>, Error> {
        match self.poll(input)? {
            Some(event) => Ok(Step::Event(event)),
            None => self.wait(input.len()),
        }
    }

    /// The next event, or `None` while none is due.
    pub(super) fn poll<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<HandshakeEvent<'i>>, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.next_event(input);
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    /// The step while no event is due: `held` bytes of the next message have
    /// arrived.
    pub(super) fn wait<E, D>(&self, held: usize) -> Result<Step<E, D>, Error> {
        let discard = match self.state {
            State::Greeting | State::Replies(_) | State::ExportName => {
                return Ok(Step::read(self.want.saturating_sub(held)));
            }
            State::Zeroes(left) => left,
            State::Discard { left, .. } => clip(u64::from(left)),
            State::Tls => return Ok(Step::StartTls),
            State::Ready { .. } | State::Aborted => return Ok(Step::Finished),
            State::ClientFlags | State::Idle => return Err(Error::Unanswered),
        };
        Ok(Step::read(discard.min(self.limits.buffer())))
    }

    /// Reports that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::ClosedDuring`] with the option that was not
    /// replied to; unless the session was ended by `ABORT` (which a server need
    /// not reply to). Later calls return the same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let error = match self.state {
            State::Aborted => return Ok(()),
            State::Replies(option)
            | State::Discard {
                reply: OptionReplyHeader { option, .. },
                ..
            } => {
                if option == OptionType::ABORT {
                    self.state = State::Aborted;
                    return Ok(());
                }
                Error::ClosedDuring(option)
            }
            State::ExportName => Error::ClosedDuring(OptionType::EXPORT_NAME),
            _ => Error::Closed,
        };
        self.failed = Some(error);
        Err(error)
    }

    #[inline(never)]
    fn next_event<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<HandshakeEvent<'i>>, Error> {
        loop {
            match self.state {
                State::Greeting => return self.greeting(input),
                State::Replies(option) => match self.reply(option, input)? {
                    Flow::Event(event) => return Ok(Some(event)),
                    Flow::Short => return Ok(None),
                    Flow::Again => {}
                },
                State::ExportName if features::OLDSTYLE => {
                    let Some(reply) = ExportNameReply::decode(input) else {
                        return Ok(None);
                    };
                    self.agreed.size = reply.size;
                    self.agreed.flags = reply.flags;
                    self.agreed.block_sizes = None;
                    self.drop_foreign_contexts();
                    self.state = if self.no_zeroes {
                        State::Ready { reported: false }
                    } else {
                        State::Zeroes(RESERVED_ZEROES)
                    };
                }
                State::Zeroes(left) if features::OLDSTYLE => {
                    let n = left.min(input.len());
                    let _ = take_slice(input, n);
                    self.state = match left.saturating_sub(n) {
                        0 => State::Ready { reported: false },
                        left => State::Zeroes(left),
                    };
                    if n < left {
                        return Ok(None);
                    }
                }
                State::Discard { reply, left } => {
                    let n = clip(u64::from(left)).min(input.len());
                    let _ = take_slice(input, n);
                    let left = left.saturating_sub(u32::try_from(n).unwrap_or(left));
                    if left > 0 {
                        self.state = State::Discard { reply, left };
                        return Ok(None);
                    }
                    self.state = State::Replies(reply.option);
                    return Ok(Some(self.discarded(reply)));
                }
                State::Ready { reported: false } => {
                    self.state = State::Ready { reported: true };
                    return Ok(Some(HandshakeEvent::Ready));
                }
                State::Tls if features::TLS && !input.is_empty() => {
                    return Err(Violation::PlaintextAfterStartTls.into());
                }
                State::ClientFlags | State::Idle | State::Aborted if !input.is_empty() => {
                    return Err(Violation::Unsolicited.into());
                }
                State::ClientFlags
                | State::Idle
                | State::Aborted
                | State::Tls
                // Without the feature `oldstyle` there are none.
                | State::ExportName
                | State::Zeroes(_)
                | State::Ready { reported: true } => return Ok(None),
            }
        }
    }

    fn check_state(&self, state: State, why: &'static str) -> Result<(), Misuse> {
        if let Some(error) = self.failed {
            return Err(Misuse::Failed(error));
        }
        if self.state != state {
            return Err(Misuse::State(why));
        }
        Ok(())
    }
}
