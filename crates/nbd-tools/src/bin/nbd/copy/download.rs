//! A worker that copies from an export. It has its own connection, and writes what
//! it has read before it reads more: that is still in the processor's cache, and no
//! other thread has to be woken.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use nbd_codec::client::TransmissionEvent;
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::number::{ContextId, Cookie};

use super::plan::Next;
use super::shared::Shared;
use super::target::Target;
use crate::align::{aligned, length, to_usize};
use crate::extents::{Context, Status};
use crate::reads::{Piece, Reads};
use crate::session::{Replies, Session, WINDOW};

/// With at most this many requests in flight, more are made, many at once.
const LOW: usize = WINDOW * 3 / 4;

/// The block size with which data is searched for zeroes.
const BLOCK: u64 = 4096;

/// Zeroes for the largest minimum block size that a server may have.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

pub struct Download {
    shared: Arc<Shared>,
    session: Box<Session>,
    /// The context `base:allocation`, if the server has it.
    allocation: Option<ContextId>,
    target: Target,
    incoming: Incoming,
}

/// Receives the replies.
struct Incoming {
    reads: Reads,
    map: Option<Map>,
}

/// The block status of a range, which is being requested.
struct Map {
    range: Range<u64>,
    status: Status,
}

impl Download {
    pub fn new(
        shared: Arc<Shared>,
        session: Box<Session>,
        allocation: Option<ContextId>,
        target: Target,
    ) -> Self {
        Self {
            shared,
            session,
            allocation,
            target,
            incoming: Incoming {
                reads: Reads::new(),
                map: None,
            },
        }
    }

    pub fn run(mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        while self.submit()? {
            shared.source(self.session.step(&mut self.incoming))?;
            shared.source(self.continue_mapping())?;
            while let Some(piece) = self.incoming.reads.next_ended() {
                let piece = shared.source(piece)?;
                let length = piece.data.len() as u64;
                let memory = shared.target(self.write(piece))?;
                self.incoming.reads.reuse(memory);
                shared.advance(length);
            }
        }
        shared.source(self.session.close())?;
        shared.target(self.target.finish())
    }

    /// Makes more requests; returns false if there is nothing more to do.
    fn submit(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        if self.session.in_flight() > LOW {
            return Ok(true);
        }
        while self.session.in_flight() < WINDOW {
            match shared.plan.next(self.session.in_flight() == 0) {
                Next::Data(range) => {
                    let submitted = self.incoming.reads.submit(&mut self.session, range);
                    shared.source(submitted)?;
                }
                Next::Zeroes(range) => {
                    let length = length(&range);
                    shared.target(self.target.zeroes(range.start, length))?;
                    shared.advance(length);
                }
                Next::Map(range) => shared.source(self.map(range))?,
                Next::Nothing => break,
            }
        }
        Ok(self.session.in_flight() > 0)
    }

    fn map(&mut self, range: Range<u64>) -> Result<()> {
        let Some(allocation) = self.allocation else {
            self.shared.plan.add(vec![(range, false)]);
            return Ok(());
        };
        let context = Context {
            id: allocation,
            allocation: true,
        };
        let status = Status::new(self.session.negotiated(), &[context], range.clone());
        self.incoming.map = Some(Map { range, status });
        self.continue_mapping()
    }

    /// Requests what is missing of a map, or adds the complete map to the plan.
    fn continue_mapping(&mut self) -> Result<()> {
        let map = self.incoming.map.as_mut();
        let Some(map) = map.filter(|map| !map.status.is_running()) else {
            return Ok(());
        };
        if map.status.request(&mut self.session, false)? {
            return Ok(());
        }
        let zero = u64::from(AllocationFlags::ZERO.0);
        let extents = map.status.extents.iter().flatten();
        let zeroes = extents
            .filter(|extent| extent.flags & zero != 0)
            .map(|extent| extent.offset..extent.end());
        let parts = aligned(zeroes, map.range.clone(), self.shared.alignment);
        self.incoming.map = None;
        self.shared.plan.add(parts);
        Ok(())
    }

    /// Writes a piece without its holes or, if the server has no block status,
    /// without blocks that are all zeroes. Returns its buffer.
    fn write(&mut self, piece: Piece) -> Result<Vec<u8>> {
        let Piece {
            offset,
            data,
            mut holes,
        } = piece;
        let mut block = self.shared.alignment;
        if self.allocation.is_none() {
            block = block.max(BLOCK);
            holes = zero_blocks(&data, to_usize(block));
        }
        if holes.is_empty() {
            return self.target.write(offset, data);
        }
        holes.sort_by_key(|hole| hole.start);
        let holes = holes.iter().map(|hole| hole.start as u64..hole.end as u64);
        for (range, zero) in aligned(holes, 0..data.len() as u64, block) {
            let place = offset.saturating_add(range.start);
            if zero {
                self.target.zeroes(place, length(&range))?
            } else {
                let part = to_usize(range.start)..to_usize(range.end);
                self.target.write_part(place, &data[part])?
            }
        }
        Ok(data)
    }
}

impl Replies for Incoming {
    fn place(&mut self, cookie: Cookie, offset: u64, length: usize) -> Option<&mut [u8]> {
        self.reads.place(cookie, offset, length)
    }

    fn hole(&mut self, cookie: Cookie, offset: u64, length: usize) -> Result<()> {
        self.reads.hole(cookie, offset, length)
    }

    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()> {
        match &mut self.map {
            Some(map) if map.status.is_answered_by(&event) => map.status.event(event),
            _ => self.reads.event(event),
        }
    }
}

/// The ranges of the blocks of `data` that are all zeroes.
fn zero_blocks(data: &[u8], block: usize) -> Vec<Range<usize>> {
    let blocks = (0..data.len()).step_by(block).zip(data.chunks(block));
    blocks
        .filter(|(_, bytes)| **bytes == ZEROES[..bytes.len()])
        .map(|(at, bytes)| at..at.saturating_add(bytes.len()))
        .collect()
}
