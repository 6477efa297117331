//! Where a sequence of bytes is written: a file, in which zeroes become holes, or
//! standard output, a pipe or a device, to which everything is written.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::os::FileExt;
use crate::stdout;

static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// The name of standard input and output.
pub const STDIO: &str = "-";

pub enum Output {
    Stdout,
    /// A file, and how long it is so far.
    Sparse(PathBuf, File, u64),
    /// A pipe or a device.
    Stream(PathBuf, File),
}

impl Output {
    /// Opens a file, which is replaced, or standard output for `-`.
    pub fn create(path: &Path) -> Result<Self> {
        if path.as_os_str() == STDIO {
            return Ok(Self::Stdout);
        }
        let name = || path.display().to_string();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.open(path).with_context(name)?;
        let path = path.to_owned();
        if file.metadata().with_context(name)?.is_file() {
            file.set_len(0).with_context(name)?;
            Ok(Self::Sparse(path, file, 0))
        } else {
            Ok(Self::Stream(path, file))
        }
    }

    pub fn data(&mut self, data: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => stdout::write(data),
            Self::Sparse(path, file, end) => {
                let written = file.write_all_at(data, *end);
                *end = end.saturating_add(data.len() as u64);
                written.with_context(|| path.display().to_string())
            }
            Self::Stream(path, file) => file
                .write_all(data)
                .with_context(|| path.display().to_string()),
        }
    }

    pub fn zeroes(&mut self, length: u64) -> Result<()> {
        if let Self::Sparse(_, _, end) = self {
            *end = end.saturating_add(length);
            return Ok(());
        }
        let mut left = length;
        while left > 0 {
            let part = ZEROES
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            self.data(&ZEROES[..part])?;
            left = left.saturating_sub(part as u64);
        }
        Ok(())
    }

    /// Gives a file its length.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Sparse(path, file, end) => file
                .set_len(end)
                .with_context(|| path.display().to_string()),
            Self::Stdout | Self::Stream(..) => Ok(()),
        }
    }
}
