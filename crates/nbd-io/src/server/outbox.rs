//! What waits to be written to a connection.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem;

use bytes::{Buf, Bytes};
use nbd_codec::server::Reply;

/// Most slices of a write.
pub(super) const SLICES: usize = 64;

/// Messages in the order in which they are written. Small ones are joined, data is
/// not copied.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Bytes>,
    /// Small messages after the queue.
    small: Vec<u8>,
    /// Bytes in all.
    length: usize,
    /// Bytes written before.
    written: u64,
    /// What requests cost, and where their replies end, in bytes written.
    costs: VecDeque<(u64, usize)>,
}

impl Outbox {
    pub(super) fn push(&mut self, message: Bytes) {
        self.finish_small();
        self.length = self.length.saturating_add(message.len());
        self.queue.push_back(message);
    }

    pub(super) fn push_reply(&mut self, reply: &Reply<'_>) {
        for part in reply.parts() {
            self.small.extend_from_slice(part);
            self.length = self.length.saturating_add(part.len());
        }
    }

    /// The reply that was pushed last belongs to a request of this cost:
    /// [`advance`](Self::advance) returns it once that reply is written.
    pub(super) fn push_cost(&mut self, cost: usize) {
        let end = self.written.saturating_add(wide(self.length));
        self.costs.push_back((end, cost));
    }

    /// Bytes that wait.
    #[cfg(feature = "tokio")]
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What to write next; returns how many slices there are.
    pub(super) fn slices<'s>(&'s mut self, slices: &mut [IoSlice<'s>; SLICES]) -> usize {
        self.finish_small();
        let mut count = 0_usize;
        for (slice, message) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(message);
            count = count.saturating_add(1);
        }
        count
    }

    /// `n` bytes were written; returns the cost of the requests that are now
    /// answered.
    pub(super) fn advance(&mut self, n: usize) -> usize {
        self.length = self.length.saturating_sub(n);
        self.written = self.written.saturating_add(wide(n));
        let mut left = n;
        while let Some(first) = self.queue.front_mut() {
            if left < first.len() {
                first.advance(left);
                break;
            }
            left = left.saturating_sub(first.len());
            self.queue.pop_front();
        }
        let mut cost = 0_usize;
        while let Some((end, freed)) = self.costs.front()
            && *end <= self.written
        {
            cost = cost.saturating_add(*freed);
            self.costs.pop_front();
        }
        cost
    }

    /// Discards everything, because the connection is broken; returns what it cost.
    #[cfg(feature = "blocking")]
    pub(super) fn clear(&mut self) -> usize {
        self.small.clear();
        self.queue.clear();
        self.advance(self.length)
    }

    fn finish_small(&mut self) {
        if !self.small.is_empty() {
            self.queue.push_back(mem::take(&mut self.small).into());
        }
    }
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
