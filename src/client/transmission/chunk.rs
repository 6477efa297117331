//! What each type of chunk must be, checked against its command.

use super::slots::Slot;
use super::state::{End, ErrorMessage, Extents, Part, State};
use crate::coverage::Seed;
use crate::error::{Error, Violation};
use crate::limits::Limits;
use crate::negotiated::{Framing, Negotiated, SelectedContexts, StatusWidth};
use crate::wire::DecodeError;
use crate::wire::bytes::{Fields, take};
use crate::wire::chunk;
use crate::wire::flags::{CommandFlags, ReplyFlags};
use crate::wire::number::{ChunkType, Command, ContextId, Cookie, ErrorValue};
use crate::wire::reply::{ExtendedHeader, StructuredHeader};

/// A chunk header of either framing.
pub(crate) struct Header {
    pub(super) size: usize,
    pub(crate) chunk: ChunkType,
    pub(crate) cookie: Cookie,
    /// The offset it repeats, if it does.
    pub(crate) offset: Option<u64>,
    pub(crate) length: u64,
    pub(crate) last: bool,
}

impl From<StructuredHeader> for Header {
    #[inline]
    fn from(header: StructuredHeader) -> Self {
        Self {
            size: StructuredHeader::SIZE,
            chunk: header.chunk,
            cookie: header.cookie,
            offset: None,
            length: u64::from(header.length),
            last: header.flags.contains(ReplyFlags::DONE),
        }
    }
}

impl From<ExtendedHeader> for Header {
    #[inline]
    fn from(header: ExtendedHeader) -> Self {
        Self {
            size: ExtendedHeader::SIZE,
            chunk: header.chunk,
            cookie: header.cookie,
            offset: Some(header.offset),
            length: header.length,
            last: header.flags.contains(ReplyFlags::DONE),
        }
    }
}

impl Header {
    /// A part of the payload, `left` bytes.
    #[inline]
    pub(super) fn part(&self, left: u64) -> Part {
        Part {
            cookie: self.cookie,
            left,
            end: End::of(self.last),
        }
    }

    /// A prefix of `n` bytes has not arrived whole.
    #[inline]
    fn short(&self, n: usize) -> Taken {
        Taken::Short(self.size.saturating_add(n))
    }
}

/// What decides whether a chunk is accepted, beside its command.
pub(crate) struct Rules<'a> {
    pub(crate) export: &'a Negotiated,
    pub(crate) limits: &'a Limits,
    /// For the hash that tells whether a read is covered.
    pub(crate) seed: &'a mut Seed,
    /// Whether no fault is tolerated.
    pub(crate) strict: bool,
}

/// Length of an error number and of the length of its message, in bytes.
const PREFIX: u64 = 6;

/// What became of a header.
pub(crate) enum Taken {
    /// It was taken, and its prefix with it; the state says what follows.
    Yes,
    /// The input ends within the header and its prefix, which have this many
    /// bytes. Nothing was taken.
    Short(usize),
}

/// Whether a chunk of this type, if it is a status chunk, has the width that
/// was agreed on.
#[inline]
pub(crate) fn width_agrees(chunk: ChunkType, framing: Framing) -> bool {
    match chunk {
        ChunkType::BLOCK_STATUS => !framing.is_extended(),
        ChunkType::BLOCK_STATUS_EXT => framing.is_extended(),
        _ => true,
    }
}

/// Checks a chunk against the command that it answers; `body` begins after its
/// header. What follows its prefix is left in the state.
#[inline(always)]
pub(crate) fn check(
    slot: &mut Slot,
    rules: Rules<'_>,
    header: &Header,
    body: &mut &[u8],
    state: &mut State,
) -> Result<Taken, Error> {
    match (header.chunk, slot.command) {
        (ChunkType::OFFSET_DATA, Command::READ) => {
            offset_data(slot, rules.seed, header, body, state)
        }
        (ChunkType::OFFSET_HOLE, Command::READ) => {
            offset_hole(slot, rules.seed, header, body, state)
        }
        (ChunkType::NONE, _) => none(slot, header, state),
        (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, Command::BLOCK_STATUS) => {
            block_status(slot, rules, header, body, state)
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
        (kind, _) if kind.is_error() => error(rules, header, body, state),
        (kind, _) => Err(Violation::UnknownChunk(kind).into()),
    }
}

fn none(slot: &Slot, header: &Header, state: &mut State) -> Result<Taken, Error> {
    chunk::none_length(header.length)?;
    if header.last {
        *state = slot.end(header.cookie);
    } else {
        return Err(Violation::NoneNotDone.into());
    }
    Ok(Taken::Yes)
}

/// `offset:64 data`.
fn offset_data(
    slot: &mut Slot,
    seed: &mut Seed,
    header: &Header,
    body: &mut &[u8],
    state: &mut State,
) -> Result<Taken, Error> {
    let length = chunk::offset_data_length(header.length)?;
    // Before the offset has arrived: it cannot be within the request.
    if length > slot.length {
        return Err(Violation::OutOfBounds(header.cookie).into());
    }
    let Some(offset) = take::<8>(body) else {
        return Ok(header.short(8));
    };
    let offset = u64::from_be_bytes(*offset);
    content(slot, seed, header.cookie, offset, length)?;
    let part = header.part(length);
    *state = State::Data { part, offset };
    Ok(Taken::Yes)
}

/// `offset:64 hole_size:32`.
fn offset_hole(
    slot: &mut Slot,
    seed: &mut Seed,
    header: &Header,
    body: &mut &[u8],
    state: &mut State,
) -> Result<Taken, Error> {
    chunk::offset_hole_length(header.length)?;
    let Some(bytes) = take::<12>(body) else {
        return Ok(header.short(12));
    };
    let mut fields = Fields::new(bytes);
    let (offset, length) = (fields.u64(), fields.u32());
    if length == 0 {
        return Err(DecodeError::EmptyHole.into());
    }
    content(slot, seed, header.cookie, offset, u64::from(length))?;
    *state = State::Hole {
        part: header.part(0),
        offset,
        length,
    };
    Ok(Taken::Yes)
}

/// Checks a content chunk: within the request, not twice, not in pieces where
/// the request forbade it.
#[inline(never)]
fn content(
    slot: &mut Slot,
    seed: &mut Seed,
    cookie: Cookie,
    offset: u64,
    length: u64,
) -> Result<(), Error> {
    let from = offset.checked_sub(slot.offset);
    let room = slot.length.checked_sub(length);
    // What a lenient caller asks for can end past 2^64; content cannot.
    let end = offset.checked_add(length);
    let from = match (from, room, end) {
        (Some(from), Some(room), Some(_)) if from <= room => from,
        _ => return Err(Violation::OutOfBounds(cookie).into()),
    };
    if slot.flags.contains(CommandFlags::DF) && !slot.coverage.is_empty() {
        return Err(Violation::Fragmented(cookie).into());
    }
    if !slot.coverage.add(from, length, slot.length, seed) {
        return Err(Violation::Overlap(cookie).into());
    }
    Ok(())
}

/// `context:32 [count:32] descriptors`.
#[inline(never)]
fn block_status(
    slot: &mut Slot,
    rules: Rules<'_>,
    header: &Header,
    body: &mut &[u8],
    state: &mut State,
) -> Result<Taken, Error> {
    let width = match header.chunk {
        ChunkType::BLOCK_STATUS_EXT => StatusWidth::Wide,
        _ => StatusWidth::Narrow,
    };
    let count = match width {
        StatusWidth::Wide => chunk::block_status_ext_count(header.length)?,
        StatusWidth::Narrow => chunk::block_status_count(header.length)?,
    };
    let left = u32::try_from(count).unwrap_or(u32::MAX);
    if left > rules.limits.extents {
        return Err(Violation::ChunkTooLong {
            chunk: header.chunk,
            length: count,
        }
        .into());
    }
    if rules.strict && slot.flags.contains(CommandFlags::REQ_ONE) && left != 1 {
        return Err(Violation::NotOne(header.cookie).into());
    }
    let context = match width {
        StatusWidth::Wide => {
            let Some(bytes) = take::<8>(body) else {
                return Ok(header.short(8));
            };
            let mut fields = Fields::new(bytes);
            let context = ContextId(fields.u32());
            chunk::block_status_ext_agrees(header.length, fields.u32())?;
            context
        }
        StatusWidth::Narrow => {
            let Some(bytes) = take::<4>(body) else {
                return Ok(header.short(4));
            };
            ContextId(u32::from_be_bytes(*bytes))
        }
    };
    let mut extents = Extents {
        cookie: header.cookie,
        last: header.last,
        status: StatusWidth::Narrow,
        width,
        context,
        left,
        at: 0,
    };
    *state = match answer(slot, &rules.export.contexts, context) {
        Ok(status) => {
            extents.status = status;
            State::Extents(extents)
        }
        Err(Violation::UnknownContext(_)) if !rules.strict => State::Discard(extents.part()),
        Err(violation) => return Err(violation.into()),
    };
    Ok(Taken::Yes)
}

/// Notes that a context is answered: it must have been asked for, and not be
/// answered yet. Returns the width of its status.
fn answer(
    slot: &mut Slot,
    contexts: &SelectedContexts,
    id: ContextId,
) -> Result<StatusWidth, Violation> {
    let found = contexts.bit(id).filter(|(bit, _)| slot.asked & bit != 0);
    let Some((bit, context)) = found else {
        return Err(Violation::UnknownContext(id));
    };
    if slot.missing & bit == 0 {
        return Err(Violation::RepeatedContext(id));
    }
    slot.missing &= !bit;
    Ok(context.width)
}

/// `error:32 message_length:16 message [offset:64] rest`.
#[inline(never)]
fn error(
    rules: Rules<'_>,
    header: &Header,
    body: &mut &[u8],
    state: &mut State,
) -> Result<Taken, Error> {
    let Rules { limits, strict, .. } = rules;
    match chunk::error_length(header.chunk, header.length) {
        Err(error) if strict || header.length < PREFIX => return Err(error.into()),
        _ => {}
    }
    if header.length > u64::from(limits.payload) {
        return Err(Violation::ChunkTooLong {
            chunk: header.chunk,
            length: header.length,
        }
        .into());
    }
    let Some(bytes) = take::<6>(body) else {
        return Ok(header.short(6));
    };
    let mut fields = Fields::new(bytes);
    let (error, message_length) = (ErrorValue(fields.u32()), fields.u16());
    if strict {
        chunk::error_rest(header.chunk, header.length, message_length)?;
    }
    if !error.is_error() {
        return Err(DecodeError::NoError.into());
    }
    // The chunk's own length tells where the next header is, whatever the length
    // of the message says.
    let rest = header.length.saturating_sub(PREFIX);
    let after = rest.checked_sub(u64::from(message_length));
    let after_offset = after
        .filter(|_| header.chunk == ChunkType::ERROR_OFFSET)
        .and_then(|after| after.checked_sub(8));
    let after = after.unwrap_or(0);
    let message = rest.saturating_sub(after);
    let fits = message == u64::from(message_length);
    *state = State::Error(ErrorMessage {
        part: header.part(message),
        discard: !fits || message > u64::from(limits.error_message),
        error,
        offset: after_offset.is_some(),
        trailing: after_offset.unwrap_or(after),
    });
    Ok(Taken::Yes)
}
