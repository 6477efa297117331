//! How much of a connection may be under way: a client that sends more waits
//! in its socket until there is room.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most requests at a time.
const REQUESTS: usize = 256;

pub struct Budget {
    most_bytes: usize,
    used: Mutex<Used>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    requests: usize,
    bytes: usize,
    /// Somebody waits for room: there is one who reads.
    awaited: bool,
}

impl Budget {
    pub fn new(most_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            most_bytes,
            used: Mutex::default(),
            room: Condvar::new(),
        })
    }

    /// Room for a request with that much payload, in either direction, if
    /// there is any.
    pub fn try_admit(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let used = self.used();
        self.has_room(&used, bytes).then(|| self.take(used, bytes))
    }

    /// The same; waits until there is.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Permit {
        let mut used = self.used();
        while !self.has_room(&used, bytes) {
            used.awaited = true;
            used = self.room.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        self.take(used, bytes)
    }

    fn has_room(&self, used: &Used, bytes: usize) -> bool {
        used.requests < REQUESTS && bytes <= self.most_bytes.saturating_sub(used.bytes)
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

/// The room that a request has, until its reply is out.
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.budget.used();
        used.requests -= 1;
        used.bytes -= self.bytes;
        // A call to the system, whether somebody waits or not.
        if mem::take(&mut used.awaited) {
            self.budget.room.notify_one();
        }
    }
}
