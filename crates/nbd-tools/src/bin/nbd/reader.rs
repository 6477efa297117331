//! Reads a range of an export in order, with several requests in flight. What the
//! server reports as zeroes is not requested, unless the range is short.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use anyhow::Result;
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::number::ContextId;

use crate::align::aligned;
use crate::extents::{self, Context};
use crate::reads::{CHUNK, Piece, Reads, chunk};
use crate::session::{Session, WINDOW};

/// How much is mapped at a time, in bytes.
const MAPPED: u64 = 1 << 30;

/// Ranges up to this length, in bytes, are not mapped: they are read with requests
/// that are all sent at once, which takes no longer than to map them.
const SHORT: u64 = WINDOW as u64 * CHUNK;

/// A part of the range.
pub enum Part {
    Data(Piece),
    /// This many bytes are zeroes.
    Zeroes(u64),
}

/// Reads `range` and passes its parts to `each` in order, which returns a buffer to
/// be reused. Only complete parts are passed. `allocation` is the number of the
/// context `base:allocation`, if the server has it.
pub fn read(
    session: &mut Session,
    allocation: Option<ContextId>,
    range: Range<u64>,
    each: &mut dyn FnMut(Part) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut plan = Plan {
        allocation,
        parts: VecDeque::new(),
        left: range.clone(),
        chunk: chunk(session),
    };
    if range.end.saturating_sub(range.start) <= SHORT {
        plan.allocation = None;
    }
    let mut reads = Reads::new();
    // Parts that arrived before earlier ones.
    let mut early = BTreeMap::new();
    let mut due = range.start;
    while due < range.end {
        while session.in_flight().saturating_add(early.len()) < WINDOW {
            match plan.next(session)? {
                Some((range, false)) => reads.submit(session, range)?,
                Some((range, true)) => {
                    let length = range.end.saturating_sub(range.start);
                    early.insert(range.start, Part::Zeroes(length));
                }
                None => break,
            }
        }
        if session.in_flight() > 0 {
            session.step(&mut reads)?;
        }
        while let Some(piece) = reads.next_ended() {
            let piece = piece?;
            early.insert(piece.offset, Part::Data(piece));
        }
        while let Some(part) = early.remove(&due) {
            let length = match &part {
                Part::Data(piece) => piece.data.len() as u64,
                Part::Zeroes(length) => *length,
            };
            due = due.saturating_add(length);
            reads.reuse(each(part)?);
        }
    }
    Ok(())
}

/// What is still to be read.
struct Plan {
    allocation: Option<ContextId>,
    /// Mapped parts; true for zeroes.
    parts: VecDeque<(Range<u64>, bool)>,
    /// What is not mapped yet.
    left: Range<u64>,
    /// The longest read, in bytes.
    chunk: u64,
}

impl Plan {
    /// The next part; `None` if there is none, or the reads in flight have to end
    /// first.
    fn next(&mut self, session: &mut Session) -> Result<Option<(Range<u64>, bool)>> {
        if self.parts.is_empty() && !self.left.is_empty() && !self.map(session)? {
            return Ok(None);
        }
        let Some((first, zero)) = self.parts.front_mut() else {
            return Ok(None);
        };
        let end = if *zero {
            first.end
        } else {
            first.end.min(first.start.saturating_add(self.chunk))
        };
        let part = (first.start..end, *zero);
        first.start = end;
        if first.is_empty() {
            self.parts.pop_front();
        }
        Ok(Some(part))
    }

    /// Maps the next range; returns false if there are reads in flight, whose replies
    /// would arrive meanwhile.
    fn map(&mut self, session: &mut Session) -> Result<bool> {
        let Some(id) = self.allocation else {
            self.parts.push_back((self.left.clone(), false));
            self.left.start = self.left.end;
            return Ok(true);
        };
        if session.in_flight() > 0 {
            return Ok(false);
        }
        let block = u64::from(session.negotiated().constraints().minimum.max(1));
        let end = self.left.start.saturating_add(MAPPED).min(self.left.end);
        let range = self.left.start..end;
        let context = Context {
            id,
            allocation: true,
        };
        let zero = u64::from(AllocationFlags::ZERO.0);
        let mut zeroes = Vec::new();
        extents::walk(session, &[context], range.clone(), &mut |_, extents| {
            let extents = extents.iter().filter(|extent| extent.flags & zero != 0);
            zeroes.extend(extents.map(|extent| extent.offset..extent.end()));
            Ok(())
        })?;
        self.parts = aligned(zeroes.into_iter(), range, block).into();
        self.left.start = end;
        Ok(true)
    }
}
