//! What is served: a disk, wherever its bytes are.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::memory::Lent;

/// A disk that many threads use at once. Offsets and lengths are in bytes and
/// within its size; the machine has seen to that.
pub trait Disk: Send + Sync {
    fn size(&self) -> u64;

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// The same if it succeeds without waiting; whether it did. If not, what is
    /// in `data` has no meaning.
    fn try_read(&self, offset: u64, data: &mut [u8]) -> bool;

    /// Whether the range is known to be data all through, and reading it in
    /// pieces of data and holes is in vain. Does not wait.
    fn is_data(&self, offset: u64, length: u64) -> bool;

    /// Whether it can lend its bytes.
    fn lends(&self) -> bool {
        false
    }

    /// Lends what is in the range, piece by piece, to be read where it is: it
    /// stays as it was, even if somebody writes to the disk meanwhile.
    fn lend(&self, _offset: u64, _length: u64, _to: &mut dyn FnMut(Lent)) {}

    /// The file to read and write where that may wait. If there is none,
    /// [`try_read`](Self::try_read) and [`try_write`](Self::try_write) do as
    /// well.
    fn file(&self) -> Option<&Arc<File>> {
        None
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// The same if it succeeds without waiting for long; whether it did. If
    /// not, a part may have been written.
    fn try_write(&self, offset: u64, data: &[u8]) -> bool;

    /// What is in the range reads as zeroes afterwards.
    fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()>;

    /// Nobody needs what is in the range.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Somebody will soon need what is in the range.
    fn cache(&self, offset: u64, length: u64) -> io::Result<()>;

    /// What was written before is permanent afterwards.
    fn flush(&self) -> io::Result<()>;

    /// The same, if somebody has flushed [`file`](Self::file) with this result.
    fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        result
    }

    /// What is at `offset`, and how far it is the same, up to `length` bytes.
    fn extent(&self, offset: u64, length: u64) -> io::Result<Extent>;
}

/// How zeroes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zero {
    /// Holes are welcome; otherwise later writes must not lack space.
    pub hole: bool,
    /// Fail with `Unsupported` if it is not faster than writing.
    pub fast: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub length: u64,
    /// Takes no space, and reads as zeroes.
    pub hole: bool,
}

/// The extents from `offset` on, each a multiple of `block` long, neighbours
/// of a kind joined. A block with any data in it is data.
pub struct Extents<'d> {
    disk: &'d dyn Disk,
    at: u64,
    end: u64,
    block: u64,
    /// Found, and perhaps not at its end yet.
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

    /// The next piece in whole blocks.
    fn piece(&mut self) -> io::Result<Option<Extent>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let left = self.end - self.at;
        let Extent { length, hole } = self.disk.extent(self.at, left)?;
        let whole = length / self.block * self.block;
        let piece = match hole && whole > 0 {
            true => Extent {
                length: whole,
                hole,
            },
            false => Extent {
                length: length.max(1).next_multiple_of(self.block).min(left),
                hole: false,
            },
        };
        self.at += piece.length;
        Ok(Some(piece))
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
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
