//! Accepts clients until a signal arrives, then disconnects them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nbd_tools::size;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::args::Args;
use crate::budget::Memory;
use crate::buffer;
use crate::connection::Client;
use crate::export::Export;
use crate::listener::Listener;
use crate::log::report;
use crate::socket::Socket;
use crate::workers::STACK;

/// How long clients may stay connected after the server began to shut down.
/// During this time requests are answered with `ESHUTDOWN`.
const DISCONNECT_TIME: Duration = Duration::from_secs(1);

/// How long the requests that were received before may take after that.
const FINISH_TIME: Duration = Duration::from_secs(5);

/// How long to wait before accepting again, if the system has no resources for
/// another connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub struct Server {
    pub export: Export,
    pub threads: usize,
    pub handshake_timeout: Duration,
    pub memory: Arc<Memory>,
    max_clients: usize,
    once: bool,
    verbose: bool,
    shutting_down: AtomicBool,
    /// The sockets of the connected clients.
    clients: Mutex<HashMap<u64, Arc<Socket>>>,
    /// How many clients are connected.
    client_count: AtomicUsize,
    /// How many threads poll for their clients.
    pub polling: Arc<AtomicUsize>,
    /// A client has disconnected.
    left: Condvar,
    /// The other end of the socket that ends [`run`](Self::run).
    stop_sender: UnixStream,
    /// With `--once`: a client is in transmission.
    taken: AtomicBool,
    /// Readable from then on.
    taken_receiver: UnixStream,
    taken_sender: UnixStream,
}

impl Server {
    pub fn new(export: Export, args: &Args, stop_sender: UnixStream) -> Result<Self> {
        let buffers = args.buffers()?;
        buffer::set_limit(buffers);
        let (taken_receiver, taken_sender) = UnixStream::pair()?;
        Ok(Self {
            export,
            threads: args.threads,
            handshake_timeout: args.handshake_timeout,
            // The pieces of a read with holes have more memory in all than one buffer for
            // the whole read, by less than a fifth.
            memory: Memory::new(buffers / 5 * 4),
            max_clients: args.max_clients,
            once: args.once,
            verbose: args.verbose,
            shutting_down: AtomicBool::new(false),
            clients: Mutex::default(),
            client_count: AtomicUsize::new(0),
            polling: Arc::default(),
            left: Condvar::new(),
            stop_sender,
            taken: AtomicBool::new(false),
            taken_receiver,
            taken_sender,
        })
    }

    /// Reports something if `--verbose` is given.
    pub fn report_verbose(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            report(&text());
        }
    }

    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Relaxed)
    }

    /// Serves until `stop` has something to read: a signal arrived, or with
    /// `--once` the client has disconnected.
    pub fn run(self: &Arc<Self>, listener: Listener, stop: UnixStream) -> Result<()> {
        self.report_verbose(|| format!("serving {}", size::rounded(self.export.disk.size())));
        let mut number = 0;
        let mut full = false;
        // With `--once`, port probes and lists of exports do not count: it ends when
        // a client is in transmission.
        loop {
            let fds = [stop.as_fd(), self.taken_receiver.as_fd(), listener.as_fd()];
            if wait(&fds, None)? || self.taken.load(Ordering::Acquire) {
                break;
            }
            match listener.accept() {
                Ok((socket, peer)) => {
                    full = false;
                    if self.client_count.load(Ordering::Relaxed) >= self.max_clients {
                        report(&format!(
                            "{peer}: disconnected, because {} clients are connected",
                            self.max_clients
                        ));
                        continue;
                    }
                    number += 1;
                    self.serve(number, socket, &peer);
                }
                Err(error) if is_without_client(&error) => {}
                Err(error) => {
                    if !full {
                        report(&format!("cannot accept more clients now: {error}"));
                    }
                    full = true;
                    if wait(&[stop.as_fd()], Some(ACCEPT_RETRY))? {
                        break;
                    }
                }
            }
        }
        // Removes a Unix socket, so that no client connects any more.
        drop(listener);
        if self.taken.load(Ordering::Acquire) {
            wait(&[stop.as_fd()], None)?;
        }
        self.shut_down();
        Ok(())
    }

    /// Serves a client.
    fn serve(self: &Arc<Self>, number: u64, socket: Socket, peer: &str) {
        let socket = Arc::new(socket);
        let name = format!("client {number} ({peer})");
        let registration = Registration::new(self, number, &socket);
        let client = Client {
            socket,
            name,
            registration,
        };
        let builder = Builder::new().name("client".into()).stack_size(STACK);
        if let Err(error) = builder.spawn(move || client.serve()) {
            report(&format!("cannot serve a client: {error}"));
        }
    }

    fn shut_down(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
        let first = Instant::now();
        self.wait_until_empty(first + DISCONNECT_TIME);
        // What the kernel has received is still read.
        self.shut_down_sockets(Shutdown::Read);
        self.wait_until_empty(first + DISCONNECT_TIME + FINISH_TIME);
        // Clients that do not read are disconnected.
        self.shut_down_sockets(Shutdown::Both);
        self.wait_until_empty(Instant::now() + DISCONNECT_TIME);
    }

    fn shut_down_sockets(&self, how: Shutdown) {
        self.clients()
            .values()
            .for_each(|socket| socket.shut_down(how));
    }

    fn wait_until_empty(&self, deadline: Instant) {
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

/// A client in the list of the server. Dropping the value removes the client.
pub struct Registration {
    pub server: Arc<Server>,
    number: u64,
    in_transmission: bool,
}

impl Registration {
    fn new(server: &Arc<Server>, number: u64, socket: &Arc<Socket>) -> Self {
        server.clients().insert(number, Arc::clone(socket));
        server.client_count.fetch_add(1, Ordering::Relaxed);
        Self {
            server: Arc::clone(server),
            number,
            in_transmission: false,
        }
    }

    /// The client enters transmission.
    ///
    /// # Errors
    ///
    /// With `--once`, if another one has already done so.
    pub fn enter_transmission(&mut self) -> Result<()> {
        let server = &self.server;
        if server.once {
            if server.taken.swap(true, Ordering::AcqRel) {
                bail!("another client is served, and --once is given");
            }
            let _ = (&server.taken_sender).write(&[0]);
        }
        self.in_transmission = true;
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.server.clients().remove(&self.number);
        self.server.client_count.fetch_sub(1, Ordering::Relaxed);
        self.server.left.notify_all();
        if self.server.once && self.in_transmission {
            let _ = (&self.server.stop_sender).write(&[0]);
        }
    }
}

/// Waits until one of `fds` has something to read, `timeout` at most; returns
/// whether the first one has.
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

/// Accepting failed because there is no client, or it has already disconnected.
fn is_without_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}
