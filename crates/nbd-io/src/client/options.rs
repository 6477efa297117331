//! What a client wants of its connections.

use std::time::Duration;

use nbd_codec::Framing;

/// What a client negotiates and how it behaves.
///
/// ```
/// use std::time::Duration;
/// use nbd_io::client::{Options, Reconnect};
///
/// let options = Options::new()
///     .context("base:allocation")
///     .connections(4)
///     .timeout(Duration::from_secs(30))
///     .reconnect(Reconnect::new().attempts(20));
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Options {
    pub(crate) contexts: Vec<String>,
    pub(crate) framing: Framing,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    pub(crate) reconnect: Option<Reconnect>,
    pub(crate) local_files: bool,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<super::tls::Tls>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            contexts: Vec::new(),
            framing: Framing::Extended,
            connections: 1,
            in_flight: 64,
            timeout: None,
            connect_timeout: Duration::from_secs(30),
            reconnect: None,
            local_files: false,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl Options {
    /// One connection, 64 commands in flight, the most able framing, no metadata context,
    /// no timeout but 30 seconds for connecting, no reconnect, no TLS.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata context for `block_status`, as `base:allocation`. At most 32.
    pub fn context(mut self, name: impl Into<String>) -> Self {
        self.contexts.push(name.into());
        self
    }

    /// The most able framing wanted. Default: extended headers.
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// How many connections to open if the server advertises `CAN_MULTI_CONN`, else one.
    /// Zero is taken as one. Default: one.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// How many commands can be in flight on each connection; calls beyond wait for one of
    /// them. Zero is taken as one. Default: 64.
    pub fn in_flight(mut self, commands: usize) -> Self {
        self.in_flight = commands.max(1);
        self
    }

    /// How long the server may take to answer a command.
    ///
    /// NBD cannot cancel a command, so a connection whose server is late is given up: it is
    /// closed, the late command fails with [`Error::TimedOut`](super::Error::TimedOut), and
    /// the other commands of the connection are sent again if there is a
    /// [`reconnect`](Self::reconnect) policy, else they fail as well. Default: no limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long connecting may take, the handshakes of TLS and NBD included. Default:
    /// 30 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// What to do if a connection is lost. Default: calls fail.
    pub fn reconnect(mut self, policy: Reconnect) -> Self {
        self.reconnect = Some(policy);
        self
    }

    /// Allows the parameters of the URI to name files of this machine, as
    /// `tls-certificates`. Default: no, as the author of a URI may not be trusted with them.
    pub fn allow_local_files(mut self, allow: bool) -> Self {
        self.local_files = allow;
        self
    }
}

/// What a client does if a connection is lost.
///
/// The calls whose commands were in flight connect again, by turns, and send their commands
/// again. To callers it looks as if the server was slow.
///
/// # What is sent again
///
/// Every command, as all of them are idempotent: to do one twice has the effect of doing it
/// once. `RESIZE` is not sent again if the export already has the size that it asks for.
///
/// This does not hold for a server that still runs, with a write of the lost connection in
/// its queue: it may execute that write after the client has sent it again, and after later
/// writes to the same range. Against a server whose process ended this cannot happen.
///
/// # Writes that were answered
///
/// No write that the server answered is sent again. Whether they survive is the server's
/// matter: writes without FUA may be in a cache until a FLUSH is answered. If the server's
/// process is killed, the cache of its operating system survives; if its machine crashes,
/// the writes since the last FLUSH are lost, without an error unless
/// [`strict_flush`](Self::strict_flush) is set.
///
/// # If the export has changed
///
/// Another size, fewer features, stricter block sizes or other metadata contexts are
/// [`Error::ExportChanged`](super::Error::ExportChanged) for every call, unless
/// [`accept_changes`](Self::accept_changes) is set. That an export has other content is not
/// visible to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Reconnect {
    pub(crate) attempts: u32,
    pub(crate) resends: u32,
    pub(crate) first_delay: Duration,
    pub(crate) longest_delay: Duration,
    pub(crate) strict_flush: bool,
    pub(crate) accept_changes: bool,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            attempts: 10,
            resends: 16,
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(5),
            strict_flush: false,
            accept_changes: false,
        }
    }
}

impl Reconnect {
    /// Ten attempts: at once, after 100 ms, and after twice as long each time up to 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// How often to try to connect before the waiting calls fail. A later call tries again,
    /// as often. Zero is taken as one.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How often a command is sent again, so that a command that makes the server crash does
    /// not do so for ever. Default: 16.
    pub fn resends(mut self, resends: u32) -> Self {
        self.resends = resends;
        self
    }

    /// The time between the first two attempts, and the longest between any two. Between
    /// them it doubles. Each is shortened by a random part of up to a quarter. Default:
    /// 100 ms and 5 s.
    pub fn delays(mut self, first: Duration, longest: Duration) -> Self {
        self.first_delay = first;
        self.longest_delay = longest;
        self
    }

    /// Whether the first FLUSH after a reconnect fails with
    /// [`Error::UnflushedWrites`](super::Error::UnflushedWrites) if writes were answered
    /// before the connection was lost that no FLUSH has covered. Default: no. The server is
    /// trusted to have kept them, as it does if only its process ended.
    pub fn strict_flush(mut self, strict: bool) -> Self {
        self.strict_flush = strict;
        self
    }

    /// Whether to go on with an export that is not what it was. Default: no.
    pub fn accept_changes(mut self, accept: bool) -> Self {
        self.accept_changes = accept;
        self
    }

    /// How long to wait before attempt number `attempt`, which counts from zero.
    pub(crate) fn delay(&self, attempt: u32) -> Duration {
        let Some(doublings) = attempt.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 1_u32.checked_shl(doublings.min(30)).unwrap_or(u32::MAX);
        let delay = self.first_delay.saturating_mul(factor);
        let delay = delay.min(self.longest_delay);
        let percent = u32::try_from(super::core::random() % 26).unwrap_or(0);
        delay.saturating_sub(delay.saturating_mul(percent) / 100)
    }
}
