//! A client on the traits of futures-io: any number of tasks share one
//! connection, and a task may stop waiting for its command at any await.
//!
//! Writes an export to standard output, with many reads in flight:
//!
//! ```text
//! cargo run --example futures_client -- 127.0.0.1:10809 EXPORT > disk.img
//! ```

use std::io::{self, Write};
use std::mem::take;
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt, StreamExt, stream};
use nbd_codec::client::{Config, ConnectEvent, Connector, Request, RequestHeader};
use nbd_codec::client::{Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Limits, SessionError, Step};
use smol::channel::{Sender, bounded, unbounded};
use smol::future;
use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use smol::lock::{Semaphore, SemaphoreGuardArc};

const IN_FLIGHT: usize = 16;
const PART: usize = 64 << 10;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || io::Error::other("usage: futures_client ADDR:PORT [EXPORT]");
    let address = args.next().ok_or_else(usage)?;
    let export = args.next().unwrap_or_default();
    smol::block_on(async {
        let stream = smol::net::TcpStream::connect(address).await?;
        let (client, connection) = connect(stream.clone(), stream, export).await?;
        let connection = smol::spawn(connection);
        let copied = copy(client).await;
        // If the connection was lost, its error is the reason.
        connection.await.and(copied)
    })
}

/// Writes the export to standard output, in order, with a task for each part.
async fn copy(client: Client) -> io::Result<()> {
    let size = client.state.lock().unwrap().session.negotiated().size;
    let parts = stream::iter((0..size).step_by(PART)).map(|offset| {
        let (client, length) = (client.clone(), (size - offset).min(PART as u64));
        smol::spawn(async move {
            client
                .command(Request::read(offset, length), Vec::new())
                .await
        })
    });
    let mut parts = parts.buffered(IN_FLIGHT);
    while let Some(data) = parts.next().await {
        io::stdout().write_all(&data?)?;
    }
    Ok(())
}

/// A handle to the connection. If one of its futures is dropped, its command
/// was not sent, or the reply is discarded when it arrives.
#[derive(Clone)]
pub struct Client {
    state: Arc<Mutex<State>>,
    queue: Sender<(RequestHeader, Vec<u8>)>,
    free: Arc<Semaphore>,
}

impl Client {
    /// Sends a command, with the data of a write. Returns the data of a read.
    pub async fn command(&self, request: Request, payload: Vec<u8>) -> io::Result<Vec<u8>> {
        let lost = || io::Error::from(io::ErrorKind::ConnectionAborted);
        let done = async {
            let permit = self.free.acquire_arc().await;
            let (reply, outcome) = bounded(1);
            let job = Job {
                request,
                reply,
                _permit: permit,
                buffer: Vec::new(),
            };
            let header = self.state.lock().unwrap().submit(job, payload.len())?;
            // Queued whole, so it is written whole.
            self.queue.try_send((header, payload)).map_err(|_| lost())?;
            let result = outcome.recv().await.map_err(|_| lost())?;
            result.map_err(|error| SessionError::from(error).into())
        };
        future::or(done, self.queue.closed().map(|()| Err(lost()))).await
    }
}

/// A command in flight. It stays until it is done, whether a task still waits
/// for it or not.
struct Job {
    request: Request,
    buffer: Vec<u8>,
    reply: Sender<Result<Vec<u8>, ErrorValue>>,
    _permit: SemaphoreGuardArc,
}

/// What the tasks and the connection share. It is never locked across an await.
struct State {
    session: Transmission<[Slot; IN_FLIGHT]>,
    jobs: [Option<Job>; IN_FLIGHT],
}

impl State {
    fn submit(&mut self, job: Job, payload: usize) -> io::Result<RequestHeader> {
        let header = self.session.submit(job.request)?;
        if header.payload_length() as usize != payload {
            self.session.retract(header)?;
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.jobs[slot_index(header.cookie())] = Some(job);
        Ok(header)
    }

    /// Handles what has arrived. Returns whether there is more to read.
    fn receive(&mut self, inbox: &Inbox<Vec<u8>>) -> io::Result<bool> {
        loop {
            match inbox.receive(&mut self.session)? {
                Step::Content(content) => {
                    let job = self.jobs[slot_index(content.cookie())].as_mut();
                    let job = job.expect("a command in flight");
                    job.buffer.resize(job.request.length as usize, 0);
                    assert!(content.copy_to(job.request.offset, &mut job.buffer));
                }
                Step::Event(TransmissionEvent::Done { cookie, result }) => {
                    let job = self.jobs[slot_index(cookie)].take();
                    let Job { reply, buffer, .. } = job.expect("a command in flight");
                    // The task may have stopped waiting.
                    let _ = reply.try_send(result.map(|()| buffer));
                }
                Step::Event(_) => {}
                Step::Read(_) | Step::ReadPayload { .. } => return Ok(true),
                Step::Finished => return Ok(false),
                other => return Err(other.unexpected().into()),
            }
        }
    }
}

/// Connects. The future that it returns is the connection: it reads and writes
/// until every client is dropped.
pub async fn connect<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut from: R,
    mut to: W,
    export: String,
) -> io::Result<(Client, impl Future<Output = io::Result<()>>)> {
    let mut inbox = Inbox::new(vec![0; PART]);
    let mut connector = Connector::new(Config::new(&export))?;
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(_) => fill(&mut inbox, &mut from).await?,
            other => return Err(other.unexpected().into()),
        }
        to.write_all(&take(&mut out)).await?;
    }
    let ready = connector.into_negotiated();
    let negotiated = ready.map_err(|_| SessionError::NotReady)?;
    let session = Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT);
    let jobs = Default::default();
    let state = Arc::new(Mutex::new(State { session, jobs }));
    let free = Arc::new(Semaphore::new(IN_FLIGHT));
    let (queue, messages) = unbounded::<(RequestHeader, Vec<u8>)>();
    let (shared, permits) = (state.clone(), free.clone());
    let connection = async move {
        let receive = async {
            while shared.lock().unwrap().receive(&inbox)? {
                fill(&mut inbox, &mut from).await?;
            }
            Ok(())
        };
        let send = async {
            while let Ok((header, payload)) = messages.recv().await {
                to.write_all(header.as_bytes()).await?;
                to.write_all(&payload).await?;
            }
            // Every client is dropped. With all permits, nothing is in flight.
            for _ in 0..IN_FLIGHT {
                permits.acquire().await.forget();
            }
            let disc = shared.lock().unwrap().session.disconnect()?;
            to.write_all(disc.as_bytes()).await
        };
        future::or(receive, send).await
    };
    Ok((Client { state, queue, free }, connection))
}

async fn fill<R: AsyncRead + Unpin>(inbox: &mut Inbox<Vec<u8>>, from: &mut R) -> io::Result<()> {
    let n = from.read(inbox.space()).await?;
    Ok(inbox.filled(n)?)
}
