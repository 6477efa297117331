//! Accepts clients until it is told to end, and then lets go of them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::args::Args;
use crate::connection::Client;
use crate::export::Export;
use crate::listener::Listener;
use crate::log::say;
use crate::socket::Socket;
use crate::team::STACK;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
use crate::uring::{Engine, Newcomer};
use nbd_tools::size;

/// How long clients have to leave by themselves after they were told of the
/// end. What they send is answered `ESHUTDOWN` so long.
const TIME_TO_LEAVE: Duration = Duration::from_secs(1);

/// How long what they had asked for may take then.
const TIME_TO_FINISH: Duration = Duration::from_secs(5);

/// How long to wait where the system has no room for another connection.
const BREATHER: Duration = Duration::from_millis(100);

pub struct Server {
    pub export: Export,
    pub threads: usize,
    pub handshake_timeout: Duration,
    once: bool,
    verbose: bool,
    shutting_down: AtomicBool,
    /// The sockets of the clients that are here.
    clients: Mutex<HashMap<u64, Arc<Socket>>>,
    /// How many they are.
    pub crowd: Arc<AtomicUsize>,
    /// A client has left.
    left: Condvar,
    /// Wakes whoever accepts.
    bell: UnixStream,
}

impl Server {
    pub fn new(export: Export, args: &Args, bell: UnixStream) -> Self {
        Self {
            export,
            threads: args.threads,
            handshake_timeout: args.handshake_timeout,
            once: args.once,
            verbose: args.verbose,
            shutting_down: AtomicBool::new(false),
            clients: Mutex::default(),
            crowd: Arc::default(),
            left: Condvar::new(),
            bell,
        }
    }

    /// Says something that only the curious want to know.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            say(&text());
        }
    }

    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Relaxed)
    }

    /// Serves until `alarm` has something to read.
    pub fn run(
        self: &Arc<Self>,
        listener: Listener,
        alarm: UnixStream,
        driver: &Driver,
    ) -> Result<()> {
        self.note(|| format!("serving {}", size::rounded(self.export.disk.size())));
        let mut number = 0;
        let mut full = false;
        while !wait(&[alarm.as_fd(), listener.as_fd()], None)? {
            match listener.accept() {
                Ok((socket, peer)) => {
                    full = false;
                    number += 1;
                    self.welcome(number, socket, &peer, driver);
                    if self.once {
                        break;
                    }
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    if !full {
                        say(&format!("cannot accept more clients now: {error}"));
                    }
                    full = true;
                    if wait(&[alarm.as_fd()], Some(BREATHER))? {
                        break;
                    }
                }
            }
        }
        // Nobody else comes in; a Unix socket is gone.
        drop(listener);
        if self.once {
            wait(&[alarm.as_fd()], None)?;
        }
        self.shut_down();
        Ok(())
    }

    /// Serves a client: on threads of its own, or with all the others.
    fn welcome(self: &Arc<Self>, number: u64, socket: Socket, peer: &str, driver: &Driver) {
        let socket = Arc::new(socket);
        let name = format!("client {number} ({peer})");
        let present = Present::new(self, number, &socket);
        match driver {
            Driver::Threads => {}
            #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
            Driver::Uring(engine) => {
                return engine.welcome(Newcomer {
                    number,
                    socket,
                    name,
                    present,
                });
            }
        }
        let client = Client { socket, name };
        let builder = Builder::new().name("client".into()).stack_size(STACK);
        if let Err(error) = builder.spawn(move || client.serve(&present.server)) {
            say(&format!("cannot serve a client: {error}"));
        }
    }

    fn shut_down(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
        let first = Instant::now();
        self.wait_for_nobody(first + TIME_TO_LEAVE);
        // What has arrived is still read.
        self.cut(Shutdown::Read);
        self.wait_for_nobody(first + TIME_TO_LEAVE + TIME_TO_FINISH);
        // Who does not even read is not waited for.
        self.cut(Shutdown::Both);
        self.wait_for_nobody(Instant::now() + TIME_TO_LEAVE);
    }

    fn cut(&self, how: Shutdown) {
        self.clients()
            .values()
            .for_each(|socket| socket.shut_down(how));
    }

    fn wait_for_nobody(&self, deadline: Instant) {
        let mut clients = self.clients();
        while !clients.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let result = self.left.wait_timeout(clients, left);
            clients = result.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Arc<Socket>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who serves the clients.
pub enum Driver {
    /// Each client has threads.
    Threads,
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    Uring(Engine),
}

/// That a client is here; whatever ends it, it is not here any more then.
pub struct Present {
    server: Arc<Server>,
    number: u64,
}

impl Present {
    fn new(server: &Arc<Server>, number: u64, socket: &Arc<Socket>) -> Self {
        server.clients().insert(number, Arc::clone(socket));
        server.crowd.fetch_add(1, Ordering::Relaxed);
        Self {
            server: Arc::clone(server),
            number,
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.server.clients().remove(&self.number);
        self.server.crowd.fetch_sub(1, Ordering::Relaxed);
        self.server.left.notify_all();
        if self.server.once {
            let _ = (&self.server.bell).write(&[0]);
        }
    }
}

/// Waits until there is something to read, or for so long; whether the first
/// one has something.
fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<bool> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: 0,
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("cannot wait for clients"),
    }
    Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty()))
}

/// Nothing is wrong with accepting: there was nobody, or nobody any more.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}
