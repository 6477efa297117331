//! What is copied from: an export or a file, as a sequence of data and zeroes.

use std::fs::File;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::number::ContextId;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::align::aligned;
use crate::connection::Connection;
use crate::extents;
use crate::reader::{self, CHUNK, Piece};
use crate::session::Session;

/// How much of an export is mapped before it is read, in bytes: a map of all
/// of a large one could be larger than memory.
const WINDOW: u64 = 1 << 30;

/// Where zeroes are looked for in data, a block of so many bytes is a hole.
const BLOCK: u64 = 4096;

/// As many zeroes as the largest block a server can insist on has.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A part of what is copied.
pub enum Part {
    Data { offset: u64, data: Vec<u8> },
    Zeroes { offset: u64, length: u64 },
}

/// Takes a part; gives back memory to be used again, or an empty vector.
pub type Each<'e> = &'e mut dyn FnMut(Part) -> Result<Vec<u8>>;

pub enum Source {
    Export {
        session: Box<Session>,
        /// The context `base:allocation`, if the server has it.
        allocation: Option<ContextId>,
    },
    File(File),
}

impl Source {
    /// The export of a connection that asked for `base:allocation`.
    pub fn export(connection: Connection) -> Self {
        let Connection { session, contexts } = connection;
        let allocation = contexts
            .iter()
            .find(|(_, name)| name == "base:allocation")
            .map(|(id, _)| *id);
        Self::Export {
            session: Box::new(session),
            allocation,
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<u64> {
        match self {
            Self::Export { session, .. } => Ok(session.negotiated().size),
            // Of a block device the metadata says nothing, its end does.
            Self::File(file) => Ok(rustix::fs::seek(file, SeekFrom::End(0))?),
        }
    }

    /// What every offset and length is a multiple of, but for the end.
    pub fn alignment(&self) -> u64 {
        match self {
            Self::Export { session, .. } => session.negotiated().constraints().minimum.into(),
            Self::File(_) => 1,
        }
    }

    /// Hands all of it to `each`, in order, in parts aligned to `alignment`.
    pub fn run(self, alignment: u64, each: Each<'_>) -> Result<()> {
        let size = self.size()?;
        match self {
            Self::File(file) => copy_file(&file, size, alignment, each),
            Self::Export {
                mut session,
                allocation: None,
            } => {
                reader::read(&mut session, 0..size, &mut |piece| {
                    split(piece, alignment.max(BLOCK), true, each)
                })?;
                session.close()
            }
            Self::Export {
                mut session,
                allocation: Some(allocation),
            } => {
                let mut start = 0;
                while start < size {
                    let end = size.min(start.saturating_add(WINDOW));
                    copy_window(&mut session, allocation, start..end, alignment, each)?;
                    start = end;
                }
                session.close()
            }
        }
    }
}

fn copy_window(
    session: &mut Session,
    allocation: ContextId,
    window: Range<u64>,
    alignment: u64,
    each: Each<'_>,
) -> Result<()> {
    let extents = extents::walk(session, &[allocation], window.clone())?;
    let zero = u64::from(AllocationFlags::ZERO.0);
    let zeroes = extents
        .iter()
        .flatten()
        .filter(|extent| extent.flags & zero != 0)
        .map(|extent| extent.offset..extent.end());
    for (range, zero) in aligned(zeroes, window, alignment) {
        match zero {
            true => drop(each(zeroes_of(range))?),
            false => reader::read(session, range, &mut |piece| {
                split(piece, alignment, false, each)
            })?,
        }
    }
    Ok(())
}

fn copy_file(file: &File, size: u64, alignment: u64, each: Each<'_>) -> Result<()> {
    let mut spare = Vec::new();
    let holes = std::iter::successors(next_hole(file, 0, size)?, |hole| {
        // An error shows where the data behind the hole is read.
        next_hole(file, hole.end, size).ok().flatten()
    });
    for (range, zero) in aligned(holes, 0..size, alignment) {
        if zero {
            each(zeroes_of(range))?;
            continue;
        }
        let mut offset = range.start;
        while offset < range.end {
            let length = (range.end - offset).min(CHUNK);
            let mut data = mem::take(&mut spare);
            data.resize(length as usize, 0);
            file.read_exact_at(&mut data, offset)
                .with_context(|| format!("cannot read {length} bytes at offset {offset}"))?;
            spare = each(Part::Data { offset, data })?;
            offset += length;
        }
    }
    Ok(())
}

/// The first hole at or behind `from`.
fn next_hole(file: &File, from: u64, size: u64) -> Result<Option<Range<u64>>> {
    if from >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Hole(from)) {
        Ok(start) if start < size => start,
        // The end of a file counts as a hole; and without the means to look
        // for holes there are none.
        Ok(_) | Err(Errno::INVAL | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Data(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..end))
}

fn zeroes_of(range: Range<u64>) -> Part {
    Part::Zeroes {
        offset: range.start,
        length: range.end - range.start,
    }
}

/// Hands over a piece without its holes; with `look`, neither with blocks that
/// are all zeroes.
fn split(piece: Piece, block: u64, look: bool, each: Each<'_>) -> Result<Vec<u8>> {
    let Piece {
        offset,
        data,
        mut holes,
    } = piece;
    if look {
        let block = block as usize;
        let blocks = data.chunks(block).enumerate();
        holes = blocks
            .filter(|(_, bytes)| **bytes == ZEROES[..bytes.len()])
            .map(|(index, bytes)| index * block..index * block + bytes.len())
            .collect();
    }
    holes.sort_by_key(|hole| hole.start);
    let holes = holes.iter().map(|hole| hole.start as u64..hole.end as u64);
    let parts = aligned(holes, 0..data.len() as u64, block);
    if let [(_, false)] = parts[..] {
        return each(Part::Data { offset, data });
    }
    for (range, zero) in parts {
        let place = offset + range.start;
        each(match zero {
            true => Part::Zeroes {
                offset: place,
                length: range.end - range.start,
            },
            false => Part::Data {
                offset: place,
                data: data[range.start as usize..range.end as usize].to_vec(),
            },
        })?;
    }
    Ok(data)
}
