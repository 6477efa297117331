//! Limits the requests in flight of a connection. What a client sends beyond
//! them stays in the socket until requests are answered.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The most requests at a time.
const REQUESTS: usize = 256;

pub struct Budget {
    max_bytes: usize,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    requests: usize,
    bytes: usize,
    /// The reading thread waits.
    awaited: bool,
}

impl Budget {
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            max_bytes,
            used: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    /// Admits a request with a payload of `bytes`, in either direction, if the
    /// limits permit it.
    pub fn try_admit(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let used = self.used();
        self.has_room(&used, bytes).then(|| self.take(used, bytes))
    }

    /// The same; waits until the limits permit it.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Permit {
        let mut used = self.used();
        while !self.has_room(&used, bytes) {
            used.awaited = true;
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.take(used, bytes)
    }

    fn has_room(&self, used: &Used, bytes: usize) -> bool {
        used.requests < REQUESTS && bytes <= self.max_bytes.saturating_sub(used.bytes)
    }

    fn take(self: &Arc<Self>, mut used: MutexGuard<'_, Used>, bytes: usize) -> Permit {
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
        let mut used = self.budget.used();
        used.requests -= 1;
        used.bytes -= self.bytes;
        // Only if needed: a notification is a system call.
        if mem::take(&mut used.awaited) {
            self.budget.freed.notify_one();
        }
    }
}
