//! Handshake, client side: one option at a time, in any order the caller likes
//! (specification, "Handshake").

mod recv;
mod send;

use self::recv::Flow;
pub(super) use self::send::is_query;
use crate::error::{Error, Misuse, Violation};
use crate::limits::Limits;
use crate::name::Name;
use crate::need::Need;
use crate::negotiated::{Framing, Negotiated, Width};
use crate::wire::bytes::{clip, take_slice};
use crate::wire::flags::{HandshakeFlags, TransmissionFlags};
use crate::wire::greeting::{ExportNameReply, Greeting, NewstyleGreeting, RESERVED_ZEROES};
use crate::wire::number::{ContextId, OptionReplyType, OptionType};
use crate::wire::option_reply::{Info, OptionReplyHeader};
use crate::wire::text::Text;

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'i> {
    /// The server's first message. After a newstyle one answer with
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
    /// `SET_META_CONTEXT`.
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
    /// A reply longer than [`Limits::option_data`], which was skipped. What
    /// follows from its type holds all the same.
    Skipped {
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
        /// and skipped.
        message: Option<Text<'i>>,
    },
    /// `STARTTLS` was accepted: run the TLS handshake on the connection now,
    /// and state the outcome with [`Handshake::tls_established`] or
    /// [`Handshake::tls_failed`]. Everything negotiated so far is forgotten.
    StartTls,
    /// Transmission begins: [`Handshake::into_negotiated`].
    Ready,
}

/// A metadata context the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextQuery<'a> {
    /// Its name, as `base:allocation`.
    pub name: &'a str,
    /// How many bits of status it has, if that is known. One known to need 64
    /// is not asked for without extended headers; one known to have 32 is held
    /// to them.
    pub width: Option<Width>,
}

impl<'a> ContextQuery<'a> {
    /// A context of which no more than the name is known.
    #[must_use]
    pub const fn new(name: &'a str) -> Self {
        Self { name, width: None }
    }

    /// A context of at most 32 bits of status.
    #[must_use]
    pub const fn narrow(name: &'a str) -> Self {
        Self {
            name,
            width: Some(Width::Narrow),
        }
    }

    /// A context of more than 32 bits of status.
    #[must_use]
    pub const fn wide(name: &'a str) -> Self {
        Self {
            name,
            width: Some(Width::Wide),
        }
    }

    /// Whether a client may ask for it with this framing.
    pub(super) fn can_be_asked(&self, framing: Framing) -> bool {
        match self.width {
            Some(Width::Wide) => framing == Framing::Extended,
            Some(Width::Narrow) | None => framing >= Framing::Structured,
        }
    }
}

/// Where in the handshake the machine is.
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
    /// The answer to `EXPORT_NAME` is due.
    ExportName,
    /// In reserved zeroes, before transmission.
    Zeroes(usize),
    /// In the data of a reply that is too long.
    Skip { reply: OptionReplyHeader, left: u32 },
    /// The outcome of TLS is due.
    Tls,
    /// `Ready` is due, or was reported.
    Ready { reported: bool },
    /// `ABORT` was acknowledged.
    Aborted,
}

/// The client's side of the handshake phase.
///
/// Offer what arrives to [`receive`](Self::receive); answer a newstyle
/// greeting with [`send_client_flags`](Self::send_client_flags); then
/// [`send`](Self::send) one option after the other, each when the replies to
/// the one before have ended with [`Event::Ack`] or [`Event::Refused`].
#[derive(Debug)]
pub struct Handshake {
    limits: Limits,
    require_tls: bool,
    lenient: bool,
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
    /// `EXPORT_NAME` asks for. Both names are the caller's own: nobody can
    /// forge one that is taken for the other.
    contexts_for: Option<Name>,
    chosen: Name,
}

impl Handshake {
    /// Before the server's greeting. With `require_tls` nothing but `STARTTLS`
    /// and `ABORT` is sent in plain text, and a server that cannot start TLS
    /// ends the session.
    #[must_use]
    pub fn new(require_tls: bool, limits: Limits) -> Self {
        Self {
            limits,
            require_tls,
            lenient: false,
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

    /// For testers of servers: from now on options that the specification asks
    /// a client not to send are sent. An option may come before the framing it
    /// needs, a framing and a piece of information be asked for again, and a
    /// query lack its namespace. What the machine itself depends on is refused
    /// as ever, and replies are judged as ever.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// States that TLS protects the connection from here on.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] unless [`Event::StartTls`] was the last event.
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
    /// of status; until then it may have 64 with extended headers.
    pub(super) fn set_width(&mut self, id: ContextId, width: Width) {
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
    /// The handshake itself, if it has not come to [`Event::Ready`].
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

    /// What was agreed on, if [`Event::Ready`] was reported.
    pub(super) fn ready(&self) -> Option<&Negotiated> {
        match (self.state, self.failed) {
            (State::Ready { reported: true }, None) => Some(&self.agreed),
            _ => None,
        }
    }

    /// Takes the next event out of `input`, which is advanced past what was
    /// consumed. `Ok(None)` means that what is left is incomplete.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call says the same.
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.step(input);
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    /// Says that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], unless the session was ended by `ABORT` (which a
    /// server need not answer).
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let ended = matches!(
            self.state,
            State::Replies(OptionType::ABORT) | State::Aborted
        );
        self.failed = Some(Error::Closed);
        match ended {
            true => Ok(()),
            false => Err(Error::Closed),
        }
    }

    /// What to read next.
    pub fn need(&self) -> Need {
        if self.failed.is_some() {
            return Need::Nothing;
        }
        match self.state {
            State::Greeting | State::Replies(_) | State::ExportName => Need::Header(self.want),
            State::Zeroes(left) => Need::Header(left),
            State::Skip { left, .. } => Need::Header(clip(u64::from(left))),
            State::Ready { reported: false } => Need::Header(0),
            State::ClientFlags
            | State::Idle
            | State::Tls
            | State::Ready { reported: true }
            | State::Aborted => Need::Nothing,
        }
    }

    #[inline(never)]
    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        loop {
            match self.state {
                State::Greeting => return self.greeting(input),
                State::Replies(option) => match self.reply(option, input)? {
                    Flow::Event(event) => return Ok(Some(event)),
                    Flow::Short => return Ok(None),
                    Flow::Again => {}
                },
                State::ExportName => {
                    let Some(reply) = ExportNameReply::decode(input) else {
                        return Ok(None);
                    };
                    self.agreed.size = reply.size;
                    self.agreed.flags = reply.flags;
                    self.agreed.block_sizes = None;
                    self.drop_foreign_contexts();
                    self.state = match self.no_zeroes {
                        true => State::Ready { reported: false },
                        false => State::Zeroes(RESERVED_ZEROES),
                    };
                }
                State::Zeroes(left) => {
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
                State::Skip { reply, left } => {
                    let n = clip(u64::from(left)).min(input.len());
                    let _ = take_slice(input, n);
                    let left = left.saturating_sub(u32::try_from(n).unwrap_or(left));
                    if left > 0 {
                        self.state = State::Skip { reply, left };
                        return Ok(None);
                    }
                    self.state = State::Replies(reply.option);
                    return Ok(Some(self.skipped(reply)));
                }
                State::Ready { reported: false } => {
                    self.state = State::Ready { reported: true };
                    return Ok(Some(Event::Ready));
                }
                State::Tls if !input.is_empty() => {
                    return Err(Violation::PlaintextAfterStartTls.into());
                }
                State::ClientFlags | State::Idle | State::Aborted if !input.is_empty() => {
                    return Err(Violation::Unsolicited.into());
                }
                State::ClientFlags
                | State::Idle
                | State::Aborted
                | State::Tls
                | State::Ready { reported: true } => return Ok(None),
            }
        }
    }

    fn check_state(&self, state: State, why: &'static str) -> Result<(), Misuse> {
        if let Some(error) = self.failed {
            return Err(Misuse::Failed(error));
        }
        match self.state == state {
            true => Ok(()),
            false => Err(Misuse::State(why)),
        }
    }
}
