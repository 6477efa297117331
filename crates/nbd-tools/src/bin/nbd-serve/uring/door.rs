//! Where the thread of a ring is told of what is no matter of the ring.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::pool::Done;
use crate::server::Present;
use crate::socket::Socket;

/// A client who has just come in.
pub struct Newcomer {
    pub number: u64,
    pub socket: Arc<Socket>,
    pub name: String,
    pub present: Present,
}

pub struct Door {
    newcomers: Mutex<Vec<Newcomer>>,
    done: Mutex<Vec<Done>>,
    clients: AtomicUsize,
    pub bell: Bell,
}

/// Wakes the thread of the ring.
#[derive(Clone)]
pub struct Bell(pub Arc<OwnedFd>);

impl Bell {
    fn ring(&self) {
        // It can only fail by having been rung very often.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Door {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            newcomers: Mutex::default(),
            done: Mutex::default(),
            clients: AtomicUsize::new(0),
            bell: Bell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)),
        })
    }

    /// How many clients the ring has.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    pub fn welcome(&self, newcomer: Newcomer) {
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.add(&self.newcomers, newcomer);
    }

    /// A client has left.
    pub fn left(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// A task of one of the clients is done.
    pub fn bring(&self, done: Done) {
        self.add(&self.done, done);
    }

    pub fn newcomers(&self) -> Vec<Newcomer> {
        take(&self.newcomers)
    }

    pub fn done(&self) -> Vec<Done> {
        take(&self.done)
    }

    fn add<T>(&self, list: &Mutex<Vec<T>>, item: T) {
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(item);
        let first = list.len() == 1;
        drop(list);
        // Whoever has put something there before has rung.
        if first {
            self.bell.ring();
        }
    }
}

fn take<T>(list: &Mutex<Vec<T>>) -> Vec<T> {
    mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner))
}
