//! Replies on their way in: framing, chunk by chunk, each judged against its
//! command before it becomes an event.

use super::chunk::{self, Header, Next};
use super::slots::{Judgement, Slot, Slots};
use super::state::{Extents, Message, Part, State};
use super::transmission::{Event, Transmission};
use crate::error::{Error, Violation};
use crate::negotiated::{Framing, Width};
use crate::wire::DecodeError;
use crate::wire::bytes::{clip, take, take_slice, wide};
use crate::wire::extent::{Extents32, Extents64};
use crate::wire::flags::{CommandFlags, ReplyFlags};
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
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.step(input);
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    #[inline]
    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        if let State::Rest(part) = self.state {
            self.skip(part, input);
        }
        if let State::Header = self.state {
            match self.header(input)? {
                Next::State(state) => {
                    self.state = state;
                    // Of the header behind this one nothing is known yet.
                    self.want = self.least_header();
                }
                Next::Short(want) => {
                    self.want = want;
                    return Ok(None);
                }
            }
        }
        // A header is always followed by an event, or by input still to come.
        let event = match self.state {
            State::Header => return Ok(None),
            State::Data { .. } if input.is_empty() => return Ok(None),
            State::Data { part, offset } => self.data(part, offset, input),
            State::Hole {
                part,
                offset,
                length,
            } => {
                self.behind(part);
                Event::Hole {
                    cookie: part.cookie,
                    offset,
                    length,
                }
            }
            State::Done(cookie) => self.complete(cookie)?,
            State::Extents(extents) => return self.extents(extents, input),
            State::Message(message) => return self.message(message, input),
            State::Rest(_) => return Ok(None),
        };
        Ok(Some(event))
    }

    /// Leaves a part that has been delivered.
    #[inline]
    fn behind(&mut self, part: Part) {
        self.state = part.after();
    }

    /// The first bytes of a reply: the magic number tells its kind as soon as
    /// it is there.
    #[inline]
    fn header(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        let negotiated = self.export.framing;
        let Some(magic) = input.first_chunk::<4>() else {
            return judge_short_magic(input, negotiated).map(|()| Next::Short(self.least_header()));
        };
        let mut rest = *input;
        let header = match (u32::from_be_bytes(*magic), negotiated) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => {
                return self.simple_reply(input);
            }
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) => {
                let Some(header) = StructuredHeader::decode(&mut rest)? else {
                    return Ok(Next::Short(StructuredHeader::SIZE));
                };
                Header {
                    size: StructuredHeader::SIZE,
                    chunk: header.chunk,
                    cookie: header.cookie,
                    offset: None,
                    length: u64::from(header.length),
                    last: header.flags.contains(ReplyFlags::DONE),
                }
            }
            (EXTENDED_REPLY_MAGIC, Framing::Extended) => {
                let Some(header) = ExtendedHeader::decode(&mut rest)? else {
                    return Ok(Next::Short(ExtendedHeader::SIZE));
                };
                Header {
                    size: ExtendedHeader::SIZE,
                    chunk: header.chunk,
                    cookie: header.cookie,
                    offset: Some(header.offset),
                    length: header.length,
                    last: header.flags.contains(ReplyFlags::DONE),
                }
            }
            (SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC, _) => {
                return Err(Violation::OtherFraming { negotiated }.into());
            }
            _ => return Err(DecodeError::Magic { message: "reply" }.into()),
        };
        // Header and prefix are taken together, or not at all.
        let next = self.chunk(&header, &mut rest)?;
        if matches!(next, Next::State(_)) {
            *input = rest;
        }
        Ok(next)
    }

    #[inline]
    fn simple_reply(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        let Some(SimpleReply { error, cookie }) = SimpleReply::decode(input)? else {
            return Ok(Next::Short(SimpleReply::SIZE));
        };
        let framing = self.export.framing;
        let slot = find(&mut self.slots, cookie)?;
        let read = slot.command == Command::READ;
        if framing == Framing::Structured {
            let status = slot.command == Command::BLOCK_STATUS && !error.is_error();
            // A reply that began with chunks ends with one, or what they said
            // would be forgotten.
            let chunks = slot.error.is_error() || slot.missing != slot.asked;
            if read || status || chunks {
                return Err(Violation::SimpleReply(slot.command).into());
            }
        }
        slot.error = error;
        if !read || error.is_error() || slot.length == 0 {
            return Ok(Next::State(State::Done(cookie)));
        }
        let part = Part {
            cookie,
            left: slot.length,
            last: true,
        };
        let offset = slot.offset;
        Ok(Next::State(State::Data { part, offset }))
    }

    /// A chunk; `body` begins behind its header.
    #[inline]
    fn chunk(&mut self, header: &Header, body: &mut &[u8]) -> Result<Next, Error> {
        let framing = self.export.framing;
        if !chunk::width_agrees(header.chunk, framing) {
            return Err(Violation::OtherWidth {
                chunk: header.chunk,
                framing,
            }
            .into());
        }
        let slot = find(&mut self.slots, header.cookie)?;
        if header.offset.is_some_and(|offset| offset != slot.offset) {
            return Err(Violation::OtherOffset(header.cookie).into());
        }
        match (header.chunk, slot.command) {
            (ChunkType::OFFSET_DATA, Command::READ) => chunk::offset_data(slot, header, body),
            (ChunkType::OFFSET_HOLE, Command::READ) => chunk::offset_hole(slot, header, body),
            (ChunkType::NONE, _) => chunk::none(header),
            (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) => {
                chunk::block_status(slot, &self.export.contexts, &self.limits, header, body)
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
            (kind, _) if kind.is_error() => chunk::error(&self.limits, header, body),
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
        let (event, total, begins) = if extents.width == Width::Wide {
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
            let total = extents64.total()?;
            (event, total, extents64.last_begins(total))
        } else {
            let (extents32, _) = Extents32::split(bytes);
            let event = Event::Extents32 {
                cookie,
                context,
                offset,
                extents: extents32,
            };
            let total = extents32.total()?;
            (event, total, extents32.last_begins(total))
        };
        if slot.flags.contains(CommandFlags::REQ_ONE) && total > slot.length {
            return Err(Violation::NotOne(cookie).into());
        }
        // The last extent may reach beyond the request, none may begin there.
        let begins = extents.at.saturating_add(begins);
        if begins >= slot.length && slot.length > 0 {
            return Err(Violation::ExtentBeyond(cookie).into());
        }
        extents.at = extents.at.saturating_add(total);
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
    fn skip(&mut self, mut part: Part, input: &mut &[u8]) {
        part.take(input);
        match part.left {
            0 => self.behind(part),
            _ => self.state = State::Rest(part),
        }
    }

    /// Ends a command: judges whether a reply that claims success has earned
    /// it.
    #[inline]
    fn complete<'i>(&mut self, cookie: Cookie) -> Result<Event<'i>, Error> {
        let simple = self.export.framing == Framing::Simple;
        let slot = find(&mut self.slots, cookie)?;
        let result = match slot.error {
            ErrorValue::NONE => Ok(()),
            error => Err(error),
        };
        if result.is_ok() && !simple {
            if slot.command == Command::READ {
                match slot.coverage.judge(slot.end(), slot.length) {
                    Judgement::Complete => {}
                    Judgement::Incomplete => return Err(Violation::Incomplete(cookie).into()),
                    Judgement::Overlap => return Err(Violation::Overlap(cookie).into()),
                }
            }
            if slot.missing != 0 {
                return Err(Violation::MissingContext(cookie).into());
            }
        }
        if slot.command == Command::RESIZE {
            if result.is_ok() {
                self.export.size = slot.offset;
            }
            self.resizing = None;
        }
        self.slots.remove(cookie);
        self.state = State::Header;
        Ok(Event::Done { cookie, result })
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

/// Whether fewer than four bytes can still become the magic number of a reply.
fn judge_short_magic(input: &[u8], framing: Framing) -> Result<(), Error> {
    let like = |magic: u32| input.iter().zip(magic.to_be_bytes()).all(|(a, b)| *a == b);
    let good = match framing {
        Framing::Simple => like(SIMPLE_REPLY_MAGIC),
        Framing::Structured => like(SIMPLE_REPLY_MAGIC) || like(STRUCTURED_REPLY_MAGIC),
        Framing::Extended => like(EXTENDED_REPLY_MAGIC),
    };
    match good {
        true => Ok(()),
        // Another framing's magic number is named when all of it is there.
        false
            if [
                SIMPLE_REPLY_MAGIC,
                STRUCTURED_REPLY_MAGIC,
                EXTENDED_REPLY_MAGIC,
            ]
            .into_iter()
            .any(like) =>
        {
            Ok(())
        }
        false => Err(DecodeError::Magic { message: "reply" }.into()),
    }
}
