//! Images: files that servers serve, and that copies are compared with.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// A sparse file of `size` bytes, with data in the ranges of `data` (offset
/// and length).
pub fn sparse(path: &Path, size: u64, data: &[(u64, u64)]) {
    let file = File::create(path).expect("an image");
    file.set_len(size).expect("its size");
    for (offset, length) in data {
        let bytes = noise(*offset, *length as usize);
        file.write_all_at(&bytes, *offset).expect("its data");
    }
}

/// Sixty ranges of data within `size` bytes, of all lengths up to a quarter of
/// their distance.
pub fn scattered(size: u64) -> Vec<(u64, u64)> {
    let page = 4096;
    let pages = size / page / 60;
    let piece = |n| {
        let offset = n * pages + n * n * 7919 % (pages / 2);
        let length = 1 + n * 31 % (pages / 4);
        (offset * page, length * page)
    };
    (0..60).map(piece).collect()
}

/// Pseudo-random bytes; no block of them is all zero or equal to another.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = vec![0; length];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes
}

/// Asserts that both files hold the same bytes. Ranges that are holes in both
/// are not read.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    let open = |path: &Path| File::open(path).expect("a file to compare");
    let (a, b) = (open(a), open(b));
    let size = a.metadata().expect("a size").len();
    assert_eq!(size, b.metadata().expect("a size").len());
    let mut left = vec![0; MIB as usize];
    let mut right = vec![0; MIB as usize];
    let mut at = 0;
    while at < size {
        at = next_data(&a, at, size).min(next_data(&b, at, size));
        let n = (size - at).min(MIB) as usize;
        a.read_exact_at(&mut left[..n], at)
            .expect("a part of a file");
        b.read_exact_at(&mut right[..n], at)
            .expect("a part of a file");
        assert!(left[..n] == right[..n], "differ within a MiB of {at}");
        at += n as u64;
    }
}

/// The offset of the next data in a file; `from` if that is not known.
fn next_data(file: &File, from: u64, size: u64) -> u64 {
    match seek(file, SeekFrom::Data(from)) {
        Ok(offset) => offset,
        Err(Errno::NXIO) => size,
        Err(_) => from,
    }
}

/// Asserts that the copy has hardly more space allocated than the original.
#[track_caller]
pub fn assert_as_sparse(original: &Path, copy: &Path) {
    let room = |path: &Path| 512 * path.metadata().expect("metadata").blocks();
    let (original, copy) = (room(original), room(copy));
    assert!(
        copy <= original + 2 * MIB,
        "{copy} bytes allocated, {original} in the original"
    );
}
