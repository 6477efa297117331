//! The server's disk and its block status.

use nbd_codec::wire::extent::Extent64;

/// The status of a block of zeroes.
const HOLE: u64 = 3;

/// A disk in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    block: u64,
}

impl Disk {
    pub(super) fn new(size: u64, block: u64) -> Self {
        let bytes = vec![0; size as usize];
        Self { bytes, block }
    }

    pub(super) fn read(&self, offset: u64, length: u64) -> &[u8] {
        &self.bytes[offset as usize..][..length as usize]
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
    }

    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        self.bytes[offset as usize..][..length as usize].fill(0);
    }

    pub(super) fn resize(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
    }

    /// The status of a block. In a wide context, the flags exceed 32 bits.
    pub(super) fn flags(&self, at: u64, wide: bool) -> u64 {
        let begin = at / self.block * self.block;
        let length = self.block.min(self.bytes.len() as u64 - begin);
        let hole = self.read(begin, length).iter().all(|byte| *byte == 0);
        let flags = if hole { HOLE } else { 0 };
        if wide { flags | 5 << 40 } else { flags }
    }

    /// The status of every block that a range touches.
    pub(super) fn statuses(&self, offset: u64, length: u64, wide: bool) -> Vec<u64> {
        let end = offset.saturating_add(length).min(self.bytes.len() as u64);
        let blocks = offset / self.block..end.div_ceil(self.block);
        blocks
            .map(|block| self.flags(block * self.block, wide))
            .collect()
    }

    /// The extents from `offset` to the end of the disk.
    pub(super) fn map(&self, offset: u64, wide: bool) -> Vec<Extent64> {
        let mut extents: Vec<Extent64> = Vec::new();
        let mut at = offset;
        while at < self.bytes.len() as u64 {
            let length = self.block.min(self.bytes.len() as u64 - at);
            let flags = self.flags(at, wide);
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.length += length,
                _ => extents.push(Extent64 { length, flags }),
            }
            at += length;
        }
        extents
    }
}
