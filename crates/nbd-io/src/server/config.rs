//! The limits of a server, and what its connections share.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nbd_codec::Limits;
use nbd_codec::server::{Handshake, TlsMode};

use super::budget::{Account, Budget, Waiting};
use super::{Exports, Peer};

type OnEnd = dyn Fn(&Peer, &io::Result<()>) + Send + Sync;

/// The limits of a [`Server`]. The defaults are for clients of any intent.
#[derive(Clone)]
pub struct Config {
    pub(super) memory: usize,
    pub(super) in_flight: usize,
    pub(super) connections: usize,
    pub(super) handshake: Duration,
    pub(super) stall: Duration,
    pub(super) grace: Duration,
    pub(super) tls_mode: TlsMode,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    on_end: Option<Arc<OnEnd>>,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            memory: 256 << 20,
            in_flight: 64,
            connections: 10_000,
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(10),
            tls_mode: TlsMode::None,
            #[cfg(feature = "tls")]
            tls: None,
            on_end: None,
        }
    }

    /// Memory for the requests of all connections, in bytes, at least 1 MiB: data
    /// of writes and reads until the reply is written. A request that exceeds it
    /// waits; a connection gets at most an eighth of what it leaves free, or one
    /// request, so that others can go on. The maximum payload of a request is at
    /// most a quarter of it. Besides, each connection has at most 64 KiB of
    /// requests that wait, and as much of replies without data. Default: 256 MiB.
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes.max(1 << 20);
        self
    }

    /// Most requests in flight on a connection, at least one. Default: 64. With
    /// threads at most 16 of them run.
    #[must_use]
    pub fn in_flight(mut self, requests: usize) -> Self {
        self.in_flight = requests.max(1);
        self
    }

    /// Most connections that `listen` serves at a time; others wait to be accepted.
    /// Default: 10,000.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// How long a handshake may take, TLS included. Default: 10 s.
    #[must_use]
    pub fn handshake_timeout(mut self, time: Duration) -> Self {
        self.handshake = time;
        self
    }

    /// How long a client may read nothing of a reply that waits for it before it is
    /// disconnected. Default: 60 s.
    #[must_use]
    pub fn stall_timeout(mut self, time: Duration) -> Self {
        self.stall = time;
        self
    }

    /// How long after [`Server::shut_down`] connections may take to finish what is
    /// in flight. Default: 10 s.
    #[must_use]
    pub fn grace(mut self, time: Duration) -> Self {
        self.grace = time;
        self
    }

    /// Offers TLS: in mode [`TlsMode::Forced`] to all clients, in mode
    /// [`TlsMode::Selective`] to clients that want it, and for exports that
    /// [require](super::Export::requires_tls) it. A client certificate, if
    /// `config` asks for one, is in [`Client`](super::Client).
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, config: Arc<rustls::ServerConfig>, mode: TlsMode) -> Self {
        self.tls = Some(config);
        self.tls_mode = mode;
        self
    }

    /// Calls `report` when a connection that `listen` accepted has ended.
    #[must_use]
    pub fn on_end(
        mut self,
        report: impl Fn(&Peer, &io::Result<()>) + Send + Sync + 'static,
    ) -> Self {
        self.on_end = Some(Arc::new(report));
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("memory", &self.memory)
            .field("in_flight", &self.in_flight)
            .field("tls", &self.tls_mode)
            .finish_non_exhaustive()
    }
}

/// Exports, limits, and what all connections share. A clone is the same server.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    exports: Exports,
    config: Config,
    budget: Arc<Budget>,
    next_id: AtomicU64,
    shutting_down: AtomicBool,
    waiting: Waiting,
}

impl Server {
    /// A server for these exports.
    #[must_use]
    pub fn new(exports: Exports, config: Config) -> Self {
        Self {
            shared: Arc::new(Shared {
                exports,
                budget: Arc::new(Budget::new(config.memory)),
                config,
                next_id: AtomicU64::new(0),
                shutting_down: AtomicBool::new(false),
                waiting: Waiting::default(),
            }),
        }
    }

    /// Stops all connections, and `listen`: what is in flight is finished, requests
    /// that have arrived after it are answered `ESHUTDOWN`, then connections are
    /// closed. What takes longer than [`Config::grace`] is dropped.
    pub fn shut_down(&self) {
        self.shared.shutting_down.store(true, Ordering::SeqCst);
        self.shared.waiting.wake_all();
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.shared.shutting_down.load(Ordering::SeqCst)
    }

    pub(super) fn exports(&self) -> &Exports {
        &self.shared.exports
    }

    pub(super) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The maximum payload that the memory permits, in bytes.
    pub(super) fn payload(&self) -> u32 {
        let quarter = u32::try_from(self.shared.config.memory / 4).unwrap_or(u32::MAX);
        let power = 1_u32.checked_shl(quarter.max(1).ilog2()).unwrap_or(1);
        power.min(Limits::DEFAULT.payload)
    }

    pub(super) fn handshake(&self) -> io::Result<Handshake> {
        let config = nbd_codec::server::Config::new().tls(self.shared.config.tls_mode);
        Ok(Handshake::new(config)?)
    }

    pub(super) fn report(&self, peer: &Peer, end: &io::Result<()>) {
        if let Some(report) = &self.shared.config.on_end {
            report(peer, end);
        }
    }

    /// A number for a connection, or for what else waits for the shutdown.
    pub(super) fn register(&self) -> Registration {
        Registration {
            server: self.clone(),
            id: self.shared.next_id.fetch_add(1, Ordering::Relaxed),
            waker: None,
        }
    }
}

/// A connection, as the server knows it.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) server: Server,
    id: u64,
    /// What is woken.
    waker: Option<Waker>,
}

impl Registration {
    /// Whether the server is shutting down; the task is woken when it does.
    pub(super) fn poll_shutdown(&mut self, cx: &Context<'_>) -> Poll<()> {
        let waker = self.waker.as_ref();
        if !waker.is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.server.shared.waiting.add(self.id, cx.waker());
            self.waker = Some(cx.waker().clone());
        }
        if self.server.is_shutting_down() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub(super) fn account(&self) -> Account {
        Account::new(&self.server.shared.budget, self.id)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.server.shared.waiting.remove(self.id);
    }
}
