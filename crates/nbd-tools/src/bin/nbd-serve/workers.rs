//! The threads of a connection in transmission.
//!
//! ```text
//!                 ┌── read ──▶ jobs ──┐
//!   socket ──▶ Reader                 ├─▶ execute ─▶ Outbox ──▶ socket
//!                 └── one at a time   └── many at a time
//! ```
//!
//! Every thread does the same: it takes a job if there is one; otherwise it reads
//! if no other thread does; otherwise it waits. So one thread reads, executes and
//! answers a request, while another reads the next ones. Threads are added when
//! they are needed, and all of them end with the connection.

use std::collections::VecDeque;
use std::mem;
use std::net::Shutdown;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, scope};

use anyhow::{Context, Result};

use crate::job::Job;
use crate::outbox::Outbox;
use crate::reader::Reader;
use crate::server::Server;
use crate::socket::Socket;

/// Small, because large values are on the heap.
pub const STACK: usize = 256 << 10;

pub struct Workers<'c> {
    server: &'c Server,
    /// To close the connection if writing fails.
    socket: &'c Socket,
    /// The minimum block size.
    block: u32,
    outbox: Outbox,
    state: Mutex<State>,
    /// Notified when there is a job, when no thread reads, and at the end.
    work: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    reading: Reading,
    threads: usize,
    /// How many threads wait.
    idle: usize,
    /// A waiting thread was notified, and has not woken up yet.
    waking: bool,
    /// How many requests were received.
    requests: u64,
}

enum Reading {
    /// No thread reads.
    Free(Box<Reader>),
    /// A thread reads.
    Busy,
    /// Reading has ended.
    Ended(Result<()>),
}

enum Task {
    Read(Box<Reader>),
    Execute(Job),
}

impl<'c> Workers<'c> {
    pub fn new(
        server: &'c Server,
        socket: &'c Socket,
        block: u32,
        reader: Reader,
        outbox: Outbox,
    ) -> Self {
        Self {
            server,
            socket,
            block,
            outbox,
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                reading: Reading::Free(Box::new(reader)),
                threads: 1,
                idle: 0,
                waking: false,
                requests: 0,
            }),
            work: Condvar::new(),
        }
    }

    /// Serves until the client disconnects and all requests are answered. Returns
    /// the number of requests, and how the connection ended.
    pub fn run(self) -> (u64, Result<()>) {
        scope(|scope| self.run_thread(scope));
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match state.reading {
            Reading::Ended(end) => (state.requests, end),
            // Threads end only after that.
            Reading::Free(_) | Reading::Busy => (state.requests, Ok(())),
        }
    }

    fn run_thread<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut replies = Vec::new();
        while let Some(task) = self.next(scope) {
            match task {
                Task::Read(mut reader) => {
                    let more =
                        reader.read(self.server, &self.outbox, |jobs| self.deliver(scope, jobs));
                    self.stop_reading(reader, more);
                }
                Task::Execute(job) => {
                    job.run(&*self.server.export.disk, self.block, &mut replies);
                    if self.outbox.send(replies.drain(..)).is_err() {
                        // The client has disconnected; this ends the reader.
                        self.socket.shut_down(Shutdown::Both);
                    }
                }
            }
        }
    }

    /// The next task; `None` after the end. If there is more to do, this wakes
    /// another thread, which does the same.
    fn next<'s>(&'s self, scope: &'s Scope<'s, '_>) -> Option<Task> {
        let mut state = self.state();
        let task = loop {
            if let Some(job) = state.jobs.pop_front() {
                break Task::Execute(job);
            }
            match mem::replace(&mut state.reading, Reading::Busy) {
                Reading::Free(reader) => break Task::Read(reader),
                Reading::Busy => {}
                ended => {
                    state.reading = ended;
                    return None;
                }
            }
            state.idle += 1;
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            state.waking = false;
        };
        if !state.jobs.is_empty() || matches!(state.reading, Reading::Free(_)) {
            if state.idle > 0 {
                self.wake(&mut state);
            } else if state.threads < self.server.threads {
                // If the system refuses another thread, the present ones suffice.
                let _ = self.add_thread(scope, &mut state);
            }
        }
        Some(task)
    }

    fn add_thread<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        state: &mut State,
    ) -> std::io::Result<()> {
        let builder = Builder::new().name("worker".into()).stack_size(STACK);
        builder.spawn_scoped(scope, || self.run_thread(scope))?;
        state.threads += 1;
        Ok(())
    }

    /// Adds jobs for any thread. The first ones start the second thread: while the
    /// reading thread waits for memory, another one has to execute them.
    fn deliver<'s>(&'s self, scope: &'s Scope<'s, '_>, jobs: &mut Vec<Job>) -> Result<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let requests = jobs.iter().filter(|job| !matches!(job, Job::Send));
        state.requests += requests.count() as u64;
        state.jobs.extend(jobs.drain(..));
        if state.threads == 1 {
            let second = self.add_thread(scope, &mut state);
            return second.context("cannot start a thread");
        }
        self.wake(&mut state);
        Ok(())
    }

    /// Wakes one waiting thread, unless one is waking up already: a wake-up takes
    /// longer than many jobs.
    fn wake(&self, state: &mut State) {
        if state.idle > 0 && !mem::replace(&mut state.waking, true) {
            self.work.notify_one();
        }
    }

    fn stop_reading(&self, mut reader: Box<Reader>, more: Result<bool>) {
        let mut state = self.state();
        state.requests += reader.take_done();
        state.reading = match more {
            Ok(true) => Reading::Free(reader),
            Ok(false) => Reading::Ended(Ok(())),
            Err(error) => Reading::Ended(Err(error)),
        };
        if matches!(state.reading, Reading::Ended(_)) {
            self.work.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
