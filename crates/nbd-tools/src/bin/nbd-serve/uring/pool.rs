//! Threads for requests that the ring does not execute: block status, trims,
//! zeroes, syncs, reads with holes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use nbd_codec::server::Request;

use super::mailbox::Mailbox;
use crate::buffer::Buffer;
use crate::job;
use crate::outbox::Message;
use crate::server::Server;
use crate::workers::STACK;

/// A request of a client.
pub struct Task {
    /// Where the result goes.
    pub mailbox: Arc<Mailbox>,
    pub client: usize,
    pub request: Request,
    /// Of a write.
    pub data: Option<Buffer>,
    /// The minimum block size.
    pub block: u32,
    /// Its bytes in the budget.
    pub cost: usize,
}

/// The result of a task.
pub struct Done {
    pub client: usize,
    pub cost: usize,
    pub replies: Vec<Message>,
}

pub struct Pool {
    server: Arc<Server>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// A queue for each client with tasks; they take turns.
    queues: VecDeque<VecDeque<Task>>,
    threads: usize,
    idle: usize,
}

impl Pool {
    pub fn new(server: Arc<Server>) -> Arc<Self> {
        Arc::new(Self {
            server,
            state: Mutex::default(),
            work: Condvar::new(),
        })
    }

    /// Adds a task. Clients take turns, so that one with many tasks does not delay
    /// the others.
    pub fn add(self: &Arc<Self>, task: Task) {
        let mut state = self.state();
        let own = |queue: &&mut VecDeque<Task>| {
            queue.front().is_some_and(|first| {
                first.client == task.client && Arc::ptr_eq(&first.mailbox, &task.mailbox)
            })
        };
        match state.queues.iter_mut().find(own) {
            Some(queue) => queue.push_back(task),
            None => state.queues.push_back(VecDeque::from([task])),
        }
        if state.idle == 0 && state.threads < self.server.threads {
            let pool = Arc::clone(self);
            let builder = Builder::new().name("pool".into()).stack_size(STACK);
            // If the system refuses another thread, the present ones suffice.
            if builder.spawn(move || pool.run_thread()).is_ok() {
                state.threads += 1;
            }
        }
        let no_thread = state.threads == 0;
        drop(state);
        if no_thread {
            self.run_tasks();
        } else {
            self.work.notify_one();
        }
    }

    /// What a thread does; it ends with the process.
    fn run_thread(&self) {
        loop {
            self.run_tasks();
            let mut state = self.state();
            state.idle += 1;
            while state.queues.is_empty() {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.idle -= 1;
        }
    }

    /// Executes tasks until there are none.
    fn run_tasks(&self) {
        while let Some(task) = self.next() {
            let Task { client, cost, .. } = task;
            let mut replies = Vec::new();
            let data = task.data.as_deref();
            job::run(
                task.request,
                data,
                &*self.server.export.disk,
                task.block,
                &mut replies,
            );
            let done = Done {
                client,
                cost,
                replies,
            };
            task.mailbox.add_done(done);
        }
    }

    fn next(&self) -> Option<Task> {
        let mut state = self.state();
        let mut queue = state.queues.pop_front()?;
        let task = queue.pop_front();
        if !queue.is_empty() {
            state.queues.push_back(queue);
        }
        task
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
