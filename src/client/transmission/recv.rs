//! Replies: received chunk by chunk, and checked against their commands before
//! they become events. The fast path is above the slow path.

use super::chunk::{self, Header, Rules, Taken};
use super::faults::tolerated;
use super::slots::{Slot, Slots};
use super::state::{End, Part, State};
use super::{Transmission, TransmissionEvent};
use crate::error::{Error, Violation};
use crate::features;
use crate::negotiated::Framing;
use crate::step::{Content, Step};
use crate::wire::bytes::{clip, find_magic, take, take_header, take_slice, take_up_to, wide};
use crate::wire::number::{Command, Cookie, ErrorValue};
use crate::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};
use crate::wire::text::Text;

pub(super) type ClientStep<'i> = Step<TransmissionEvent<'i>, &'i [u8]>;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call returns the same.
    #[inline(always)]
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<ClientStep<'i>, Error> {
        if let State::Header = self.state {
            match self.whole_read(input) {
                Some(step) if input.is_empty() => return Ok(step),
                Some(_) => {}
                None => self.header(input),
            }
        }
        if !features::SMALL
            && let State::Success(cookie) = self.state
        {
            self.slots.remove(cookie);
            self.state = State::Header;
            let result = Ok(());
            return Ok(Step::Event(TransmissionEvent::Done { cookie, result }));
        }
        // One call, so that the two steps above stay in registers.
        self.deliver(input)
    }

    /// Fast path: the data of a read in one piece, which succeeds with it. Takes
    /// the header, and returns the step while none of the data has arrived.
    ///
    /// What is taken here, [`header`](Self::header) would take as well, with the
    /// same outcome. Of anything else nothing is taken and nothing has changed.
    #[inline(always)]
    fn whole_read<'i>(&mut self, input: &mut &[u8]) -> Option<ClientStep<'i>> {
        // What is lenient can be empty, and can end past 2^64.
        if features::SMALL || self.lenient {
            return None;
        }
        let mut rest = *input;
        let slot = match self.export.framing.compiled() {
            Framing::Simple => {
                let cookie = take_header(&mut rest, SimpleReply::parse_success)?;
                self.slots.find(cookie)?
            }
            framing => {
                let data = match framing {
                    Framing::Extended => take_header(&mut rest, ExtendedHeader::parse_last_data)?,
                    _ => take_header(&mut rest, StructuredHeader::parse_last_data)?,
                };
                let slot = self.slots.find(data.cookie)?;
                // The length of a chunk includes the offset.
                let whole = slot.length.wrapping_add(8);
                if data.offset != slot.offset || data.length != whole {
                    return None;
                }
                slot
            }
        };
        if !slot.is_unread() {
            return None;
        }
        let (cookie, offset, left) = (slot.cookie(), slot.offset, slot.length);
        *input = rest;
        let end = End::Success;
        let part = Part { cookie, left, end };
        self.state = State::Data { part, offset };
        Some(Step::ReadPayload {
            cookie,
            offset,
            length: left,
        })
    }

    /// Slow path of [`whole_read`](Self::whole_read). Takes a header, or
    /// discards what is before it, and leaves in the state what follows, the
    /// failure of the session included. The state stays where it is if more
    /// input is needed.
    #[inline(never)]
    fn header(&mut self, input: &mut &[u8]) {
        if features::STRUCTURED
            && let State::Discard(part) = self.state
        {
            self.state = part.discard_from(input);
        }
        let State::Header = self.state else {
            return;
        };
        self.want = self.least_header();
        if input.is_empty() {
            return;
        }
        match self.take_header(input) {
            Ok(Taken::Yes) => {}
            Ok(Taken::Short(needed)) => self.want = needed,
            Err(error) => self.fail(error),
        }
    }

    /// The step before a header that has not arrived whole: `held` bytes of it
    /// have.
    fn before_header<'i>(&self, held: usize) -> ClientStep<'i> {
        if self.disconnected && self.slots.in_flight() == 0 && held == 0 {
            return Step::Finished;
        }
        Step::read(self.want.saturating_sub(held))
    }

    /// The fewest bytes that a header of this framing has.
    #[inline]
    fn least_header(&self) -> usize {
        match self.export.framing.compiled() {
            Framing::Simple | Framing::Structured => SimpleReply::SIZE,
            Framing::Extended => ExtendedHeader::SIZE,
        }
    }

    /// `left` bytes in pieces that fit the buffer.
    fn read_piece<'i>(&self, left: u64) -> ClientStep<'i> {
        Step::read(clip(left).min(self.limits.buffer()))
    }

    /// What follows a header, or asks for one.
    #[inline(never)]
    fn deliver<'i>(&mut self, input: &mut &'i [u8]) -> Result<ClientStep<'i>, Error> {
        match self.state {
            State::Header if !features::SMALL => Ok(self.before_header(input.len())),
            State::Data { part, offset } if !features::SMALL && !input.is_empty() => {
                Ok(self.data(part, offset, input))
            }
            _ => self.deliver_slow(input),
        }
    }

    /// Slow path of [`deliver`](Self::deliver): what is neither data that has
    /// arrived nor a header.
    #[inline(never)]
    fn deliver_slow<'i>(&mut self, input: &mut &'i [u8]) -> Result<ClientStep<'i>, Error> {
        loop {
            match self.step(input) {
                Ok(Some(step)) => return Ok(step),
                Ok(None) => {}
                Err(error) => {
                    self.fail(error);
                    return Err(error);
                }
            }
        }
    }

    /// The next step in this state; `None` if only the state has changed. Not inlined, so
    /// that each branch writes its step to the place of the caller.
    #[inline(never)]
    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<ClientStep<'i>>, Error> {
        Ok(Some(match self.state {
            State::Header => self.before_header(input.len()),
            State::Data { part, offset } if input.is_empty() => Step::ReadPayload {
                cookie: part.cookie,
                offset,
                length: part.left,
            },
            State::Data { part, offset } => self.data(part, offset, input),
            State::Done(cookie) | State::Success(cookie) => return self.complete(cookie),
            State::Failed(error) => return Err(error),
            State::Ended => Step::Finished,
            // The other states are those of chunks.
            _ if !features::STRUCTURED => Step::Finished,
            State::Discard(part) if input.is_empty() => self.read_piece(part.left),
            // What is discarded has no step of its own.
            State::Discard(_) => {
                self.header(input);
                return Ok(None);
            }
            State::Hole {
                part,
                offset,
                length,
            } => {
                self.state = part.after();
                Step::Content(Content::Hole {
                    cookie: part.cookie,
                    offset,
                    length,
                })
            }
            State::Extents(_) => return self.extents(input),
            State::Fault { part, violation } => self.fault(part, violation.into(), input),
            State::Error(_) => return self.error_message(input),
        }))
    }

    /// The header of a reply. It is always followed by an event, by input still to
    /// come, or by a payload to discard.
    #[inline]
    fn take_header(&mut self, input: &mut &[u8]) -> Result<Taken, Error> {
        let mut body = *input;
        let header = match self.export.framing.compiled() {
            Framing::Simple => None,
            Framing::Structured => {
                take_header(&mut body, StructuredHeader::parse).map(Header::from)
            }
            Framing::Extended => take_header(&mut body, ExtendedHeader::parse).map(Header::from),
        };
        let Some(header) = header else {
            return self.simple_reply(input);
        };
        // Header and prefix are taken together, or not at all.
        let taken = match self.chunk(&header, &mut body) {
            Err(error) => return self.tolerate(&header, error, input),
            taken => taken?,
        };
        if let Taken::Yes = taken {
            *input = body;
        }
        Ok(taken)
    }

    /// The input is not a whole header of the negotiated framing: how many
    /// bytes the header has that it can still become. The magic number tells
    /// the kind as soon as it has arrived.
    #[cold]
    fn check_magic(&self, input: &[u8]) -> Result<usize, Error> {
        let negotiated = self.export.framing;
        let candidates = [
            SIMPLE_REPLY_MAGIC,
            STRUCTURED_REPLY_MAGIC,
            EXTENDED_REPLY_MAGIC,
        ];
        let Some(magic) = find_magic(input, &candidates, "reply")? else {
            return Ok(self.least_header());
        };
        match (magic, negotiated.compiled()) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => Ok(SimpleReply::SIZE),
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) => Ok(StructuredHeader::SIZE),
            (EXTENDED_REPLY_MAGIC, Framing::Extended) => Ok(ExtendedHeader::SIZE),
            _ => Err(Violation::OtherFraming { negotiated }.into()),
        }
    }

    #[inline]
    fn simple_reply(&mut self, input: &mut &[u8]) -> Result<Taken, Error> {
        let framing = self.export.framing.compiled();
        let reply = match framing {
            Framing::Extended => None,
            Framing::Simple | Framing::Structured => take_header(input, SimpleReply::parse),
        };
        let Some(SimpleReply { error, cookie }) = reply else {
            return self.check_magic(input).map(Taken::Short);
        };
        let slot = find(&mut self.slots, cookie)?;
        if framing == Framing::Structured {
            check_simple(slot, error, self.strict)?;
        }
        // The first error counts, also where it came in a chunk.
        if !slot.error.is_error() {
            slot.error = error;
        }
        let data = slot.command == Command::READ && !error.is_error() && slot.length > 0;
        self.state = if data {
            State::Data {
                part: Part {
                    cookie,
                    left: slot.length,
                    end: End::Last,
                },
                offset: slot.offset,
            }
        } else {
            slot.end(cookie)
        };
        Ok(Taken::Yes)
    }

    /// A chunk; `body` begins after its header.
    #[inline]
    fn chunk(&mut self, header: &Header, body: &mut &[u8]) -> Result<Taken, Error> {
        let framing = self.export.framing;
        if !chunk::width_agrees(header.chunk, framing) {
            return Err(Violation::OtherWidth {
                chunk: header.chunk,
                framing,
            }
            .into());
        }
        let slot = find_for(&mut self.slots, header)?;
        let rules = Rules {
            export: &self.export,
            limits: &self.limits,
            seed: &mut self.seed,
            strict: self.strict,
        };
        chunk::check(slot, rules, header, body, &mut self.state)
    }

    /// Delivers as much of the data of a read as the input holds.
    #[inline]
    fn data<'i>(&mut self, part: Part, offset: u64, input: &mut &'i [u8]) -> ClientStep<'i> {
        let data = take_up_to(input, part.left);
        // Never more than is left.
        let _ = self.state.advance(wide(data.len()));
        Step::Content(Content::Data {
            cookie: part.cookie,
            offset,
            data,
        })
    }

    /// Delivers an error, with its message and offset when they have arrived.
    fn error_message<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<ClientStep<'i>>, Error> {
        let State::Error(message) = &mut self.state else {
            return Ok(None);
        };
        if message.discard {
            let taken = wide(take_up_to(input, message.part.left).len());
            message.part.left = message.part.left.saturating_sub(taken);
            let left = message.part.left;
            if left > 0 {
                return Ok(Some(self.read_piece(left)));
            }
        }
        let message = *message;
        let length = clip(message.part.left);
        let needed = length.saturating_add(message.offset_size());
        if input.len() < needed {
            return Ok(Some(Step::read(needed.saturating_sub(input.len()))));
        }
        let text = Text::new(take_slice(input, length).unwrap_or_default());
        let mut offset = if message.offset {
            take::<8>(input).map(|bytes| u64::from_be_bytes(*bytes))
        } else {
            None
        };
        let cookie = message.part.cookie;
        let slot = find(&mut self.slots, cookie)?;
        if !slot.has_error_at(offset) {
            if self.strict {
                return Err(Violation::OutOfBounds(cookie).into());
            }
            offset = None;
        }
        if !slot.error.is_error() {
            slot.error = message.error;
        }
        let trailing = Part {
            left: message.trailing,
            ..message.part
        };
        self.state = trailing.discard();
        Ok(Some(Step::Event(TransmissionEvent::Error {
            cookie,
            error: message.error,
            offset,
            message: (!message.discard).then_some(text),
        })))
    }

    /// Ends a command with what its reply was.
    fn complete<'i>(&mut self, cookie: Cookie) -> Result<Option<ClientStep<'i>>, Error> {
        let result = match self.outcome(cookie) {
            Err(error) if !self.strict && tolerated(error).is_some() => {
                let (left, end) = (0, End::Last);
                return Ok(Some(self.fault(
                    Part { cookie, left, end },
                    error,
                    &mut &[][..],
                )));
            }
            result => result?,
        };
        self.slots.remove(cookie);
        self.state = State::Header;
        let done = TransmissionEvent::Done { cookie, result };
        Ok(Some(Step::Event(done)))
    }

    /// The result of a command. Success is only reported where the reply was
    /// complete.
    #[inline]
    fn outcome(&mut self, cookie: Cookie) -> Result<Result<(), ErrorValue>, Error> {
        let simple = self.export.framing.is_simple();
        let slot = find(&mut self.slots, cookie)?;
        let result = slot.outcome(cookie, simple, &mut self.seed)?;
        if features::RESIZE && slot.command == Command::RESIZE {
            let size = slot.offset;
            self.resized(result.is_ok().then_some(size));
        }
        Ok(result)
    }
}

#[inline]
pub(super) fn find<S: AsRef<[Slot]> + AsMut<[Slot]>>(
    slots: &mut Slots<S>,
    cookie: Cookie,
) -> Result<&mut Slot, Error> {
    slots
        .find(cookie)
        .ok_or(Error::Violation(Violation::UnknownCookie(cookie)))
}

/// Whether a command may have a simple reply where there are structured ones.
pub(crate) fn check_simple(slot: &Slot, error: ErrorValue, strict: bool) -> Result<(), Error> {
    let read = slot.command == Command::READ;
    let status = slot.command == Command::BLOCK_STATUS && !error.is_error();
    let chunks = slot.error.is_error() || slot.missing != slot.asked;
    let refused = if strict {
        read || status || chunks
    } else {
        // Whether data follows is not known.
        read && !error.is_error()
    };
    if refused {
        Err(Violation::SimpleReply(slot.command).into())
    } else {
        Ok(())
    }
}

/// The command that a chunk names; an extended header repeats its offset.
fn find_for<'s, S: AsRef<[Slot]> + AsMut<[Slot]>>(
    slots: &'s mut Slots<S>,
    header: &Header,
) -> Result<&'s mut Slot, Error> {
    let slot = find(slots, header.cookie)?;
    match header.offset {
        Some(offset) if offset != slot.offset => Err(Violation::OtherOffset(header.cookie).into()),
        _ => Ok(slot),
    }
}
