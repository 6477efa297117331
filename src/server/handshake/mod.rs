//! Handshake, server side: options in, replies out (specification,
//! "Handshake" and "TLS support").

mod query;
mod recv;
mod respond;

pub use self::query::Inquiry;
use self::recv::{Answer, Verdict};
use super::config::{Offer, TlsMode};
use super::export::{Export, is_query};
use crate::error::{Error, Misuse, Violation};
use crate::name::Name;
use crate::need::Need;
use crate::negotiated::{Contexts, Framing, Negotiated, Style};
use crate::wire::bytes::{clip, take_slice};
use crate::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use crate::wire::greeting::{NewstyleGreeting, OldstyleGreeting, RESERVED_ZEROES};
use crate::wire::number::{InfoType, OptionReplyType, OptionType};
use crate::wire::option::{OptionHeader, OptionRequest, Queries};
use crate::wire::text::Text;
use crate::wire::{EncodeError, Sink, all_or_nothing};

/// What the client wants and the caller decides. All else the machine answers
/// by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'i> {
    /// `LIST`: [`list`](Handshake::list) the exports one by one, then say
    /// [`done`](Handshake::done); or [`refuse`](Handshake::refuse).
    List,
    /// `INFO`, `GO`, `EXPORT_NAME`: [`grant`](Handshake::grant) it or
    /// [`refuse`](Handshake::refuse). [`Ready`](Self::Ready) follows if it was
    /// granted and [enters](Inquiry::enters) transmission.
    Export(Inquiry<'i>),
    /// `LIST_META_CONTEXT`, `SET_META_CONTEXT`: to be answered like
    /// [`Export`](Self::Export). No reason to open an export yet.
    MetaContexts(Inquiry<'i>),
    /// `STARTTLS` was acknowledged: run the TLS handshake on the connection
    /// now, and state the outcome with [`Handshake::tls_established`] or
    /// [`Handshake::tls_failed`]. Everything negotiated so far is forgotten.
    StartTls,
    /// The client has ended the session with `ABORT`, which was acknowledged:
    /// close the connection.
    Aborted,
    /// Transmission begins: [`Handshake::into_negotiated`]. What is left of
    /// the input belongs to it.
    Ready,
}

/// Where in the handshake the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client's flags are due.
    ClientFlags,
    /// An option is due.
    Option,
    /// In the data of an option whose answer is known.
    Skip { answer: Answer, left: u32 },
    /// The caller's answer is due.
    Asked(Asked),
    /// `StartTls` is due, or was reported and the outcome is due.
    Tls { reported: bool },
    /// `Aborted` is due, or was reported.
    Aborted { reported: bool },
    /// `Ready` is due, or was reported.
    Ready { reported: bool },
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
/// Write what [`transmit`](Self::transmit) puts out, the greeting first of
/// all; offer what arrives to [`receive`](Self::receive) and answer its
/// events; until [`Event::Ready`].
#[derive(Debug)]
pub struct Handshake {
    offer: Offer,
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

impl Handshake {
    /// A newstyle handshake, before its greeting.
    ///
    /// # Errors
    ///
    /// [`Misuse::NotFixed`] for TLS without fixed newstyle.
    pub fn new(offer: Offer) -> Result<Self, Misuse> {
        if offer.tls != TlsMode::None && !offer.fixed {
            return Err(Misuse::NotFixed(OptionType::STARTTLS));
        }
        Ok(Self::start(offer, State::ClientFlags))
    }

    /// An oldstyle handshake, before its greeting: the greeting is all of it,
    /// and [`Event::Ready`] follows. Such a server is for one export, and the
    /// port of newstyle is not for it.
    ///
    /// # Errors
    ///
    /// [`Misuse`] for an export that cannot be described, or that requires
    /// what oldstyle does not have.
    pub fn oldstyle(export: &Export<'_>) -> Result<Self, Misuse> {
        export.check()?;
        if export.requires_tls {
            return Err(Misuse::TlsRequired);
        }
        if export.requires_extended || export.requires_block_sizes {
            return Err(Misuse::State("the export requires more than oldstyle has"));
        }
        let ready = State::Ready { reported: false };
        let mut this = Self::start(Offer::default(), ready);
        this.agreed = export.oldstyle();
        Ok(this)
    }

    fn start(offer: Offer, state: State) -> Self {
        Self {
            offer,
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

    /// Writes what the machine has to say by itself into `sink`: the greeting,
    /// and answers that need no decision. Returns how many bytes, zero if
    /// there is nothing. Nothing is received before it is written.
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
        if self.agreed.style == Style::Oldstyle {
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
        if self.offer.fixed {
            flags |= HandshakeFlags::FIXED_NEWSTYLE;
        }
        if self.offer.no_zeroes {
            flags |= HandshakeFlags::NO_ZEROES;
        }
        put_whole(&NewstyleGreeting { flags }.encode(), sink)
    }

    /// Takes the next event out of `input`, which is advanced past what was
    /// consumed. `Ok(None)` means that what is left is incomplete, or that
    /// [`transmit`](Self::transmit) has something to write, or that the last
    /// event waits for its answer.
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
    /// [`Error::Closed`], unless the client had ended the session with `ABORT`
    /// (whose acknowledgement it need not wait for).
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.failed = Some(Error::Closed);
        match self.state {
            State::Aborted { .. } => Ok(()),
            _ => Err(Error::Closed),
        }
    }

    /// What to read next. [`Need::Nothing`] means that something is to be
    /// written or answered first.
    pub fn need(&self) -> Need {
        if self.failed.is_some() || self.pending.is_some() {
            return Need::Nothing;
        }
        match self.state {
            State::ClientFlags => Need::Header(ClientFlags::SIZE),
            State::Option => Need::Header(self.want),
            State::Skip { left, .. } => Need::Header(clip(u64::from(left))),
            State::Tls { reported: false }
            | State::Aborted { reported: false }
            | State::Ready { reported: false } => Need::Header(0),
            State::Asked(_)
            | State::Tls { reported: true }
            | State::Aborted { reported: true }
            | State::Ready { reported: true } => Need::Nothing,
        }
    }

    /// Whether the client has still to come to an end with its options: what a
    /// server limits in time.
    #[must_use]
    pub fn is_negotiating(&self) -> bool {
        self.failed.is_none()
            && !matches!(
                self.state,
                State::Ready { reported: true } | State::Aborted { .. }
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
    /// [`Misuse::State`] unless [`Event::StartTls`] was the last event.
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        if let Some(error) = self.failed {
            return Err(Misuse::Failed(error));
        }
        if self.state != (State::Tls { reported: true }) {
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
    /// export before [`Event::Ready`].
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

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        loop {
            if matches!(self.state, State::Tls { .. }) && !input.is_empty() {
                return Err(Violation::PlaintextAfterStartTls.into());
            }
            if self.pending.is_some() {
                return Ok(None);
            }
            match self.state {
                State::ClientFlags => {
                    let Some(flags) = ClientFlags::decode(input) else {
                        return Ok(None);
                    };
                    self.client_flags(flags)?;
                }
                State::Option => {
                    let before = input.len();
                    if let Some(event) = self.option(input)? {
                        return Ok(Some(event));
                    }
                    if input.len() == before {
                        return Ok(None);
                    }
                }
                State::Skip { answer, left } => {
                    let n = clip(u64::from(left)).min(input.len());
                    let _ = take_slice(input, n);
                    let left = left.saturating_sub(u32::try_from(n).unwrap_or(left));
                    if left > 0 {
                        self.state = State::Skip { answer, left };
                        return Ok(None);
                    }
                    self.answer(answer);
                }
                State::Tls { reported: false } => {
                    self.state = State::Tls { reported: true };
                    return Ok(Some(Event::StartTls));
                }
                State::Aborted { reported: false } => {
                    self.state = State::Aborted { reported: true };
                    return Ok(Some(Event::Aborted));
                }
                State::Ready { reported: false } => {
                    self.state = State::Ready { reported: true };
                    return Ok(Some(Event::Ready));
                }
                State::Asked(_)
                | State::Tls { reported: true }
                | State::Aborted { reported: true }
                | State::Ready { reported: true } => return Ok(None),
            }
        }
    }

    fn client_flags(&mut self, flags: ClientFlags) -> Result<(), Error> {
        let offered = |offer, flag| match offer {
            true => flag,
            false => ClientFlags::NONE,
        };
        let known = offered(self.offer.fixed, ClientFlags::FIXED_NEWSTYLE)
            | offered(self.offer.no_zeroes, ClientFlags::NO_ZEROES);
        if !flags.difference(known).is_empty() {
            return Err(Violation::ClientFlags(flags).into());
        }
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.agreed.style = match flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            true => Style::FixedNewstyle,
            false => Style::Newstyle,
        };
        self.state = State::Option;
        Ok(())
    }

    /// Takes an option: its header and data together, or its header alone
    /// where the data does not matter.
    fn option<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        let mut rest = *input;
        self.want = OptionHeader::SIZE;
        let Some(header) = OptionHeader::decode(&mut rest)? else {
            return Ok(None);
        };
        let option = header.option;
        let length = clip(u64::from(header.length));
        let request = match self.judge(header)? {
            Verdict::Skip(reply, message) => {
                self.begin(option);
                *input = rest;
                let answer = Answer {
                    option,
                    reply,
                    message,
                };
                let left = header.length;
                self.state = State::Skip { answer, left };
                return Ok(None);
            }
            Verdict::Take => {
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
        if option == OptionType::SET_META_CONTEXT {
            self.agreed.contexts = Contexts::new();
        }
    }

    fn apply<'i>(&mut self, request: OptionRequest<'i>) -> Result<Option<Event<'i>>, Error> {
        let option = request.option();
        let mut inquiry = Inquiry {
            option,
            export: "",
            requests: [].as_slice().into(),
            queries: Queries::NONE,
        };
        let name = match request {
            OptionRequest::List => {
                self.ask(&inquiry);
                return Ok(Some(Event::List));
            }
            OptionRequest::StructuredReply => {
                self.agreed.framing = Framing::Structured;
                return Ok(self.acknowledge(option));
            }
            OptionRequest::ExtendedHeaders => {
                self.agreed.framing = Framing::Extended;
                return Ok(self.acknowledge(option));
            }
            OptionRequest::StartTls => {
                // Whatever was said in plain text was never said.
                self.agreed.forget();
                return Ok(self.acknowledge(option));
            }
            OptionRequest::ExportName(name) => {
                inquiry.export = name.to_str().map_err(Violation::ExportName)?;
                self.ask(&inquiry);
                return Ok(Some(Event::Export(inquiry)));
            }
            OptionRequest::Info(request) | OptionRequest::Go(request) => {
                inquiry.requests = request.requests;
                request.export
            }
            OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request) => {
                if !request.queries.iter().all(is_query) {
                    self.answer(Answer::invalid(option, "a query is namespace:leaf"));
                    return Ok(None);
                }
                inquiry.queries = request.queries;
                request.export
            }
            // Unknown options and ABORT were skipped.
            OptionRequest::Abort | OptionRequest::Other { .. } => return Ok(None),
        };
        let Ok(name) = name.to_str() else {
            self.answer(Answer::invalid(option, "the export's name is no string"));
            return Ok(None);
        };
        inquiry.export = name;
        self.ask(&inquiry);
        Ok(Some(match option {
            OptionType::INFO | OptionType::GO => Event::Export(inquiry),
            _ => Event::MetaContexts(inquiry),
        }))
    }

    /// From here on the caller's answer is due.
    fn ask(&mut self, inquiry: &Inquiry<'_>) {
        self.state = State::Asked(Asked {
            option: inquiry.option,
            block_sizes: inquiry.wants(InfoType::BLOCK_SIZE),
            name: Name::of(Text::from(inquiry.export)),
        });
    }

    fn acknowledge<'i>(&mut self, option: OptionType) -> Option<Event<'i>> {
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
            (OptionType::STARTTLS, OptionReplyType::ACK) => State::Tls { reported: false },
            _ => State::Option,
        };
        self.want = OptionHeader::SIZE;
        self.pending = Some(Pending::Answer(answer));
    }
}

fn put_whole(bytes: &[u8], sink: &mut dyn Sink) -> Result<usize, EncodeError> {
    let needed = bytes.len();
    if sink.room() < needed {
        return Err(EncodeError::NoRoom { needed });
    }
    sink.put(bytes);
    Ok(needed)
}
