//! Disks compared with a model: a list of bytes, and which pages are allocated.

use std::fs::File;

use proptest::prelude::*;

use crate::disk::{Disk, Extents, Zero};
use crate::file::FileDisk;
use crate::memory::MemoryDisk;

/// Several regions of memory, and a part of a page.
const SIZE: u64 = (3 << 20) + 1000;

/// The size of pages in memory, and of blocks in common file systems.
const PAGE: u64 = 4096;

#[derive(Debug, Clone)]
enum Change {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Trim(u64, u64),
}

/// Ranges of all sizes, many of which begin or end at a page boundary.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let place = prop_oneof![
        0..=SIZE,
        (0..=SIZE / PAGE).prop_map(|page| page * PAGE),
        (0..=SIZE / PAGE, 0..4u64).prop_map(|(page, n)| (page * PAGE + n).saturating_sub(2)),
    ];
    let places = (place.clone(), prop_oneof![place, 1..=3 * PAGE]);
    places.prop_filter_map("empty", |(one, other)| {
        let (start, end) = (one.min(other), one.max(other).min(SIZE));
        (start < end).then_some((start, end - start))
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (range(), 1..=u8::MAX).prop_map(|((at, n), byte)| Change::Write(at, n.min(1 << 20), byte)),
        1 => (range(), any::<bool>()).prop_map(|((at, n), hole)| Change::Zero(at, n, hole)),
        1 => range().prop_map(|(at, n)| Change::Trim(at, n)),
    ]
}

struct Model {
    bytes: Vec<u8>,
    /// Whether each page is allocated.
    pages: Vec<bool>,
}

impl Model {
    fn change(&mut self, disk: &dyn Disk, change: &Change) {
        let (at, length, byte, pages) = match *change {
            Change::Write(at, length, byte) => (at, length, byte, Some(true)),
            Change::Zero(at, length, false) => (at, length, 0, Some(true)),
            Change::Zero(at, length, true) | Change::Trim(at, length) => (at, length, 0, None),
        };
        let result = match *change {
            Change::Write(at, length, byte) => disk.write(at, &vec![byte; length as usize]),
            Change::Zero(at, length, hole) => disk.zero(at, length, Zero { hole, fast: false }),
            Change::Trim(at, length) => disk.trim(at, length),
        };
        result.expect("done");
        self.bytes[at as usize..(at + length) as usize].fill(byte);
        let (first, last) = match pages {
            // A write allocates every page it touches; a trim frees only pages
            // that it covers.
            Some(_) => (at / PAGE, (at + length).div_ceil(PAGE)),
            None if at + length == SIZE => (at.div_ceil(PAGE), SIZE.div_ceil(PAGE)),
            None => (at.div_ceil(PAGE), (at + length) / PAGE),
        };
        if first < last {
            self.pages[first as usize..last as usize].fill(pages.is_some());
        }
    }

    fn check(&self, disk: &dyn Disk) {
        let mut bytes = vec![0xff; SIZE as usize];
        disk.read(0, &mut bytes).expect("read");
        assert!(bytes == self.bytes, "the bytes differ");
        for block in [1, 512, 65536] {
            // Only whole blocks.
            let size = SIZE / block * block;
            let mut at = 0;
            let mut last = None;
            for extent in Extents::new(disk, 0, size, block as u32) {
                let extent = extent.expect("an extent");
                assert!(
                    extent.length > 0 && extent.length % block == 0,
                    "{extent:?}"
                );
                assert_ne!(last.replace(extent.hole), Some(extent.hole), "not joined");
                let range = at as usize..(at + extent.length) as usize;
                let empty = self.bytes[range].iter().all(|byte| *byte == 0);
                assert!(empty || !extent.hole, "data in a hole at {at}");
                at += extent.length;
            }
            assert_eq!(at, size);
        }
    }
}

fn apply(disk: &dyn Disk, changes: &[Change]) -> Model {
    assert_eq!(disk.size(), SIZE);
    let mut model = Model {
        bytes: vec![0; SIZE as usize],
        pages: vec![false; SIZE.div_ceil(PAGE) as usize],
    };
    for change in changes {
        model.change(disk, change);
    }
    model.check(disk);
    disk.cache(0, SIZE).expect("a hint");
    disk.flush().expect("flushed");
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn memory_has_the_written_data_and_only_the_written_pages(
        changes in prop::collection::vec(change(), 1..20),
    ) {
        let disk = MemoryDisk::new(SIZE);
        let model = apply(&disk, &changes);
        for (page, exists) in model.pages.iter().enumerate() {
            let extent = disk.extent(page as u64 * PAGE, 1).expect("an extent");
            assert_eq!(extent.hole, !exists, "page {page}");
        }
    }

    #[test]
    fn a_file_has_the_written_data(changes in prop::collection::vec(change(), 1..20)) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let file = File::create(&path).expect("an image");
        file.set_len(SIZE).expect("its size");
        let disk = FileDisk::open(&path, false).expect("a disk");
        let model = apply(&disk, &changes);
        assert!(std::fs::read(&path).expect("the file") == model.bytes);
    }
}

#[test]
fn memory_of_any_size_is_allocated_lazily() {
    let size = u64::MAX;
    let disk = MemoryDisk::new(size);
    disk.write(size - 5000, &[1; 5000]).expect("written");
    let mut bytes = [0; 6000];
    disk.read(size - 6000, &mut bytes).expect("read");
    assert_eq!((bytes[999], bytes[1000], bytes[5999]), (0, 1, 1));
    let extents: Vec<_> = Extents::new(&disk, 0, size, 1)
        .map(Result::unwrap)
        .collect();
    assert_eq!(extents.len(), 2, "{extents:?}");
    disk.trim(0, size).expect("trimmed");
    let empty: Vec<_> = Extents::new(&disk, 0, size, 1)
        .map(Result::unwrap)
        .collect();
    assert_eq!(empty.len(), 1, "{empty:?}");
}
