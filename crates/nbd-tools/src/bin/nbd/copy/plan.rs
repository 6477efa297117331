//! What is still to be copied. All workers take from it, and whoever finds it
//! running low sees what comes next.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How much data is known before it is read, in bytes; with less, more is
/// asked for.
const AHEAD: u64 = 64 << 20;

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Copy this.
    Data(Range<u64>),
    /// This is all zeroes.
    Zeroes(Range<u64>),
    /// Find out what is in this range, and [`add`](Plan::add) it.
    Map(Range<u64>),
    /// There is nothing to do: for now, if the worker waits for replies, else
    /// for good.
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
    /// Parts that nobody has taken; true for zeroes.
    parts: VecDeque<(Range<u64>, bool)>,
    /// How much data is in them, in bytes.
    ahead: u64,
    /// How far the parts go.
    mapped: u64,
    /// Somebody finds out what comes next.
    mapping: bool,
    workers: usize,
    stopped: bool,
}

impl Plan {
    /// Of `size` bytes, for one worker to begin with.
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

    /// The next thing to do. A worker that is `idle` waits for it.
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

    /// What is in the range of a [`Next::Map`], in order; true for zeroes.
    pub fn add(&self, parts: Vec<(Range<u64>, bool)>) {
        let mut state = self.lock();
        let data = parts.iter().filter(|(_, zero)| !zero);
        state.ahead += data.map(|(range, _)| range.end - range.start).sum::<u64>();
        state.parts.extend(parts);
        state.mapping = false;
        self.changed.notify_all();
    }

    /// Another worker; false if there is nothing left to do.
    pub fn enter(&self) -> bool {
        let mut state = self.lock();
        let left = !state.is_empty(self.size) && !state.stopped;
        state.workers += usize::from(left);
        left
    }

    /// A worker has done its part.
    pub fn leave(&self) {
        self.lock().workers -= 1;
    }

    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        let state = self.lock();
        state.is_empty(self.size) && state.workers == 0
    }

    /// Nobody needs begin anything new.
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
            first.end.min(first.start + chunk)
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
        self.ahead -= taken.end - taken.start;
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
    fn parts_are_taken_in_order_and_cut() {
        let plan = Plan::new(100, 8, 50);
        assert_eq!(plan.next(true), Next::Map(0..50));
        // Somebody finds out.
        assert_eq!(plan.next(false), Next::Nothing);
        assert!(!plan.is_done());
        plan.add(vec![(0..20, DATA), (20..50, ZEROES)]);
        // Little is known: the next map comes before the parts.
        assert_eq!(plan.next(true), Next::Map(50..100));
        assert_eq!(plan.next(false), Next::Data(0..8));
        assert_eq!(plan.next(false), Next::Data(8..16));
        assert_eq!(plan.next(false), Next::Data(16..20));
        assert_eq!(plan.next(false), Next::Zeroes(20..50));
        assert_eq!(plan.next(false), Next::Nothing);
        plan.add(vec![(50..100, ZEROES)]);
        assert_eq!(plan.next(false), Next::Zeroes(50..100));
        assert_eq!(plan.next(true), Next::Nothing);
        assert!(!plan.enter() && !plan.is_done());
        plan.leave();
        assert!(plan.is_done());
    }

    #[test]
    fn maps_are_made_when_little_is_known() {
        let plan = Plan::new(4 * AHEAD, AHEAD, 2 * AHEAD);
        assert_eq!(plan.next(true), Next::Map(0..2 * AHEAD));
        plan.add(vec![(0..2 * AHEAD, DATA)]);
        assert_eq!(plan.next(true), Next::Data(0..AHEAD));
        assert_eq!(plan.next(true), Next::Data(AHEAD..2 * AHEAD));
        assert_eq!(plan.next(true), Next::Map(2 * AHEAD..4 * AHEAD));
        assert!(plan.enter());
        plan.stop();
        assert_eq!(plan.next(true), Next::Nothing);
        assert!(!plan.enter());
    }
}
