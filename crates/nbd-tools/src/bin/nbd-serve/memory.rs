//! Sparse memory: a page exists from the first time it is written to until it
//! is zeroed or trimmed.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::disk::{Disk, Extent, Zero};

const PAGE: u64 = 4096;

/// Pages that are neighbours have one lock, those of one region.
const REGION: u64 = 128 << 10;

/// Regions share this many locks.
const SHARDS: u64 = 64;

/// Pages of a region.
const PAGES: u64 = REGION / PAGE;

/// Shared where a region was copied.
type Page = Arc<[u8; PAGE as usize]>;

/// Regions by their number: those that have pages. They are shared with
/// replies under way: who writes to one makes it a copy, which has the same
/// pages but for those that differ. (A count for each page would be in the
/// cache of no processor when it is wanted.)
type Shard = BTreeMap<u64, Arc<Region>>;

#[derive(Clone, Default)]
pub struct Region {
    pages: [Option<Page>; PAGES as usize],
    /// How many of them exist.
    count: usize,
}

pub struct MemoryDisk {
    size: u64,
    shards: [RwLock<Shard>; SHARDS as usize],
}

/// Bytes of a disk, as they were when they were lent.
pub enum Lent {
    Page {
        region: Arc<Region>,
        page: usize,
        from: usize,
        to: usize,
    },
    /// So many.
    Zeroes(usize),
}

/// Most zeroes that are lent in one piece.
const ZEROES: usize = 64 << 10;

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        static NOTHING: [u8; ZEROES] = [0; ZEROES];
        match self {
            Self::Zeroes(length) => &NOTHING[..*length],
            Self::Page {
                region,
                page,
                from,
                to,
            } => match &region.pages[*page] {
                Some(page) => &page[*from..*to],
                None => &NOTHING[*from..*to],
            },
        }
    }
}

/// A part of a range that lies in one page.
struct Part {
    /// Within the region.
    page: usize,
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

    /// The parts of a range that lie in regions that exist, by region.
    fn present(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = offset + length;
        let regions = offset / REGION..end.div_ceil(REGION);
        let numbers = self.shards.iter().flat_map(move |shard| {
            let shard = read(shard);
            let numbers = shard.range(regions.clone()).map(|(number, _)| *number);
            numbers.collect::<Vec<_>>()
        });
        numbers.map(move |number| {
            let from = offset.max(number * REGION);
            let to = end.min((number + 1).saturating_mul(REGION));
            (from, to - from)
        })
    }

    /// The first page of at least this number that exists.
    fn next_page(&self, page: u64) -> Option<u64> {
        let number = page / PAGES;
        // Where the region has one, no other can be before it.
        let here = read(self.shard(page * PAGE))
            .get(&number)
            .and_then(|region| region.next_page((page % PAGES) as usize))
            .map(|found| number * PAGES + found);
        let first = |shard| {
            let shard = read(shard);
            let mut regions = shard.range(number + 1..);
            regions.find_map(|(number, region)| Some(number * PAGES + region.next_page(0)?))
        };
        here.or_else(|| self.shards.iter().filter_map(first).min())
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
            let region = shard.get(&(offset / REGION));
            for part in parts(offset, length) {
                let (place, behind) = rest.split_at_mut(part.to - part.from);
                rest = behind;
                match region.and_then(|region| region.pages[part.page].as_ref()) {
                    Some(page) => place.copy_from_slice(&page[part.from..part.to]),
                    None => place.fill(0),
                }
            }
        }
        Ok(())
    }

    fn lends(&self) -> bool {
        true
    }

    fn lend(&self, offset: u64, length: u64, take: &mut dyn FnMut(Lent)) {
        let mut zeroes = 0;
        for (offset, length) in pieces(offset, length, REGION) {
            let shard = read(self.shard(offset));
            let region = shard.get(&(offset / REGION));
            for part in parts(offset, length) {
                let Part { page, from, to } = part;
                let region = region.filter(|region| region.pages[page].is_some());
                if zeroes > 0 && (region.is_some() || zeroes + PAGE as usize > ZEROES) {
                    take(Lent::Zeroes(mem::take(&mut zeroes)));
                }
                match region.map(Arc::clone) {
                    None => zeroes += to - from,
                    Some(region) => take(Lent::Page {
                        region,
                        page,
                        from,
                        to,
                    }),
                }
            }
        }
        if zeroes > 0 {
            take(Lent::Zeroes(zeroes));
        }
    }

    fn try_read(&self, offset: u64, data: &mut [u8]) -> bool {
        self.read(offset, data).is_ok()
    }

    fn is_data(&self, offset: u64, length: u64) -> bool {
        pieces(offset, length, REGION).all(|(offset, length)| {
            let shard = read(self.shard(offset));
            let region = shard.get(&(offset / REGION));
            region.is_some_and(|region| {
                parts(offset, length).all(|part| region.pages[part.page].is_some())
            })
        })
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> bool {
        self.write(offset, data).is_ok()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for (offset, length) in pieces(offset, rest.len() as u64, REGION) {
            let mut shard = write(self.shard(offset));
            let region = region(&mut shard, offset / REGION)?;
            for part in parts(offset, length) {
                let (data, behind) = rest.split_at(part.to - part.from);
                rest = behind;
                let whole = data.len() as u64 == PAGE;
                let page = region.page(part.page, whole)?;
                page[part.from..part.to].copy_from_slice(data);
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
            let region = region(&mut shard, offset / REGION)?;
            for part in parts(offset, length) {
                region.page(part.page, false)?[part.from..part.to].fill(0);
            }
        }
        Ok(())
    }

    /// Whole pages go, parts of pages are filled with zeroes.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        for (offset, length) in self.present(offset, length) {
            let number = offset / REGION;
            let mut shard = write(self.shard(offset));
            let Some(shared) = shard.get_mut(&number) else {
                continue;
            };
            let region = own_region(shared)?;
            for part in parts(offset, length) {
                let end = number * REGION + part.page as u64 * PAGE + part.to as u64;
                // Behind the end of the disk there is nothing to keep.
                let to_the_end = part.to == PAGE as usize || end == self.size;
                let place = &mut region.pages[part.page];
                match place {
                    None => {}
                    Some(_) if part.from == 0 && to_the_end => {
                        *place = None;
                        region.count -= 1;
                    }
                    Some(page) => own(page, false)?[part.from..part.to].fill(0),
                }
            }
            if region.count == 0 {
                shard.remove(&number);
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
            let region = shard.get(&(offset / REGION));
            for part in parts(offset, length) {
                if region.is_none_or(|region| region.pages[part.page].is_none()) {
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
            page: (offset / PAGE % PAGES) as usize,
            from,
            to: from + length as usize,
        }
    })
}

/// A region to write to.
fn region(shard: &mut Shard, number: u64) -> io::Result<&mut Region> {
    use std::collections::btree_map::Entry;
    own_region(match shard.entry(number) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            drop(room::<Region>(2)?);
            entry.insert(Arc::default())
        }
    })
}

impl Region {
    /// The first page of at least this number that exists.
    fn next_page(&self, page: usize) -> Option<u64> {
        let found = self.pages[page..].iter().position(Option::is_some)?;
        Some((page + found) as u64)
    }

    /// A page to write to, `whole` if all of it.
    fn page(&mut self, number: usize, whole: bool) -> io::Result<&mut [u8; PAGE as usize]> {
        match &mut self.pages[number] {
            Some(page) => own(page, whole),
            place => {
                let page = place.insert(page()?);
                self.count += 1;
                own(page, whole)
            }
        }
    }
}

/// A region for us alone. Where it was lent, a copy takes its place.
fn own_region(region: &mut Arc<Region>) -> io::Result<&mut Region> {
    if Arc::strong_count(region) > 1 {
        drop(room::<Region>(2)?);
        *region = Arc::new(Region::clone(region));
    }
    // It is ours, so this does not fail.
    Arc::get_mut(region).ok_or(io::ErrorKind::OutOfMemory.into())
}

/// A page for us alone. Where it was lent, a new one takes its place, with the
/// same in it unless `whole`: then all of it will be written.
fn own(page: &mut Page, whole: bool) -> io::Result<&mut [u8; PAGE as usize]> {
    if Arc::strong_count(page) > 1 {
        let mut fresh = self::page()?;
        if !whole && let Some(fresh) = Arc::get_mut(&mut fresh) {
            fresh.copy_from_slice(&page[..]);
        }
        *page = fresh;
    }
    // It is ours, so this does not fail.
    Arc::get_mut(page).ok_or(io::ErrorKind::OutOfMemory.into())
}

/// An empty page. An `Arc` cannot be asked for with care; the room for one can.
fn page() -> io::Result<Page> {
    drop(room::<u8>(PAGE + 64)?);
    Ok(Arc::new([0; PAGE as usize]))
}

/// More than there is must not end the server.
fn room<T>(length: u64) -> io::Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(length as usize)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    Ok(room)
}

/// No thread panics while it holds a lock; what it left would be a disk all
/// the same.
fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}
