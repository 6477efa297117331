//! Sparse memory: a page exists from the first time it is written to until it
//! is zeroed or trimmed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::disk::{Disk, Extent, Zero};

const PAGE: u64 = 4096;

/// Pages that are neighbours have one lock, those of one region.
const REGION: u64 = 1 << 20;

/// Regions share this many locks.
const SHARDS: u64 = 64;

type Page = Box<[u8]>;

/// Pages by their number.
type Shard = BTreeMap<u64, Page>;

pub struct MemoryDisk {
    size: u64,
    shards: [RwLock<Shard>; SHARDS as usize],
}

/// A part of a range that lies in one page.
struct Part {
    page: u64,
    /// Within the page.
    from: usize,
    to: usize,
}

impl MemoryDisk {
    pub fn new(size: u64) -> Self {
        Self {
            size,
            shards: std::array::from_fn(|_| RwLock::default()),
        }
    }

    fn shard(&self, offset: u64) -> &RwLock<Shard> {
        &self.shards[(offset / REGION % SHARDS) as usize]
    }

    /// The first page of at least this number that exists.
    fn next_page(&self, page: u64) -> Option<u64> {
        let first = |shard| read(shard).range(page..).next().map(|(page, _)| *page);
        self.shards.iter().filter_map(first).min()
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut rest = data;
        for (offset, length) in pieces(offset, rest.len() as u64, REGION) {
            let shard = read(self.shard(offset));
            for part in parts(offset, length) {
                let (place, behind) = rest.split_at_mut(part.to - part.from);
                rest = behind;
                match shard.get(&part.page) {
                    Some(page) => place.copy_from_slice(&page[part.from..part.to]),
                    None => place.fill(0),
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for (offset, length) in pieces(offset, rest.len() as u64, REGION) {
            let mut shard = write(self.shard(offset));
            for part in parts(offset, length) {
                let (data, behind) = rest.split_at(part.to - part.from);
                rest = behind;
                page(&mut shard, part.page)?[part.from..part.to].copy_from_slice(data);
            }
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()> {
        if how.hole {
            return self.trim(offset, length);
        }
        if how.fast {
            // Pages have to be made: that is writing.
            return Err(io::ErrorKind::Unsupported.into());
        }
        for (offset, length) in pieces(offset, length, REGION) {
            let mut shard = write(self.shard(offset));
            for part in parts(offset, length) {
                page(&mut shard, part.page)?[part.from..part.to].fill(0);
            }
        }
        Ok(())
    }

    /// Whole pages go, parts of pages are filled with zeroes.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        let first_whole = offset.div_ceil(PAGE);
        let last_whole = match end == self.size {
            // Behind the end there is nothing to keep.
            true => end.div_ceil(PAGE),
            false => (end / PAGE).max(first_whole),
        };
        let head = (offset, end.min(first_whole.saturating_mul(PAGE)));
        let tail = (last_whole.saturating_mul(PAGE), end);
        for (from, to) in [head, tail] {
            if from >= to {
                continue;
            }
            if let Some(page) = write(self.shard(from)).get_mut(&(from / PAGE)) {
                let at = (from % PAGE) as usize;
                page[at..at + (to - from) as usize].fill(0);
            }
        }
        for shard in &self.shards {
            loop {
                // A few at a time: others wait for the lock.
                let mut shard = write(shard);
                let pages = shard.range(first_whole..last_whole);
                let some: Vec<u64> = pages.map(|(page, _)| *page).take(1024).collect();
                if some.is_empty() {
                    break;
                }
                for page in some {
                    shard.remove(&page);
                }
            }
        }
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    /// There is nowhere to flush to: it lasts as long as the server.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extent(&self, offset: u64, length: u64) -> io::Result<Extent> {
        let page = offset / PAGE;
        let hole = match self.next_page(page) {
            None => return Ok(Extent { length, hole: true }),
            Some(next) if next > page => next * PAGE - offset,
            Some(_) => 0,
        };
        if hole > 0 {
            let length = hole.min(length);
            return Ok(Extent { length, hole: true });
        }
        let mut found = 0;
        for (offset, length) in pieces(offset, length, REGION) {
            let shard = read(self.shard(offset));
            for part in parts(offset, length) {
                if !shard.contains_key(&part.page) {
                    let length = found;
                    return Ok(Extent {
                        length,
                        hole: false,
                    });
                }
                found += (part.to - part.from) as u64;
            }
        }
        Ok(Extent {
            length,
            hole: false,
        })
    }
}

/// A range cut at the multiples of `unit`.
fn pieces(offset: u64, length: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let from = at;
        at = end.min((from / unit + 1).saturating_mul(unit));
        (from < end).then(|| (from, at - from))
    })
}

/// The same, in pages.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = Part> {
    pieces(offset, length, PAGE).map(|(offset, length)| {
        let from = (offset % PAGE) as usize;
        Part {
            page: offset / PAGE,
            from,
            to: from + length as usize,
        }
    })
}

/// A page to write to.
fn page(shard: &mut Shard, number: u64) -> io::Result<&mut Page> {
    use std::collections::btree_map::Entry;
    Ok(match shard.entry(number) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            // More than there is must not end the server.
            let mut page = Vec::new();
            page.try_reserve_exact(PAGE as usize)
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            page.resize(PAGE as usize, 0);
            entry.insert(page.into())
        }
    })
}

/// No thread panics while it holds a lock; what it left would be a disk all
/// the same.
fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}
