//! The other engine: for each processor a thread with an `io_uring`, and each
//! of them for many connections.
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
mod door;
mod flight;
mod pool;
mod ready;
mod replies;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{Builder, available_parallelism};
use std::time::Instant;

use crate::connection::farewell;
use crate::log::say;
use crate::ring::Ring;
use crate::server::Server;
use client::{Client, Hands};
use door::Door;
pub use door::Newcomer;
use flight::Flight;
use pool::Pool;

/// Operations that set out with one call of the system.
const ENTRIES: u32 = 256;

/// More than so many rings are of no use to a disk.
const MOST_RINGS: usize = 8;

/// The ways to the rings.
pub struct Engine {
    doors: Vec<Arc<Door>>,
}

impl Engine {
    /// Starts the rings, if there can be any. They serve as long as the
    /// process runs.
    pub fn start(server: &Arc<Server>) -> io::Result<Self> {
        let count = available_parallelism().map_or(1, |count| count.get().min(MOST_RINGS));
        let pool = Pool::new(Arc::clone(server));
        let doors = (0..count).map(|_| {
            let door = Arc::new(Door::new()?);
            start(server, &pool, &door)?;
            Ok(door)
        });
        Ok(Self {
            doors: doors.collect::<io::Result<_>>()?,
        })
    }

    /// Gives a client to the ring that has the fewest.
    pub fn welcome(&self, newcomer: Newcomer) {
        if let Some(door) = self.doors.iter().min_by_key(|door| door.clients()) {
            door.welcome(newcomer);
        }
    }
}

/// Starts the thread of a ring. It makes the ring itself: no other thread may
/// use it.
fn start(server: &Arc<Server>, pool: &Arc<Pool>, door: &Arc<Door>) -> io::Result<()> {
    let (tell, told) = channel();
    let (server, pool, door) = (Arc::clone(server), Arc::clone(pool), Arc::clone(door));
    Builder::new().name("ring".into()).spawn(move || {
        match Ring::new(ENTRIES) {
            Err(error) => {
                let _ = tell.send(Err(error));
            }
            Ok(ring) => {
                let _ = tell.send(Ok(()));
                if let Err(error) = Thread::new(ring, door, server, pool).run() {
                    // Its clients cannot be served any more.
                    say(&format!("the ring has failed: {error}"));
                    std::process::exit(1);
                }
            }
        }
    })?;
    let gone = |_| io::Error::other("the thread of the ring has ended");
    told.recv().map_err(gone)?
}

/// The thread of the ring, and all it has.
struct Thread {
    ring: Ring<Flight>,
    door: Arc<Door>,
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
    fn new(ring: Ring<Flight>, door: Arc<Door>, server: Arc<Server>, pool: Arc<Pool>) -> Self {
        Self {
            ring,
            door,
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
        let bell = self.door.bell.clone();
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
        for done in self.door.done() {
            self.astir.push(done.client);
            if let Some(Some(client)) = self.clients.get_mut(done.client) {
                client.done(done);
            }
        }
        for newcomer in self.door.newcomers() {
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
                self.door.left();
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
                door: &self.door,
            };
            if client.go_on(&mut hands, alone)?
                && let Some(client) = place.take()
            {
                client.leave(&self.server);
                self.free.push(key);
                self.door.left();
            }
        }
        Ok(())
    }
}
