//! What the clients of all runtimes with an allocator share: everything but I/O and time.
//!
//! | file | what it has |
//! |---|---|
//! | `calls` | the calls: splitting, read-modify-write, block status |
//! | `pool` | the connections, and the policy for lost ones |
//! | `link` | one connection, and waiting for replies |
//! | `table` | the commands of a connection |
//! | `batch` | outgoing commands |
//! | `reader` | incoming replies |
//! | `ranges` | which ranges are being written |
//! | `wait` | waiting by turns |
//! | `handshake` | connecting |

pub(crate) mod batch;
mod calls;
pub(crate) mod handshake;
pub(crate) mod link;
pub(crate) mod pool;
mod ranges;
pub(crate) mod reader;
pub(crate) mod table;
mod wait;

use std::hash::{BuildHasher, RandomState};
use std::task::Waker;

/// A number that a server cannot know.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// Wakes tasks. No lock is held: what they do first is to take one.
pub(crate) fn wake(woken: &mut Vec<Waker>) {
    for waker in woken.drain(..) {
        waker.wake();
    }
}
