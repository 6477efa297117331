//! One limit for the memory of all connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The wakers of what waits for one event, by the number of the connection.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    wakers: Mutex<HashMap<u64, Waker>>,
    /// How many there are: waking when there is none costs one load.
    count: AtomicUsize,
}

impl Waiting {
    /// The caller checks its condition again afterwards: it may have become true
    /// before this call.
    pub(super) fn add(&self, id: u64, waker: &Waker) {
        let mut wakers = self.lock();
        wakers.insert(id, waker.clone());
        self.count.store(wakers.len(), Ordering::SeqCst);
    }

    pub(super) fn remove(&self, id: u64) {
        let mut wakers = self.lock();
        wakers.remove(&id);
        self.count.store(wakers.len(), Ordering::SeqCst);
    }

    pub(super) fn wake_all(&self) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut wakers = self.lock();
        let woken: Vec<_> = wakers.drain().map(|(_, waker)| waker).collect();
        self.count.store(0, Ordering::SeqCst);
        drop(wakers);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory for the requests of all connections, in bytes.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
    waiting: Waiting,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            used: AtomicUsize::new(0),
            waiting: Waiting::default(),
        }
    }

    /// Takes `bytes` for a connection that has `held`; returns whether it may.
    ///
    /// A connection may hold an eighth of what it leaves free, or have one request
    /// with half of what is free. So there is always something left for one more
    /// connection, even if the others never give anything back.
    fn try_take(&self, held: usize, bytes: usize) -> bool {
        let take = |used: usize| {
            let free = self.most.checked_sub(used)?;
            let left = free.checked_sub(bytes)?;
            let more = held.saturating_add(bytes) <= left / 8;
            let fits = more || (held == 0 && bytes <= free / 2);
            fits.then(|| used.saturating_add(bytes))
        };
        let order = Ordering::SeqCst;
        self.used.fetch_update(order, order, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::SeqCst);
            self.waiting.wake_all();
        }
    }
}

/// What one connection has of the [`Budget`]. Dropping it gives all of it back.
#[derive(Debug)]
pub(super) struct Account {
    budget: Arc<Budget>,
    id: u64,
    held: AtomicUsize,
}

impl Account {
    pub(super) fn new(budget: &Arc<Budget>, id: u64) -> Self {
        Self {
            budget: Arc::clone(budget),
            id,
            held: AtomicUsize::new(0),
        }
    }

    /// Takes `bytes`; if they are not to be had, the task is woken when another
    /// connection, or this one, gives something back. One caller at a time.
    pub(super) fn poll_take(&self, cx: &Context<'_>, bytes: usize) -> Poll<()> {
        if self.try_take(bytes) {
            return Poll::Ready(());
        }
        self.budget.waiting.add(self.id, cx.waker());
        if self.try_take(bytes) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn try_take(&self, bytes: usize) -> bool {
        let held = self.held.load(Ordering::SeqCst);
        let taken = self.budget.try_take(held, bytes);
        if taken {
            self.held.fetch_add(bytes, Ordering::SeqCst);
        }
        taken
    }

    pub(super) fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.held.fetch_sub(bytes, Ordering::SeqCst);
            self.budget.give_back(bytes);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.waiting.remove(self.id);
        self.budget.give_back(*self.held.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that take all they may, and give nothing back.
    #[test]
    fn greedy_connections_leave_memory_to_one_more() {
        let budget = Budget::new(128 << 20);
        for connections in 0..20 {
            assert!(budget.try_take(0, 1 << 20), "after {connections} of them");
            let mut held = 1 << 20;
            while budget.try_take(held, 1 << 20) {
                held += 1 << 20;
            }
        }
        // The rest becomes smaller with each one, and stays within the limit.
        for _ in 0..1000 {
            while budget.try_take(4096, 4096) {}
        }
        assert!(budget.used.load(Ordering::SeqCst) <= 128 << 20);
    }

    #[test]
    fn a_waiting_connection_is_woken_and_gets_what_another_gives_back() {
        let budget = Arc::new(Budget::new(1 << 20));
        let (greedy, other) = (Account::new(&budget, 1), Account::new(&budget, 2));
        let cx = Context::from_waker(Waker::noop());
        assert!(greedy.poll_take(&cx, 1 << 19).is_ready());
        assert!(other.poll_take(&cx, 1 << 19).is_pending());
        drop(greedy);
        assert_eq!(budget.waiting.count.load(Ordering::SeqCst), 0);
        assert!(other.poll_take(&cx, 1 << 19).is_ready());
        drop(other);
        assert_eq!(budget.used.load(Ordering::SeqCst), 0);
    }
}
