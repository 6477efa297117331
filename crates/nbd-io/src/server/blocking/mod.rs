//! Serving with threads: up to 16 for each connection, begun when they are needed.
//!
//! The threads of a connection take turns: one receives a request, and does it while
//! the next one receives.

mod listen;
#[cfg(feature = "tls")]
mod tls;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Instant;

use nbd_codec::server::Request;
use nbd_codec::wire::number::ErrorValue;

pub use self::listen::{Listener, listen};
use super::budget::Account;
use super::export::AnyDevice;
use super::handshake::{Chosen, Negotiation, Progress};
use super::outbox::{Outbox, SLICES};
use super::receive::{Next, Receiver, Work};
use super::{Client, Peer, Server};
use crate::lock;
use crate::threads::{Stream, Timed, block_on};

/// How much is received at a time.
const RECEIVE: usize = 64 << 10;

/// How much of the data of a write is received at a time.
const DATA: usize = 256 << 10;

/// The most threads of a connection.
const THREADS: usize = 16;

/// Serves one client on this thread and up to 15 more, from the greeting until the
/// connection is closed.
///
/// # Errors
///
/// As [`tokio::serve`](crate::tokio::serve).
pub fn serve(stream: impl Stream, peer: Peer, server: &Server) -> io::Result<()> {
    run(Arc::new(stream), peer, server)
}

fn run(stream: Arc<dyn Stream>, peer: Peer, server: &Server) -> io::Result<()> {
    let mut registration = server.register();
    let closed = Arc::clone(&stream);
    let close = move || drop(closed.shut_down(Shutdown::Read));
    let wake = Waker::from(Arc::new(OnWake(Box::new(close))));
    let shutting_down = registration.poll_shutdown(&Context::from_waker(&wake));
    let result = match shutting_down {
        Poll::Ready(()) => Ok(()),
        Poll::Pending => negotiate(&stream, peer, server).and_then(|chosen| match chosen {
            Some((stream, chosen)) => {
                let result = transmit(&*stream, *chosen, server, registration.account());
                // Under TLS, another stream than the one of this function.
                let _ = stream.shut_down(Shutdown::Both);
                result
            }
            None => Ok(()),
        }),
    };
    let _ = stream.shut_down(Shutdown::Both);
    match result {
        // The connection was shut down to end a read.
        Err(error) if server.is_shutting_down() && error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let text = "the client took too long to send or to read";
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
        result => result,
    }
}

type Negotiated = (Arc<dyn Stream>, Box<Chosen>);

/// The handshake; `None` if the client aborts it.
fn negotiate(
    stream: &Arc<dyn Stream>,
    peer: Peer,
    server: &Server,
) -> io::Result<Option<Negotiated>> {
    let mut link = Timed {
        stream: Arc::clone(stream),
        deadline: Instant::now().checked_add(server.config().handshake),
    };
    let mut negotiation = Negotiation::new(server, Client::new(peer))?;
    loop {
        match block_on(negotiation.run(&mut link))? {
            Progress::Ready(chosen) => return Ok(Some((link.stream, chosen))),
            Progress::Ended => {
                let _ = link.stream.shut_down(Shutdown::Both);
                return Ok(None);
            }
            Progress::StartTls => start_tls(&mut link, &mut negotiation, server)?,
        }
    }
}

#[cfg(feature = "tls")]
fn start_tls(link: &mut Timed, negotiation: &mut Negotiation, server: &Server) -> io::Result<()> {
    let config = server.config().tls.clone();
    let accepted = tls::accept(link, config.ok_or(io::ErrorKind::Unsupported)?);
    negotiation.tls(accepted.is_ok())?;
    (link.stream, negotiation.client.certificates) = accepted?;
    Ok(())
}

#[cfg(not(feature = "tls"))]
fn start_tls(_: &mut Timed, _: &mut Negotiation, _: &Server) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The transmission phase.
fn transmit(
    stream: &dyn Stream,
    chosen: Chosen,
    server: &Server,
    account: Account,
) -> io::Result<()> {
    stream.set_timeouts(None, Some(server.config().stall))?;
    let mut buffer = chosen.received;
    let end = buffer.len();
    buffer.resize(end.max(RECEIVE), 0);
    let transmission = Transmission {
        stream,
        server,
        device: chosen.device,
        account,
        threads: AtomicUsize::new(1),
        idle: AtomicUsize::new(1),
        input: Mutex::new(Input {
            receiver: Receiver::new(chosen.negotiated)?,
            buffer,
            held: 0..end,
            ended: None,
        }),
        output: Mutex::default(),
    };
    thread::scope(|scope| transmission.work(scope));
    if let Some(error) = lock(&transmission.output).failed.take() {
        return Err(error);
    }
    let input = transmission.input.into_inner();
    let input = input.unwrap_or_else(PoisonError::into_inner);
    input.ended.unwrap_or(Ok(()))
}

/// What the threads of a connection share.
struct Transmission<'c> {
    stream: &'c dyn Stream,
    server: &'c Server,
    device: Arc<dyn AnyDevice>,
    account: Account,
    threads: AtomicUsize,
    /// Threads that receive, or wait to.
    idle: AtomicUsize,
    /// The thread that has it receives.
    input: Mutex<Input>,
    /// The thread that has it writes. It may be taken by a thread that has the
    /// input, not the other way round.
    output: Mutex<Output>,
}

struct Input {
    receiver: Receiver,
    buffer: Vec<u8>,
    /// What of it has arrived and is not consumed.
    held: Range<usize>,
    /// Nothing more is received: how the connection ended.
    ended: Option<io::Result<()>>,
}

#[derive(Default)]
struct Output {
    outbox: Outbox,
    /// Nothing more is written, for this reason: a reply may have been written in part,
    /// and another one after it would be taken for its data.
    failed: Option<io::Error>,
}

impl Transmission<'_> {
    /// The work of one thread.
    fn work<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        let _close = CloseOnPanic(self.stream);
        loop {
            let mut input = lock(&self.input);
            if input.ended.is_some() {
                return;
            }
            let work = match self.next(&mut input) {
                Ok(Some(work)) => work,
                end => {
                    input.ended = Some(end.map(drop));
                    return;
                }
            };
            let cost = work.cost;
            // Requests after a resize are checked against the new size.
            self.hand_over(scope);
            let mut input = matches!(work.request, Request::Resize(_)).then_some(input);
            let answer = self.device.execute(work);
            let sent = self.send(cost, |out| {
                answer.put(out, |resize| match &mut input {
                    Some(input) => input.receiver.resized(resize),
                    None => Request::Resize(resize).fail(ErrorValue::EINVAL, "not a resize"),
                });
            });
            drop(input);
            if sent.is_err() {
                lock(&self.input).ended.get_or_insert(sent);
                return;
            }
            self.idle.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// This thread has work: sees to it that another one receives.
    fn hand_over<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        let most = THREADS.min(self.server.config().in_flight);
        let others = self.idle.fetch_sub(1, Ordering::SeqCst) > 1;
        if !others && self.threads.load(Ordering::SeqCst) < most {
            self.threads.fetch_add(1, Ordering::SeqCst);
            self.idle.fetch_add(1, Ordering::SeqCst);
            let begun = thread::Builder::new().spawn_scoped(scope, || self.work(scope));
            if begun.is_err() {
                // This thread receives when it is done.
                self.threads.fetch_sub(1, Ordering::SeqCst);
                self.idle.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// The next request; `None` at the end.
    fn next(&self, input: &mut Input) -> io::Result<Option<Work>> {
        loop {
            let shutting_down = self.server.is_shutting_down();
            if shutting_down {
                input.receiver.shut_down();
            }
            let mut rest = input.buffer.get(input.held.clone()).unwrap_or_default();
            let next = input.receiver.next(&mut rest, |cost| {
                block_on(poll_fn(|cx| self.account.poll_take(cx, cost)));
                true
            });
            input.held.start = input.held.end.saturating_sub(rest.len());
            let read = match next? {
                Next::Work(work) => return Ok(Some(work)),
                Next::End => return Ok(None),
                Next::Answered(reply) => {
                    self.send(0, |out| out.push_reply(&reply))?;
                    continue;
                }
                // Memory was waited for above.
                Next::Wait => continue,
                Next::Read => self.receive(input)?,
                Next::ReadData(n) => {
                    let data = input.receiver.data();
                    let start = data.len();
                    data.resize(start.saturating_add(n.min(DATA)), 0);
                    let read = self
                        .stream
                        .read(data.get_mut(start..).unwrap_or_default())?;
                    data.truncate(start.saturating_add(read));
                    input.receiver.filled(read)?;
                    read
                }
            };
            if read == 0 && shutting_down {
                // The socket was shut down to end a read.
                return Ok(None);
            }
            if read == 0 {
                input.receiver.end_of_input()?;
                return Ok(None);
            }
        }
    }

    fn receive(&self, input: &mut Input) -> io::Result<usize> {
        input.buffer.copy_within(input.held.clone(), 0);
        input.held = 0..input.held.len();
        let space = input.buffer.get_mut(input.held.end..).unwrap_or_default();
        let n = self.stream.read(space)?;
        input.held.end = input.held.end.saturating_add(n);
        Ok(n)
    }

    /// Writes what `put` adds, which answers a request of this cost. The error is
    /// `BrokenPipe` if writing fails or has failed before; why is in [`Output::failed`].
    fn send(&self, cost: usize, put: impl FnOnce(&mut Outbox)) -> io::Result<()> {
        let mut output = lock(&self.output);
        let Output { outbox, failed } = &mut *output;
        if failed.is_some() {
            // Another thread may wait for the memory, with the input.
            self.account.give_back(cost);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        put(outbox);
        outbox.push_cost(cost);
        let Err(error) = self.write(outbox) else {
            return Ok(());
        };
        *failed = Some(error);
        self.account.give_back(outbox.clear());
        // Ends a read of another thread.
        let _ = self.stream.shut_down(Shutdown::Both);
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn write(&self, out: &mut Outbox) -> io::Result<()> {
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = out.slices(&mut slices);
            let n = match self
                .stream
                .write_vectored(slices.get(..count).unwrap_or_default())
            {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            self.account.give_back(out.advance(n));
        }
        Ok(())
    }
}

/// Closes the connection if a device panics: otherwise its client waits for a reply
/// for ever.
struct CloseOnPanic<'c>(&'c dyn Stream);

impl Drop for CloseOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.shut_down(Shutdown::Both);
        }
    }
}

/// Calls a function to wake something.
struct OnWake(Box<dyn Fn() + Send + Sync>);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}
