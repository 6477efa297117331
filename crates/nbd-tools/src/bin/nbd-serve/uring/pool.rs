//! Threads for what the ring cannot do, or not at once: maps, trims, zeroes,
//! reads with holes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use nbd_codec::server::Request;

use super::door::Door;
use crate::buffer::Buffer;
use crate::job;
use crate::outbox::Message;
use crate::server::Server;
use crate::team::STACK;

/// A request of a client.
pub struct Task {
    /// Where the ring of the client is told of it.
    pub door: Arc<Door>,
    pub client: usize,
    pub request: Request,
    /// Of a write.
    pub data: Option<Buffer>,
    /// The minimum block size.
    pub block: u32,
    /// The room it takes.
    pub room: usize,
}

/// What has become of it.
pub struct Done {
    pub client: usize,
    pub room: usize,
    pub replies: Vec<Message>,
}

pub struct Pool {
    server: Arc<Server>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Tasks by client; each client in its turn.
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

    /// Gives it to a thread. One that works hard does not keep the others'
    /// tasks waiting: clients take turns.
    pub fn add(self: &Arc<Self>, task: Task) {
        let mut state = self.state();
        let own = |queue: &&mut VecDeque<Task>| {
            queue.front().is_some_and(|first| {
                first.client == task.client && Arc::ptr_eq(&first.door, &task.door)
            })
        };
        match state.queues.iter_mut().find(own) {
            Some(queue) => queue.push_back(task),
            None => state.queues.push_back(VecDeque::from([task])),
        }
        if state.idle == 0 && state.threads < self.server.threads {
            let pool = Arc::clone(self);
            let builder = Builder::new().name("pool".into()).stack_size(STACK);
            // If there can be no more, those there are will do.
            if builder.spawn(move || pool.work()).is_ok() {
                state.threads += 1;
            }
        }
        let nobody = state.threads == 0;
        drop(state);
        match nobody {
            true => self.work_off(),
            false => self.work.notify_one(),
        }
    }

    /// The life of a thread; as long as the process.
    fn work(&self) {
        loop {
            self.work_off();
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

    /// Until there is nothing to do.
    fn work_off(&self) {
        while let Some(task) = self.next() {
            let Task { client, room, .. } = task;
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
                room,
                replies,
            };
            task.door.bring(done);
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
