//! Which ranges are being written, for read-modify-write.
//!
//! A write of a part of a block reads the block, changes it and writes it. No other write to
//! the block may come in between, or it is lost. So such a write has its blocks for itself;
//! other writes share theirs.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use super::wait::Queue;
use crate::lock;

/// The ranges of all writes under way.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: Vec<Held>,
    queue: Queue,
}

#[derive(Debug)]
struct Held {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
}

impl Ranges {
    /// Waits until the range is free, or shared by writes that share it.
    pub(crate) async fn hold(self: &Arc<Self>, range: Range<u64>, exclusive: bool) -> Guard {
        let mut waiting = Waiting {
            ranges: self,
            place: None,
        };
        poll_fn(|cx| {
            let mut state = lock(&self.0);
            let conflict = |held: &Held| {
                (exclusive || held.exclusive)
                    && held.range.start < range.end
                    && range.start < held.range.end
            };
            if state.held.iter().any(conflict) {
                state.queue.wait(&mut waiting.place, cx);
                return Poll::Pending;
            }
            let id = state.next;
            state.next = state.next.wrapping_add(1);
            let range = range.clone();
            state.held.push(Held {
                id,
                range,
                exclusive,
            });
            Poll::Ready(Guard {
                ranges: self.clone(),
                id,
            })
        })
        .await
    }
}

struct Waiting<'r> {
    ranges: &'r Ranges,
    place: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            lock(&self.ranges.0).queue.leave(self.place);
        }
    }
}

/// A range that is being written. A command in flight keeps it until it is answered, even if
/// the future of the call is dropped: the server may still write the whole block.
#[derive(Debug)]
pub(crate) struct Guard {
    ranges: Arc<Ranges>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = lock(&self.ranges.0);
        state.held.retain(|held| held.id != self.id);
        // All look again: several may go on at once.
        let woken: Vec<_> = state.queue.drain().collect();
        drop(state);
        for waker in woken {
            waker.wake();
        }
    }
}
