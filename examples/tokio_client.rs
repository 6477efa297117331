//! A client for tokio: one task owns the connection; any number of other tasks send
//! commands to it and wait for their replies.
//!
//! Writes standard input to the start of an export, with many requests in flight,
//! then reads it back and compares:
//!
//! ```text
//! cargo run --example tokio_client -- 127.0.0.1:10809 EXPORT < disk.img
//! ```

use std::io::{self, Read};

use nbd_codec::client::{Config, ConnectEvent, Connector};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Limits, Negotiated, SessionError, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

type Error = Box<dyn std::error::Error + Send + Sync>;

const IN_FLIGHT: usize = 16;
const PART: usize = 64 << 10;
const READ_AHEAD: usize = 256 << 10;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let address = args
        .next()
        .ok_or("usage: tokio_client ADDR:PORT [EXPORT]")?;
    let export = args.next().unwrap_or_default();
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input)?;

    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut inbox = Inbox::new(vec![0; READ_AHEAD]);
    let negotiated = handshake(&mut stream, &mut inbox, &export).await?;
    let (client, jobs) = mpsc::channel(IN_FLIGHT);
    let connection = tokio::spawn(run(stream, inbox, negotiated, jobs));
    let flushes = negotiated.flags.contains(TransmissionFlags::SEND_FLUSH);
    let result = copy(client, &input, flushes).await;
    // If the connection was lost, this is the reason.
    connection.await??;
    result
}

/// Writes the data and compares it, on a connection of its own.
async fn copy(client: mpsc::Sender<Job>, input: &[u8], flushes: bool) -> Result<(), Error> {
    let parts = || (0..).step_by(PART).zip(input.chunks(PART));
    let mut writes = JoinSet::new();
    for (offset, part) in parts() {
        let (client, part) = (client.clone(), part.to_vec());
        let request = Request::write(offset, part.len() as u64);
        writes.spawn(async move { command(&client, request, part).await });
    }
    while let Some(written) = writes.join_next().await {
        written??;
    }
    if flushes {
        command(&client, Request::flush(), Vec::new()).await?;
    }
    for (offset, part) in parts() {
        let request = Request::read(offset, part.len() as u64);
        let data = command(&client, request, vec![0; part.len()]).await?;
        if data != part {
            return Err(format!("the data at {offset} differs from what was written").into());
        }
    }
    println!("{} bytes written, read back and equal", input.len());
    Ok(())
}

/// A command for the task that owns the connection.
struct Job {
    request: Request,
    /// The data to write, or the buffer to read into.
    data: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<u8>, Error>>,
}

/// Sends a command to the task and waits until it is done.
async fn command(
    client: &mpsc::Sender<Job>,
    request: Request,
    data: Vec<u8>,
) -> Result<Vec<u8>, Error> {
    let (reply, end) = oneshot::channel();
    let job = Job {
        request,
        data,
        reply,
    };
    client
        .send(job)
        .await
        .map_err(|_| "the connection is gone")?;
    end.await.map_err(|_| "the connection was lost")?
}

/// Sends and receives at the same time, until no task can send commands.
async fn run(
    mut stream: TcpStream,
    mut inbox: Inbox<Vec<u8>>,
    negotiated: Negotiated,
    mut commands: mpsc::Receiver<Job>,
) -> Result<(), Error> {
    let (mut from, mut to) = stream.split();
    let mut session = Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT);
    let mut jobs: [Option<Job>; IN_FLIGHT] = Default::default();
    let mut out = Vec::new();
    let mut closing = false;
    loop {
        receive(&mut session, &mut inbox, &mut jobs)?;
        if closing && out.is_empty() && session.in_flight() == 0 {
            let header = session.disconnect()?;
            return Ok(to.write_all(header.as_bytes()).await?);
        }
        // The branches that are not chosen have had no effect.
        tokio::select! {
            job = commands.recv(), if !closing && session.in_flight() < IN_FLIGHT => match job {
                Some(job) => submit(&mut session, &mut jobs, job, &mut out),
                None => closing = true,
            },
            read = from.read(inbox.space()) => inbox.filled(read?)?,
            written = to.write(&out), if !out.is_empty() => drop(out.drain(..written?)),
        }
    }
}

fn submit(
    session: &mut Transmission<[Slot; IN_FLIGHT]>,
    jobs: &mut [Option<Job>; IN_FLIGHT],
    job: Job,
    out: &mut Vec<u8>,
) {
    match session.submit(job.request) {
        Ok(header) => {
            out.extend(header.as_bytes());
            if header.payload_length() > 0 {
                out.extend(&job.data);
            }
            jobs[slot_index(header.cookie())] = Some(job);
        }
        // Nothing was sent: the error affects this command only.
        Err(misuse) => drop(job.reply.send(Err(misuse.into()))),
    }
}

/// Handles all that has arrived.
fn receive(
    session: &mut Transmission<[Slot; IN_FLIGHT]>,
    inbox: &mut Inbox<Vec<u8>>,
    jobs: &mut [Option<Job>; IN_FLIGHT],
) -> Result<(), SessionError> {
    loop {
        match inbox.receive(session)? {
            Step::Event(TransmissionEvent::Done { cookie, result }) => {
                if let Some(job) = jobs[slot_index(cookie)].take() {
                    let result = result.map(|()| job.data).map_err(Error::from);
                    // The waiting task may have been dropped.
                    let _ = job.reply.send(result);
                }
            }
            Step::Event(_) => {}
            Step::Content(content) => {
                if let Some(job) = &mut jobs[slot_index(content.cookie())] {
                    // The session has checked that it is within the request.
                    assert!(content.copy_to(job.request.offset, &mut job.data));
                }
            }
            // The inbox is empty, or holds a part of a message.
            Step::Read(_) | Step::ReadPayload { .. } => return Ok(()),
            other => return Err(other.unexpected().into()),
        }
    }
}

/// The handshake. What was received after it stays in the inbox.
async fn handshake(
    stream: &mut TcpStream,
    inbox: &mut Inbox<Vec<u8>>,
    export: &str,
) -> Result<Negotiated, Error> {
    let mut connector = Connector::new(Config::new(export))?;
    let (mut out, mut failed) = (Vec::new(), None);
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Failed { reason, .. }) => failed = Some(reason),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(_) => read_more(stream, inbox).await?,
            Step::Finished => break,
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out).await?;
        out.clear();
    }
    match failed {
        Some(reason) => Err(reason.into()),
        None => Ok(connector
            .into_negotiated()
            .map_err(|_| SessionError::NotReady)?),
    }
}

/// Reads what is available.
async fn read_more(stream: &mut TcpStream, inbox: &mut Inbox<Vec<u8>>) -> Result<(), Error> {
    let n = stream.read(inbox.space()).await?;
    Ok(inbox.filled(n)?)
}
