//! Serving with tokio: one task for each connection.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_codec::Negotiated;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::budget::Account;
use super::config::Registration;
use super::execute::Answer;
use super::handshake::{Chosen, Negotiation, Progress};
use super::outbox::{Outbox, SLICES};
use super::receive::{Next, Receiver, Work};
use super::{Client, Peer, Server};
use crate::duplex::Duplex;

/// How much is received at a time.
const RECEIVE: usize = 64 << 10;

/// Replies are written before they have more bytes than this, and no request is
/// begun while this many wait.
const BATCH: usize = 64 << 10;

/// If at least as much of the data of a write is missing, it is read into its place;
/// otherwise what arrived is copied, and may hold further requests.
const DIRECT: usize = 32 << 10;

/// How long to wait if no client can be accepted, for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What a connection is served on.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A stream of any type.
struct BoxStream(Box<dyn Stream>);

/// What [`listen`] accepts clients from: a TCP listener, a Unix listener, or
/// another of the program.
pub trait Listener: Send {
    /// The connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Accepts a client.
    ///
    /// # Errors
    ///
    /// Any: [`listen`] waits a little and tries again.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>>;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>> {
        let (stream, address) = ready!(self.poll_accept(cx))?;
        stream.set_nodelay(true)?;
        Poll::Ready(Ok((stream, Peer::Tcp(address))))
    }
}

#[cfg(unix)]
impl Listener for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>> {
        let (stream, _) = ready!(self.poll_accept(cx))?;
        Poll::Ready(Ok((stream, Peer::Unix)))
    }
}

/// Accepts clients and serves each in a task of its own, until
/// [`Server::shut_down`]; returns when all connections are closed, or after
/// [`Config::grace`](crate::server::Config::grace).
///
/// If accepting fails, for lack of file descriptors, it goes on after 100 ms.
///
/// # Errors
///
/// None: it has the signature of [`blocking::listen`](crate::blocking::listen).
pub async fn listen(listener: impl Listener, server: &Server) -> io::Result<()> {
    let mut registration = server.register();
    let mut connections = JoinSet::new();
    loop {
        let accepted = poll_fn(|cx| {
            if registration.poll_shutdown(cx).is_ready() {
                return Poll::Ready(None);
            }
            while let Poll::Ready(Some(_)) = pin!(connections.join_next()).poll(cx) {}
            if connections.len() < server.config().connections {
                listener.poll_accept(cx).map(Some)
            } else {
                Poll::Pending
            }
        });
        match accepted.await {
            None => break,
            Some(Err(_)) => sleep(PAUSE).await,
            Some(Ok((stream, peer))) => {
                let server = server.clone();
                connections.spawn(async move {
                    let end = serve(stream, peer.clone(), &server).await;
                    server.report(&peer, &end);
                });
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    // Otherwise the rest is aborted when the set is dropped.
    let _ = timeout(server.config().grace, ended).await;
    Ok(())
}

/// Serves one client, from the greeting until the connection is closed.
///
/// # Errors
///
/// What ended the connection, unless the client did as the specification says:
/// `TimedOut` after the timeouts of [`Config`](crate::server::Config),
/// `UnexpectedEof` if the client closed it without `DISC` or `ABORT`, `InvalidData`
/// if it broke the protocol.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    server: &Server,
) -> io::Result<()> {
    let mut registration = server.register();
    let time = server.config().handshake;
    // On the heap, so that it takes no memory in transmission.
    let negotiated = {
        let client = Client::new(peer);
        let stream = BoxStream(Box::new(stream));
        let mut negotiating = Box::pin(timeout(time, negotiate(stream, client, server)));
        poll_fn(|cx| match registration.poll_shutdown(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(Ok(None))),
            Poll::Pending => negotiating.as_mut().poll(cx),
        })
        .await
    };
    let Some((stream, chosen)) = negotiated?? else {
        return Ok(());
    };
    let connection = Connection {
        stream,
        negotiated: chosen.negotiated,
        received: chosen.received,
        registration,
    };
    chosen.device.transmit(connection).await
}

/// The handshake; `None` if the client aborts it.
async fn negotiate(
    mut stream: BoxStream,
    client: Client,
    server: &Server,
) -> io::Result<Option<(BoxStream, Box<Chosen>)>> {
    let mut negotiation = Negotiation::new(server, client)?;
    loop {
        match negotiation.run(&mut stream).await? {
            Progress::Ready(chosen) => return Ok(Some((stream, chosen))),
            Progress::Ended => {
                let _ = stream.0.shutdown().await;
                return Ok(None);
            }
            Progress::StartTls => stream = start_tls(stream, &mut negotiation, server).await?,
        }
    }
}

impl Duplex for BoxStream {
    async fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.0.read(space).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }
}

#[cfg(feature = "tls")]
async fn start_tls(
    stream: BoxStream,
    negotiation: &mut Negotiation,
    server: &Server,
) -> io::Result<BoxStream> {
    let Some(config) = &server.config().tls else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::clone(config));
    let accepted = acceptor.accept(stream.0).await;
    negotiation.tls(accepted.is_ok())?;
    let stream = accepted?;
    let (_, session) = stream.get_ref();
    let certificates = session.peer_certificates().unwrap_or_default();
    negotiation.client.certificates = certificates.to_vec();
    Ok(BoxStream(Box::new(stream)))
}

#[cfg(not(feature = "tls"))]
async fn start_tls(_: BoxStream, _: &mut Negotiation, _: &Server) -> io::Result<BoxStream> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: BoxStream,
    negotiated: Negotiated,
    received: Vec<u8>,
    registration: Registration,
}

/// A connection that is being served.
pub(crate) type Running = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl Connection {
    /// Serves requests; `start` begins one.
    pub(super) fn transmit<F>(self, start: impl Fn(Work) -> F + Send + 'static) -> Running
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Box::pin(async move {
            let mut transmission = Transmission {
                receiver: Receiver::new(self.negotiated)?,
                account: self.registration.account(),
                stream: self.stream.0,
                registration: self.registration,
                held: self.received,
                out: Outbox::default(),
                flushed: true,
                stalled: None,
                in_flight: FuturesUnordered::new(),
                spare: None,
                begun: false,
                end: None,
            };
            poll_fn(move |cx| transmission.poll(cx, &start)).await
        })
    }
}

/// The transmission phase of a connection.
struct Transmission<F> {
    stream: Box<dyn Stream>,
    receiver: Receiver,
    account: Account,
    registration: Registration,
    /// Received and not consumed.
    held: Vec<u8>,
    out: Outbox,
    /// Whether the stream holds nothing back (TLS).
    flushed: bool,
    /// Since the client does not read.
    stalled: Option<Pin<Box<Sleep>>>,
    in_flight: FuturesUnordered<Operation<F>>,
    /// Memory for the next operation.
    spare: Option<Place<F>>,
    /// Operations were added that `in_flight` has not yet polled.
    begun: bool,
    /// Nothing more is received: how the connection ends, once everything is
    /// answered.
    end: Option<io::Result<()>>,
}

/// What has to come before the next request can be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A reply written, or a request done.
    Room,
    /// Memory of the budget: the task will be woken.
    Memory,
    Input,
    /// This many bytes of the data of a write.
    Data(usize),
    Nothing,
}

impl<F: Future<Output = Answer>> Transmission<F> {
    fn poll(&mut self, cx: &mut Context<'_>, start: &impl Fn(Work) -> F) -> Poll<io::Result<()>> {
        let shutting_down = self.registration.poll_shutdown(cx).is_ready();
        if shutting_down {
            self.receiver.shut_down();
        }
        loop {
            while let Poll::Ready(Some((answer, cost))) = self.in_flight.poll_next_unpin(cx) {
                self.finish(answer, cost);
            }
            self.begun = false;
            let held = mem::take(&mut self.held);
            let mut input = held.as_slice();
            let need = self.take_requests(&mut input, cx, start);
            if !input.is_empty() {
                self.held = input.to_vec();
            }
            let written = self.poll_write(cx)?;
            match need {
                _ if self.begun => continue,
                Need::Room if self.has_room() => continue,
                Need::Room | Need::Memory => return Poll::Pending,
                Need::Nothing => {}
                Need::Input | Need::Data(_) => {
                    let received = match need {
                        Need::Data(n) if n >= DIRECT => self.poll_data(cx, n),
                        _ => self.poll_receive(cx, start),
                    };
                    let idle = self.in_flight.is_empty() && written.is_ready();
                    match received {
                        Poll::Ready(result) => result?,
                        Poll::Pending if shutting_down && idle => self.end = Some(Ok(())),
                        Poll::Pending => return Poll::Pending,
                    }
                    continue;
                }
            }
            if !self.in_flight.is_empty() || written.is_pending() {
                return Poll::Pending;
            }
            if Pin::new(&mut self.stream).poll_shutdown(cx).is_pending() {
                return self.poll_stalled(cx).map(|_| Poll::Pending)?;
            }
            // It may have failed: the client may be gone.
            return Poll::Ready(self.end.take().unwrap_or(Ok(())));
        }
    }

    fn has_room(&self) -> bool {
        let most = self.registration.server.config().in_flight;
        self.out.len() < BATCH && self.in_flight.len() < most
    }

    /// Takes requests from `input` and begins them.
    fn take_requests(
        &mut self,
        input: &mut &[u8],
        cx: &mut Context<'_>,
        start: &impl Fn(Work) -> F,
    ) -> Need {
        while self.end.is_none() {
            if !self.has_room() {
                return Need::Room;
            }
            let account = &self.account;
            let admit = |cost| account.poll_take(cx, cost).is_ready();
            match self.receiver.next(input, admit) {
                Ok(Next::Work(work)) => self.begin(work, cx, start),
                Ok(Next::Answered(reply)) => self.out.push_reply(&reply),
                Ok(Next::Wait) => return Need::Memory,
                Ok(Next::Read) => return Need::Input,
                Ok(Next::ReadData(n)) => return Need::Data(n),
                Ok(Next::End) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error.into())),
            }
        }
        *input = &[];
        Need::Nothing
    }

    /// Begins an operation. If it is ready at once, so is its reply.
    fn begin(&mut self, work: Work, cx: &mut Context<'_>, start: &impl Fn(Work) -> F) {
        let cost = work.cost;
        let mut place = self.spare.take().unwrap_or_else(|| Box::pin(None));
        place.as_mut().set(Some(start(work)));
        let mut operation = Operation { place, cost };
        match Pin::new(&mut operation).poll(cx) {
            Poll::Ready((answer, cost)) => {
                operation.place.as_mut().set(None);
                self.spare = Some(operation.place);
                self.finish(answer, cost);
            }
            Poll::Pending => {
                self.in_flight.push(operation);
                self.begun = true;
            }
        }
    }

    fn finish(&mut self, answer: Answer, cost: usize) {
        answer.put(&mut self.out, |resize| self.receiver.resized(resize));
        self.out.push_cost(cost);
    }

    /// Receives, and takes requests from what arrived.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        start: &impl Fn(Work) -> F,
    ) -> Poll<io::Result<()>> {
        let mut buffer = Scratch::take();
        let mut space = ReadBuf::new(&mut buffer.0);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
        let mut input = space.filled();
        if input.is_empty() {
            self.closed();
        } else if self.held.is_empty() {
            self.take_requests(&mut input, cx, start);
        }
        self.held.extend_from_slice(input);
        Poll::Ready(Ok(()))
    }

    /// Receives `n` bytes of the data of a write, or less, into their place.
    fn poll_data(&mut self, cx: &mut Context<'_>, n: usize) -> Poll<io::Result<()>> {
        let limit = u64::try_from(n).unwrap_or(u64::MAX);
        let mut stream = (&mut self.stream).take(limit);
        let read = pin!(stream.read_buf(self.receiver.data()));
        match ready!(read.poll(cx))? {
            0 => self.closed(),
            n => self.receiver.filled(n).map_err(io::Error::from)?,
        }
        Poll::Ready(Ok(()))
    }

    /// The client has closed the connection. What is in flight is finished.
    fn closed(&mut self) {
        let end = self.receiver.end_of_input();
        self.end = Some(end.map_err(io::Error::from));
    }

    /// Writes all replies.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.out.slices(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            match Pin::new(&mut self.stream).poll_write_vectored(cx, slices)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.account.give_back(self.out.advance(n));
                    self.flushed = false;
                    self.stalled = None;
                }
                Poll::Pending => return self.poll_stalled(cx),
            }
        }
        if !self.flushed {
            match Pin::new(&mut self.stream).poll_flush(cx)? {
                Poll::Ready(()) => {
                    self.flushed = true;
                    self.stalled = None;
                }
                Poll::Pending => return self.poll_stalled(cx),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// The client does not read: waits until it does, but not for ever.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let time = self.registration.server.config().stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(time)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                let text = "the client does not read its replies";
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Poll::Pending => Ok(Poll::Pending),
        }
    }
}

/// The memory of an operation, which is used again.
type Place<F> = Pin<Box<Option<F>>>;

/// A request that is being done.
struct Operation<F> {
    place: Place<F>,
    cost: usize,
}

impl<F: Future<Output = Answer>> Future for Operation<F> {
    type Output = (Answer, usize);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let cost = self.cost;
        match self.place.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx).map(|answer| (answer, cost)),
            None => Poll::Pending,
        }
    }
}

/// A receive buffer. It belongs to the thread, and so takes no memory in connections
/// that wait.
struct Scratch(Vec<u8>);

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Scratch {
    fn take() -> Self {
        let mut buffer = SCRATCH.take();
        // No change but for the first time, and within another one that is in use.
        buffer.resize(RECEIVE, 0);
        Self(buffer)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(mem::take(&mut self.0));
    }
}
