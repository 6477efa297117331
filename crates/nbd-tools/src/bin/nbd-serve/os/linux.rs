//! Linux.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZero;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
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

/// Gives freed memory back. The allocator of glibc otherwise keeps what is freed
/// below memory that is still in use, which may be all of it.
#[cfg(all(target_pointer_width = "64", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a function of the C library")]
pub fn give_back() {
    // SAFETY: it has no preconditions, and changes no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators do so themselves.
#[cfg(not(all(target_pointer_width = "64", target_env = "gnu")))]
pub fn give_back() {}
