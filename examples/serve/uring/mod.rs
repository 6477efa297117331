//! The other engine: one thread and one `io_uring` for all connections.
//!
//! ```text
//!   sockets ──▶ receive ──▶ requests ──┬─ memory: at once ────────────┐
//!                                      ├─ file: read, write, sync ────┼──▶ send ──▶ sockets
//!                                      └─ maps, trims, zeroes: Pool ──┘
//! ```
//!
//! All that waits (receive, send, read, write, sync) is for the ring. What one
//! call of the system brings is dealt with, all connections in turn, and what
//! comes of it leaves with the next call, which waits for more: for a batch of
//! requests that is one call where the threads have two or more.

mod client;
mod flight;
mod pool;
mod ready;
mod replies;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::connection::farewell;
use crate::log::say;
use crate::ring::Ring;
use crate::server::{Present, Server};
use crate::socket::Socket;
use client::{Client, Hands};
use flight::Flight;
use pool::Pool;

/// Operations that set out with one call of the system.
const ENTRIES: u32 = 256;

/// Wakes the thread of the ring.
#[derive(Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    pub fn ring(&self) {
        // It can only fail by having been rung very often.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// A client who has just come in.
struct Newcomer {
    number: u64,
    socket: Arc<Socket>,
    name: String,
    present: Present,
}

/// The way to the thread of the ring.
pub struct Engine {
    newcomers: Mutex<Vec<Newcomer>>,
    bell: Bell,
}

impl Engine {
    /// Starts the thread, if there can be a ring. It serves for `server`, as
    /// long as the process runs.
    pub fn start(server: &Arc<Server>) -> io::Result<Arc<Self>> {
        let bell = Bell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?));
        let engine = Arc::new(Self {
            newcomers: Mutex::default(),
            bell,
        });
        let (tell, told) = channel();
        let (own, server) = (Arc::clone(&engine), Arc::clone(server));
        Builder::new().name("ring".into()).spawn(move || {
            // The ring is for the thread that has made it.
            match Ring::new(ENTRIES) {
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
                Ok(ring) => {
                    let _ = tell.send(Ok(()));
                    if let Err(error) = Thread::new(ring, own, server).run() {
                        // Nobody can be served any more.
                        say(&format!("the ring has failed: {error}"));
                        std::process::exit(1);
                    }
                }
            }
        })?;
        let gone = |_| io::Error::other("the thread of the ring has ended");
        told.recv().map_err(gone)??;
        Ok(engine)
    }

    /// Takes a client over.
    pub fn welcome(&self, number: u64, socket: &Arc<Socket>, name: String, present: Present) {
        let newcomer = Newcomer {
            number,
            socket: Arc::clone(socket),
            name,
            present,
        };
        self.newcomers().push(newcomer);
        self.bell.ring();
    }

    fn newcomers(&self) -> std::sync::MutexGuard<'_, Vec<Newcomer>> {
        self.newcomers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread of the ring, and all it has.
struct Thread {
    ring: Ring<Flight>,
    engine: Arc<Engine>,
    server: Arc<Server>,
    pool: Arc<Pool>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    /// When handshakes must have ended, earliest first.
    deadlines: VecDeque<(Instant, usize, u64)>,
    /// Clients to whom something has happened.
    astir: Vec<usize>,
}

impl Thread {
    fn new(ring: Ring<Flight>, engine: Arc<Engine>, server: Arc<Server>) -> Self {
        let pool = Pool::new(Arc::clone(&server), engine.bell.clone());
        Self {
            ring,
            engine,
            server,
            pool,
            clients: Vec::new(),
            free: Vec::new(),
            deadlines: VecDeque::new(),
            astir: Vec::new(),
        }
    }

    /// Serves as long as the ring works.
    fn run(&mut self) -> io::Result<()> {
        self.listen()?;
        let mut landed = Vec::new();
        loop {
            let now = Instant::now();
            let next = self.deadlines.front();
            let timeout = next.map(|(deadline, ..)| deadline.saturating_duration_since(now));
            self.ring.wait(timeout)?;
            self.ring.landed(&mut landed);
            for (flight, result) in landed.drain(..) {
                self.land(flight, result)?;
            }
            self.let_go_of_the_slow();
            self.go_on()?;
        }
    }

    /// For the bell.
    fn listen(&mut self) -> io::Result<()> {
        let bell = self.engine.bell.clone();
        self.ring.start(Flight::Bell(bell, [0; 8]))
    }

    fn land(&mut self, flight: Flight, result: io::Result<usize>) -> io::Result<()> {
        let key = match &flight {
            Flight::Bell(..) => {
                self.listen()?;
                return self.look_up();
            }
            Flight::Receive(key, _) | Flight::Send(key, ..) => *key,
            Flight::Read(key, _) | Flight::Write(key, _) | Flight::Sync(key, _) => *key,
        };
        self.astir.push(key);
        // A client stays as long as there is something of it in the ring.
        let Some(Some(client)) = self.clients.get_mut(key) else {
            return Ok(());
        };
        let ring = &mut self.ring;
        match flight {
            Flight::Receive(_, receive) => client.received(receive, result),
            Flight::Send(_, _, batch) => client.sent(batch, result, ring)?,
            Flight::Read(_, read) => client.read(read, result, ring)?,
            Flight::Write(_, write) => client.written(write, result, ring)?,
            Flight::Sync(_, sync) => client.synced(sync, result, &*self.server.export.disk),
            Flight::Bell(..) => {}
        }
        Ok(())
    }

    /// The bell has rung: who is there?
    fn look_up(&mut self) -> io::Result<()> {
        for done in self.pool.done() {
            self.astir.push(done.client);
            if let Some(Some(client)) = self.clients.get_mut(done.client) {
                client.done(done);
            }
        }
        let newcomers = std::mem::take(&mut *self.engine.newcomers());
        for newcomer in newcomers {
            self.let_in(newcomer);
        }
        Ok(())
    }

    fn let_in(&mut self, newcomer: Newcomer) {
        let key = self.free.pop().unwrap_or(self.clients.len());
        if key == self.clients.len() {
            self.clients.push(None);
        }
        let (number, name) = (newcomer.number, newcomer.name.clone());
        self.server.note(|| format!("{name}: connected"));
        match Client::new(key, newcomer, &self.server) {
            Ok(client) => {
                let deadline = Instant::now() + self.server.handshake_timeout;
                self.deadlines.push_back((deadline, key, number));
                self.clients[key] = Some(client);
                self.astir.push(key);
            }
            Err(error) => {
                self.free.push(key);
                farewell(&self.server, &name, Err(error));
            }
        }
    }

    fn let_go_of_the_slow(&mut self) {
        while let Some((deadline, key, number)) = self.deadlines.front().copied()
            && let Some(client) = self.clients.get_mut(key)
        {
            match client {
                Some(client) if client.number == number && client.is_shaking_hands() => {
                    if Instant::now() < deadline {
                        return;
                    }
                    client.cut(io::ErrorKind::TimedOut.into());
                    self.astir.push(key);
                }
                // It was in time.
                _ => {}
            }
            self.deadlines.pop_front();
        }
    }

    /// Everybody who is astir does what can be done now.
    fn go_on(&mut self) -> io::Result<()> {
        let alone = self.astir.len() == 1;
        while let Some(key) = self.astir.pop() {
            let place = &mut self.clients[key];
            let Some(client) = place else { continue };
            let mut hands = Hands {
                ring: &mut self.ring,
                server: &self.server,
                pool: &self.pool,
            };
            if client.go_on(&mut hands, alone)?
                && let Some(client) = place.take()
            {
                client.leave(&self.server);
                self.free.push(key);
            }
        }
        Ok(())
    }
}
