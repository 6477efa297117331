//! A model of a large disk: a map of it, and the blocks that were written.

use std::collections::BTreeMap;
use std::ops::Range;

use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::AllocationFlags;

/// The block size: offsets and lengths are multiples of it.
pub const BLOCK: u64 = 4096;

const DATA: u64 = 0;

pub struct Disk {
    size: u64,
    /// Flags of `base:allocation`, by the offset from which they apply.
    map: BTreeMap<u64, u64>,
    /// Written blocks, by offset.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    /// A disk with extents of these lengths and flags. Data that was not written
    /// reads as its own offset, repeatedly.
    pub fn new(layout: &[(u64, AllocationFlags)]) -> Self {
        let mut disk = Self {
            size: 0,
            map: BTreeMap::new(),
            blocks: BTreeMap::new(),
        };
        for (length, flags) in layout {
            disk.map.insert(disk.size, flags.0.into());
            disk.size += length;
        }
        disk
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.mark(offset..offset + data.len() as u64, DATA);
        for (at, block) in (offset..)
            .step_by(BLOCK as usize)
            .zip(data.chunks(BLOCK as usize))
        {
            self.blocks.insert(at, block.to_vec());
        }
    }

    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let blocks = (offset..offset + length).step_by(BLOCK as usize);
        blocks.flat_map(|at| self.block(at)).collect()
    }

    fn block(&self, at: u64) -> Vec<u8> {
        match (self.blocks.get(&at), self.flags_at(at)) {
            (Some(block), _) => block.clone(),
            (None, DATA) => (at..at + BLOCK)
                .step_by(8)
                .flat_map(u64::to_be_bytes)
                .collect(),
            (None, _) => vec![0; BLOCK as usize],
        }
    }

    /// The extents from `offset` to the end of the disk.
    pub fn extents(&self, offset: u64) -> impl Iterator<Item = Extent64> + Clone + '_ {
        let begins = self.map.range(offset + 1..).map(|(at, _)| *at);
        let starts = [offset].into_iter().chain(begins.clone());
        starts
            .zip(begins.chain([self.size]))
            .map(|(start, end)| Extent64 {
                length: end - start,
                flags: self.flags_at(start),
            })
    }

    fn flags_at(&self, at: u64) -> u64 {
        let last = self.map.range(..=at).next_back();
        last.map_or(DATA, |(_, flags)| *flags)
    }

    /// Sets the flags of a range.
    fn mark(&mut self, range: Range<u64>, flags: u64) {
        let after = self.flags_at(range.end);
        self.map.retain(|at, _| !range.contains(at));
        self.map.insert(range.start, flags);
        if range.end < self.size {
            self.map.insert(range.end, after);
        }
    }
}
