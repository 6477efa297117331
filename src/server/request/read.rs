//! `NBD_CMD_READ`, and replies to it: whole, or chunk by chunk.

use super::reply::{Reply, ReplyHeader, RequestInfo};
use super::{Rejected, accessors};
use crate::coverage::{Coverage, Outcome, Seed};
use crate::error::Misuse;
use crate::negotiated::Framing;
use crate::wire::flags::CommandFlags;
use crate::wire::number::{ChunkType, Cookie, ErrorValue};

/// `NBD_CMD_READ`: answered with all of the data at once, or in
/// [chunks](Self::into_chunks).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the reply to every request"]
pub struct ReadRequest {
    pub(in crate::server) info: RequestInfo,
}

accessors! { ReadRequest: offset }

impl ReadRequest {
    /// How long the range is, in bytes; never zero, and at most the maximum
    /// payload.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.info.length32()
    }

    /// Whether the data must come in one piece (`DF`). Answered whole, it
    /// does.
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        self.info.flags.contains(CommandFlags::DF)
    }

    /// Answers with all of the data, which must be at hand: the reply ends
    /// with it, and cannot fail any more.
    #[inline]
    pub fn data(self) -> ReplyHeader {
        self.info.data(self.info.offset, self.length(), true)
    }

    /// To answer piece by piece, with data and holes in any order.
    ///
    /// # Errors
    ///
    /// The read itself with simple framing, which has no chunks: answer it
    /// whole.
    pub fn into_chunks(self) -> Result<ChunkedRead, Self> {
        match self.info.framing.compiled() {
            Framing::Simple => Err(self),
            Framing::Structured | Framing::Extended => Ok(ChunkedRead {
                coverage: Coverage::NONE,
                info: self.info,
                errors: None,
            }),
        }
    }
}

impl RequestInfo {
    /// The length of a read, which was checked against the maximum payload.
    fn length32(&self) -> u32 {
        u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    /// The header of content; with simple framing it is all the content there
    /// is.
    #[inline]
    fn data(&self, offset: u64, length: u32, last: bool) -> ReplyHeader {
        let (chunk, place) = (ChunkType::OFFSET_DATA, offset.to_be_bytes());
        let front = self.header_with(chunk, last, length.saturating_add(8), place);
        ReplyHeader::new(front, length)
    }

    fn hole<'t>(&self, offset: u64, length: u32, last: bool) -> Reply<'t> {
        let front = self.header(ChunkType::OFFSET_HOLE, last, 12);
        Reply::new(front.put(offset.to_be_bytes()).put(length.to_be_bytes()))
    }
}

/// The chunks are the server's own: no attacker chooses them.
const SEED: Seed = Seed::given(0);

/// A reply to a read under way: chunks, then one of the calls that consume it.
///
/// Chunks of different replies may be written in turns; the parts of one
/// chunk may not. That the read is complete is checked before the reply can
/// end with success.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the end of every reply"]
pub struct ChunkedRead {
    info: RequestInfo,
    coverage: Coverage,
    /// The first and the last place an error was reported at.
    errors: Option<(u64, u64)>,
}

accessors! { ChunkedRead: offset }

impl ChunkedRead {
    /// How much is read, in bytes.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.info.length32()
    }

    /// Whether there may be one piece only (`DF`).
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        self.info.flags.contains(CommandFlags::DF)
    }

    /// A piece of data; `offset` in bytes from the start of the export.
    ///
    /// # Errors
    ///
    /// [`Misuse`] for a piece that is empty or outside the request, for a
    /// second one although the read has `DF`, for one that must overlap
    /// another, and for one that holds an error reported before; nothing has
    /// changed.
    pub fn data(&mut self, offset: u64, length: u32) -> Result<ReplyHeader, Misuse> {
        self.add(offset, length)?;
        Ok(self.info.data(offset, length, false))
    }

    /// A piece that reads as zeroes; `offset` in bytes from the start of the
    /// export.
    ///
    /// # Errors
    ///
    /// As [`data`](Self::data).
    pub fn hole(&mut self, offset: u64, length: u32) -> Result<Reply<'static>, Misuse> {
        self.add(offset, length)?;
        Ok(self.info.hole(offset, length, false))
    }

    /// An error at a place, in bytes from the start of the export. Content
    /// around it, if any, must have been sent before. More chunks may follow;
    /// the reply is an error, however it ends.
    ///
    /// # Errors
    ///
    /// [`Misuse::OutsideRequest`]; nothing has changed.
    pub fn error_at<'t>(
        &mut self,
        error: ErrorValue,
        offset: u64,
        text: &'t str,
    ) -> Result<Reply<'t>, Misuse> {
        if !self.info.holds(offset, 1) {
            return Err(Misuse::OutsideRequest);
        }
        let (first, last) = self.errors.unwrap_or((offset, offset));
        self.errors = Some((first.min(offset), last.max(offset)));
        Ok(self.info.error(error, Some(offset), false, text))
    }

    /// Ends the reply: with success, if no error was reported.
    ///
    /// # Errors
    ///
    /// [`Misuse::Incomplete`] and [`Misuse::Overlap`] where the content does
    /// not cover the read exactly once, with the reply. After an overlap only
    /// [`fail`](Self::fail) is left.
    pub fn finish(self) -> Result<Reply<'static>, Rejected<Self>> {
        match self.complete() {
            Ok(()) => Ok(self.info.success()),
            Err(misuse) => Err(Rejected::new(misuse, self)),
        }
    }

    /// Ends the reply with its last piece of data, which must be at hand: it
    /// cannot fail any more.
    ///
    /// # Errors
    ///
    /// As [`data`](Self::data) and [`finish`](Self::finish), with the reply as
    /// it was.
    pub fn finish_with_data(
        mut self,
        offset: u64,
        length: u32,
    ) -> Result<ReplyHeader, Rejected<Self>> {
        match self.add_last(offset, length) {
            Ok(()) => Ok(self.info.data(offset, length, true)),
            Err(misuse) => Err(Rejected::new(misuse, self)),
        }
    }

    /// Ends the reply with its last piece, which reads as zeroes.
    ///
    /// # Errors
    ///
    /// As [`finish_with_data`](Self::finish_with_data).
    pub fn finish_with_hole(
        mut self,
        offset: u64,
        length: u32,
    ) -> Result<Reply<'static>, Rejected<Self>> {
        match self.add_last(offset, length) {
            Ok(()) => Ok(self.info.hole(offset, length, true)),
            Err(misuse) => Err(Rejected::new(misuse, self)),
        }
    }

    /// Checks a piece and adds it.
    fn add(&mut self, offset: u64, length: u32) -> Result<(), Misuse> {
        if length == 0 {
            return Err(Misuse::ZeroLength);
        }
        let length = u64::from(length);
        if !self.info.holds(offset, length) {
            return Err(Misuse::OutsideRequest);
        }
        if self.dont_fragment() && !self.coverage.is_empty() {
            return Err(Misuse::Fragmented);
        }
        let end = offset.saturating_add(length);
        // Errors between the first and the last are not remembered one by
        // one: a piece between them may hold one of them.
        if self
            .errors
            .is_some_and(|(first, last)| offset <= last && end > first)
        {
            return Err(Misuse::Overlap);
        }
        let from = offset.saturating_sub(self.info.offset);
        let mut coverage = self.coverage;
        if !coverage.add(from, length, self.info.length, &mut { SEED }) {
            return Err(Misuse::Overlap);
        }
        self.coverage = coverage;
        Ok(())
    }

    /// Checks a piece and adds it, if the read is complete with it.
    fn add_last(&mut self, offset: u64, length: u32) -> Result<(), Misuse> {
        let before = self.coverage;
        let result = self.add(offset, length).and_then(|()| self.complete());
        if result.is_err() {
            self.coverage = before;
        }
        result
    }

    fn complete(&self) -> Result<(), Misuse> {
        if self.errors.is_some() {
            return Ok(());
        }
        match self.coverage.outcome(self.info.length, &mut { SEED }) {
            Outcome::Complete => Ok(()),
            Outcome::Incomplete => Err(Misuse::Incomplete),
            Outcome::Overlap => Err(Misuse::Overlap),
        }
    }
}
