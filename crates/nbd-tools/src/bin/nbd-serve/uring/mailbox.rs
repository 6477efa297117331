//! Messages from other threads to the thread of a ring.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::pool::Done;
use crate::server::NewClient;

pub struct Mailbox {
    new_clients: Mutex<Vec<NewClient>>,
    done: Mutex<Vec<Done>>,
    clients: AtomicUsize,
    pub waker: Waker,
}

/// Wakes the thread of the ring.
#[derive(Clone)]
pub struct Waker(pub Arc<OwnedFd>);

impl Waker {
    fn wake(&self) {
        // This fails only if the counter is at its maximum: then the thread is
        // woken already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Mailbox {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            new_clients: Mutex::default(),
            done: Mutex::default(),
            clients: AtomicUsize::new(0),
            waker: Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)),
        })
    }

    /// How many clients the ring serves.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    pub fn add_client(&self, new_client: NewClient) {
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.add(&self.new_clients, new_client);
    }

    /// A client has disconnected.
    pub fn remove_client(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// A task of one of the clients is completed.
    pub fn add_done(&self, done: Done) {
        self.add(&self.done, done);
    }

    pub fn take_new_clients(&self) -> Vec<NewClient> {
        take(&self.new_clients)
    }

    pub fn take_done(&self) -> Vec<Done> {
        take(&self.done)
    }

    fn add<T>(&self, list: &Mutex<Vec<T>>, item: T) {
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(item);
        let first = list.len() == 1;
        drop(list);
        // If the list was not empty, the thread is woken already.
        if first {
            self.waker.wake();
        }
    }
}

fn take<T>(list: &Mutex<Vec<T>>) -> Vec<T> {
    mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner))
}
