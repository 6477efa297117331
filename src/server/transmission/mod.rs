//! Transmission, server side: requests in, as tokens (specification,
//! "Transmission").

mod validate;

use self::validate::{Fault, Header, Rules};
use super::request::{
    BlockStatus32, BlockStatus64, Cache, ContextSet, Flush, Read, Reply, Request, Resize, Ticket,
    Trim, Write, WriteZeroes,
};
use crate::error::{Error, Misuse, Violation};
use crate::limits::Limits;
use crate::need::Need;
use crate::negotiated::{Framing, Negotiated, Width};
use crate::wire::bytes::{clip, front, judge_magic, take_slice, wide};
use crate::wire::number::{Command, Cookie, ErrorValue};
use crate::wire::request::{
    BlockStatusPayload, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, REQUEST_MAGIC,
};

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'i> {
    /// A request, all of it: do it, and answer it.
    Request(Request),
    /// The data of a write begins. It comes as [`Data`](Self::Data), or is
    /// read directly as [`need`](Transmission::need) says; behind the last of
    /// it the write itself comes as [`Request`](Self::Request).
    Payload {
        /// The request.
        cookie: Cookie,
        /// Where it belongs, in bytes from the start of the export.
        offset: u64,
        /// How much it is, in bytes; at most the maximum payload.
        length: u32,
    },
    /// Data of a write, or a part of it.
    Data {
        /// The request.
        cookie: Cookie,
        /// Where it belongs, in bytes from the start of the export.
        offset: u64,
        /// As much of it as the input held.
        data: &'i [u8],
    },
    /// A request that breaks the rules, or comes during shutdown: write the
    /// reply. There is nothing else to do.
    Rejected {
        /// What was to be done.
        command: Command,
        /// What the client is told.
        error: ErrorValue,
        /// Ready to be written.
        reply: Reply<'static>,
    },
    /// The client says goodbye: answer what is in flight and close the
    /// connection. Nothing is received any more.
    Disconnect,
}

/// Where in the stream of requests the input is.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Before a header.
    Header,
    /// In the data of a write; `left` and `offset` in bytes.
    Payload {
        ticket: Ticket,
        left: u64,
        offset: u64,
    },
    /// In a payload that nobody wants.
    Drain {
        header: Header,
        fault: Fault,
        left: u64,
    },
    /// Behind `DISC`.
    Disconnected,
}

/// The server's side of the transmission phase.
///
/// Offer what arrives to [`receive`](Self::receive) until it wants more; or
/// ask [`need`](Self::need) and read exactly that. The requests it hands out
/// make their own replies; it keeps no account of them.
#[derive(Debug)]
pub struct Transmission {
    rules: Rules,
    state: State,
    /// How much of the next header must be there, as far as it is known.
    want: usize,
    failed: Option<Error>,
}

impl Transmission {
    /// Starts where a handshake ended.
    ///
    /// # Errors
    ///
    /// [`Misuse::Context`] for a context whose id is not below 32, which no
    /// [`Handshake`](super::Handshake) makes.
    pub fn new(negotiated: Negotiated, limits: Limits) -> Result<Self, Misuse> {
        for context in negotiated.contexts.iter() {
            if ContextSet::of(context.id).is_empty() {
                return Err(Misuse::Context(context.id));
            }
        }
        Ok(Self {
            rules: Rules {
                largest: negotiated.size,
                export: negotiated,
                limits,
                shutting_down: false,
            },
            state: State::Header,
            want: header_size(negotiated.framing),
            failed: None,
        })
    }

    /// What was agreed on, and what requests are judged by; the size follows a
    /// successful resize.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.rules.export
    }

    /// From now on every request is answered `ESHUTDOWN`. Those handed out
    /// before can be done, or failed with it.
    pub fn shut_down(&mut self) {
        self.rules.shutting_down = true;
    }

    /// Answers a resize that is done: from now on requests are judged by the
    /// new size.
    pub fn resized(&mut self, resize: Resize) -> Reply<'static> {
        self.rules.export.size = resize.size();
        self.rules.largest = self.rules.largest.max(resize.size());
        resize.0.success()
    }

    /// Takes the next event out of `input`, which is advanced past what was
    /// consumed.
    ///
    /// `Ok(None)` means that what is left is incomplete: offer it again with
    /// more behind it. An event may be due without any input (the write behind
    /// a payload that was read directly), so call it until it returns `None`
    /// before reading.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call says the same.
    #[inline]
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.step(input);
        if let Err(error) = &result {
            self.failed = Some(*error);
        }
        result
    }

    /// Says that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if it did not say goodbye with `DISC`. Later calls
    /// say the same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.failed = Some(Error::Closed);
        match self.state {
            State::Disconnected => Ok(()),
            _ => Err(Error::Closed),
        }
    }

    /// What to read next.
    #[inline]
    pub fn need(&self) -> Need {
        if self.failed.is_some() {
            return Need::Nothing;
        }
        match self.state {
            State::Header => Need::Header(self.want),
            State::Payload { left: 0, .. } => Need::Header(0),
            State::Payload {
                ticket,
                left,
                offset,
            } => Need::Payload {
                cookie: ticket.cookie,
                offset,
                length: left,
            },
            State::Drain { left, .. } => Need::Header(clip(left)),
            State::Disconnected => Need::Nothing,
        }
    }

    /// Says that the next `n` bytes of the payload that [`need`](Self::need)
    /// told of were read into their place.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if `n` is more than the payload still has.
    #[inline]
    pub fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        if let Some(error) = self.failed {
            return Err(Misuse::Failed(error));
        }
        let (left, offset) = match &mut self.state {
            State::Payload { left, offset, .. } => (left, offset),
            _ if n == 0 => return Ok(()),
            _ => return Err(Misuse::TooMuchPayload { expected: 0 }),
        };
        let Some(rest) = left.checked_sub(n) else {
            return Err(Misuse::TooMuchPayload { expected: *left });
        };
        *left = rest;
        *offset = offset.saturating_add(n);
        Ok(())
    }

    #[inline]
    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        match self.state {
            State::Header => self.header(input),
            State::Payload {
                ticket, left: 0, ..
            } => {
                self.next();
                Ok(Some(Event::Request(Request::Write(Write(ticket)))))
            }
            State::Payload {
                ticket,
                left,
                offset,
            } => {
                let data = take_up_to(input, left);
                if data.is_empty() {
                    return Ok(None);
                }
                let taken = wide(data.len());
                self.state = State::Payload {
                    ticket,
                    left: left.saturating_sub(taken),
                    offset: offset.saturating_add(taken),
                };
                Ok(Some(Event::Data {
                    cookie: ticket.cookie,
                    offset,
                    data,
                }))
            }
            State::Drain {
                header,
                fault,
                left,
            } => Ok(self.drain(header, fault, left, input)),
            State::Disconnected => Ok(None),
        }
    }

    /// Back to where a header is due.
    fn next(&mut self) {
        self.state = State::Header;
        self.want = header_size(self.rules.export.framing);
    }

    /// Skips what belongs to a request that was rejected, exactly.
    fn drain<'i>(
        &mut self,
        header: Header,
        fault: Fault,
        left: u64,
        input: &mut &'i [u8],
    ) -> Option<Event<'i>> {
        let taken = wide(take_up_to(input, left).len());
        let left = left.saturating_sub(taken);
        if left > 0 {
            self.state = State::Drain {
                header,
                fault,
                left,
            };
            return None;
        }
        self.next();
        let Fault { error, text } = fault;
        Some(Event::Rejected {
            command: header.command,
            error,
            reply: self.ticket(&header).error(error, None, true, text),
        })
    }

    #[inline]
    fn header<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        let mut rest = *input;
        let Some(header) = self.decode(&mut rest)? else {
            return Ok(None);
        };
        if self.rules.is_plain_read(&header) {
            *input = rest;
            let ticket = self.ticket(&header);
            return Ok(Some(Event::Request(Request::Read(Read { ticket }))));
        }
        self.any_request(header, rest, input)
    }

    /// Judges a request that is not a read, or needs a second look.
    #[inline(never)]
    fn any_request<'i>(
        &mut self,
        header: Header,
        rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'i>>, Error> {
        if header.command == Command::DISC {
            *input = rest;
            self.state = State::Disconnected;
            return Ok(Some(Event::Disconnect));
        }
        self.rules.bound_payload(&header)?;
        let form = self.rules.check_form(&header);
        if header.command == Command::BLOCK_STATUS && header.payload > 0 && form.is_ok() {
            return Ok(self.filtered_status(header, rest, input));
        }
        *input = rest;
        match form.and_then(|()| self.rules.check_range(&header)) {
            Err(fault) => Ok(self.drain(header, fault, header.payload, input)),
            Ok(()) => Ok(Some(self.accept(&header, self.rules.contexts()))),
        }
    }

    /// The next header, if all of it is there.
    #[inline]
    fn decode(&self, input: &mut &[u8]) -> Result<Option<Header>, Error> {
        let header = match self.rules.export.framing {
            Framing::Extended => front(input, ExtendedRequest::parse).map(Header::from),
            _ => front(input, CompactRequest::parse).map(Header::from),
        };
        match header {
            Some(header) => Ok(Some(header)),
            None => self.judge_front(input).map(|()| None),
        }
    }

    /// What a header that is not there is: still to come, or no request. The
    /// other framing's magic number is named as such.
    #[inline(never)]
    fn judge_front(&self, input: &[u8]) -> Result<(), Error> {
        let negotiated = self.rules.export.framing;
        let (own, other, message) = match negotiated {
            Framing::Extended => (EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, "extended request"),
            _ => (REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC, "compact request"),
        };
        let other = other.to_be_bytes();
        match input.first_chunk::<4>() {
            Some(magic) if *magic == other => Err(Violation::OtherFraming { negotiated }.into()),
            None if other.starts_with(input) => Ok(()),
            _ => Ok(judge_magic(input, own, message)?),
        }
    }

    /// Block status for some of the contexts: header and payload are consumed
    /// together.
    fn filtered_status<'i>(
        &mut self,
        mut header: Header,
        mut rest: &'i [u8],
        input: &mut &'i [u8],
    ) -> Option<Event<'i>> {
        let length = clip(header.payload);
        let Some(payload) = take_slice(&mut rest, length) else {
            self.want = ExtendedRequest::SIZE.saturating_add(length);
            return None;
        };
        *input = rest;
        self.next();
        let judged = match BlockStatusPayload::decode(payload) {
            Ok(payload) => {
                header.length = payload.effect_length;
                let asked = self.rules.asked(&payload);
                asked.and_then(|asked| self.rules.check_range(&header).map(|()| asked))
            }
            Err(_) => Err(Fault::STATUS_PAYLOAD),
        };
        match judged {
            Err(fault) => self.drain(header, fault, 0, input),
            Ok(asked) => Some(self.accept(&header, asked)),
        }
    }

    /// A request that may be done.
    #[inline(never)]
    fn accept<'i>(&mut self, header: &Header, asked: ContextSet) -> Event<'i> {
        let ticket = self.ticket(header);
        let request = match header.command {
            Command::READ => Request::Read(Read { ticket }),
            Command::WRITE => return self.payload(ticket),
            Command::FLUSH => Request::Flush(Flush(ticket)),
            Command::TRIM => Request::Trim(Trim(ticket)),
            Command::CACHE => Request::Cache(Cache(ticket)),
            Command::WRITE_ZEROES => Request::WriteZeroes(WriteZeroes(ticket)),
            Command::RESIZE => Request::Resize(Resize(ticket)),
            _ => self.block_status(ticket, asked),
        };
        Event::Request(request)
    }

    #[inline(never)]
    fn payload<'i>(&mut self, ticket: Ticket) -> Event<'i> {
        let Ticket {
            cookie,
            offset,
            length,
            ..
        } = ticket;
        self.state = State::Payload {
            ticket,
            left: length,
            offset,
        };
        // A write is judged by the maximum payload before it is accepted.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        Event::Payload {
            cookie,
            offset,
            length,
        }
    }

    fn block_status(&self, ticket: Ticket, missing: ContextSet) -> Request {
        let contexts = self.rules.export.contexts.iter();
        let wide = contexts
            .filter(|context| context.width == Width::Wide)
            .fold(ContextSet::NONE, |set, context| set.with(context.id));
        match ticket.framing {
            Framing::Extended => Request::BlockStatus64(BlockStatus64 {
                ticket,
                missing,
                wide,
            }),
            _ => Request::BlockStatus32(BlockStatus32 {
                ticket,
                missing,
                wide,
            }),
        }
    }

    #[inline]
    fn ticket(&self, header: &Header) -> Ticket {
        let constraints = self.rules.export.constraints();
        Ticket {
            framing: self.rules.export.framing,
            flags: header.flags,
            minimum: constraints.minimum,
            maximum: constraints.maximum,
            cookie: header.cookie,
            offset: header.offset,
            length: header.length,
        }
    }
}

/// The size of a request's header.
const fn header_size(framing: Framing) -> usize {
    match framing {
        Framing::Extended => ExtendedRequest::SIZE,
        Framing::Simple | Framing::Structured => CompactRequest::SIZE,
    }
}

/// Takes as much as the input holds, at most `most` bytes.
#[inline]
fn take_up_to<'i>(input: &mut &'i [u8], most: u64) -> &'i [u8] {
    let n = clip(most).min(input.len());
    take_slice(input, n).unwrap_or_default()
}
