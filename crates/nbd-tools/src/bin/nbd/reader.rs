//! Reads a range of an export in order, with several requests in flight.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;

use crate::reads::{Piece, Reads, chunk};
use crate::session::{Session, WINDOW};

/// Reads `range` and passes the pieces to `each` in order, which returns a buffer
/// to be reused. Only complete pieces are passed.
pub fn read(
    session: &mut Session,
    range: Range<u64>,
    each: &mut dyn FnMut(Piece) -> Result<Vec<u8>>,
) -> Result<()> {
    let chunk = chunk(session);
    let mut reads = Reads::new();
    // Pieces that arrived before earlier ones.
    let mut early = BTreeMap::new();
    let mut at = range.start;
    let mut due = range.start;
    while due < range.end {
        while at < range.end && session.in_flight() + early.len() < WINDOW {
            let end = range.end.min(at.saturating_add(chunk));
            reads.submit(session, at..end)?;
            at = end;
        }
        session.step(&mut reads)?;
        while let Some(piece) = reads.next_ended() {
            let piece = piece?;
            early.insert(piece.offset, piece);
        }
        while let Some(piece) = early.remove(&due) {
            due += piece.data.len() as u64;
            reads.reuse(each(piece)?);
        }
    }
    Ok(())
}
