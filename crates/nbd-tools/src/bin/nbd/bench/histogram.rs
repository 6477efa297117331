//! A histogram of durations, accurate to 1.6 percent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets for each power of two.
const FINE: usize = 1 << FINE_BITS;
const FINE_BITS: u32 = 6;

/// 2^42 ns is more than an hour; the last bucket counts all longer durations.
const BUCKETS: usize = FINE * (42 - FINE_BITS as usize);

/// Filled by one thread, while others may read it.
pub struct Histogram {
    counts: Box<[AtomicU64]>,
    longest: AtomicU64,
}

impl Histogram {
    pub fn new() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            longest: AtomicU64::new(0),
        }
    }

    /// Counts a duration. Only one thread may call this: the update is not atomic.
    #[inline]
    pub fn record(&self, nanoseconds: u64) {
        let count = &self.counts[bucket(nanoseconds)];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if nanoseconds > self.longest.load(Ordering::Relaxed) {
            self.longest.store(nanoseconds, Ordering::Relaxed);
        }
    }
}

/// The content of histograms at one time.
#[derive(Clone)]
pub struct Snapshot {
    counts: Vec<u64>,
    longest: u64,
}

impl Snapshot {
    /// The sum of all `histograms`.
    pub fn of<'h>(histograms: impl Iterator<Item = &'h Histogram>) -> Self {
        let mut all = Self {
            counts: vec![0; BUCKETS],
            longest: 0,
        };
        for histogram in histograms {
            for (sum, count) in all.counts.iter_mut().zip(&histogram.counts) {
                *sum += count.load(Ordering::Relaxed);
            }
            all.longest = all.longest.max(histogram.longest.load(Ordering::Relaxed));
        }
        all
    }

    /// What was added since `earlier`. The longest duration is that of the whole
    /// run.
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Self {
            counts: pairs.map(|(now, then)| now - then).collect(),
            longest: self.longest,
        }
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// The duration that `percent` of all did not exceed.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count() as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_end(index).min(self.longest));
            }
        }
        self.longest()
    }
}

/// Each small number has its own bucket; larger ones are grouped by their highest
/// bits.
fn bucket(number: u64) -> usize {
    let power = number.max(1).ilog2().saturating_sub(FINE_BITS);
    let index = power as usize * FINE + (number >> power) as usize;
    index.min(BUCKETS - 1)
}

/// The largest number of a bucket.
fn upper_end(index: usize) -> u64 {
    let power = (index / FINE).saturating_sub(1);
    let first = (index - power * FINE) as u64;
    ((first + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_join_without_gaps() {
        let mut before = None;
        for index in 0..BUCKETS - 1 {
            let end = upper_end(index);
            assert_eq!(bucket(end), index, "{end}");
            assert_eq!(bucket(end + 1), index + 1, "{end} + 1");
            assert!(before < Some(end));
            before = Some(end);
        }
    }

    #[test]
    fn percentiles_of_a_thousand() {
        let histogram = Histogram::new();
        for n in 1..=1000 {
            histogram.record(n * 1000);
        }
        let all = Snapshot::of([&histogram].into_iter());
        assert_eq!(all.count(), 1000);
        assert_eq!(all.longest(), Duration::from_millis(1));
        for (percent, exact) in [(50.0, 500e3), (90.0, 900e3), (99.0, 990e3), (100.0, 1000e3)] {
            let found = all.percentile(percent).as_nanos() as f64;
            assert!(
                (exact..exact * 1.016).contains(&found),
                "{percent}: {found}"
            );
        }
    }
}
