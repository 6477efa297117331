//! Pages of memory for a disk. The system is asked for huge pages, each of which holds
//! many of them: under random access the processor takes longer to translate the address
//! of a page than to copy the page, unless few entries of its TLB cover all pages.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use crate::{buffer, os};

/// Size of a page in bytes.
pub const PAGE: usize = 4096;

/// Size of a huge page of most systems; others work as well.
const HUGE: usize = 2 << 20;

/// The sizes of a chunk in bytes, the largest first: a smaller one is taken if the system
/// has no memory for a larger one. A chunk may begin and end within a huge page.
const CHUNKS: [usize; 3] = [16 << 20, HUGE, 128 << 10];

/// How many huge pages that are not in use are worth giving back.
const ENOUGH: usize = 8;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    places: BTreeMap::new(),
    available: Vec::new(),
    empty: 0,
});

/// The memory that was ever taken from the system. It is never unmapped.
struct Pool {
    /// By the number of the huge page.
    places: BTreeMap<usize, Place>,
    /// The numbers of those with unused pages.
    available: Vec<usize>,
    /// How many are not in use, and not given back.
    empty: usize,
}

/// A huge page, or the part of it that was taken.
struct Place {
    /// How many pages it has, in use or not.
    count: usize,
    unused: Vec<&'static mut [u8]>,
    /// No page was used since the memory was taken from the system or given back to it.
    untouched: bool,
}

impl Place {
    fn is_empty(&self) -> bool {
        self.unused.len() == self.count && !self.untouched
    }
}

impl Pool {
    fn take(&mut self) -> io::Result<&'static mut [u8]> {
        if self.available.is_empty() {
            self.grow()?;
        }
        let place = self.available.last();
        let place = place.and_then(|number| self.places.get_mut(number));
        let place = place.ok_or(io::ErrorKind::OutOfMemory)?;
        self.empty -= usize::from(place.is_empty());
        place.untouched = false;
        let page = place.unused.pop();
        if place.unused.is_empty() {
            self.available.pop();
        }
        page.ok_or(io::ErrorKind::OutOfMemory.into())
    }

    /// Takes memory from the system.
    fn grow(&mut self) -> io::Result<()> {
        let chunk = CHUNKS.into_iter().find_map(|length| {
            // Leaves something to allocations that end the process if they fail.
            drop(MmapMut::map_anon(length + buffer::MARGIN).ok()?);
            MmapMut::map_anon(length).ok()
        });
        let chunk = chunk.ok_or(io::ErrorKind::OutOfMemory)?;
        os::advise_huge(&chunk);
        let mut rest = &mut Box::leak(Box::new(chunk))[..];
        while !rest.is_empty() {
            let at = rest.as_ptr().addr();
            let length = (HUGE - at % HUGE).min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            rest = after;
            let place = self.places.entry(at / HUGE).or_insert_with(|| Place {
                count: 0,
                unused: Vec::new(),
                untouched: true,
            });
            let pages = part.chunks_exact_mut(PAGE);
            place.count += pages.len();
            // So that `free` needs no memory.
            place.unused.reserve_exact(place.count);
            if place.unused.is_empty() {
                self.available.push(at / HUGE);
            }
            // The last one is taken first.
            place.unused.extend(pages.rev());
        }
        self.available.reserve(self.places.len());
        Ok(())
    }

    fn free(&mut self, page: &'static mut [u8]) {
        let number = page.as_ptr().addr() / HUGE;
        let Some(place) = self.places.get_mut(&number) else {
            return;
        };
        if place.unused.is_empty() {
            self.available.push(number);
        }
        place.unused.push(page);
        self.empty += usize::from(place.is_empty());
    }

    /// Gives back the first huge page from this number on that is not in use. Returns the
    /// number after it.
    fn give_back(&mut self, from: usize) -> Option<usize> {
        let mut places = self.places.range_mut(from..);
        let (number, place) = places.find(|(_, place)| place.is_empty())?;
        place.untouched = true;
        self.empty -= 1;
        place
            .unused
            .sort_unstable_by_key(|page| page.as_ptr().addr());
        let adjacent = |a: &&mut [u8], b: &&mut [u8]| a.as_ptr_range().end == b.as_ptr();
        for pages in place.unused.chunk_by_mut(|a, b| adjacent(a, b)) {
            os::give_back(pages);
        }
        place.unused.reverse();
        Some(number + 1)
    }
}

/// Gives memory back to the system, if much is not in use.
pub fn give_back() {
    if pool().empty < ENOUGH {
        return;
    }
    // Between two huge pages others have the pool.
    let mut next = Some(0);
    while let Some(from) = next {
        next = pool().give_back(from);
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`PAGE`] bytes, which the pool gets back when this is dropped.
pub struct Page(&'static mut [u8]);

impl Page {
    /// A page with any content.
    pub fn new() -> io::Result<Self> {
        pool().take().map(Self)
    }
}

impl Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        pool().free(mem::take(&mut self.0));
    }
}
