//! Sparse memory: the first write to a page allocates it, zeroing or trimming it
//! frees it.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::buffer;
use crate::disk::{Disk, Extent, Zero};
use crate::pages;

const PAGE: u64 = pages::PAGE as u64;

/// The pages of a region share a lock.
const REGION: u64 = 128 << 10;

/// The number of locks; regions share them.
const SHARDS: u64 = 64;

/// Pages of a region.
const PAGES: u64 = REGION / PAGE;

/// Shared with copies of its region.
type Page = Arc<pages::Page>;

/// Regions by their number, if they have pages. Replies that are being sent share
/// them: a write to a shared region copies it first; the copy shares all pages
/// that are not written to. (Regions are counted rather than pages, because the
/// count of a page would rarely be in the processor's cache.)
type Shard = BTreeMap<u64, Arc<Region>>;

#[derive(Clone, Default)]
pub struct Region {
    pages: [Option<Page>; PAGES as usize],
    /// How many of them are allocated.
    count: usize,
}

pub struct MemoryDisk {
    size: u64,
    shards: [RwLock<Shard>; SHARDS as usize],
}

/// Bytes of a disk, which later writes do not change.
pub enum Lent {
    Page {
        region: Arc<Region>,
        page: usize,
        from: usize,
        to: usize,
    },
    /// This many zeroes.
    Zeroes(usize),
}

/// The most zeroes in one piece.
const ZEROES: usize = 64 << 10;

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        static ZERO_BYTES: [u8; ZEROES] = [0; ZEROES];
        match self {
            Self::Zeroes(length) => &ZERO_BYTES[..*length],
            Self::Page {
                region,
                page,
                from,
                to,
            } => match &region.pages[*page] {
                Some(page) => &page[*from..*to],
                None => &ZERO_BYTES[*from..*to],
            },
        }
    }
}

/// The part of a range that is in one page.
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

    /// The parts of a range that are in allocated regions, one for each region.
    fn existing_regions(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
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

    /// The first allocated page whose number is at least `page`.
    fn next_page(&self, page: u64) -> Option<u64> {
        let number = page / PAGES;
        // If this region has one, it is the first.
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
        let mut remaining = data;
        for (offset, length) in pieces(offset, remaining.len() as u64, REGION) {
            let shard = read(self.shard(offset));
            let region = shard.get(&(offset / REGION));
            for part in parts(offset, length) {
                let (place, after) = remaining.split_at_mut(part.to - part.from);
                remaining = after;
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
        let mut remaining = data;
        for (offset, length) in pieces(offset, remaining.len() as u64, REGION) {
            let mut shard = write(self.shard(offset));
            let region = region(&mut shard, offset / REGION)?;
            for part in parts(offset, length) {
                let (data, after) = remaining.split_at(part.to - part.from);
                remaining = after;
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
            // Pages have to be allocated and filled, as for a write.
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

    /// Frees whole pages, and fills parts of pages with zeroes.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        for (offset, length) in self.existing_regions(offset, length) {
            let number = offset / REGION;
            let mut shard = write(self.shard(offset));
            let Some(shared) = shard.get_mut(&number) else {
                continue;
            };
            let region = make_region_unique(shared)?;
            for part in parts(offset, length) {
                let end = number * REGION + part.page as u64 * PAGE + part.to as u64;
                // After the end of the disk there is nothing to keep.
                let to_the_end = part.to == PAGE as usize || end == self.size;
                let place = &mut region.pages[part.page];
                match place {
                    None => {}
                    Some(_) if part.from == 0 && to_the_end => {
                        *place = None;
                        region.count -= 1;
                    }
                    Some(page) => make_page_unique(page, false)?[part.from..part.to].fill(0),
                }
            }
            if region.count == 0 {
                shard.remove(&number);
            }
        }
        pages::give_back();
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    /// The content lasts as long as the server, so there is nothing to do.
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

/// A range, split at the multiples of `unit`.
fn pieces(offset: u64, length: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let from = at;
        at = end.min((from / unit + 1).saturating_mul(unit));
        (from < end).then(|| (from, at - from))
    })
}

/// A range, split into pages.
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

/// A region to write to, allocated if necessary.
fn region(shard: &mut Shard, number: u64) -> io::Result<&mut Region> {
    use std::collections::btree_map::Entry;
    make_region_unique(match shard.entry(number) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            // Leaves something to allocations that end the process if they fail.
            buffer::check_memory(PAGES as usize * PAGE as usize)?;
            entry.insert(Arc::default())
        }
    })
}

impl Region {
    /// The first allocated page whose number is at least `page`.
    fn next_page(&self, page: usize) -> Option<u64> {
        let found = self.pages[page..].iter().position(Option::is_some)?;
        Some((page + found) as u64)
    }

    /// A page to write to, allocated if necessary; `whole` if all of it will be
    /// written.
    fn page(&mut self, number: usize, whole: bool) -> io::Result<&mut [u8]> {
        match &mut self.pages[number] {
            Some(page) => make_page_unique(page, whole),
            place => {
                let mut page = page()?;
                let bytes = unshared(&mut page)?;
                if !whole {
                    bytes.fill(0);
                }
                self.count += 1;
                unshared(place.insert(page))
            }
        }
    }
}

/// Makes a region unshared: if it is lent, a copy replaces it.
fn make_region_unique(region: &mut Arc<Region>) -> io::Result<&mut Region> {
    if Arc::strong_count(region) > 1 {
        check_memory::<Region>(2)?;
        *region = Arc::new(Region::clone(region));
    }
    // It is not shared, so this does not fail.
    Arc::get_mut(region).ok_or(io::ErrorKind::OutOfMemory.into())
}

/// Makes a page unshared: if it is shared, a new one replaces it, with the same
/// content unless `whole`: then all of it will be written.
fn make_page_unique(page: &mut Page, whole: bool) -> io::Result<&mut [u8]> {
    if Arc::strong_count(page) > 1 {
        let mut copy = self::page()?;
        if !whole {
            unshared(&mut copy)?.copy_from_slice(page);
        }
        *page = copy;
    }
    unshared(page)
}

/// The bytes of a page that is not shared; so this does not fail.
fn unshared(page: &mut Page) -> io::Result<&mut [u8]> {
    match Arc::get_mut(page) {
        Some(page) => Ok(page),
        None => Err(io::ErrorKind::OutOfMemory.into()),
    }
}

/// A page with any content. Allocating an `Arc` aborts if there is no memory, so
/// [`check_memory`] first allocates more fallibly.
fn page() -> io::Result<Page> {
    check_memory::<u8>(PAGE)?;
    pages::Page::new().map(Arc::new)
}

/// Fails if there is no memory for `count` values.
fn check_memory<T>(count: u64) -> io::Result<()> {
    let mut memory = Vec::<T>::new();
    memory
        .try_reserve_exact(count as usize)
        .map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// Ignores poisoning: if a thread panics with the lock held, the shard is still
/// consistent.
fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}
