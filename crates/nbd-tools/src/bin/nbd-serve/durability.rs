//! Syncs of a file by many threads. A failed one means that writes are lost.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

/// The kernel reports an error to one sync only: another one that runs at the same
/// time succeeds, although it covers the same writes. So one runs at a time, and
/// its failure is noted before another one begins or ends. Requests that wait share
/// the next one.
#[derive(Default)]
pub struct Durability {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    started: u64,
    ended: u64,
    /// A sync has failed.
    lost: bool,
}

impl Durability {
    /// Succeeds after `sync`, or that of another thread, was called and succeeded,
    /// unless one has failed earlier.
    pub fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has started may not cover the latest writes.
        let needed = state.started + 1;
        while state.ended < needed && !state.lost {
            if state.started == state.ended {
                state.started += 1;
                drop(state);
                let result = sync();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.ended += 1;
                state.lost = result.is_err();
                self.ended.notify_all();
                return result;
            }
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.lost {
            return Err(io::Error::other("an earlier flush failed"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::thread::{scope, sleep};
    use std::time::Duration;

    use super::*;

    fn fails() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }

    /// The kernel has told the first one of the error, so the second one succeeds,
    /// before the first one returns.
    #[test]
    fn a_sync_during_one_that_fails_fails_too() {
        let durability = Durability::default();
        let (begun, has_begun) = channel();
        let (end, may_end) = channel::<()>();
        scope(|scope| {
            let durability = &durability;
            let first = scope.spawn(move || {
                durability.sync(|| {
                    begun.send(()).expect("the test waits");
                    let _ = may_end.recv();
                    fails()
                })
            });
            has_begun.recv().expect("it begins");
            let second = scope.spawn(move || durability.sync(|| Ok(())));
            sleep(Duration::from_millis(50));
            drop(end);
            first.join().expect("a result").expect_err("it fails");
            second.join().expect("a result").expect_err("it fails, too");
        });
        durability
            .sync(|| Ok(()))
            .expect_err("an earlier one failed");
    }

    #[test]
    fn syncs_that_wait_share_one() {
        let durability = Durability::default();
        let count = AtomicUsize::new(0);
        let slow = || {
            count.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(100));
            Ok(())
        };
        scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| durability.sync(slow).expect("synced"));
            }
        });
        assert!(count.load(Ordering::Relaxed) < 10, "{count:?}");
        durability.sync(slow).expect("synced");
    }
}
