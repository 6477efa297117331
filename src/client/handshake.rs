//! Handshake, client side: one option at a time, in any order the caller likes
//! (specification, "Handshake").

use crate::error::{Error, Misuse, Violation};
use crate::limits::Limits;
use crate::name::Name;
use crate::need::Need;
use crate::negotiated::{Context, Contexts, Framing, Negotiated, Style, Width};
use crate::wire::bytes::{clip, take, take_slice};
use crate::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::wire::greeting::{
    ExportNameReply, Greeting, NewstyleGreeting, OldstyleGreeting, RESERVED_ZEROES,
};
use crate::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use crate::wire::option::{OptionRequest, encode_set_meta_context};
use crate::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};
use crate::wire::text::{MAX_TEXT, Text, TextError};
use crate::wire::{DecodeError, EncodeError, Sink};

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
    /// Whether it is known to need 64 bits of status: then it is not asked for
    /// without extended headers.
    pub width: Width,
}

impl<'a> ContextQuery<'a> {
    /// A context of at most 32 bits of status.
    #[must_use]
    pub const fn narrow(name: &'a str) -> Self {
        Self {
            name,
            width: Width::Narrow,
        }
    }

    /// A context of more than 32 bits of status.
    #[must_use]
    pub const fn wide(name: &'a str) -> Self {
        Self {
            name,
            width: Width::Wide,
        }
    }

    /// Whether a client may ask for it with this framing.
    pub(super) fn can_be_asked(&self, framing: Framing) -> bool {
        match self.width {
            Width::Narrow => framing >= Framing::Structured,
            Width::Wide => framing == Framing::Extended,
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

/// What a look at the replies found.
enum Flow<'i> {
    Event(Event<'i>),
    /// Something was consumed: look again.
    Again,
    Short,
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
        self.check_state(State::ClientFlags, "the client's flags answer a greeting")?;
        let mut flags = ClientFlags::NONE;
        if self.server.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            flags |= wanted & ClientFlags::FIXED_NEWSTYLE;
        }
        if self.server.contains(HandshakeFlags::NO_ZEROES) {
            flags |= wanted & ClientFlags::NO_ZEROES;
        }
        let bytes = flags.encode();
        if sink.room() < bytes.len() {
            return Err(EncodeError::NoRoom {
                needed: bytes.len(),
            }
            .into());
        }
        sink.put(&bytes);
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.agreed.style = match flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            true => Style::FixedNewstyle,
            false => Style::Newstyle,
        };
        self.state = State::Idle;
        Ok(bytes.len())
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
        self.check_send(option)?;
        let written = option.encode(sink)?;
        self.sent(option.option());
        // What is sent by number means what the number means.
        let meaning = match *option {
            OptionRequest::Other { option, data } => OptionRequest::decode(option, data),
            known => Ok(known),
        };
        match meaning {
            Ok(OptionRequest::ExportName(name)) => self.chosen = Name::of(name),
            Ok(OptionRequest::Go(request)) => self.chosen = Name::of(request.export),
            Ok(OptionRequest::SetMetaContext(request)) => self.select_for(Some(request.export)),
            // Whatever a server makes of it, for no export known here.
            Err(_) if option.option() == OptionType::SET_META_CONTEXT => self.select_for(None),
            Err(_) if option.option() == OptionType::GO => self.contexts_for = None,
            _ => {}
        }
        Ok(written)
    }

    /// Sends `SET_META_CONTEXT` for contexts whose width is known; returns how
    /// many bytes were written to `sink`.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`Misuse::NeedsExtended`] for a wide
    /// context without extended headers: a server could only leave it out.
    pub fn select(
        &mut self,
        export: Text<'_>,
        contexts: &[ContextQuery<'_>],
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        self.check_option(OptionType::SET_META_CONTEXT)?;
        if contexts.len() > Contexts::CAPACITY {
            return Err(Misuse::TooManyContexts);
        }
        for query in contexts {
            check_name(query.name.into())?;
            if !query.can_be_asked(self.agreed.framing) {
                return Err(Misuse::NeedsExtended);
            }
        }
        let names = contexts.iter().map(|query| Text::from(query.name));
        self.send_set_meta_context(export, names, sink)
    }

    /// As [`send`](Self::send) with `SET_META_CONTEXT`, with queries that
    /// stand in no list of their own.
    pub(super) fn send_set_meta_context<'q>(
        &mut self,
        export: Text<'_>,
        queries: impl Iterator<Item = Text<'q>> + Clone,
        sink: &mut dyn Sink,
    ) -> Result<usize, Misuse> {
        self.check_option(OptionType::SET_META_CONTEXT)?;
        check_name(export)?;
        let written = encode_set_meta_context(export, queries, sink)?;
        self.sent(OptionType::SET_META_CONTEXT);
        self.select_for(Some(export));
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
        self.agreed.contexts = Contexts::new();
        self.contexts_for = export.map(Name::of);
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
        let mut contexts = Contexts::new();
        for context in self.agreed.contexts.as_slice() {
            let width = match context.id == id {
                true => width,
                false => context.width,
            };
            let _ = contexts.push(Context { width, ..*context });
        }
        self.agreed.contexts = contexts;
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
        match (self.state, self.failed) {
            (State::Ready { reported: true }, None) => Ok(self.agreed),
            _ => Err(self),
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

    fn greeting<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        let Some(greeting) = Greeting::decode_fields(input)? else {
            // A newstyle greeting would be whole by then.
            if input.len() >= NewstyleGreeting::SIZE {
                self.want = OldstyleGreeting::FIELDS;
            }
            return Ok(None);
        };
        let fixed = match greeting {
            Greeting::Oldstyle(greeting) => {
                self.agreed.style = Style::Oldstyle;
                self.agreed.size = greeting.size;
                self.agreed.flags = greeting.flags;
                self.state = State::Zeroes(RESERVED_ZEROES);
                false
            }
            Greeting::Newstyle(NewstyleGreeting { flags }) => {
                self.server = flags;
                self.state = State::ClientFlags;
                flags.contains(HandshakeFlags::FIXED_NEWSTYLE)
            }
        };
        // Without fixed newstyle there is no STARTTLS.
        if self.require_tls && !fixed {
            return Err(Error::TlsUnavailable);
        }
        Ok(Some(Event::Greeting(greeting)))
    }

    fn reply<'i>(&mut self, sent: OptionType, input: &mut &'i [u8]) -> Result<Flow<'i>, Error> {
        let mut rest = *input;
        self.want = OptionReplyHeader::SIZE;
        let Some(header) = OptionReplyHeader::decode(&mut rest)? else {
            return Ok(Flow::Short);
        };
        if header.option != sent {
            return Err(Violation::OtherOption {
                sent,
                answered: header.option,
            }
            .into());
        }
        check_reply(sent, header.reply)?;
        let length = clip(u64::from(header.length));
        let least = match header.reply {
            OptionReplyType::INFO => LONGEST_FIXED,
            _ => 0,
        };
        if header.length > self.limits.option_data.max(least) {
            return self.begin_skip(header, rest, input);
        }
        let Some(data) = take_slice(&mut rest, length) else {
            self.want = OptionReplyHeader::SIZE.saturating_add(length);
            return Ok(Flow::Short);
        };
        let reply = OptionReply::decode(header.reply, data)?;
        let event = self.apply(sent, reply)?;
        *input = rest;
        if event == Event::StartTls && !input.is_empty() {
            return Err(Violation::PlaintextAfterStartTls.into());
        }
        Ok(Flow::Event(event))
    }

    /// A reply that is longer than the caller has room for. What the machine
    /// must know of it stands at its front.
    fn begin_skip<'i>(
        &mut self,
        header: OptionReplyHeader,
        mut rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> Result<Flow<'i>, Error> {
        let mut left = header.length;
        if header.reply == OptionReplyType::ACK {
            return Err(DecodeError::Trailing {
                message: "NBD_REP_ACK",
            }
            .into());
        }
        if header.reply == OptionReplyType::META_CONTEXT {
            let Some(behind_id) = left.checked_sub(4) else {
                return Err(DecodeError::Overrun {
                    message: "NBD_REP_META_CONTEXT",
                }
                .into());
            };
            let Some(id) = take::<4>(&mut rest) else {
                self.want = OptionReplyHeader::SIZE.saturating_add(4);
                return Ok(Flow::Short);
            };
            left = behind_id;
            self.note_context(header.option, ContextId(u32::from_be_bytes(*id)))?;
        }
        *input = rest;
        self.state = State::Skip {
            reply: header,
            left,
        };
        Ok(Flow::Again)
    }

    fn skipped(&mut self, header: OptionReplyHeader) -> Event<'static> {
        let OptionReplyHeader {
            option,
            reply,
            length,
        } = header;
        if reply.is_error() {
            return self.refused(option, reply, None);
        }
        Event::Skipped { reply, length }
    }

    fn apply<'i>(&mut self, sent: OptionType, reply: OptionReply<'i>) -> Result<Event<'i>, Error> {
        Ok(match reply {
            OptionReply::Ack => return self.ack(sent),
            OptionReply::Server { name, description } => Event::Server { name, description },
            OptionReply::Info(info) => {
                self.note_info(info)?;
                Event::Info(info)
            }
            OptionReply::MetaContext { id, name } => {
                self.note_context(sent, id)?;
                Event::MetaContext { id, name }
            }
            OptionReply::Error { error, message } => self.refused(sent, error, Some(message)),
            OptionReply::Other { reply, data } => Event::Other { reply, data },
        })
    }

    fn ack(&mut self, sent: OptionType) -> Result<Event<'static>, Error> {
        self.state = State::Idle;
        match sent {
            OptionType::STARTTLS => {
                // Whatever was said in plain text was never said.
                self.agreed = Negotiated {
                    style: self.agreed.style,
                    ..Negotiated::new(Framing::Simple, 0, TransmissionFlags::NONE)
                };
                self.contexts_for = None;
                self.state = State::Tls;
                return Ok(Event::StartTls);
            }
            OptionType::INFO | OptionType::GO if !self.informed => {
                return Err(Violation::NoExportInfo.into());
            }
            OptionType::GO => {
                self.drop_foreign_contexts();
                self.state = State::Ready { reported: false };
            }
            OptionType::STRUCTURED_REPLY => {
                self.agreed.framing = self.agreed.framing.max(Framing::Structured);
            }
            OptionType::EXTENDED_HEADERS => self.agreed.framing = Framing::Extended,
            OptionType::ABORT => self.state = State::Aborted,
            _ => {}
        }
        Ok(Event::Ack(sent))
    }

    fn refused<'i>(
        &mut self,
        option: OptionType,
        error: OptionReplyType,
        message: Option<Text<'i>>,
    ) -> Event<'i> {
        if option == OptionType::SET_META_CONTEXT {
            // "If an error is returned, the client MUST disregard any context
            // replies that may have been sent."
            self.agreed.contexts = Contexts::new();
        }
        self.state = State::Idle;
        Event::Refused {
            option,
            error,
            message,
        }
    }

    fn note_info(&mut self, info: Info<'_>) -> Result<(), Error> {
        match info {
            Info::Export { size, flags } => {
                self.agreed.size = size;
                self.agreed.flags = flags;
                self.informed = true;
            }
            Info::BlockSize(sizes) => {
                check_block_sizes(sizes)?;
                self.agreed.block_sizes = Some(sizes);
            }
            _ => {}
        }
        Ok(())
    }

    fn note_context(&mut self, option: OptionType, id: ContextId) -> Result<(), Error> {
        if option != OptionType::SET_META_CONTEXT {
            return Ok(());
        }
        let width = Width::Wide;
        self.agreed
            .contexts
            .push(Context { id, width })
            .map_err(|error| Violation::from(error).into())
    }

    /// Contexts hold only for the export they were selected for.
    fn drop_foreign_contexts(&mut self) {
        if self.contexts_for != Some(self.chosen) {
            self.agreed.contexts = Contexts::new();
        }
    }

    fn check_send(&self, request: &OptionRequest<'_>) -> Result<(), Misuse> {
        let option = request.option();
        self.check_option(option)?;
        match request {
            OptionRequest::ExportName(name) => {
                check_name(*name)?;
                if self.agreed.framing == Framing::Extended {
                    return Err(Misuse::ExportNameWithExtended);
                }
            }
            OptionRequest::Info(request) | OptionRequest::Go(request) => {
                check_name(request.export)?;
                let twice = |info: InfoType| {
                    request
                        .requests
                        .iter()
                        .filter(|other| *other == info)
                        .count()
                        > 1
                };
                if request.requests.iter().any(twice) {
                    return Err(Misuse::RepeatedInfo);
                }
            }
            OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request) => {
                check_name(request.export)?;
                request.queries.iter().try_for_each(check_name)?;
                if request.queries.len() > Contexts::CAPACITY {
                    return Err(Misuse::TooManyContexts);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_option(&self, option: OptionType) -> Result<(), Misuse> {
        self.check_state(
            State::Idle,
            "an option is sent when the one before is answered",
        )?;
        if self.agreed.style != Style::FixedNewstyle && option != OptionType::EXPORT_NAME {
            return Err(Misuse::NotFixed(option));
        }
        let harmless = matches!(option, OptionType::STARTTLS | OptionType::ABORT);
        if self.require_tls && !self.agreed.tls && !harmless {
            return Err(Misuse::TlsRequired);
        }
        if option == OptionType::STARTTLS && self.agreed.tls {
            return Err(Misuse::State("TLS was started already"));
        }
        if option == OptionType::SET_META_CONTEXT && self.agreed.framing == Framing::Simple {
            return Err(Misuse::NeedsChunks(option));
        }
        Ok(())
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

/// Length of the longest information that the machine itself must know, the
/// block sizes, in bytes.
const LONGEST_FIXED: u32 = 14;

/// Whether `reply` is an answer to `option` at all.
fn check_reply(option: OptionType, reply: OptionReplyType) -> Result<(), Error> {
    let expected = match reply {
        OptionReplyType::ACK => true,
        error if error.is_error() => true,
        OptionReplyType::SERVER => option == OptionType::LIST,
        OptionReplyType::INFO => matches!(option, OptionType::INFO | OptionType::GO),
        OptionReplyType::META_CONTEXT => matches!(
            option,
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT
        ),
        // What answers an option without a name is not ours to judge.
        _ => option.name().is_none(),
    };
    match expected || option.name().is_none() {
        true => Ok(()),
        false => Err(Violation::UnexpectedReply { option, reply }.into()),
    }
}

/// Every rule but one: a preferred size below 512 is harmless, and sent.
fn check_block_sizes(sizes: BlockSizes) -> Result<(), Error> {
    let harmless = BlockSizes {
        preferred: sizes.preferred.max(512),
        maximum: sizes.maximum.max(512),
        ..sizes
    };
    let ordered = sizes.preferred >= sizes.minimum && sizes.maximum >= sizes.preferred;
    match harmless.is_valid() && ordered {
        true => Ok(()),
        false => Err(Violation::BlockSizes(sizes).into()),
    }
}

fn check_name(name: Text<'_>) -> Result<(), Misuse> {
    match name.len() > MAX_TEXT {
        true => Err(TextError::TooLong.into()),
        false => name.to_str().map(|_| ()).map_err(Misuse::from),
    }
}
