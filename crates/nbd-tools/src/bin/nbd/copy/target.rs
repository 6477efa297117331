//! The destination of a copy: an export, a file, or nothing.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use same_file::Handle;

use super::side::Side;
use super::source::{Source, is_multi_conn};
use crate::align::to_usize;
use crate::os::FileExt;
use crate::reads::CHUNK;
use crate::writer::Writer;
use crate::{args, connection};

pub enum Target {
    Export(Box<Writer>),
    /// A file as long as the source, initially one hole.
    Sparse(Arc<File>),
    /// A block device.
    Device(Arc<File>),
    /// Discards the data.
    Null,
}

impl Target {
    /// Opens the destination for `size` bytes from `source`; creates or replaces a
    /// file.
    pub fn open(side: &Side, source: &Source, size: u64, common: &args::Common) -> Result<Self> {
        match side {
            Side::Export(_) => Self::connect(side, size, common),
            Side::File(path) => Self::file(path, source, size),
            Side::Null => Ok(Self::Null),
            Side::Stdio => bail!("it has no offsets"),
        }
    }

    /// Connects to an export of at least `size` bytes.
    pub fn connect(side: &Side, size: u64, common: &args::Common) -> Result<Self> {
        let Side::Export(uri) = side else {
            bail!("{side} is not an export");
        };
        let connection = connection::open(uri, common.framing(), &[], &common.settings())?;
        let writer = Writer::new(connection.session)?;
        check_size(writer.size(), size)?;
        let alignment = writer.alignment();
        if !size.is_multiple_of(alignment) {
            bail!(
                "the source has {size} bytes, but the export accepts only multiples of {alignment}"
            );
        }
        Ok(Self::Export(Box::new(writer)))
    }

    /// Opens a file, which is replaced, or a block device of at least `size` bytes.
    fn file(path: &Path, source: &Source, size: u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let metadata = file.metadata()?;
        if let Source::File(source) = source {
            let source = Handle::from_file(source.try_clone()?)?;
            if source == Handle::from_file(file.try_clone()?)? {
                bail!("source and destination are the same file");
            }
        }
        if metadata.is_file() {
            // Before its content is discarded: it may be too large for the file system.
            file.set_len(size)
                .with_context(|| format!("cannot set its size to {size} bytes"))?;
            file.set_len(0)?;
            file.set_len(size)?;
            return Ok(Self::Sparse(Arc::new(file)));
        }
        check_size(file.seek(SeekFrom::End(0))?, size)?;
        Ok(Self::Device(Arc::new(file)))
    }

    /// The same destination for another worker; `None` if that needs a connection.
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::Export(_) => None,
            Self::Sparse(file) => Some(Self::Sparse(Arc::clone(file))),
            Self::Device(file) => Some(Self::Device(Arc::clone(file))),
            Self::Null => Some(Self::Null),
        }
    }

    /// Whether several workers may have a connection each.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Export(writer) => is_multi_conn(writer.session()),
            Self::Sparse(_) | Self::Device(_) | Self::Null => true,
        }
    }

    /// Offsets and lengths must be multiples of this.
    pub fn alignment(&self) -> u64 {
        match self {
            Self::Export(writer) => writer.alignment(),
            Self::Sparse(_) | Self::Device(_) | Self::Null => 1,
        }
    }

    /// The longest data that one write accepts, in bytes.
    pub fn chunk(&self) -> u64 {
        match self {
            Self::Export(writer) => writer.chunk() as u64,
            Self::Sparse(_) | Self::Device(_) | Self::Null => CHUNK,
        }
    }

    /// Writes data; returns a buffer to be reused.
    pub fn write(&mut self, offset: u64, data: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Export(writer) => {
                writer.data(offset, data)?;
                Ok(writer.spare())
            }
            _ => {
                self.write_part(offset, &data)?;
                Ok(data)
            }
        }
    }

    /// Writes a part of a buffer.
    pub fn write_part(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        match self {
            Self::Export(writer) => {
                let mut copy = writer.spare();
                copy.clear();
                copy.extend_from_slice(data);
                writer.data(offset, copy)
            }
            Self::Sparse(file) | Self::Device(file) => Ok(file.write_all_at(data, offset)?),
            Self::Null => Ok(()),
        }
    }

    pub fn zeroes(&mut self, offset: u64, length: u64) -> Result<()> {
        match self {
            Self::Export(writer) => writer.zeroes(offset, length),
            Self::Sparse(_) | Self::Null => Ok(()),
            Self::Device(file) => {
                let zeroes = vec![0; to_usize(CHUNK)];
                let end = offset.saturating_add(length);
                for at in (offset..end).step_by(zeroes.len()) {
                    let left = end.saturating_sub(at).min(CHUNK);
                    file.write_all_at(&zeroes[..to_usize(left)], at)?;
                }
                Ok(())
            }
        }
    }

    /// Makes everything permanent, and ends the session.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Export(writer) => writer.finish(),
            Self::Sparse(_) | Self::Null => Ok(()),
            Self::Device(file) => Ok(file.sync_data()?),
        }
    }
}

fn check_size(available: u64, size: u64) -> Result<()> {
    if available < size {
        bail!("the destination is too small: it has {available} bytes, the source {size}");
    }
    Ok(())
}
