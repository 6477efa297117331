//! A raw file or a block device.
//!
//! Reads and writes are positional, so that threads share the file. `SEEK_HOLE`
//! finds holes, `FALLOC_FL_PUNCH_HOLE` makes them.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use crate::disk::{Disk, Extent, Zero};
use crate::durability::Durability;
use crate::os::{self, Space};
use crate::pipe::Pipe;

pub struct FileDisk {
    file: File,
    size: u64,
    waits: Waits,
    known: Mutex<Known>,
    durability: Durability,
    /// Whether the file system allocates space without writing to it; found out
    /// when it is first needed.
    allocates: OnceLock<bool>,
    allocate: Allocate,
}

/// The file system reads ahead, so pages that are this near to each other are usually in
/// the page cache together.
const PROBED: usize = 64 << 10;

/// [`os::allocate`].
type Allocate = fn(&File, Space, u64, u64) -> Result<(), Errno>;

#[derive(Clone, Default)]
struct Known {
    /// The range of data that was found last: `SEEK_HOLE` takes the longer the
    /// farther the hole is. If another process makes holes in the file, reporting
    /// them as data is still correct.
    data: Range<u64>,
    /// The end of the hole that was found last. Data is expected there.
    next: u64,
    /// How many times holes were made.
    holes: u64,
}

/// What a read may have to wait for.
enum Waits {
    /// Nothing: the file is in memory.
    Never,
    /// Data that is not in the page cache; `RWF_NOWAIT` tells.
    ForDevice,
    /// Unknown, so any read may block.
    Always,
}

impl Waits {
    fn of(file: &File, is_file: bool) -> Self {
        if is_file && os::is_in_memory(file) {
            return Self::Never;
        }
        let probe = &mut [0];
        let slices = &mut [io::IoSliceMut::new(probe)];
        match os::read_at_once(file, slices, 0) {
            Ok(_) | Err(Errno::AGAIN) if is_file => Self::ForDevice,
            _ => Self::Always,
        }
    }
}

impl FileDisk {
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let name = path.display();
        let metadata = path
            .metadata()
            .with_context(|| format!("cannot serve {name}"))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("cannot serve {name}: not a regular file or block device");
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(!read_only)
            .open(path)
            .with_context(|| {
                if read_only {
                    format!("cannot open {name}")
                } else {
                    format!("cannot open {name} for writing (or use --read-only)")
                }
            })?;
        let size = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("cannot determine the size of {name}"))?;
        Ok(Self {
            waits: Waits::of(&file, kind.is_file()),
            file,
            size,
            known: Mutex::default(),
            durability: Durability::default(),
            allocates: OnceLock::new(),
            allocate: os::allocate,
        })
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let result = (self.allocate)(&self.file, Space::Hole, offset, length);
        self.forget();
        Ok(result?)
    }

    /// How much the file has from `offset` on. Fails if that is nothing, because
    /// another process has truncated it.
    fn left(&self, offset: u64) -> io::Result<u64> {
        let size = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?;
        let left = size.checked_sub(offset).filter(|left| *left > 0);
        left.ok_or_else(truncated)
    }

    /// Whether a read of this range does not wait, as far as a probe of one byte in each
    /// [`PROBED`] and of the last byte tells.
    fn is_cached(&self, offset: u64, length: usize) -> bool {
        let end = offset + length as u64;
        let mut probes = (offset..end).step_by(PROBED).chain([end.saturating_sub(1)]);
        match self.waits {
            Waits::Never => true,
            Waits::ForDevice => probes.all(|at| self.try_read(at, &mut [0])),
            Waits::Always => false,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holes were made: forgets the range of data.
    fn forget(&self) {
        let mut known = self.known();
        known.holes += 1;
        known.data = 0..0;
    }

    /// Whether space can be allocated, tried past the end of the file.
    fn allocates(&self) -> bool {
        *self.allocates.get_or_init(|| {
            let (past_the_end, length) = (self.size.next_multiple_of(1 << 20), 4096);
            let result = (self.allocate)(&self.file, Space::PastTheEnd, past_the_end, length);
            result.is_ok_and(|()| self.punch(past_the_end, length).is_ok())
        })
    }

    /// Makes a range of zeroes with space allocated; if it has to be `fast`, only
    /// without writing them. If that is not supported, nothing is changed.
    fn allocate_zeroes(&self, offset: u64, length: u64, fast: bool) -> io::Result<()> {
        let result = (self.allocate)(&self.file, Space::Zeroes, offset, length);
        self.forget();
        match result {
            Err(Errno::OPNOTSUPP) if fast && !self.allocates() => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Err(Errno::OPNOTSUPP) => {
                self.punch(offset, length)?;
                Ok((self.allocate)(&self.file, Space::Inside, offset, length)?)
            }
            result => Ok(result?),
        }
    }

    fn write_zeroes(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        static ZEROES: [u8; 1 << 18] = [0; 1 << 18];
        while length > 0 {
            let n = length.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..n as usize], offset)?;
            offset += n;
            length -= n;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset).map_err(at_the_end)
    }

    fn try_read(&self, offset: u64, data: &mut [u8]) -> bool {
        match self.waits {
            Waits::Always => false,
            Waits::Never => self.file.read_exact_at(data, offset).is_ok(),
            Waits::ForDevice => {
                let length = data.len();
                let slices = &mut [io::IoSliceMut::new(data)];
                os::read_at_once(&self.file, slices, offset) == Ok(length)
            }
        }
    }

    fn pipe(&self, offset: u64, length: usize, at_once: bool) -> io::Result<Option<Pipe>> {
        if at_once && !self.is_cached(offset, length) {
            return Ok(None);
        }
        Pipe::fill(&self.file, offset, length).map_err(at_the_end)
    }

    fn is_data(&self, offset: u64, length: u64) -> bool {
        let data = &self.known().data;
        data.contains(&offset) && data.end - offset >= length
    }

    /// The data goes to the page cache.
    fn try_write(&self, offset: u64, data: &[u8]) -> bool {
        !matches!(self.waits, Waits::Always) && self.file.write_all_at(data, offset).is_ok()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()> {
        let result = if how.hole {
            self.punch(offset, length)
        } else {
            self.allocate_zeroes(offset, length, how.fast)
        };
        match result {
            Err(error) if is_unsupported(&error) && how.fast => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Err(error) if is_unsupported(&error) => self.write_zeroes(offset, length),
            result => result,
        }
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.punch(offset, length) {
            // It is a hint.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        os::advise(&self.file, offset, length);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.durability.sync(|| self.file.sync_data())
    }

    fn extent(&self, offset: u64, length: u64) -> io::Result<Extent> {
        let Known { data, next, holes } = self.known().clone();
        if data.contains(&offset) {
            let end = data.end.min(offset + self.left(offset)?);
            return Ok(Extent {
                length: length.min(end - offset),
                hole: false,
            });
        }
        let seek = |to| rustix::fs::seek(&self.file, to);
        let up_to = |place: u64| (place - offset).min(length);
        // Where data is expected, its end is looked for at once. If there is a hole
        // now, `SEEK_HOLE` finds it right there.
        let end = (next == offset && next > 0)
            .then(|| seek(rustix::fs::SeekFrom::Hole(offset)).ok())
            .flatten()
            .filter(|end| *end > offset);
        let end = match end {
            Some(end) => end,
            None => {
                let data = match seek(rustix::fs::SeekFrom::Data(offset)) {
                    Ok(data) => data,
                    // There is no data up to the end. Past the end of a file that was
                    // truncated there are no holes either: reading fails.
                    Err(Errno::NXIO) => offset + self.left(offset)?,
                    // The file system does not report holes.
                    Err(_) => {
                        return Ok(Extent {
                            length,
                            hole: false,
                        });
                    }
                };
                if data > offset {
                    self.known().next = data;
                    let length = up_to(data);
                    return Ok(Extent { length, hole: true });
                }
                seek(rustix::fs::SeekFrom::Hole(offset)).unwrap_or(u64::MAX)
            }
        };
        let mut known = self.known();
        if known.holes == holes {
            known.data = offset..end;
        }
        drop(known);
        let length = up_to(end.max(offset));
        Ok(Extent {
            length,
            hole: false,
        })
    }
}

/// Another process has truncated the file.
fn truncated() -> io::Error {
    io::Error::other("the file has been truncated")
}

/// An error of reading; at the end of the file it says why.
fn at_the_end(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => error,
    }
}

/// The file system or device does not support this, or not for this range.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File systems of three kinds: what is supported besides holes.
    #[test]
    fn fast_zeroes_change_nothing_or_succeed() {
        let holes_only: Allocate = |file, space, offset, length| match space {
            Space::Hole => os::allocate(file, space, offset, length),
            _ => Err(Errno::OPNOTSUPP),
        };
        let no_zero_range: Allocate = |file, space, offset, length| match space {
            Space::Zeroes => Err(Errno::OPNOTSUPP),
            _ => os::allocate(file, space, offset, length),
        };
        let nothing: Allocate = |_, _, _, _| Err(Errno::OPNOTSUPP);
        for (allocate, hole, succeeds) in [
            (holes_only, false, false),
            (holes_only, true, true),
            (no_zero_range, false, true),
            (nothing, false, false),
            (nothing, true, false),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("disk");
            std::fs::write(&path, [7; 8192]).expect("an image");
            let mut disk = FileDisk::open(&path, false).expect("a disk");
            disk.allocate = allocate;
            let result = disk.zero(0, 4096, Zero { hole, fast: true });
            let kind = result.map_err(|error| error.kind());
            assert_eq!(kind.is_ok(), succeeds, "{kind:?}");
            assert!(kind.is_ok() || kind == Err(io::ErrorKind::Unsupported));
            let byte = if succeeds { 0 } else { 7 };
            let expected = [[byte; 4096], [7; 4096]].concat();
            assert!(
                std::fs::read(&path).expect("the file") == expected,
                "changed"
            );
            // Without the flag it always succeeds.
            disk.zero(0, 4096, Zero { hole, fast: false })
                .expect("zeroes");
            let expected = [[0; 4096], [7; 4096]].concat();
            assert!(std::fs::read(&path).expect("the file") == expected);
        }
    }

    /// After a hole data is expected, and looked for only there. Another process may
    /// have changed the file since.
    #[test]
    fn what_is_expected_after_a_hole_is_not_taken_for_granted() {
        const PAGE: u64 = 4096;
        let extent = |length, hole| Extent { length, hole };
        for change in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("disk");
            // A hole, data, a hole, data.
            let file = File::create(&path).expect("an image");
            file.write_all_at(&[7; 4096], PAGE).expect("data");
            file.write_all_at(&[7; 4096], 3 * PAGE).expect("data");
            let disk = FileDisk::open(&path, true).expect("a disk");
            let at = |page: u64| disk.extent(page * PAGE, (4 - page) * PAGE);
            assert_eq!(at(0).expect("a hole"), extent(PAGE, true));
            if change {
                os::allocate(&file, Space::Hole, PAGE, PAGE).expect("a hole");
                assert_eq!(at(1).expect("a hole"), extent(2 * PAGE, true));
                file.write_all_at(&[7; 4096], 0).expect("data");
                assert_eq!(at(0).expect("data"), extent(PAGE, false));
                file.set_len(3 * PAGE).expect("a size");
                assert!(at(3).is_err());
            } else {
                for (page, hole) in [(1, false), (2, true), (3, false), (0, true)] {
                    assert_eq!(at(page).expect("an extent"), extent(PAGE, hole), "{page}");
                }
            }
        }
    }
}
