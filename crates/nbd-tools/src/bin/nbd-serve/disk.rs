//! The storage of an export.

use std::io;

use crate::memory::Lent;
use crate::pipe::Pipe;

/// A disk that many threads use at once. Offsets and lengths are in bytes and
/// within its size: the state machine has validated them.
pub trait Disk: Send + Sync {
    fn size(&self) -> u64;

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Reads if that does not block; returns whether it did. If not, the content
    /// of `data` is unspecified.
    fn try_read(&self, offset: u64, data: &mut [u8]) -> bool;

    /// Whether the range is known to have no holes. Does not block.
    fn is_data(&self, offset: u64, length: u64) -> bool;

    /// Whether [`lend`](Self::lend) is supported.
    fn lends(&self) -> bool {
        false
    }

    /// Passes the content of the range to `to`, piece by piece and without copying
    /// it. Later writes to the disk do not change what was lent.
    fn lend(&self, _offset: u64, _length: u64, _to: &mut dyn FnMut(Lent)) {}

    /// Takes the range into a pipe without copying it; `None` if it has to be read.
    /// `at_once`: `None` if that could block, too. Later writes to the disk may change the data
    /// until the client has it.
    fn pipe(&self, _offset: u64, _length: usize, _at_once: bool) -> io::Result<Option<Pipe>> {
        Ok(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Writes if that does not block for long; returns whether it did. If not, a
    /// part may be written.
    fn try_write(&self, offset: u64, data: &[u8]) -> bool;

    /// Makes the range read as zeroes.
    fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()>;

    /// Discards the content of the range, which is unspecified afterwards.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()>;

    /// The range will be read soon.
    fn cache(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes all completed writes permanent.
    fn flush(&self) -> io::Result<()>;

    /// The extent at `offset`, up to `length` bytes. Another one of the same kind
    /// follows only if the disk changes meanwhile.
    fn extent(&self, offset: u64, length: u64) -> io::Result<Extent>;
}

/// How zeroes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zero {
    /// Make holes if possible; otherwise allocate space for later writes.
    pub hole: bool,
    /// Fail with `Unsupported` if this is not faster than writing.
    pub fast: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub length: u64,
    /// Occupies no space, and reads as zeroes.
    pub hole: bool,
}

/// The extents of a range. Each is a multiple of `block` long, and adjacent
/// extents differ. A block that has data and a hole is data. Each is looked for
/// when it is asked for.
#[derive(Clone)]
pub struct Extents<'d> {
    disk: &'d dyn Disk,
    at: u64,
    end: u64,
    block: u64,
    /// The last extent; more of the same kind may follow.
    found: Option<Extent>,
}

impl<'d> Extents<'d> {
    pub fn new(disk: &'d dyn Disk, offset: u64, length: u64, block: u32) -> Self {
        Self {
            disk,
            at: offset,
            end: offset + length,
            block: block.into(),
            found: None,
        }
    }

    /// The next extent in whole blocks, not joined.
    fn piece(&mut self) -> io::Result<Option<Extent>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let left = self.end - self.at;
        let Extent { length, hole } = self.disk.extent(self.at, left)?;
        let whole = length / self.block * self.block;
        let piece = if hole && whole > 0 {
            Extent {
                length: whole,
                hole,
            }
        } else {
            Extent {
                length: length.max(1).next_multiple_of(self.block).min(left),
                hole: false,
            }
        };
        self.at += piece.length;
        Ok(Some(piece))
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Only data in blocks can be followed by more of it: a hole that is
            // shorter than a block.
            if let Some(found) = self.found
                && (found.hole || self.block == 1)
            {
                self.found = None;
                return Some(Ok(found));
            }
            match self.piece() {
                Err(error) => return Some(Err(error)),
                Ok(None) => return self.found.take().map(Ok),
                Ok(Some(piece)) => match &mut self.found {
                    Some(found) if found.hole == piece.hole => found.length += piece.length,
                    found => {
                        if let Some(before) = found.replace(piece) {
                            return Some(Ok(before));
                        }
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;
