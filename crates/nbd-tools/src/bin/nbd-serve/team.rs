//! The threads of a connection in transmission.
//!
//! ```text
//!                 ┌── read ──▶ jobs ──┐
//!   socket ──▶ Reader                 ├─▶ do one ──▶ Outbox ──▶ socket
//!                 └── one at a time   └── many at a time
//! ```
//!
//! No thread has a role of its own. Each takes a job if there is one, or else
//! reads if nobody does, or else waits. So a request is read, done and
//! answered by one thread, and another reads meanwhile. Threads are added as
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

/// Small: what is large is not on the stack.
pub const STACK: usize = 256 << 10;

pub struct Team<'c> {
    server: &'c Server,
    /// To end the connection where writing fails.
    socket: &'c Socket,
    /// The minimum block size.
    block: u32,
    outbox: Outbox,
    state: Mutex<State>,
    /// There is a job, or somebody to read, or the end.
    work: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    reading: Reading,
    threads: usize,
    /// How many of them wait.
    idle: usize,
    /// One of them was told to come, and is not here yet.
    called: bool,
    /// How many requests there were.
    requests: u64,
}

enum Reading {
    /// Nobody reads.
    Free(Box<Reader>),
    /// Somebody does.
    Busy,
    /// Nobody will again.
    Over(Result<()>),
}

enum Task {
    Read(Box<Reader>),
    Do(Job),
}

impl<'c> Team<'c> {
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
                called: false,
                requests: 0,
            }),
            work: Condvar::new(),
        }
    }

    /// Serves until the client leaves and everything is answered; returns how
    /// many requests there were, and how it ended.
    pub fn run(self) -> (u64, Result<()>) {
        let result = scope(|scope| {
            // The second thread; more come as they are needed.
            let second = self.add_thread(scope, &mut self.state());
            second.context("cannot start a thread")?;
            self.member(scope);
            anyhow::Ok(())
        });
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match (result, state.reading) {
            (Ok(()), Reading::Over(end)) => (state.requests, end),
            (result, _) => (state.requests, result),
        }
    }

    fn member<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut replies = Vec::new();
        while let Some(task) = self.next(scope) {
            match task {
                Task::Read(mut reader) => {
                    let more = reader.read(self.server, &self.outbox, |jobs| self.deliver(jobs));
                    self.stop_reading(reader, more);
                }
                Task::Do(job) => {
                    job.run(&*self.server.export.disk, self.block, &mut replies);
                    if self.outbox.send(replies.drain(..)).is_err() {
                        // The client is gone. So is the reader then.
                        self.socket.shut_down(Shutdown::Both);
                    }
                }
            }
        }
    }

    /// The next thing to do; `None` when there is nothing any more. Whoever
    /// leaves something undone wakes another, who does the same.
    fn next<'s>(&'s self, scope: &'s Scope<'s, '_>) -> Option<Task> {
        let mut state = self.state();
        let task = loop {
            if let Some(job) = state.jobs.pop_front() {
                break Task::Do(job);
            }
            match mem::replace(&mut state.reading, Reading::Busy) {
                Reading::Free(reader) => break Task::Read(reader),
                Reading::Busy => {}
                over => {
                    state.reading = over;
                    return None;
                }
            }
            state.idle += 1;
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            state.called = false;
        };
        if !state.jobs.is_empty() || matches!(state.reading, Reading::Free(_)) {
            if state.idle > 0 {
                self.call(&mut state);
            } else if state.threads < self.server.threads {
                // If there can be no more, those there are will do.
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
        let builder = Builder::new().name("member".into()).stack_size(STACK);
        builder.spawn_scoped(scope, || self.member(scope))?;
        state.threads += 1;
        Ok(())
    }

    /// Jobs for whoever is free.
    fn deliver(&self, jobs: &mut Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut state = self.state();
        let requests = jobs.iter().filter(|job| !matches!(job, Job::Send));
        state.requests += requests.count() as u64;
        state.jobs.extend(jobs.drain(..));
        self.call(&mut state);
    }

    /// Wakes one who waits, one at a time: a call takes longer than many a
    /// job.
    fn call(&self, state: &mut State) {
        if state.idle > 0 && !mem::replace(&mut state.called, true) {
            self.work.notify_one();
        }
    }

    fn stop_reading(&self, mut reader: Box<Reader>, more: Result<bool>) {
        let mut state = self.state();
        state.requests += reader.take_done();
        state.reading = match more {
            Ok(true) => Reading::Free(reader),
            Ok(false) => Reading::Over(Ok(())),
            Err(error) => Reading::Over(Err(error)),
        };
        if matches!(state.reading, Reading::Over(_)) {
            self.work.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
