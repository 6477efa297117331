//! Unix systems other than Linux.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{BorrowedFd, OwnedFd};

use memmap2::MmapMut;
use rustix::io::Errno;

use super::Space;

/// Not supported: zeroes are written, and there are no new holes.
pub fn allocate(_: &File, _: Space, _offset: u64, _length: u64) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Unknown.
pub fn is_in_memory(_: &File) -> bool {
    false
}

/// Not supported: every read may wait.
pub fn read_at_once(_: &File, _: &mut [IoSliceMut<'_>], _offset: u64) -> Result<usize, Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Not supported: data is copied.
pub fn pipe(_size: usize) -> Result<(OwnedFd, OwnedFd), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Not supported.
pub fn splice_in(_: &File, _: &mut u64, _: &OwnedFd, _length: usize) -> Result<usize, Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Not supported.
pub fn splice_out(_: &OwnedFd, _: BorrowedFd<'_>, _length: usize) -> Result<usize, Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Does nothing: it is a hint.
pub fn advise(_: &File, _offset: u64, _length: u64) {}

/// Does nothing: it is a hint.
pub fn advise_huge(_: &MmapMut) {}

/// Does nothing: the memory is kept for later writes.
pub fn give_back(_: &mut [&'static mut [u8]]) {}
