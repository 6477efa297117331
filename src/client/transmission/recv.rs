//! Replies on their way in: framing, chunk by chunk, each judged against its
//! command before it becomes an event.

use super::chunk::{self, Header, Taken};
use super::slots::{Slot, Slots};
use super::state::{Extents, Message, Part, State};
use super::{Event, Transmission};
use crate::coverage::Judgement;
use crate::error::{Error, Violation};
use crate::negotiated::{Framing, Width};
use crate::wire::DecodeError;
use crate::wire::bytes::{clip, front, take, take_slice, wide};
use crate::wire::extent::{Extents32, Extents64};
use crate::wire::flags::CommandFlags;
use crate::wire::number::{ChunkType, Command, Cookie, ErrorValue};
use crate::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};
use crate::wire::text::Text;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Takes the next event out of `input`, which is advanced past what was
    /// consumed.
    ///
    /// `Ok(None)` means that what is left is incomplete: offer it again with
    /// more behind it. An event may be due without any input (the completion
    /// behind a payload that was read directly), so call it until it returns
    /// `None` before reading.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call says the same.
    #[inline]
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        if let State::Header | State::Rest(_) = self.state
            && !self.header(input)
        {
            return Ok(None);
        }
        match self.state {
            State::Data { .. } if input.is_empty() => Ok(None),
            State::Done(cookie) => self.complete(cookie),
            _ => self.deliver(input),
        }
    }

    /// As [`header`](Self::header), the long way.
    #[inline(never)]
    pub(super) fn any_header(&mut self, input: &mut &[u8]) -> bool {
        if let State::Rest(part) = self.state {
            self.skip(part, input);
            match self.state {
                State::Header => {}
                State::Rest(_) => return false,
                _ => return true,
            }
        }
        if input.is_empty() {
            self.want = 0;
            return false;
        }
        match self.take_header(input) {
            Ok(Taken::Yes) => {
                self.want = 0;
                true
            }
            Ok(Taken::Short(want)) => {
                self.want = want;
                false
            }
            Err(error) => {
                self.fail(error);
                true
            }
        }
    }

    /// The next event behind a header.
    #[inline(never)]
    fn deliver<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        let result = match self.state {
            State::Data { part, offset } => return Ok(Some(self.data(part, offset, input))),
            State::Hole {
                part,
                offset,
                length,
            } => {
                self.behind(part);
                Ok(Some(Event::Hole {
                    cookie: part.cookie,
                    offset,
                    length,
                }))
            }
            State::Extents(extents) => self.extents(extents, input),
            State::Message(message) => self.message(message, input),
            State::Failed(error) => Err(error),
            State::Header | State::Rest(_) | State::Done(_) => Ok(None),
        };
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    /// Leaves a part that has been delivered.
    #[inline]
    fn behind(&mut self, part: Part) {
        self.state = part.after();
    }

    /// The header of a reply. It is always followed by an event, or by input
    /// still to come.
    #[inline]
    fn take_header(&mut self, input: &mut &[u8]) -> Result<Taken, Error> {
        let mut body = *input;
        let header = match self.export.framing {
            Framing::Simple => None,
            Framing::Structured => front(&mut body, StructuredHeader::parse).map(Header::from),
            Framing::Extended => front(&mut body, ExtendedHeader::parse).map(Header::from),
        };
        let Some(header) = header else {
            return self.simple_reply(input);
        };
        // Header and prefix are taken together, or not at all.
        let taken = self.chunk(&header, &mut body)?;
        if let Taken::Yes = taken {
            *input = body;
        }
        Ok(taken)
    }

    /// What is not a whole header of the framing agreed on: how long the one
    /// is that it can still become. The magic number tells the kind as soon as
    /// it is there.
    #[cold]
    fn judge_magic(&self, input: &[u8]) -> Result<usize, Error> {
        let negotiated = self.export.framing;
        let Some(magic) = input.first_chunk::<4>() else {
            return judge_short_magic(input).map(|()| self.least_header());
        };
        match (u32::from_be_bytes(*magic), negotiated) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => Ok(SimpleReply::SIZE),
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) => Ok(StructuredHeader::SIZE),
            (EXTENDED_REPLY_MAGIC, Framing::Extended) => Ok(ExtendedHeader::SIZE),
            (SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC, _) => {
                Err(Violation::OtherFraming { negotiated }.into())
            }
            _ => Err(DecodeError::Magic { message: "reply" }.into()),
        }
    }

    #[inline]
    fn simple_reply(&mut self, input: &mut &[u8]) -> Result<Taken, Error> {
        let framing = self.export.framing;
        let reply = match framing {
            Framing::Extended => None,
            Framing::Simple | Framing::Structured => front(input, SimpleReply::parse),
        };
        let Some(SimpleReply { error, cookie }) = reply else {
            return self.judge_magic(input).map(Taken::Short);
        };
        let slot = find(&mut self.slots, cookie)?;
        if framing == Framing::Structured {
            check_simple(slot, error)?;
        }
        slot.error = error;
        let data = slot.command == Command::READ && !error.is_error() && slot.length > 0;
        self.state = match data {
            true => State::Data {
                part: Part {
                    cookie,
                    left: slot.length,
                    last: true,
                },
                offset: slot.offset,
            },
            false => State::Done(cookie),
        };
        Ok(Taken::Yes)
    }

    /// A chunk; `body` begins behind its header.
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
        let state = &mut self.state;
        match (header.chunk, slot.command) {
            (ChunkType::OFFSET_DATA, Command::READ) => {
                chunk::offset_data(slot, header, body, state)
            }
            (ChunkType::OFFSET_HOLE, Command::READ) => {
                chunk::offset_hole(slot, header, body, state)
            }
            (ChunkType::NONE, _) => chunk::none(header, state),
            (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) => {
                let contexts = &self.export.contexts;
                chunk::block_status(slot, contexts, &self.limits, header, body, state)
            }
            (
                ChunkType::OFFSET_DATA
                | ChunkType::OFFSET_HOLE
                | ChunkType::BLOCK_STATUS
                | ChunkType::BLOCK_STATUS_EXT,
                command,
            ) => Err(Violation::UnexpectedChunk {
                chunk: header.chunk,
                command,
            }
            .into()),
            (kind, _) if kind.is_error() => chunk::error(&self.limits, header, body, state),
            (kind, _) => Err(Violation::UnknownChunk(kind).into()),
        }
    }

    /// Delivers as much of the data of a read as the input holds.
    #[inline]
    fn data<'i>(&mut self, mut part: Part, offset: u64, input: &mut &'i [u8]) -> Event<'i> {
        let data = part.take(input);
        if part.left == 0 {
            self.behind(part);
        } else {
            let offset = offset.saturating_add(wide(data.len()));
            self.state = State::Data { part, offset };
        }
        Event::Data {
            cookie: part.cookie,
            offset,
            data,
        }
    }

    /// Delivers as many whole descriptors as the input holds.
    fn extents<'i>(
        &mut self,
        mut extents: Extents,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'i>>, Error> {
        let (cookie, context) = (extents.cookie, extents.context);
        let size = extents.size();
        let left = usize::try_from(extents.left).unwrap_or(usize::MAX);
        let count = left.min(input.len().checked_div(size).unwrap_or(0));
        let Some(bytes) = take_slice(input, count.saturating_mul(size)).filter(|_| count > 0)
        else {
            return Ok(None);
        };
        let slot = find(&mut self.slots, cookie)?;
        let offset = slot.offset.saturating_add(extents.at);
        let (event, reach) = if extents.width == Width::Wide {
            let (extents64, _) = Extents64::split(bytes);
            if extents.status == Width::Narrow && extents64.any_wide_flags() {
                return Err(Violation::StatusTooWide(context).into());
            }
            let event = Event::Extents64 {
                cookie,
                context,
                offset,
                extents: extents64,
            };
            (event, extents64.reach()?)
        } else {
            let (extents32, _) = Extents32::split(bytes);
            let event = Event::Extents32 {
                cookie,
                context,
                offset,
                extents: extents32,
            };
            (event, extents32.reach()?)
        };
        if slot.flags.contains(CommandFlags::REQ_ONE) && reach.total > slot.length {
            return Err(Violation::NotOne(cookie).into());
        }
        // The last extent may reach beyond the request, none may begin there.
        let begins = extents.at.saturating_add(reach.last);
        if begins >= slot.length && slot.length > 0 {
            return Err(Violation::ExtentBeyond(cookie).into());
        }
        extents.at = extents.at.saturating_add(reach.total);
        extents.left = u32::try_from(left.saturating_sub(count)).unwrap_or(0);
        if extents.left == 0 {
            self.behind(Part {
                cookie,
                left: 0,
                last: extents.last,
            });
        } else {
            self.state = State::Extents(extents);
        }
        Ok(Some(event))
    }

    /// Delivers an error, with its message and offset when they are there.
    fn message<'i>(
        &mut self,
        mut message: Message,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'i>>, Error> {
        if message.skip {
            message.part.take(input);
            self.state = State::Message(message);
            if message.part.left > 0 {
                return Ok(None);
            }
        }
        let length = clip(message.part.left);
        if input.len() < length.saturating_add(message.tail()) {
            return Ok(None);
        }
        let text = Text::new(take_slice(input, length).unwrap_or_default());
        let offset = match message.offset {
            true => take::<8>(input).map(|bytes| u64::from_be_bytes(*bytes)),
            false => None,
        };
        let cookie = message.part.cookie;
        let slot = find(&mut self.slots, cookie)?;
        // Commands without a range have nothing an offset could lie in; for
        // them the chunk is an unexpected error, and an error all the same.
        let ranged = !matches!(slot.command, Command::FLUSH | Command::RESIZE) && slot.length > 0;
        let inside = |offset| offset >= slot.offset && offset < slot.end();
        if ranged && !offset.is_none_or(inside) {
            return Err(Violation::OutOfBounds(cookie).into());
        }
        if !slot.error.is_error() {
            slot.error = message.error;
        }
        let rest = Part {
            left: message.rest,
            ..message.part
        };
        match rest.left {
            0 => self.behind(rest),
            _ => self.state = State::Rest(rest),
        }
        Ok(Some(Event::Error {
            cookie,
            error: message.error,
            offset,
            message: (!message.skip).then_some(text),
        }))
    }

    /// Skips bytes without a meaning.
    #[cold]
    fn skip(&mut self, mut part: Part, input: &mut &[u8]) {
        part.take(input);
        match part.left {
            0 => self.behind(part),
            _ => self.state = State::Rest(part),
        }
    }

    /// Ends a command, the long way.
    #[inline(never)]
    pub(super) fn complete_any<'i>(&mut self, cookie: Cookie) -> Result<Option<Event<'i>>, Error> {
        match self.judge(cookie) {
            Ok(result) => {
                self.slots.remove(cookie);
                self.state = State::Header;
                Ok(Some(Event::Done { cookie, result }))
            }
            Err(error) => {
                self.fail(error);
                Err(error)
            }
        }
    }

    /// The result of a command: a reply that claims success must have earned
    /// it.
    #[inline]
    fn judge(&mut self, cookie: Cookie) -> Result<Result<(), ErrorValue>, Error> {
        let slot = find(&mut self.slots, cookie)?;
        let result = match slot.error {
            ErrorValue::NONE => Ok(()),
            error => Err(error),
        };
        match slot.command {
            // A simple reply is whole by its form.
            Command::READ if result.is_ok() && self.export.framing != Framing::Simple => {
                match slot.coverage.judge(slot.length) {
                    Judgement::Complete => {}
                    Judgement::Incomplete => return Err(Violation::Incomplete(cookie).into()),
                    Judgement::Overlap => return Err(Violation::Overlap(cookie).into()),
                }
            }
            Command::BLOCK_STATUS if result.is_ok() && slot.missing != 0 => {
                return Err(Violation::MissingContext(cookie).into());
            }
            Command::RESIZE => {
                let size = slot.offset;
                self.resized(result.is_ok().then_some(size));
            }
            _ => {}
        }
        Ok(result)
    }
}

#[inline]
fn find<S: AsRef<[Slot]> + AsMut<[Slot]>>(
    slots: &mut Slots<S>,
    cookie: Cookie,
) -> Result<&mut Slot, Error> {
    slots
        .find(cookie)
        .ok_or(Error::Violation(Violation::UnknownCookie(cookie)))
}

/// Whether a command may have a simple reply where there are structured ones.
fn check_simple(slot: &Slot, error: ErrorValue) -> Result<(), Error> {
    let read = slot.command == Command::READ;
    let status = slot.command == Command::BLOCK_STATUS && !error.is_error();
    // A reply that began with chunks ends with one, or what they said would be
    // forgotten.
    let chunks = slot.error.is_error() || slot.missing != slot.asked;
    match read || status || chunks {
        true => Err(Violation::SimpleReply(slot.command).into()),
        false => Ok(()),
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

/// Whether fewer than four bytes can still become the magic number of a reply.
/// Another framing's is named as such when all of it is there.
fn judge_short_magic(input: &[u8]) -> Result<(), Error> {
    let like = |magic: u32| input.iter().zip(magic.to_be_bytes()).all(|(a, b)| *a == b);
    let magics = [
        SIMPLE_REPLY_MAGIC,
        STRUCTURED_REPLY_MAGIC,
        EXTENDED_REPLY_MAGIC,
    ];
    match magics.into_iter().any(like) {
        true => Ok(()),
        false => Err(DecodeError::Magic { message: "reply" }.into()),
    }
}
