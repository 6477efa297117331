//! The driver on `io_uring`: for each processor a thread with a ring, each of
//! which serves many connections.
//!
//! ```text
//!   sockets ──▶ receive ──▶ requests ──┬─ memory: at once ────────────┐
//!                                      ├─ file: read, write ──────────┼──▶ send ──▶ sockets
//!                                      └─ maps, trims, syncs, .. Pool ┘
//! ```
//!
//! All that may block is an operation of the ring (receive, send, read, write) or
//! a task of the pool. A thread handles what one system call has completed, for all
//! connections in turn; the resulting operations start with the next system call,
//! which waits for more. So a batch of requests takes one system call, where the
//! other driver needs two or more.

mod client;
mod mailbox;
mod operation;
mod pool;
mod replies;
mod requests;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{Builder, available_parallelism};
use std::time::Instant;

use crate::budget::MEMORY_RETRY;
use crate::connection::report_end;
use crate::log::{self, report};
use crate::ring::Ring;
use crate::server::{NewClient, Server};
use client::{Client, Resources};
use mailbox::Mailbox;
use operation::Operation;
use pool::Pool;

/// The most operations that start with one system call.
const ENTRIES: u32 = 256;

/// The most rings: a disk gains nothing from more.
const MAX_RINGS: usize = 8;

/// The rings, by their mailboxes.
pub struct Engine {
    mailboxes: Vec<Arc<Mailbox>>,
}

impl Engine {
    /// Starts the rings, or fails if `io_uring` is not available. They serve as
    /// long as the process runs.
    pub fn start(server: &Arc<Server>) -> io::Result<Self> {
        let count = available_parallelism().map_or(1, |count| count.get().min(MAX_RINGS));
        let pool = Pool::new(Arc::clone(server));
        let mailboxes = (0..count).map(|_| {
            let mailbox = Arc::new(Mailbox::new()?);
            start(server, &pool, &mailbox)?;
            Ok(mailbox)
        });
        Ok(Self {
            mailboxes: mailboxes.collect::<io::Result<_>>()?,
        })
    }

    /// Gives a client to the ring that serves the fewest.
    pub fn add_client(&self, new_client: NewClient) {
        if let Some(mailbox) = self
            .mailboxes
            .iter()
            .min_by_key(|mailbox| mailbox.clients())
        {
            mailbox.add_client(new_client);
        }
    }
}

/// Starts the thread of a ring. The thread makes the ring itself, because no other
/// thread may use it.
fn start(server: &Arc<Server>, pool: &Arc<Pool>, mailbox: &Arc<Mailbox>) -> io::Result<()> {
    let (sender, receiver) = channel();
    let (server, pool, mailbox) = (Arc::clone(server), Arc::clone(pool), Arc::clone(mailbox));
    Builder::new().name("ring".into()).spawn(move || {
        match Ring::new(ENTRIES) {
            Err(error) => {
                let _ = sender.send(Err(error));
            }
            Ok(ring) => {
                let _ = sender.send(Ok(()));
                if let Err(error) = Thread::new(ring, mailbox, server, pool).run() {
                    // Its clients cannot be served without it.
                    report(&format!("the ring has failed: {error}"));
                    log::finish();
                    std::process::exit(1);
                }
            }
        }
    })?;
    let gone = |_| io::Error::other("the thread of the ring has ended");
    receiver.recv().map_err(gone)?
}

/// The thread of a ring, and all that it owns.
struct Thread {
    ring: Ring<Operation>,
    mailbox: Arc<Mailbox>,
    server: Arc<Server>,
    pool: Arc<Pool>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    /// When handshakes time out, with key and number of the client; earliest first.
    deadlines: VecDeque<(Instant, usize, u64)>,
    /// Clients with completed operations or tasks.
    active: Vec<usize>,
    /// Clients that wait for memory, and when they try again.
    starved: HashSet<usize>,
    retry: Instant,
}

impl Thread {
    fn new(
        ring: Ring<Operation>,
        mailbox: Arc<Mailbox>,
        server: Arc<Server>,
        pool: Arc<Pool>,
    ) -> Self {
        Self {
            ring,
            mailbox,
            server,
            pool,
            clients: Vec::new(),
            free: Vec::new(),
            deadlines: VecDeque::new(),
            active: Vec::new(),
            starved: HashSet::new(),
            retry: Instant::now(),
        }
    }

    /// Serves as long as the ring works.
    fn run(&mut self) -> io::Result<()> {
        self.watch_mailbox()?;
        let mut completed = Vec::new();
        loop {
            let now = Instant::now();
            let retry = (!self.starved.is_empty()).then_some(self.retry);
            let next = self.deadlines.front().map(|(deadline, ..)| *deadline);
            let next = next.into_iter().chain(retry).min();
            let timeout = next.map(|next| next.saturating_duration_since(now));
            self.ring.wait(timeout)?;
            self.ring.completed(&mut completed);
            for (operation, result) in completed.drain(..) {
                self.complete(operation, result)?;
            }
            self.enforce_deadlines();
            self.retry_starved();
            self.advance()?;
        }
    }

    /// Starts to wait for the mailbox.
    fn watch_mailbox(&mut self) -> io::Result<()> {
        let waker = self.mailbox.waker.clone();
        self.ring.start(Operation::Wake(waker, [0; 8]))
    }

    fn complete(&mut self, operation: Operation, result: io::Result<usize>) -> io::Result<()> {
        let key = match &operation {
            Operation::Wake(..) => {
                self.watch_mailbox()?;
                return self.read_mailbox();
            }
            Operation::Receive(key, _) | Operation::Send(key, ..) => *key,
            Operation::Read(key, _) | Operation::Write(key, _) => *key,
        };
        self.active.push(key);
        // A client is kept as long as it has operations in the ring.
        let Some(Some(client)) = self.clients.get_mut(key) else {
            return Ok(());
        };
        let ring = &mut self.ring;
        match operation {
            Operation::Receive(_, receive) => client.received(receive, result),
            Operation::Send(_, _, batch) => client.sent(batch, result, ring)?,
            Operation::Read(_, read) => client.read(read, result, ring)?,
            Operation::Write(_, write) => {
                let mut resources = Resources {
                    ring,
                    server: &self.server,
                    pool: &self.pool,
                    mailbox: &self.mailbox,
                    starved: &mut self.starved,
                };
                client.written(write, result, &mut resources)?;
            }
            Operation::Wake(..) => {}
        }
        Ok(())
    }

    /// Handles what is in the mailbox.
    fn read_mailbox(&mut self) -> io::Result<()> {
        for done in self.mailbox.take_done() {
            self.active.push(done.client);
            if let Some(Some(client)) = self.clients.get_mut(done.client) {
                client.executed(done);
            }
        }
        for new_client in self.mailbox.take_new_clients() {
            self.add_client(new_client);
        }
        Ok(())
    }

    fn add_client(&mut self, new_client: NewClient) {
        let key = self.free.pop().unwrap_or(self.clients.len());
        if key == self.clients.len() {
            self.clients.push(None);
        }
        let (number, name) = (new_client.number, new_client.name.clone());
        self.server.report_verbose(|| format!("{name}: connected"));
        match Client::new(key, new_client, &self.server) {
            Ok(client) => {
                let deadline = Instant::now() + self.server.handshake_timeout;
                self.deadlines.push_back((deadline, key, number));
                self.clients[key] = Some(client);
                self.active.push(key);
            }
            Err(error) => {
                self.free.push(key);
                self.mailbox.remove_client();
                report_end(&self.server, &name, Err(error));
            }
        }
    }

    fn enforce_deadlines(&mut self) {
        while let Some((deadline, key, number)) = self.deadlines.front().copied()
            && let Some(client) = self.clients.get_mut(key)
        {
            match client {
                Some(client) if client.number == number && client.is_in_handshake() => {
                    if Instant::now() < deadline {
                        return;
                    }
                    client.abort(io::ErrorKind::TimedOut.into());
                    self.active.push(key);
                }
                // The handshake has ended.
                _ => {}
            }
            self.deadlines.pop_front();
        }
    }

    /// Clients that wait for memory try again.
    fn retry_starved(&mut self) {
        if !self.starved.is_empty() && Instant::now() >= self.retry {
            self.active.extend(self.starved.drain());
            self.retry = Instant::now() + MEMORY_RETRY;
        }
    }

    /// Advances all active clients.
    fn advance(&mut self) -> io::Result<()> {
        let alone = self.active.len() == 1;
        while let Some(key) = self.active.pop() {
            let place = &mut self.clients[key];
            let Some(client) = place else { continue };
            let mut resources = Resources {
                ring: &mut self.ring,
                server: &self.server,
                pool: &self.pool,
                mailbox: &self.mailbox,
                starved: &mut self.starved,
            };
            if client.advance(&mut resources, alone)?
                && let Some(client) = place.take()
            {
                client.close(&self.server);
                self.free.push(key);
                self.mailbox.remove_client();
            }
        }
        Ok(())
    }
}
