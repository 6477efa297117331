//! What is copied from: an export or a file.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, bail};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ContextId;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::side::Side;
use crate::align::aligned;
use crate::reads::{CHUNK, chunk};
use crate::session::Session;
use crate::{args, connection};

/// How much of an export is mapped at a time, in bytes: a map of all of a large
/// one could be larger than memory. (Not much less: a server that looks for
/// holes may walk through all data behind the place that was asked for.)
const WINDOW: u64 = 4 << 30;

pub enum Source {
    Export {
        session: Box<Session>,
        /// The context `base:allocation`, if the server has it.
        allocation: Option<ContextId>,
    },
    File(Arc<File>),
}

impl Source {
    pub fn open(side: &Side, common: &args::Common) -> Result<Self> {
        let name = "base:allocation";
        match side {
            Side::Export(uri) => {
                let connection =
                    connection::open(uri, common.framing(), &[name], &common.settings())?;
                let mut contexts = connection.contexts.iter();
                Ok(Self::Export {
                    allocation: contexts.find(|(_, known)| known == name).map(|(id, _)| *id),
                    session: Box::new(connection.session),
                })
            }
            Side::File(path) => Ok(Self::File(Arc::new(File::open(path)?))),
            Side::Null => bail!("nothing can be read from it"),
        }
    }

    /// The same for another worker; `None` if it takes another connection.
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::Export { .. } => None,
            Self::File(file) => Some(Self::File(Arc::clone(file))),
        }
    }

    /// Whether several workers may have a connection each.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Export { session, .. } => is_multi_conn(session),
            Self::File(_) => true,
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

    /// The most that is read at once, in bytes.
    pub fn chunk(&self) -> u64 {
        match self {
            Self::Export { session, .. } => chunk(session),
            Self::File(_) => CHUNK,
        }
    }

    /// How much is mapped at a time, in bytes.
    pub fn window(&self) -> u64 {
        match self {
            Self::Export { .. } => WINDOW,
            // Cutting holes would make several commands of one.
            Self::File(_) => u64::MAX,
        }
    }
}

/// Whether what one connection writes, and flushes, is so for the others.
pub fn is_multi_conn(session: &Session) -> bool {
    let flags = session.negotiated().flags;
    flags.contains(TransmissionFlags::CAN_MULTI_CONN)
}

/// What is in `range` of a file, in parts aligned to `alignment`; true for
/// holes.
pub fn map_file(file: &File, range: Range<u64>, alignment: u64) -> Result<Vec<(Range<u64>, bool)>> {
    let size = range.end;
    let first = next_hole(file, range.start, size)?;
    let holes = std::iter::successors(first, |hole| {
        // An error shows where the data behind the hole is read.
        next_hole(file, hole.end, size).ok().flatten()
    });
    Ok(aligned(holes, range, alignment))
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
