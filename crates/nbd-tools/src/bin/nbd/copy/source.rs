//! The source of a copy: an export or a file.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, bail};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ContextId;

use super::side::Side;
use crate::align::aligned;
use crate::reads::{CHUNK, chunk};
use crate::session::{Session, check_last_block};
use crate::{args, connection, os};

/// How much of an export is mapped at a time, in bytes: a map of all of a large
/// export could exceed the memory. (Not much less, because a server that searches
/// for the next hole may have to walk through all the data that follows.)
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
        match side {
            Side::Export(uri) => {
                let contexts = [connection::ALLOCATION];
                let settings = common.settings();
                let connection = connection::open(uri, common.framing(), &contexts, &settings)?;
                Ok(Self::Export {
                    allocation: connection.allocation(),
                    session: Box::new(connection.session),
                })
            }
            Side::File(path) => {
                let file = File::open(path)?;
                if file.metadata()?.is_dir() {
                    bail!("it is a directory; give a file, a block device or a URI");
                }
                Ok(Self::File(Arc::new(file)))
            }
            Side::Null | Side::Stdio => bail!("it cannot be read"),
        }
    }

    /// The same source for another worker; `None` if that needs a connection.
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
            Self::Export { session, .. } => {
                check_last_block(session.negotiated())?;
                Ok(session.negotiated().size)
            }
            // The metadata of a block device lacks its size.
            Self::File(file) => Ok((&**file).seek(SeekFrom::End(0))?),
        }
    }

    /// Offsets and lengths must be multiples of this, except at the end.
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
            // Splitting holes would need several commands instead of one.
            Self::File(_) => u64::MAX,
        }
    }
}

/// Whether connections see what others wrote and flushed.
pub fn is_multi_conn(session: &Session) -> bool {
    let flags = session.negotiated().flags;
    flags.contains(TransmissionFlags::CAN_MULTI_CONN)
}

/// The parts of `range` of a file, aligned to `alignment`; true for holes.
pub fn map_file(file: &File, range: Range<u64>, alignment: u64) -> Result<Vec<(Range<u64>, bool)>> {
    let size = range.end;
    let first = os::next_hole(file, range.start, size)?;
    let holes = std::iter::successors(first, |hole| {
        // If this fails, reading the data that follows reports an error.
        os::next_hole(file, hole.end, size).ok().flatten()
    });
    Ok(aligned(holes, range, alignment))
}
