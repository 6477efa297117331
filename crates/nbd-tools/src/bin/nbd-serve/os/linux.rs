//! Linux.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZero;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;

use memmap2::MmapMut;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::mm::{self, madvise};
use rustix::param::page_size;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::Space;

/// `fallocate(2)`.
pub fn allocate(file: &File, space: Space, offset: u64, length: u64) -> Result<(), Errno> {
    let flags = match space {
        Space::Hole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Space::Zeroes => FallocateFlags::ZERO_RANGE,
        Space::Inside => FallocateFlags::empty(),
        Space::PastTheEnd => FallocateFlags::KEEP_SIZE,
    };
    fallocate(file, flags, offset, length)
}

/// The type of file systems in memory (`statfs(2)`).
const TMPFS: u64 = 0x0102_1994;

/// Whether the file system is in memory.
pub fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| system.f_type as u64 == TMPFS)
}

/// Reads what is in the page cache; fails with `AGAIN` if that is nothing.
pub fn read_at_once(
    file: &File,
    slices: &mut [IoSliceMut<'_>],
    offset: u64,
) -> Result<usize, Errno> {
    preadv2(file, slices, offset, ReadWriteFlags::NOWAIT)
}

/// A pipe of `size` bytes; the first end is the one to read from.
pub fn pipe(size: usize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&input, size)?;
    Ok((output, input))
}

/// Moves up to `length` bytes of a file to a pipe without copying them, and adds their
/// number to `offset`. Fails with `AGAIN` if the pipe is full.
pub fn splice_in(
    file: &File,
    offset: &mut u64,
    pipe: &OwnedFd,
    length: usize,
) -> Result<usize, Errno> {
    splice(
        file,
        Some(offset),
        pipe,
        None,
        length,
        SpliceFlags::NONBLOCK,
    )
}

/// Moves up to `length` bytes of a pipe to a socket; waits for as long as a write waits.
pub fn splice_out(pipe: &OwnedFd, socket: BorrowedFd<'_>, length: usize) -> Result<usize, Errno> {
    splice(pipe, None, socket, None, length, SpliceFlags::empty())
}

/// The range will be read soon. Not every file system has a cache.
pub fn advise(file: &File, offset: u64, length: u64) {
    let _ = fadvise(file, offset, NonZero::new(length), Advice::WillNeed);
}

/// Asks for huge pages.
pub fn advise_huge(memory: &MmapMut) {
    let _ = memory.advise(memmap2::Advice::HugePage);
}

/// Gives the memory of pages back to the system; it is taken again, with zeroes, when it is
/// used. Does nothing unless the pages are adjacent, in ascending order, and whole pages of
/// the system.
#[expect(unsafe_code, reason = "no crate has a safe form")]
pub fn give_back(pages: &mut [&'static mut [u8]]) {
    let (mut start, mut length) = (None, 0);
    for page in pages {
        let at = page.as_mut_ptr().expose_provenance();
        if at != *start.get_or_insert(at) + length {
            return;
        }
        length += page.len();
    }
    let whole = |number: usize| number.is_multiple_of(page_size());
    if let Some(start) = start
        && whole(start)
        && whole(length)
    {
        let start = ptr::with_exposed_provenance_mut(start);
        // SAFETY: these are whole pages of the system, all of them are borrowed here, and
        // every content of them is valid.
        let _ = unsafe { madvise(start, length, mm::Advice::LinuxDontNeed) };
    }
}
