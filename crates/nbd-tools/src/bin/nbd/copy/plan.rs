//! What is still to be copied. All workers take parts from it; a worker that finds
//! few parts maps the next range.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::align::length;

/// If less data than this is mapped and not yet taken, in bytes, the next range is
/// mapped.
const AHEAD: u64 = 64 << 20;

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Copy this range.
    Data(Range<u64>),
    /// Write zeroes to this range.
    Zeroes(Range<u64>),
    /// Map this range, and [`add`](Plan::add) its parts.
    Map(Range<u64>),
    /// There is nothing to do: at the moment, if the worker has requests in
    /// flight; otherwise the worker ends.
    Nothing,
}

pub struct Plan {
    size: u64,
    /// The longest part of data, in bytes.
    chunk: u64,
    /// How much is mapped at a time, in bytes.
    window: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Parts that no worker has taken; true for zeroes.
    parts: VecDeque<(Range<u64>, bool)>,
    /// The data in them, in bytes.
    ahead: u64,
    /// The end of the mapped range.
    mapped: u64,
    /// A worker is mapping the next range.
    mapping: bool,
    workers: usize,
    stopped: bool,
}

impl Plan {
    /// A plan for `size` bytes and one worker.
    pub fn new(size: u64, chunk: u64, window: u64) -> Self {
        Self {
            size,
            chunk,
            window,
            state: Mutex::new(State {
                parts: VecDeque::new(),
                ahead: 0,
                mapped: 0,
                mapping: false,
                workers: 1,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The next thing to do. A worker that is `idle` waits while another one maps.
    pub fn next(&self, idle: bool) -> Next {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Next::Nothing;
            }
            if state.ahead < AHEAD && state.mapped < self.size && !state.mapping {
                let start = state.mapped;
                state.mapped = self.size.min(start.saturating_add(self.window));
                state.mapping = true;
                return Next::Map(start..state.mapped);
            }
            if let Some(next) = state.take(self.chunk) {
                return next;
            }
            if !idle || !state.mapping {
                return Next::Nothing;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Adds the parts of the range of a [`Next::Map`], in order; true for zeroes.
    pub fn add(&self, parts: Vec<(Range<u64>, bool)>) {
        let mut state = self.lock();
        let data = parts.iter().filter(|(_, zero)| !zero);
        for (range, _) in data {
            state.ahead = state.ahead.saturating_add(length(range));
        }
        state.parts.extend(parts);
        state.mapping = false;
        self.changed.notify_all();
    }

    /// Adds a worker; returns false if there is nothing left to do.
    pub fn add_worker(&self) -> bool {
        let mut state = self.lock();
        let left = !state.is_empty(self.size) && !state.stopped;
        state.workers = state.workers.saturating_add(left.into());
        left
    }

    /// A worker has finished.
    pub fn remove_worker(&self) {
        let mut state = self.lock();
        state.workers = state.workers.saturating_sub(1);
    }

    /// Whether everything is copied.
    pub fn is_done(&self) -> bool {
        let state = self.lock();
        state.is_empty(self.size) && state.workers == 0
    }

    /// Ends all workers.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, chunk: u64) -> Option<Next> {
        let (first, zero) = self.parts.front_mut()?;
        let end = if *zero {
            first.end
        } else {
            first.end.min(first.start.saturating_add(chunk))
        };
        let taken = first.start..end;
        let zero = *zero;
        first.start = end;
        if first.is_empty() {
            self.parts.pop_front();
        }
        if zero {
            return Some(Next::Zeroes(taken));
        }
        self.ahead = self.ahead.saturating_sub(length(&taken));
        Some(Next::Data(taken))
    }

    fn is_empty(&self, size: u64) -> bool {
        self.parts.is_empty() && self.mapped >= size && !self.mapping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: bool = false;
    const ZEROES: bool = true;

    #[test]
    fn parts_are_taken_in_order_and_split() {
        let plan = Plan::new(100, 8, 50);
        assert_eq!(plan.next(true), Next::Map(0..50));
        // A worker is mapping.
        assert_eq!(plan.next(false), Next::Nothing);
        assert!(!plan.is_done());
        plan.add(vec![(0..20, DATA), (20..50, ZEROES)]);
        // Little data is mapped: the next map precedes the parts.
        assert_eq!(plan.next(true), Next::Map(50..100));
        assert_eq!(plan.next(false), Next::Data(0..8));
        assert_eq!(plan.next(false), Next::Data(8..16));
        assert_eq!(plan.next(false), Next::Data(16..20));
        assert_eq!(plan.next(false), Next::Zeroes(20..50));
        assert_eq!(plan.next(false), Next::Nothing);
        plan.add(vec![(50..100, ZEROES)]);
        assert_eq!(plan.next(false), Next::Zeroes(50..100));
        assert_eq!(plan.next(true), Next::Nothing);
        assert!(!plan.add_worker() && !plan.is_done());
        plan.remove_worker();
        assert!(plan.is_done());
    }

    #[test]
    fn the_end_of_the_largest_export() {
        let plan = Plan::new(u64::MAX, 8, u64::MAX);
        assert_eq!(plan.next(true), Next::Map(0..u64::MAX));
        plan.add(vec![
            (0..u64::MAX - 9, ZEROES),
            (u64::MAX - 9..u64::MAX, DATA),
        ]);
        assert_eq!(plan.next(true), Next::Zeroes(0..u64::MAX - 9));
        assert_eq!(plan.next(true), Next::Data(u64::MAX - 9..u64::MAX - 1));
        assert_eq!(plan.next(true), Next::Data(u64::MAX - 1..u64::MAX));
        assert_eq!(plan.next(true), Next::Nothing);
    }

    #[test]
    fn ranges_are_mapped_when_little_data_is_left() {
        let plan = Plan::new(4 * AHEAD, AHEAD, 2 * AHEAD);
        assert_eq!(plan.next(true), Next::Map(0..2 * AHEAD));
        plan.add(vec![(0..2 * AHEAD, DATA)]);
        assert_eq!(plan.next(true), Next::Data(0..AHEAD));
        assert_eq!(plan.next(true), Next::Data(AHEAD..2 * AHEAD));
        assert_eq!(plan.next(true), Next::Map(2 * AHEAD..4 * AHEAD));
        assert!(plan.add_worker());
        plan.stop();
        assert_eq!(plan.next(true), Next::Nothing);
        assert!(!plan.add_worker());
    }
}
