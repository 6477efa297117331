//! Waiting by turns.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Mutex;

use crate::lock;
use std::task::{Context, Poll, Waker};

/// Tasks that wait for something that one of them can have at a time, in the order of their
/// arrival.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    next: u64,
    waiting: VecDeque<(u64, Waker)>,
}

impl Queue {
    /// Adds a task, or renews its waker if it is in the queue.
    pub(crate) fn wait(&mut self, place: &mut Option<u64>, cx: &Context<'_>) {
        let own = place.and_then(|place| self.position(place));
        match own.and_then(|at| self.waiting.get_mut(at)) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => {
                let id = self.next;
                self.next = self.next.wrapping_add(1);
                *place = Some(id);
                self.waiting.push_back((id, cx.waker().clone()));
            }
        }
    }

    /// Takes a task out.
    pub(crate) fn leave(&mut self, place: Option<u64>) {
        if let Some(at) = place.and_then(|place| self.position(place)) {
            self.waiting.remove(at);
        }
    }

    /// The first task, which leaves the queue. It takes what it waits for, or calls this
    /// for the next one.
    pub(crate) fn pop(&mut self) -> Option<Waker> {
        self.waiting.pop_front().map(|(_, waker)| waker)
    }

    /// All tasks.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waker> + '_ {
        self.waiting.drain(..).map(|(_, waker)| waker)
    }

    fn position(&self, place: u64) -> Option<usize> {
        self.waiting.iter().position(|(id, _)| *id == place)
    }
}

/// A lock that one task has at a time. It is held across awaits.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<TurnState>);

#[derive(Debug, Default)]
struct TurnState {
    taken: bool,
    queue: Queue,
}

impl Turn {
    pub(crate) async fn take(&self) -> TurnGuard<'_> {
        let mut waiting = Waiting {
            turn: self,
            place: None,
        };
        poll_fn(|cx| {
            let mut state = lock(&self.0);
            if state.taken {
                state.queue.wait(&mut waiting.place, cx);
                return Poll::Pending;
            }
            state.taken = true;
            let place = waiting.place.take();
            state.queue.leave(place);
            Poll::Ready(TurnGuard(self))
        })
        .await
    }

    /// Wakes the next task if the turn is free.
    fn wake(&self) {
        let mut state = lock(&self.0);
        let next = if state.taken { None } else { state.queue.pop() };
        drop(state);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// A task that waits, or was woken and has not come yet.
struct Waiting<'t> {
    turn: &'t Turn,
    place: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            lock(&self.turn.0).queue.leave(Some(place));
            self.turn.wake();
        }
    }
}

#[derive(Debug)]
pub(crate) struct TurnGuard<'t>(&'t Turn);

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).taken = false;
        self.0.wake();
    }
}
