//! Accepting clients, each of which has threads of its own.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::{OnWake, Stream, lock, run};
use crate::server::{Peer, Server};

/// How long to wait if no client can be accepted, for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What [`listen`] accepts clients from.
pub trait Listener {
    /// The connection.
    type Stream: Stream;

    /// Waits for a client.
    ///
    /// # Errors
    ///
    /// Any: [`listen`] waits a little and tries again.
    fn accept(&self) -> io::Result<(Self::Stream, Peer)>;

    /// What ends the wait of [`accept`](Self::accept), as by connecting to the
    /// listener.
    fn waker(&self) -> io::Result<Box<dyn Fn() + Send + Sync>>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept()?;
        stream.set_nodelay(true)?;
        Ok((stream, Peer::Tcp(address)))
    }

    fn waker(&self) -> io::Result<Box<dyn Fn() + Send + Sync>> {
        let mut address = self.local_addr()?;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(Box::new(move || drop(TcpStream::connect(address))))
    }
}

#[cfg(unix)]
impl Listener for std::os::unix::net::UnixListener {
    type Stream = std::os::unix::net::UnixStream;

    fn accept(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, _) = self.accept()?;
        Ok((stream, Peer::Unix))
    }

    fn waker(&self) -> io::Result<Box<dyn Fn() + Send + Sync>> {
        let address = self.local_addr()?;
        let connect = std::os::unix::net::UnixStream::connect_addr;
        Ok(Box::new(move || drop(connect(&address))))
    }
}

/// Accepts clients and serves each with threads of its own, until
/// [`Server::shut_down`]; returns when all connections are closed, or after
/// [`Config::grace`](crate::server::Config::grace).
///
/// If accepting fails, for lack of file descriptors, it goes on after 100 ms.
///
/// # Errors
///
/// [`Listener::waker`].
pub fn listen(listener: impl Listener, server: &Server) -> io::Result<()> {
    let mut registration = server.register();
    let wake = Waker::from(Arc::new(OnWake(listener.waker()?)));
    let shutting_down = registration.poll_shutdown(&Context::from_waker(&wake));
    let live = Arc::new(Live::default());
    let mut next = 0_u64;
    while shutting_down.is_pending() && !server.is_shutting_down() {
        let enough = |n: usize| n < server.config().connections || server.is_shutting_down();
        live.wait(enough, None);
        let accepted = listener.accept();
        if server.is_shutting_down() {
            break;
        }
        match accepted {
            Err(_) => thread::sleep(PAUSE),
            Ok((stream, peer)) => {
                next = next.saturating_add(1);
                let served = Served::new(&live, next, Arc::new(stream));
                let server = server.clone();
                let begun = thread::Builder::new().spawn(move || {
                    let end = run(Arc::clone(&served.stream), peer.clone(), &server);
                    server.report(&peer, &end);
                });
                if begun.is_err() {
                    // This client is disconnected, and the others are served.
                    thread::sleep(PAUSE);
                }
            }
        }
    }
    drop(listener);
    let deadline = Instant::now().checked_add(server.config().grace);
    live.wait(|count| count == 0, deadline);
    live.close_all();
    Ok(())
}

/// The connections of a listener.
#[derive(Default)]
struct Live {
    streams: Mutex<HashMap<u64, Arc<dyn Stream>>>,
    ended: Condvar,
}

impl Live {
    /// Waits until there are as few as `enough` says, or the deadline. Without a deadline
    /// `enough` is called every 100 ms.
    fn wait(&self, enough: impl Fn(usize) -> bool, deadline: Option<Instant>) {
        let mut streams = lock(&self.streams);
        while !enough(streams.len()) {
            let time = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => PAUSE,
            };
            if time.is_zero() {
                return;
            }
            let waited = self.ended.wait_timeout(streams, time);
            streams = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn close_all(&self) {
        for stream in lock(&self.streams).values() {
            let _ = stream.shut_down(Shutdown::Both);
        }
    }
}

/// An entry of [`Live`].
struct Served {
    live: Arc<Live>,
    id: u64,
    stream: Arc<dyn Stream>,
}

impl Served {
    fn new(live: &Arc<Live>, id: u64, stream: Arc<dyn Stream>) -> Self {
        lock(&live.streams).insert(id, Arc::clone(&stream));
        let live = Arc::clone(live);
        Self { live, id, stream }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        lock(&self.live.streams).remove(&self.id);
        self.live.ended.notify_all();
    }
}
