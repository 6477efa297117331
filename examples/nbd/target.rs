//! What is copied to: an export or a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;

use crate::reader::CHUNK;
use crate::source::{Part, Source};
use crate::writer::Writer;

pub enum Target {
    Export(Box<Writer>),
    /// A file that is as long as the source, and all hole so far.
    Sparse(File),
    /// A block device.
    Device(File),
    /// Nowhere.
    Null,
}

impl Target {
    /// An export, if it has room for `size` bytes.
    pub fn export(writer: Writer, size: u64) -> Result<Self> {
        check_room(writer.size(), size)?;
        let alignment = writer.alignment();
        if !size.is_multiple_of(alignment) {
            bail!(
                "the source has {size} bytes, and the export takes only multiples of {alignment}"
            );
        }
        Ok(Self::Export(Box::new(writer)))
    }

    /// A file, which is replaced, or a block device with room for `size`
    /// bytes.
    pub fn file(path: &Path, source: &Source, size: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let metadata = file.metadata()?;
        if let Source::File(source) = source {
            let source = source.metadata()?;
            if (source.dev(), source.ino()) == (metadata.dev(), metadata.ino()) {
                bail!("source and destination are the same file");
            }
        }
        if metadata.is_file() {
            file.set_len(0)?;
            file.set_len(size)
                .with_context(|| format!("cannot make it {size} bytes long"))?;
            return Ok(Self::Sparse(file));
        }
        check_room(rustix::fs::seek(&file, SeekFrom::End(0))?, size)?;
        Ok(Self::Device(file))
    }

    /// What every offset and length must be a multiple of.
    pub fn alignment(&self) -> u64 {
        match self {
            Self::Export(writer) => writer.alignment(),
            Self::Sparse(_) | Self::Device(_) | Self::Null => 1,
        }
    }

    /// The longest data it takes, in bytes.
    pub fn chunk(&self) -> usize {
        match self {
            Self::Export(writer) => writer.chunk(),
            Self::Sparse(_) | Self::Device(_) | Self::Null => usize::MAX,
        }
    }

    /// Writes a part; gives back memory that is not needed any more.
    pub fn write(&mut self, part: Part) -> Result<Vec<u8>> {
        let free = match (self, part) {
            (Self::Export(writer), Part::Data { offset, data }) => {
                writer.data(offset, data)?;
                Vec::new()
            }
            (Self::Export(writer), Part::Zeroes { offset, length }) => {
                writer.zeroes(offset, length)?;
                Vec::new()
            }
            (Self::Sparse(file) | Self::Device(file), Part::Data { offset, data }) => {
                file.write_all_at(&data, offset)?;
                data
            }
            (Self::Null, Part::Data { data, .. }) => data,
            (Self::Sparse(_) | Self::Null, Part::Zeroes { .. }) => Vec::new(),
            (Self::Device(file), Part::Zeroes { offset, length }) => {
                let zeroes = vec![0; CHUNK as usize];
                for at in (offset..offset + length).step_by(zeroes.len()) {
                    let left = (offset + length - at).min(CHUNK);
                    file.write_all_at(&zeroes[..left as usize], at)?;
                }
                zeroes
            }
        };
        Ok(free)
    }

    /// Everything is written.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Export(writer) => writer.finish(),
            Self::Sparse(_) | Self::Null => Ok(()),
            Self::Device(file) => Ok(file.sync_data()?),
        }
    }
}

fn check_room(room: u64, size: u64) -> Result<()> {
    if room < size {
        bail!("the destination is too small: it has {room} bytes, the source {size}");
    }
    Ok(())
}
