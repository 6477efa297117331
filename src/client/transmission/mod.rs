//! Transmission, client side: commands out, replies in (specification,
//! "Transmission").

mod capabilities;
mod chunk;
mod recv;
mod slots;
mod state;
mod straight;

use self::capabilities::Accepted;
use self::slots::Slots;
pub use self::slots::{Slot, slot_index};
use self::state::State;
use super::request::{Head, Request};
use crate::error::{Error, Misuse};
use crate::limits::Limits;
use crate::need::Need;
use crate::negotiated::{Framing, Negotiated};
use crate::wire::EncodeError;
use crate::wire::Sink;
use crate::wire::extent::{Extents32, Extents64};
use crate::wire::flags::{CommandFlags, TransmissionFlags};
use crate::wire::number::{Command, ContextId, Cookie, ErrorValue};
use crate::wire::reply::{ExtendedHeader, SimpleReply};
use crate::wire::request::BlockStatusPayload;
use crate::wire::text::Text;

/// What a reply says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'i> {
    /// Data of a read, or a part of it.
    Data {
        /// The command.
        cookie: Cookie,
        /// Where it belongs, in bytes from the start of the export.
        offset: u64,
        /// As much of it as the input held.
        data: &'i [u8],
    },
    /// A part of a read that is all zeroes.
    Hole {
        /// The command.
        cookie: Cookie,
        /// Where it begins, in bytes from the start of the export.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// Narrow block status (structured replies): as many whole extents as the
    /// input held. The next ones of the same chunk follow behind them.
    Extents32 {
        /// The command.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where the first of them begins, in bytes from the start of the
        /// export.
        offset: u64,
        /// The extents, one behind the other; none is empty.
        extents: Extents32<'i>,
    },
    /// Wide block status (extended headers), as [`Extents32`](Self::Extents32).
    Extents64 {
        /// The command.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where the first of them begins, in bytes from the start of the
        /// export.
        offset: u64,
        /// The extents, one behind the other; none is empty.
        extents: Extents64<'i>,
    },
    /// The server reports an error; the command will complete with the first
    /// one. (An error without text or place comes with [`Done`](Self::Done)
    /// only.)
    Error {
        /// The command.
        cookie: Cookie,
        /// What happened.
        error: ErrorValue,
        /// Where, in bytes from the start of the export, if the server said.
        offset: Option<u64>,
        /// For people; `None` if it was longer than
        /// [`Limits::error_message`] and skipped.
        message: Option<Text<'i>>,
    },
    /// The command is complete. Comes exactly once for each command.
    ///
    /// A client that gets `ESHUTDOWN` must disconnect softly:
    /// [`Transmission::disconnect`].
    Done {
        /// The command.
        cookie: Cookie,
        /// Whether it succeeded; else the first error that was reported.
        result: Result<(), ErrorValue>,
    },
}

/// The client's side of the transmission phase.
///
/// `S` is the table of commands in flight: `[Slot; N]`, `&mut [Slot]`,
/// `Vec<Slot>`.
///
/// Write what [`submit`](Self::submit) makes; offer what arrives to
/// [`receive`](Self::receive) until it wants more; or ask [`need`](Self::need)
/// and read exactly that.
#[derive(Debug)]
pub struct Transmission<S> {
    export: Negotiated,
    limits: Limits,
    slots: Slots<S>,
    state: State,
    /// How much of the next header must be there, where that is known to be
    /// more than the least.
    want: usize,
    /// The size a resize in flight asks for.
    resizing: Option<u64>,
    accepted: Accepted,
    lenient: bool,
    disconnected: bool,
}

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Starts where a handshake ended.
    pub fn new(negotiated: Negotiated, slots: S, limits: Limits) -> Self {
        Self {
            accepted: Accepted::new(&negotiated),
            export: negotiated,
            limits,
            slots: Slots::new(slots),
            state: State::Header,
            want: 0,
            resizing: None,
            lenient: false,
            disconnected: false,
        }
    }

    /// For testers of servers: from now on commands are not checked against
    /// what the server advertised. Only what the framing cannot express is
    /// refused. Replies are judged as ever.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// What was agreed on; the size follows a successful resize.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.export
    }

    /// How many commands are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Makes a command.
    ///
    /// Write [`Head::as_bytes`], and right behind it
    /// [`Head::payload_length`] bytes of payload.
    ///
    /// # Errors
    ///
    /// [`Misuse`] for what the server did not advertise, what is misaligned,
    /// beyond the export or above the maximum payload (for reads too, with
    /// every framing), of length zero, or beyond what the framing can express;
    /// [`Misuse::Full`] if every slot is in flight. Nothing has changed.
    #[inline]
    pub fn submit(&mut self, request: Request) -> Result<Head, Misuse> {
        match self.accepted.data(&request) {
            true => self.start(&request, 0, payload(&request)),
            false => self.submit_any(&request),
        }
    }

    /// As [`submit`](Self::submit), for what carries no data, or needs a second
    /// look.
    #[inline(never)]
    fn submit_any(&mut self, request: &Request) -> Result<Head, Misuse> {
        let asked = self.judge_command(request)?;
        self.start_any(request, asked, payload(request))
    }

    /// Judges a command. Returns one bit for each context that is to be
    /// answered.
    fn judge_command(&mut self, request: &Request) -> Result<u32, Misuse> {
        self.check(request)?;
        request.check_fields(self.export.framing)?;
        match request.command {
            Command::BLOCK_STATUS => return Ok(self.export.contexts.mask()),
            Command::RESIZE if self.slots.is_full() => return Err(Misuse::Full),
            Command::RESIZE => {
                self.resizing = Some(request.offset);
                self.accepted.reach = 0;
            }
            _ => {}
        }
        Ok(0)
    }

    /// Fills a slot for a command that was judged, with one bit for each
    /// context that is to be answered, and makes its header.
    #[inline]
    fn start(
        &mut self,
        request: &Request,
        asked: u32,
        payload: Option<u32>,
    ) -> Result<Head, Misuse> {
        let slot = Slot::new(request, asked);
        let cookie = self.slots.insert(slot).ok_or(Misuse::Full)?;
        Ok(request.encode(self.export.framing, payload, cookie))
    }

    /// As [`start`](Self::start), not made part of its callers: they are rare.
    #[inline(never)]
    fn start_any(
        &mut self,
        request: &Request,
        asked: u32,
        payload: Option<u32>,
    ) -> Result<Head, Misuse> {
        self.start(request, asked, payload)
    }

    /// Makes a block status command for some of the selected contexts, whose
    /// payload is written into `payload`.
    ///
    /// Needs extended headers and a server with `BLOCK_STATUS_PAYLOAD`. Flags:
    /// `REQ_ONE`.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit), and [`Misuse::Context`] for contexts that
    /// were not selected or are named twice, [`Misuse::NoContext`] for none.
    pub fn block_status_of(
        &mut self,
        contexts: &[ContextId],
        offset: u64,
        length: u64,
        flags: CommandFlags,
        payload: &mut dyn Sink,
    ) -> Result<Head, Misuse> {
        let request = Request::block_status(offset, length).with(flags);
        self.check(&request)?;
        let supported = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        if !self.lenient && !self.export.flags.contains(supported) {
            return Err(Misuse::Flag);
        }
        let asked = self.ask(contexts)?;
        if self.slots.is_full() {
            return Err(Misuse::Full);
        }
        let bytes = u32::try_from(contexts.len())
            .ok()
            .and_then(|n| n.checked_mul(4)?.checked_add(8))
            .ok_or(EncodeError::TooLong)?;
        let framing = self.export.framing;
        if framing != Framing::Extended {
            return Err(Misuse::NotExpressible { framing });
        }
        BlockStatusPayload {
            effect_length: length,
            contexts: contexts.into(),
        }
        .encode(payload)?;
        self.start_any(&request, asked, Some(bytes))
    }

    /// Makes the command that ends the session. It has no reply; nothing can
    /// be sent after it. It is better to wait first until nothing is in
    /// flight.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if it was sent already, or the session is over.
    pub fn disconnect(&mut self) -> Result<Head, Misuse> {
        self.check_open()?;
        let request = Request {
            command: Command::DISC,
            flags: CommandFlags::NONE,
            offset: 0,
            length: 0,
        };
        self.disconnected = true;
        self.accepted.reach = 0;
        Ok(request.encode(self.export.framing, None, Cookie(0)))
    }

    /// Says that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if commands are in flight or a reply is incomplete;
    /// [`abandon`](Self::abandon) names them. Later calls say the same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        let idle = match self.state {
            State::Failed(error) => return Err(error),
            State::Header => self.slots.in_flight() == 0,
            _ => false,
        };
        self.fail(Error::Closed);
        match idle {
            true => Ok(()),
            false => Err(Error::Closed),
        }
    }

    /// After the session is over: a command that will never be answered, and
    /// `None` when there is no more. Together with the `Done` events this
    /// accounts for every command exactly once.
    pub fn abandon(&mut self) -> Option<Cookie> {
        let State::Failed(_) = self.state else {
            return None;
        };
        let (cookie, _) = self.slots.iter().next()?;
        self.slots.remove(cookie);
        Some(cookie)
    }

    /// What to read next.
    #[inline]
    pub fn need(&self) -> Need {
        self.state.need(self.want.max(self.least_header()))
    }

    /// Says that the next `n` bytes of the payload that [`need`](Self::need)
    /// told of were read into their place.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if `n` is more than the payload still has.
    #[inline]
    pub fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        self.state.advance(n)
    }

    /// The session is over.
    #[cold]
    fn fail(&mut self, error: Error) {
        self.state = State::Failed(error);
        self.accepted.reach = 0;
    }

    fn check_open(&self) -> Result<(), Misuse> {
        if let State::Failed(error) = self.state {
            return Err(Misuse::Failed(error));
        }
        match self.disconnected {
            true => Err(Misuse::State("the session was ended by disconnect")),
            false => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Misuse> {
        self.check_open()?;
        if request.command == Command::DISC {
            return Err(Misuse::State("use disconnect to end the session"));
        }
        if self.lenient {
            return Ok(());
        }
        match self.resizing {
            None => self.accepted.check(request, self.export.size)?,
            // Neither what goes away nor what is not there yet.
            Some(size) => self.accepted.check(request, size.min(self.export.size))?,
        }
        match request.command {
            Command::RESIZE => self.check_resize(request.offset),
            _ => Ok(()),
        }
    }

    /// A resize excludes another one, and commands behind the new end.
    fn check_resize(&self, size: u64) -> Result<(), Misuse> {
        let cut = self.slots.iter().any(|(_, slot)| slot.end() > size);
        match cut || self.resizing.is_some() {
            true => Err(Misuse::Resizing),
            false => Ok(()),
        }
    }

    /// A resize is done: the new size, if it was granted.
    #[cold]
    fn resized(&mut self, size: Option<u64>) {
        self.export.size = size.unwrap_or(self.export.size);
        self.resizing = None;
        if !self.disconnected {
            self.accepted.reach = self.export.size;
        }
    }

    /// One bit for each of these contexts.
    fn ask(&self, contexts: &[ContextId]) -> Result<u32, Misuse> {
        let mut asked = 0;
        for id in contexts {
            match self.export.contexts.bit(*id) {
                Some((bit, _)) if asked & bit == 0 => asked |= bit,
                Some((bit, _)) if self.lenient => asked |= bit,
                None if self.lenient => {}
                _ => return Err(Misuse::Context(*id)),
            }
        }
        if contexts.is_empty() && !self.lenient {
            return Err(Misuse::NoContext);
        }
        Ok(asked)
    }

    /// The fewest bytes that a header of this framing has.
    #[inline]
    fn least_header(&self) -> usize {
        match self.export.framing {
            Framing::Simple | Framing::Structured => SimpleReply::SIZE,
            Framing::Extended => ExtendedHeader::SIZE,
        }
    }
}

/// How much payload follows a command that was judged: then a write has 32
/// bits of it.
#[inline]
fn payload(request: &Request) -> Option<u32> {
    match request.command {
        Command::WRITE => Some(u32::try_from(request.length).unwrap_or(u32::MAX)),
        _ => None,
    }
}
