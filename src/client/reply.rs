//! Replies on their way in: framing, chunk by chunk, each judged against its
//! command before it becomes an event.

use super::slots::{Judgement, Slot};
use super::transmission::{Event, Transmission};
use crate::error::{Error, Misuse, Violation};
use crate::need::Need;
use crate::negotiated::{Framing, Width};
use crate::wire::DecodeError;
use crate::wire::bytes::{Fields, clip, take, take_slice, wide};
use crate::wire::chunk;
use crate::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use crate::wire::flags::{CommandFlags, ReplyFlags};
use crate::wire::number::{ChunkType, Command, ContextId, Cookie, ErrorValue};
use crate::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};
use crate::wire::text::Text;

/// Where in the stream of replies the input is.
#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    /// Before a header.
    Header,
    /// In the data of a read.
    Data { part: Part, offset: u64 },
    /// Among the descriptors of a status chunk; `left` in descriptors.
    Extents(Extents),
    /// In an error message that is too long to be delivered; an offset may
    /// follow, and bytes without a meaning.
    Message {
        part: Part,
        error: ErrorValue,
        offset: bool,
        rest: u64,
    },
    /// In bytes without a meaning, at the end of a chunk.
    Rest(Part),
    /// Behind the last chunk of a reply.
    Done(Cookie),
}

/// A part of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    cookie: Cookie,
    /// Bytes left.
    left: u64,
    /// The chunk is the last of its reply.
    last: bool,
}

impl Part {
    /// The state behind the chunk.
    fn after(self) -> State {
        match self.last {
            true => State::Done(self.cookie),
            false => State::Header,
        }
    }

    /// Takes as much as the input holds.
    fn take<'i>(&mut self, input: &mut &'i [u8]) -> &'i [u8] {
        let n = clip(self.left).min(input.len());
        let bytes = take_slice(input, n).unwrap_or_default();
        self.left = self.left.saturating_sub(wide(bytes.len()));
        bytes
    }
}

/// The descriptors of a status chunk that are still to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    cookie: Cookie,
    last: bool,
    context: ContextId,
    status: Width,
    /// Descriptors left.
    left: u32,
    /// Where the next extent begins, in bytes from the start of the request.
    at: u64,
}

impl State {
    #[inline]
    pub(super) fn need(&self, want: usize) -> Need {
        match *self {
            Self::Header => Need::Header(want),
            Self::Data { part, offset } => Need::Payload {
                cookie: part.cookie,
                offset,
                length: part.left,
            },
            Self::Extents(extents) => {
                let left = usize::try_from(extents.left).unwrap_or(usize::MAX);
                Need::Header(left.saturating_mul(want))
            }
            Self::Message { part, .. } | Self::Rest(part) if part.left > 0 => {
                Need::Header(clip(part.left))
            }
            Self::Message { offset: true, .. } => Need::Header(8),
            Self::Message { .. } | Self::Rest(_) | Self::Done(_) => Need::Header(0),
        }
    }

    #[inline]
    pub(super) fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        let Self::Data { part, offset } = self else {
            return match n {
                0 => Ok(()),
                _ => Err(Misuse::TooMuchPayload { expected: 0 }),
            };
        };
        let Some(left) = part.left.checked_sub(n) else {
            return Err(Misuse::TooMuchPayload {
                expected: part.left,
            });
        };
        part.left = left;
        *offset = offset.saturating_add(n);
        if left == 0 {
            *self = part.after();
        }
        Ok(())
    }
}

/// A chunk header of either framing.
struct Header {
    size: usize,
    chunk: ChunkType,
    cookie: Cookie,
    /// The offset it repeats, if it does.
    offset: Option<u64>,
    length: u64,
    last: bool,
}

impl Header {
    /// The whole payload as a part.
    fn part(&self, left: u64) -> Part {
        Part {
            cookie: self.cookie,
            left,
            last: self.last,
        }
    }
}

/// What a step found.
enum Step<'i> {
    Event(Event<'i>),
    /// Something was consumed: look again.
    Again,
    /// The input ends within a header and what belongs to it, which has so
    /// many bytes.
    Short(usize),
}

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
        match self.step_until_event(input) {
            Ok(event) => Ok(event),
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    fn step_until_event<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        loop {
            let step = match self.state {
                State::Header => match self.header(input)? {
                    Step::Short(want) => {
                        self.want = want;
                        return Ok(None);
                    }
                    step => step,
                },
                State::Data { part, offset } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    self.data(part, offset, input)
                }
                State::Extents(extents) => match self.extents(extents, input)? {
                    Step::Short(_) => return Ok(None),
                    step => step,
                },
                State::Message {
                    part,
                    error,
                    offset,
                    rest,
                } => match self.long_message(part, error, offset, rest, input)? {
                    Step::Short(_) => return Ok(None),
                    step => step,
                },
                State::Rest(mut part) => {
                    part.take(input);
                    if part.left > 0 {
                        self.state = State::Rest(part);
                        return Ok(None);
                    }
                    self.go(part.after())
                }
                State::Done(cookie) => Step::Event(self.complete(cookie)?),
            };
            if let Step::Event(event) = step {
                return Ok(Some(event));
            }
        }
    }

    /// Delivers as much of the data of a read as the input holds.
    #[inline]
    fn data<'i>(&mut self, mut part: Part, offset: u64, input: &mut &'i [u8]) -> Step<'i> {
        let data = part.take(input);
        self.state = match part.left {
            0 => part.after(),
            _ => State::Data {
                part,
                offset: offset.saturating_add(wide(data.len())),
            },
        };
        Step::Event(Event::Data {
            cookie: part.cookie,
            offset,
            data,
        })
    }

    fn go<'i>(&mut self, state: State) -> Step<'i> {
        self.state = state;
        self.want = self.least_header();
        Step::Again
    }

    /// Where the first bytes of a reply are: tells the framing by the magic
    /// number as soon as that is there.
    #[inline]
    fn header<'i>(&mut self, input: &mut &'i [u8]) -> Result<Step<'i>, Error> {
        let negotiated = self.export.framing;
        let Some(magic) = input.first_chunk::<4>() else {
            // Fewer than four bytes: as good as any of the framing.
            return judge_short_magic(input, negotiated).map(|()| Step::Short(self.least_header()));
        };
        match (u32::from_be_bytes(*magic), negotiated) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => self.simple_reply(input),
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) => {
                let mut rest = *input;
                let Some(header) = StructuredHeader::decode(&mut rest)? else {
                    return Ok(Step::Short(StructuredHeader::SIZE));
                };
                let header = Header {
                    size: StructuredHeader::SIZE,
                    chunk: header.chunk,
                    cookie: header.cookie,
                    offset: None,
                    length: u64::from(header.length),
                    last: header.flags.contains(ReplyFlags::DONE),
                };
                self.chunk(&header, rest, input)
            }
            (EXTENDED_REPLY_MAGIC, Framing::Extended) => {
                let mut rest = *input;
                let Some(header) = ExtendedHeader::decode(&mut rest)? else {
                    return Ok(Step::Short(ExtendedHeader::SIZE));
                };
                let header = Header {
                    size: ExtendedHeader::SIZE,
                    chunk: header.chunk,
                    cookie: header.cookie,
                    offset: Some(header.offset),
                    length: header.length,
                    last: header.flags.contains(ReplyFlags::DONE),
                };
                self.chunk(&header, rest, input)
            }
            (SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC, _) => {
                Err(Violation::OtherFraming { negotiated }.into())
            }
            _ => Err(DecodeError::Magic { message: "reply" }.into()),
        }
    }

    #[inline]
    fn simple_reply<'i>(&mut self, input: &mut &'i [u8]) -> Result<Step<'i>, Error> {
        let Some(SimpleReply { error, cookie }) = SimpleReply::decode(input)? else {
            return Ok(Step::Short(SimpleReply::SIZE));
        };
        let structured = self.export.framing == Framing::Structured;
        let slot = self.slot(cookie)?;
        let read = slot.command == Command::READ;
        let status = slot.command == Command::BLOCK_STATUS && !error.is_error();
        if structured && (read || status) {
            return Err(Violation::SimpleReply(slot.command).into());
        }
        if !slot.error.is_error() {
            // An error chunk that came before is not taken back.
            slot.error = error;
        }
        let (offset, length) = (slot.offset, slot.length);
        if !read || error.is_error() || length == 0 {
            return Ok(self.go(State::Done(cookie)));
        }
        // A simple reply is whole by its form: nothing to reassemble.
        let end = slot.end();
        let _ = slot.coverage.add(offset, end, length);
        let part = Part {
            cookie,
            left: length,
            last: true,
        };
        Ok(self.go(State::Data { part, offset }))
    }

    /// A chunk whose header is decoded and not consumed; `body` begins behind
    /// it. Header and prefix are consumed together, or not at all.
    #[inline]
    fn chunk<'i>(
        &mut self,
        header: &Header,
        body: &'i [u8],
        input: &mut &'i [u8],
    ) -> Result<Step<'i>, Error> {
        let framing = self.export.framing;
        let other_width = match header.chunk {
            ChunkType::BLOCK_STATUS => framing == Framing::Extended,
            ChunkType::BLOCK_STATUS_EXT => framing != Framing::Extended,
            _ => false,
        };
        if other_width {
            return Err(Violation::OtherWidth {
                chunk: header.chunk,
                framing,
            }
            .into());
        }
        let slot = self.slot(header.cookie)?;
        let command = slot.command;
        if header.offset.is_some_and(|offset| offset != slot.offset) {
            return Err(Violation::OtherOffset(header.cookie).into());
        }
        let mut body = body;
        let step = match (header.chunk, command) {
            (ChunkType::NONE, _) => {
                chunk::none_length(header.length)?;
                if !header.last {
                    return Err(Violation::NoneNotDone.into());
                }
                self.go(State::Done(header.cookie))
            }
            (ChunkType::OFFSET_DATA, Command::READ) => self.offset_data(header, &mut body)?,
            (ChunkType::OFFSET_HOLE, Command::READ) => self.offset_hole(header, &mut body)?,
            (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) => {
                self.block_status(header, &mut body)?
            }
            (
                ChunkType::OFFSET_DATA
                | ChunkType::OFFSET_HOLE
                | ChunkType::BLOCK_STATUS
                | ChunkType::BLOCK_STATUS_EXT,
                _,
            ) => {
                return Err(Violation::UnexpectedChunk {
                    chunk: header.chunk,
                    command,
                }
                .into());
            }
            (chunk, _) if chunk.is_error() => self.error(header, &mut body)?,
            (chunk, _) => return Err(Violation::UnknownChunk(chunk).into()),
        };
        if !matches!(step, Step::Short(_)) {
            *input = body;
        }
        Ok(step)
    }

    /// `offset:64 data`.
    #[inline]
    fn offset_data<'i>(&mut self, header: &Header, body: &mut &'i [u8]) -> Result<Step<'i>, Error> {
        let length = chunk::offset_data_length(header.length)?;
        // Judged before the offset is there: it cannot lie within the request.
        if length > self.slot(header.cookie)?.length {
            return Err(Violation::OutOfBounds(header.cookie).into());
        }
        let Some(offset) = take::<8>(body) else {
            return Ok(short(header, 8));
        };
        let offset = u64::from_be_bytes(*offset);
        self.content(header.cookie, offset, length)?;
        let part = header.part(length);
        Ok(self.go(State::Data { part, offset }))
    }

    /// `offset:64 hole_size:32`.
    fn offset_hole<'i>(&mut self, header: &Header, body: &mut &'i [u8]) -> Result<Step<'i>, Error> {
        chunk::offset_hole_length(header.length)?;
        let Some(bytes) = take::<12>(body) else {
            return Ok(short(header, 12));
        };
        let mut fields = Fields::new(bytes);
        let (offset, length) = (fields.u64(), fields.u32());
        if length == 0 {
            return Err(DecodeError::EmptyHole.into());
        }
        self.content(header.cookie, offset, u64::from(length))?;
        let _ = self.go(header.part(0).after());
        Ok(Step::Event(Event::Hole {
            cookie: header.cookie,
            offset,
            length,
        }))
    }

    /// Judges a content chunk: within the request, not twice, not in pieces
    /// where the request forbade it.
    #[inline]
    fn content(&mut self, cookie: Cookie, offset: u64, length: u64) -> Result<(), Error> {
        let slot = self.slot(cookie)?;
        let end = match offset.checked_add(length) {
            Some(end) if offset >= slot.offset && end <= slot.end() => end,
            _ => return Err(Violation::OutOfBounds(cookie).into()),
        };
        if slot.flags.contains(CommandFlags::DF) && !slot.coverage.is_empty() {
            return Err(Violation::Fragmented(cookie).into());
        }
        if !slot.coverage.add(offset, end, slot.length) {
            return Err(Violation::Overlap(cookie).into());
        }
        Ok(())
    }

    /// `context:32 [count:32] descriptors`.
    fn block_status<'i>(
        &mut self,
        header: &Header,
        body: &mut &'i [u8],
    ) -> Result<Step<'i>, Error> {
        let wide = header.chunk == ChunkType::BLOCK_STATUS_EXT;
        let count = match wide {
            true => chunk::block_status_ext_count(header.length)?,
            false => chunk::block_status_count(header.length)?,
        };
        let left = u32::try_from(count).unwrap_or(u32::MAX);
        if left > self.limits.extents {
            return Err(Violation::ChunkTooLong {
                chunk: header.chunk,
                length: count,
            }
            .into());
        }
        let slot = self.slot(header.cookie)?;
        if slot.flags.contains(CommandFlags::REQ_ONE) && left != 1 {
            return Err(Violation::NotOne(header.cookie).into());
        }
        let context = match wide {
            true => {
                let Some(bytes) = take::<8>(body) else {
                    return Ok(short(header, 8));
                };
                let mut fields = Fields::new(bytes);
                let context = ContextId(fields.u32());
                chunk::block_status_ext_agrees(header.length, fields.u32())?;
                context
            }
            false => {
                let Some(bytes) = take::<4>(body) else {
                    return Ok(short(header, 4));
                };
                ContextId(u32::from_be_bytes(*bytes))
            }
        };
        let status = self.context(header.cookie, context)?;
        let _ = self.go(State::Extents(Extents {
            cookie: header.cookie,
            last: header.last,
            context,
            status,
            left,
            at: 0,
        }));
        // Among descriptors, what is wanted is counted in their size.
        self.want = match wide {
            true => Extent64::SIZE,
            false => Extent32::SIZE,
        };
        Ok(Step::Again)
    }

    /// Judges the context of a status chunk: asked for, and not answered yet.
    fn context(&mut self, cookie: Cookie, id: ContextId) -> Result<Width, Error> {
        let found = self.export.contexts.bit(id);
        let slot = self.slot(cookie)?;
        let Some((bit, context)) = found.filter(|(bit, _)| slot.asked & bit != 0) else {
            return Err(Violation::UnknownContext(id).into());
        };
        if slot.missing & bit == 0 {
            return Err(Violation::RepeatedContext(id).into());
        }
        slot.missing &= !bit;
        Ok(context.width)
    }

    /// Delivers as many whole descriptors as the input holds.
    #[inline]
    fn extents<'i>(
        &mut self,
        mut extents: Extents,
        input: &mut &'i [u8],
    ) -> Result<Step<'i>, Error> {
        let slot = self.slot(extents.cookie)?;
        let (offset, length, one) = (
            slot.offset,
            slot.length,
            slot.flags.contains(CommandFlags::REQ_ONE),
        );
        let size = self.want;
        let left = usize::try_from(extents.left).unwrap_or(usize::MAX);
        let count = left.min(input.len().checked_div(size).unwrap_or(0));
        let Some(bytes) = take_slice(input, count.saturating_mul(size)).filter(|_| count > 0)
        else {
            return Ok(Step::Short(size));
        };
        let (cookie, context) = (extents.cookie, extents.context);
        let start = offset.saturating_add(extents.at);
        let (event, reach) = if size == Extent64::SIZE {
            let (batch, _) = Extents64::split(bytes);
            if extents.status == Width::Narrow && batch.any_wide_flags() {
                return Err(Violation::StatusTooWide(context).into());
            }
            let event = Event::Extents64 {
                cookie,
                context,
                offset: start,
                extents: batch,
            };
            (event, batch.reach()?)
        } else {
            let (batch, _) = Extents32::split(bytes);
            let event = Event::Extents32 {
                cookie,
                context,
                offset: start,
                extents: batch,
            };
            (event, batch.reach()?)
        };
        if one && reach.total > length {
            return Err(Violation::NotOne(cookie).into());
        }
        // The last extent may reach beyond the request, none may begin there.
        let begins = extents.at.saturating_add(reach.last);
        if begins >= length && length > 0 {
            return Err(Violation::ExtentBeyond(cookie).into());
        }
        extents.at = extents.at.saturating_add(reach.total);
        extents.left = u32::try_from(left.saturating_sub(count)).unwrap_or(0);
        if extents.left == 0 {
            let part = Part {
                cookie,
                left: 0,
                last: extents.last,
            };
            let _ = self.go(part.after());
        } else {
            self.state = State::Extents(extents);
        }
        Ok(Step::Event(event))
    }

    /// `error:32 message_length:16 message [offset:64] rest`.
    fn error<'i>(&mut self, header: &Header, body: &mut &'i [u8]) -> Result<Step<'i>, Error> {
        chunk::error_length(header.chunk, header.length)?;
        if header.length > u64::from(self.limits.payload) {
            return Err(Violation::ChunkTooLong {
                chunk: header.chunk,
                length: header.length,
            }
            .into());
        }
        let Some(bytes) = take::<6>(body) else {
            return Ok(short(header, 6));
        };
        let mut fields = Fields::new(bytes);
        let (error, message_length) = (ErrorValue(fields.u32()), fields.u16());
        let rest = chunk::error_rest(header.chunk, header.length, message_length)?;
        if !error.is_error() {
            return Err(DecodeError::NoError.into());
        }
        let offset = header.chunk == ChunkType::ERROR_OFFSET;
        let tail = match offset {
            true => rest.saturating_sub(8),
            false => rest,
        };
        if message_length > self.limits.error_message {
            let part = header.part(u64::from(message_length));
            return Ok(self.go(State::Message {
                part,
                error,
                offset,
                rest: tail,
            }));
        }
        let message_length = usize::from(message_length);
        let Some(message) = take_slice(body, message_length) else {
            return Ok(short(header, message_length.saturating_add(6)));
        };
        let place = match offset {
            true => match take::<8>(body) {
                Some(bytes) => Some(u64::from_be_bytes(*bytes)),
                None => return Ok(short(header, message_length.saturating_add(14))),
            },
            false => None,
        };
        let message = Some(Text::new(message));
        self.report(header.part(tail), error, place, message)
    }

    /// An error message that is longer than the caller has room for.
    fn long_message<'i>(
        &mut self,
        mut part: Part,
        error: ErrorValue,
        offset: bool,
        rest: u64,
        input: &mut &'i [u8],
    ) -> Result<Step<'i>, Error> {
        part.take(input);
        self.state = State::Message {
            part,
            error,
            offset,
            rest,
        };
        if part.left > 0 {
            return Ok(Step::Short(clip(part.left)));
        }
        let place = match offset {
            true => match take::<8>(input) {
                Some(bytes) => Some(u64::from_be_bytes(*bytes)),
                None => return Ok(Step::Short(8)),
            },
            false => None,
        };
        part.left = rest;
        self.report(part, error, place, None)
    }

    /// Notes an error; `part` is what is left of its chunk.
    fn report<'i>(
        &mut self,
        part: Part,
        error: ErrorValue,
        offset: Option<u64>,
        message: Option<Text<'i>>,
    ) -> Result<Step<'i>, Error> {
        let slot = self.slot(part.cookie)?;
        // Commands without a range have nothing an offset could lie in; for
        // them the chunk is an unexpected error, and an error all the same.
        let ranged = !matches!(slot.command, Command::FLUSH | Command::RESIZE);
        let inside = |offset| offset >= slot.offset && offset < slot.end().max(1);
        if ranged && slot.length > 0 && !offset.is_none_or(inside) {
            return Err(Violation::OutOfBounds(part.cookie).into());
        }
        if !slot.error.is_error() {
            slot.error = error;
        }
        let _ = match part.left {
            0 => self.go(part.after()),
            _ => self.go(State::Rest(part)),
        };
        Ok(Step::Event(Event::Error {
            cookie: part.cookie,
            error,
            offset,
            message,
        }))
    }

    /// Ends a command: judges whether a reply that claims success has earned
    /// it.
    #[inline]
    fn complete<'i>(&mut self, cookie: Cookie) -> Result<Event<'i>, Error> {
        let slot = *self.slot(cookie)?;
        let result = match slot.error {
            ErrorValue::NONE => Ok(()),
            error => Err(error),
        };
        if result.is_ok() {
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
        let _ = self.go(State::Header);
        Ok(Event::Done { cookie, result })
    }

    #[inline]
    fn slot(&mut self, cookie: Cookie) -> Result<&mut Slot, Error> {
        self.slots
            .find(cookie)
            .ok_or(Error::Violation(Violation::UnknownCookie(cookie)))
    }
}

/// A chunk whose prefix of `n` bytes is not all there.
fn short<'i>(header: &Header, n: usize) -> Step<'i> {
    Step::Short(header.size.saturating_add(n))
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
