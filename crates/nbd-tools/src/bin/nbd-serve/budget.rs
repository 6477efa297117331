//! Limits the memory for payloads of all clients, and the requests in flight of
//! each. What a client sends beyond them stays in the socket until requests are
//! answered.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most requests of a client at a time.
const REQUESTS: usize = 256;

/// How long a request waits for memory that other clients have. After that it fails
/// with `ENOMEM`, and later ones of the client do not wait until one gets memory.
const MEMORY_WAIT: Duration = Duration::from_secs(1);

/// The text of the error reply.
pub const NO_MEMORY: &str = "no memory for this request: other clients have it";

/// Payloads of all clients, in bytes.
pub struct Memory {
    max: usize,
    used: AtomicUsize,
    /// How many threads wait until something is given back.
    waiting: AtomicUsize,
    wait: Mutex<()>,
    given_back: Condvar,
}

impl Memory {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            wait: Mutex::default(),
            given_back: Condvar::new(),
        })
    }

    /// Takes `bytes` for a client that has `held`; returns whether it may.
    ///
    /// A client may hold an eighth of what it leaves free, or have one request with
    /// half of what is free. So there is always something left for one more client,
    /// even if the others never give anything back.
    fn try_take(&self, held: usize, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let take = |used: usize| {
            let free = self.max.saturating_sub(used);
            let fits = bytes <= free
                && ((held + bytes) <= (free - bytes) / 8 || held == 0 && bytes <= free / 2);
            fits.then_some(used + bytes)
        };
        let result = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        result.is_ok()
    }

    /// Takes `bytes` for a client that has nothing; waits for `time` at most.
    fn take_within(&self, time: Duration, bytes: usize) -> bool {
        let deadline = Instant::now() + time;
        let mut lock = self.wait.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let taken = loop {
            if self.try_take(0, bytes) {
                break true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            let result = self.given_back.wait_timeout(lock, left);
            lock = result.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        taken
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::SeqCst);
            if self.waiting.load(Ordering::SeqCst) > 0 {
                drop(self.wait.lock());
                self.given_back.notify_all();
            }
        }
    }
}

/// The limits of one client.
pub struct Budget {
    max_bytes: usize,
    memory: Arc<Memory>,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    requests: usize,
    bytes: usize,
    /// The reading thread waits.
    awaited: bool,
    /// The last request that waited for memory got none.
    starved: bool,
}

impl Budget {
    pub fn new(max_bytes: usize, memory: &Arc<Memory>) -> Arc<Self> {
        Arc::new(Self {
            max_bytes,
            memory: Arc::clone(memory),
            used: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    /// Admits a request with a payload of `bytes`, in either direction, if the
    /// limits permit it.
    pub fn try_admit(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        self.take(&mut self.used(), bytes)
    }

    /// The same; waits until requests of this client are answered. `None`: it has
    /// none, and there is no memory.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let mut used = self.used();
        loop {
            if let Some(permit) = self.take(&mut used, bytes) {
                return Some(permit);
            }
            if used.requests == 0 {
                // One wait, then requests fail at once as long as there is no memory.
                let time = if used.starved {
                    Duration::ZERO
                } else {
                    MEMORY_WAIT
                };
                drop(used);
                let taken = self.memory.take_within(time, bytes);
                let mut used = self.used();
                used.starved = !taken;
                return taken.then(|| self.permit(&mut used, bytes));
            }
            used.awaited = true;
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(self: &Arc<Self>, used: &mut Used, bytes: usize) -> Option<Permit> {
        let fits = used.requests < REQUESTS
            && bytes <= self.max_bytes.saturating_sub(used.bytes)
            && self.memory.try_take(used.bytes, bytes);
        fits.then(|| self.permit(used, bytes))
    }

    fn permit(self: &Arc<Self>, used: &mut Used, bytes: usize) -> Permit {
        used.requests += 1;
        used.bytes += bytes;
        Permit {
            budget: Arc::clone(self),
            bytes,
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in flight. It is dropped when the reply is sent.
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.memory.give_back(self.bytes);
        let mut used = self.budget.used();
        used.requests -= 1;
        used.bytes -= self.bytes;
        // Only if needed: a notification is a system call.
        if mem::take(&mut used.awaited) {
            self.budget.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that take all they may, and give nothing back.
    #[test]
    fn greedy_clients_leave_memory_to_one_more() {
        let memory = Memory::new(128 << 20);
        for clients in 0..20 {
            assert!(memory.try_take(0, 1 << 20), "after {clients} clients");
            let mut held = 1 << 20;
            while memory.try_take(held, 1 << 20) {
                held += 1 << 20;
            }
        }
        // The rest becomes smaller with each client, and stays within the limit.
        for _ in 0..1000 {
            while memory.try_take(4096, 4096) {}
        }
        assert!(memory.used.load(Ordering::Relaxed) <= 128 << 20);
    }
}
