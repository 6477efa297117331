//! Replies: received chunk by chunk, and checked against their commands before
//! they become events. The fast path is above the slow path.

use super::chunk::{self, Header, Rules, Taken};
use super::slots::{Slot, Slots};
use super::state::{ErrorMessage, Extents, Part, State};
use super::{Transmission, TransmissionEvent};
use crate::coverage::Outcome;
use crate::error::{Error, Violation};
use crate::negotiated::{Framing, StatusWidth};
use crate::step::{Content, Step};
use crate::wire::bytes::{clip, find_magic, take, take_header, take_slice, wide};
use crate::wire::extent::{Extents32, Extents64};
use crate::wire::flags::CommandFlags;
use crate::wire::number::{ChunkType, Command, Cookie, ErrorValue};
use crate::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};
use crate::wire::text::Text;

type ClientStep<'i> = Step<TransmissionEvent<'i>, &'i [u8]>;

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`]: the session is over, and every later call returns the same.
    #[inline(always)]
    pub fn receive<'i>(&mut self, input: &mut &'i [u8]) -> Result<ClientStep<'i>, Error> {
        if let State::Header | State::Discard(_) = self.state {
            self.header(input);
        }
        if let Some(step) = self.payload_due(input) {
            return Ok(step);
        }
        if let State::Done(cookie) = self.state
            && self.complete(cookie)
        {
            let result = Ok(());
            return Ok(Step::Event(TransmissionEvent::Done { cookie, result }));
        }
        // One call, so that the two steps above stay in registers.
        self.deliver(input)
    }

    /// The step while none of the payload that is due has arrived.
    #[inline(always)]
    fn payload_due<'i>(&self, input: &[u8]) -> Option<ClientStep<'i>> {
        match self.state {
            State::Data { part, offset } if input.is_empty() => Some(Step::ReadPayload {
                cookie: part.cookie,
                offset,
                length: part.left,
            }),
            _ => None,
        }
    }

    /// Takes a header, or discards what is before it, and leaves in the state
    /// what follows, the failure of the session included. The state stays where it is if more input is
    /// needed.
    #[inline(never)]
    fn header(&mut self, input: &mut &[u8]) {
        let mut rest = *input;
        let taken = match self.state {
            State::Header => self.header_fast(&mut rest),
            _ => None,
        };
        let Some((part, offset)) = taken else {
            return self.header_slow(input);
        };
        *input = rest;
        self.state = State::Data { part, offset };
    }

    /// Fast path: the data of a read that comes in order. Returns what the
    /// header announces, and where it belongs.
    ///
    /// What is taken here, [`header_slow`](Self::header_slow) would take as
    /// well, with the same outcome. Of anything else nothing is taken and
    /// nothing has changed.
    #[inline]
    fn header_fast(&mut self, input: &mut &[u8]) -> Option<(Part, u64)> {
        let (header, offset) = match self.export.framing {
            Framing::Simple => return self.simple_fast(input),
            Framing::Structured => take_header(input, structured_with_offset)?,
            Framing::Extended => take_header(input, extended_with_offset)?,
        };
        if header.chunk != ChunkType::OFFSET_DATA {
            return None;
        }
        let slot = self.slots.find(header.cookie)?;
        let other = header.offset.is_some_and(|offset| offset != slot.offset);
        if slot.command != Command::READ || other || slot.flags.contains(CommandFlags::DF) {
            return None;
        }
        let length = header.length.checked_sub(8)?;
        // An end past 2^64 is within no export.
        let _ = offset.checked_add(length)?;
        let from = offset.wrapping_sub(slot.offset);
        let follows = slot.coverage.follow(from, length, slot.length);
        follows.then(|| (header.part(length), offset))
    }

    #[inline]
    fn simple_fast(&mut self, input: &mut &[u8]) -> Option<(Part, u64)> {
        let SimpleReply { error, cookie } = take_header(input, SimpleReply::parse)?;
        let slot = self.slots.find(cookie)?;
        let part = Part {
            cookie,
            left: slot.length,
            last: true,
        };
        let data = slot.command == Command::READ && !error.is_error() && slot.length > 0;
        data.then_some((part, slot.offset))
    }

    /// Fast path: ends a read or a write that succeeded. Of anything else
    /// nothing has changed, and false is returned.
    #[inline]
    fn complete(&mut self, cookie: Cookie) -> bool {
        let simple = self.export.framing == Framing::Simple;
        let earned = |slot: &Slot| match slot.command {
            Command::READ => simple || slot.coverage.is_in_order(slot.length),
            Command::WRITE => true,
            _ => false,
        };
        match self.slots.find(cookie) {
            Some(slot) if slot.error == ErrorValue::NONE && earned(slot) => {
                self.slots.remove(cookie);
                self.state = State::Header;
                true
            }
            _ => false,
        }
    }

    /// Slow path of [`header`](Self::header).
    #[inline(never)]
    fn header_slow(&mut self, input: &mut &[u8]) {
        if let State::Discard(part) = self.state {
            self.discard(part, input);
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
        match self.export.framing {
            Framing::Simple | Framing::Structured => SimpleReply::SIZE,
            Framing::Extended => ExtendedHeader::SIZE,
        }
    }

    /// `left` bytes in pieces that fit the buffer.
    fn read_piece<'i>(&self, left: u64) -> ClientStep<'i> {
        Step::read(clip(left).min(self.limits.buffer()))
    }

    /// What follows a header, or asks for one; and the slow path of
    /// [`complete`](Self::complete).
    #[inline(never)]
    fn deliver<'i>(&mut self, input: &mut &'i [u8]) -> Result<ClientStep<'i>, Error> {
        match self.state {
            State::Header => Ok(self.before_header(input.len())),
            State::Data { part, offset } => Ok(self.data(part, offset, input)),
            _ => self.deliver_slow(input),
        }
    }

    /// Slow path of [`deliver`](Self::deliver): what is neither data nor a header.
    #[inline(never)]
    fn deliver_slow<'i>(&mut self, input: &mut &'i [u8]) -> Result<ClientStep<'i>, Error> {
        let result = loop {
            break match self.state {
                State::Header => return Ok(self.before_header(input.len())),
                State::Discard(part) if input.is_empty() => return Ok(self.read_piece(part.left)),
                // What is discarded has no step of its own.
                State::Discard(_) => {
                    self.header(input);
                    match self.payload_due(input) {
                        Some(step) => return Ok(step),
                        None => continue,
                    }
                }
                State::Data { part, offset } => return Ok(self.data(part, offset, input)),
                State::Hole {
                    part,
                    offset,
                    length,
                } => {
                    self.state = part.after();
                    return Ok(Step::Content(Content::Hole {
                        cookie: part.cookie,
                        offset,
                        length,
                    }));
                }
                State::Extents(extents) => match self.extents(extents, input).transpose() {
                    Some(result) => result,
                    None => continue,
                },
                State::Fault { part, violation } => Ok(self.fault(part, violation.into(), input)),
                State::Error(message) => self.error_message(message, input),
                State::Done(cookie) => self.complete_slow(cookie),
                State::Failed(error) => return Err(error),
                State::Ended => return Ok(Step::Finished),
            };
        };
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    /// The header of a reply. It is always followed by an event, by input still to
    /// come, or by a payload to discard.
    #[inline]
    fn take_header(&mut self, input: &mut &[u8]) -> Result<Taken, Error> {
        let mut body = *input;
        let header = match self.export.framing {
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

    /// A chunk with a fault: where the fault costs the command alone, the header
    /// is taken, and its payload is to be discarded.
    #[cold]
    fn tolerate(
        &mut self,
        header: &Header,
        error: Error,
        input: &mut &[u8],
    ) -> Result<Taken, Error> {
        let short = header.length <= u64::from(self.limits.payload);
        match tolerated(error) {
            Some(violation) if short && !self.strict => {
                let _ = take_slice(input, header.size);
                let part = header.part(header.length);
                self.state = State::Fault { part, violation };
                Ok(Taken::Yes)
            }
            _ => Err(error),
        }
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
        match (magic, negotiated) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => Ok(SimpleReply::SIZE),
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) => Ok(StructuredHeader::SIZE),
            (EXTENDED_REPLY_MAGIC, Framing::Extended) => Ok(ExtendedHeader::SIZE),
            _ => Err(Violation::OtherFraming { negotiated }.into()),
        }
    }

    #[inline]
    fn simple_reply(&mut self, input: &mut &[u8]) -> Result<Taken, Error> {
        let framing = self.export.framing;
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
        let state = &mut self.state;
        let rules = Rules {
            limits: &self.limits,
            strict: self.strict,
        };
        match (header.chunk, slot.command) {
            (ChunkType::OFFSET_DATA, Command::READ) => {
                chunk::offset_data(slot, self.seed, header, body, state)
            }
            (ChunkType::OFFSET_HOLE, Command::READ) => {
                chunk::offset_hole(slot, self.seed, header, body, state)
            }
            (ChunkType::NONE, _) => chunk::none(header, state),
            (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) => {
                let contexts = &self.export.contexts;
                chunk::block_status(slot, contexts, rules, header, body, state)
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
            (kind, _) if kind.is_error() => chunk::error(rules, header, body, state),
            (kind, _) => Err(Violation::UnknownChunk(kind).into()),
        }
    }

    /// Delivers as much of the data of a read as the input holds.
    #[inline]
    fn data<'i>(&mut self, mut part: Part, offset: u64, input: &mut &'i [u8]) -> ClientStep<'i> {
        let data = part.take(input);
        self.state = if part.left == 0 {
            part.after()
        } else {
            let offset = offset.saturating_add(wide(data.len()));
            State::Data { part, offset }
        };
        Step::Content(Content::Data {
            cookie: part.cookie,
            offset,
            data,
        })
    }

    /// Delivers as many whole descriptors as the input holds; `None` if what is left
    /// of the chunk is to be discarded: a reply may cover less than the request.
    fn extents<'i>(
        &mut self,
        mut extents: Extents,
        input: &mut &'i [u8],
    ) -> Result<Option<ClientStep<'i>>, Error> {
        let (cookie, context) = (extents.cookie, extents.context);
        let size = extents.size();
        let left = usize::try_from(extents.left).unwrap_or(usize::MAX);
        let count = left.min(input.len().checked_div(size).unwrap_or(0));
        let all = input.get(..count.saturating_mul(size)).unwrap_or_default();
        if all.is_empty() {
            // Whole descriptors, as many as the buffer holds.
            let most = self.limits.buffer().max(size);
            let needed = left.saturating_mul(size).min(most);
            return Ok(Some(Step::read(needed.saturating_sub(input.len()))));
        }
        let slot = find(&mut self.slots, cookie)?;
        let offset = slot.offset.saturating_add(extents.at);
        let (count, total) = match extents.check(all, slot, self.strict) {
            Ok(total) => (count, total),
            Err(_) => match extents.check_each(all, slot, self.strict) {
                Err(_) if !self.strict && extents.at > 0 => {
                    self.state = State::Discard(extents.part());
                    return Ok(None);
                }
                Err(error) if !self.strict => {
                    return Ok(Some(self.fault(extents.part(), error, input)));
                }
                checked => checked?,
            },
        };
        let bytes = take_slice(input, count.saturating_mul(size)).unwrap_or_default();
        let event = if extents.width == StatusWidth::Wide {
            let (extents, _) = Extents64::split(bytes);
            TransmissionEvent::Extents64 {
                cookie,
                context,
                offset,
                extents,
            }
        } else {
            let (extents, _) = Extents32::split(bytes);
            TransmissionEvent::Extents32 {
                cookie,
                context,
                offset,
                extents,
            }
        };
        extents.at = extents.at.saturating_add(total);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        extents.left = extents.left.saturating_sub(count);
        self.state = match extents.left {
            0 => extents.part().after(),
            _ => State::Extents(extents),
        };
        Ok(Some(Step::Event(event)))
    }

    /// Reports a fault that its command alone pays for, and discards what is left of
    /// the chunk.
    #[cold]
    fn fault<'i>(&mut self, mut part: Part, error: Error, input: &mut &[u8]) -> ClientStep<'i> {
        part.take(input);
        let cookie = part.cookie;
        if let Some(slot) = self.slots.find(cookie)
            && !slot.error.is_error()
        {
            slot.error = ErrorValue::EIO;
        }
        self.state = part.discard();
        Step::Event(TransmissionEvent::Fault { cookie, error })
    }

    /// Delivers an error, with its message and offset when they have arrived.
    fn error_message<'i>(
        &mut self,
        mut message: ErrorMessage,
        input: &mut &'i [u8],
    ) -> Result<ClientStep<'i>, Error> {
        if message.discard {
            message.part.take(input);
            self.state = State::Error(message);
            if message.part.left > 0 {
                return Ok(self.read_piece(message.part.left));
            }
        }
        let length = clip(message.part.left);
        let needed = length.saturating_add(message.offset_size());
        if input.len() < needed {
            return Ok(Step::read(needed.saturating_sub(input.len())));
        }
        let text = Text::new(take_slice(input, length).unwrap_or_default());
        let mut offset = match message.offset {
            true => take::<8>(input).map(|bytes| u64::from_be_bytes(*bytes)),
            false => None,
        };
        let cookie = message.part.cookie;
        let slot = find(&mut self.slots, cookie)?;
        // Commands without a range have nothing that an offset could be in;
        // for them the chunk is an unexpected error, and an error all the same.
        let ranged = !matches!(slot.command, Command::FLUSH | Command::RESIZE) && slot.length > 0;
        let inside = |offset| offset >= slot.offset && offset < slot.end();
        if ranged && !offset.is_none_or(inside) {
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
        Ok(Step::Event(TransmissionEvent::Error {
            cookie,
            error: message.error,
            offset,
            message: (!message.discard).then_some(text),
        }))
    }

    /// Discards bytes at the end of a chunk that have no meaning.
    #[cold]
    fn discard(&mut self, mut part: Part, input: &mut &[u8]) {
        part.take(input);
        self.state = part.discard();
    }

    /// Slow path of [`complete`](Self::complete).
    fn complete_slow<'i>(&mut self, cookie: Cookie) -> Result<ClientStep<'i>, Error> {
        let result = match self.outcome(cookie) {
            Err(error) if !self.strict && tolerated(error).is_some() => {
                let (left, last) = (0, true);
                return Ok(self.fault(Part { cookie, left, last }, error, &mut &[][..]));
            }
            result => result?,
        };
        self.slots.remove(cookie);
        self.state = State::Header;
        Ok(Step::Event(TransmissionEvent::Done { cookie, result }))
    }

    /// The result of a command. Success is only reported where the reply was
    /// complete.
    #[inline]
    fn outcome(&mut self, cookie: Cookie) -> Result<Result<(), ErrorValue>, Error> {
        let seed = self.seed;
        let slot = find(&mut self.slots, cookie)?;
        let result = match slot.error {
            ErrorValue::NONE => Ok(()),
            error => Err(error),
        };
        match slot.command {
            // A simple reply is whole by its form.
            Command::READ if result.is_ok() && self.export.framing != Framing::Simple => {
                match slot.coverage.outcome(slot.length, seed) {
                    Outcome::Complete => {}
                    Outcome::Incomplete => return Err(Violation::Incomplete(cookie).into()),
                    Outcome::Overlap => return Err(Violation::Overlap(cookie).into()),
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

/// A header, and the offset that follows it.
#[inline]
fn structured_with_offset(bytes: &[u8; StructuredHeader::SIZE + 8]) -> Option<(Header, u64)> {
    let mut bytes = bytes.as_slice();
    let header = StructuredHeader::parse(take(&mut bytes)?)?;
    Some((header.into(), u64::from_be_bytes(*take(&mut bytes)?)))
}

/// As [`structured_with_offset`].
#[inline]
fn extended_with_offset(bytes: &[u8; ExtendedHeader::SIZE + 8]) -> Option<(Header, u64)> {
    let mut bytes = bytes.as_slice();
    let header = ExtendedHeader::parse(take(&mut bytes)?)?;
    Some((header.into(), u64::from_be_bytes(*take(&mut bytes)?)))
}

impl Extents {
    /// Checks the descriptors in `bytes`, the next ones of the chunk. Returns how
    /// many bytes of the export they describe.
    fn check(&self, bytes: &[u8], slot: &Slot, strict: bool) -> Result<u64, Error> {
        let reach = if self.width == StatusWidth::Wide {
            let (extents, _) = Extents64::split(bytes);
            if self.status == StatusWidth::Narrow && extents.has_wide_flags() {
                return Err(Violation::StatusTooWide(self.context).into());
            }
            extents.reach()?
        } else {
            let (extents, _) = Extents32::split(bytes);
            extents.reach()?
        };
        // A longer one ends past the request, as the last of several may.
        let several = self.at > 0 || bytes.len() > self.size();
        let not_one = several || strict && reach.total > slot.length;
        if slot.flags.contains(CommandFlags::REQ_ONE) && not_one {
            return Err(Violation::NotOne(self.cookie).into());
        }
        // The last extent may reach past the end of the request, none may begin
        // there.
        let begins = self.at.saturating_add(reach.last);
        if begins >= slot.length && slot.length > 0 {
            return Err(Violation::ExtentBeyond(self.cookie).into());
        }
        Ok(reach.total)
    }

    /// Slow path, where one of the descriptors has a fault: how many come before
    /// it, and how many bytes they describe. They are delivered first, so that the
    /// events and the fault are the same however the chunk is fragmented.
    #[cold]
    fn check_each(
        mut self,
        bytes: &[u8],
        slot: &Slot,
        strict: bool,
    ) -> Result<(usize, u64), Error> {
        let (mut count, mut total) = (0_usize, 0_u64);
        for one in bytes.chunks_exact(self.size()) {
            match self.check(one, slot, strict) {
                Ok(length) => {
                    count = count.saturating_add(1);
                    total = total.saturating_add(length);
                    self.at = self.at.saturating_add(length);
                }
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok((count, total))
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
fn check_simple(slot: &Slot, error: ErrorValue, strict: bool) -> Result<(), Error> {
    let read = slot.command == Command::READ;
    let status = slot.command == Command::BLOCK_STATUS && !error.is_error();
    let chunks = slot.error.is_error() || slot.missing != slot.asked;
    let refused = match strict {
        true => read || status || chunks,
        // Whether data follows is not known.
        false => read && !error.is_error(),
    };
    match refused {
        true => Err(Violation::SimpleReply(slot.command).into()),
        false => Ok(()),
    }
}

/// A fault that costs its command alone: what is faulty can be discarded, and the
/// specification leaves the client the choice.
fn tolerated(error: Error) -> Option<Violation> {
    use Violation as V;
    match error {
        Error::Violation(
            violation @ (V::OtherOffset(_)
            | V::OutOfBounds(_)
            | V::Overlap(_)
            | V::Fragmented(_)
            | V::Incomplete(_)
            | V::RepeatedContext(_)
            | V::MissingContext(_)),
        ) => Some(violation),
        _ => None,
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
