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

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::{Event, Request, Slot, Transmission, slot_index};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Limits, Negotiated};
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
    let (negotiated, held) = handshake(&mut stream, &export).await?;
    let (client, jobs) = mpsc::channel(IN_FLIGHT);
    let connection = tokio::spawn(run(stream, negotiated, held, jobs));
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
    negotiated: Negotiated,
    mut held: Vec<u8>,
    mut commands: mpsc::Receiver<Job>,
) -> Result<(), Error> {
    let (mut from, mut to) = stream.split();
    let mut machine = Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT);
    let mut jobs: [Option<Job>; IN_FLIGHT] = Default::default();
    let mut out = Vec::new();
    let mut closing = false;
    loop {
        receive(&mut machine, &mut jobs, &mut held)?;
        if closing && out.is_empty() && machine.in_flight() == 0 {
            let goodbye = machine.disconnect()?;
            return Ok(to.write_all(goodbye.as_bytes()).await?);
        }
        held.reserve(READ_AHEAD);
        // The branches that are not chosen have had no effect.
        tokio::select! {
            job = commands.recv(), if !closing && machine.in_flight() < IN_FLIGHT => match job {
                Some(job) => submit(&mut machine, &mut jobs, job, &mut out),
                None => closing = true,
            },
            read = from.read_buf(&mut held) => if read? == 0 {
                return Ok(machine.end_of_input()?);
            },
            written = to.write(&out), if !out.is_empty() => drop(out.drain(..written?)),
        }
    }
}

fn submit(
    machine: &mut Transmission<[Slot; IN_FLIGHT]>,
    jobs: &mut [Option<Job>; IN_FLIGHT],
    job: Job,
    out: &mut Vec<u8>,
) {
    match machine.submit(job.request) {
        Ok(head) => {
            out.extend(head.as_bytes());
            if head.payload_length() > 0 {
                out.extend(&job.data);
            }
            jobs[slot_index(head.cookie())] = Some(job);
        }
        // Nothing was sent: the error affects this command only.
        Err(misuse) => drop(job.reply.send(Err(misuse.into()))),
    }
}

/// Handles all that has arrived.
fn receive(
    machine: &mut Transmission<[Slot; IN_FLIGHT]>,
    jobs: &mut [Option<Job>; IN_FLIGHT],
    held: &mut Vec<u8>,
) -> Result<(), nbd_codec::Error> {
    let mut input = held.as_slice();
    while let Some(event) = machine.receive(&mut input)? {
        match event {
            Event::Data {
                cookie,
                offset,
                data,
            } => {
                if let Some(job) = &mut jobs[slot_index(cookie)] {
                    let at = (offset - job.request.offset) as usize;
                    job.data[at..at + data.len()].copy_from_slice(data);
                }
            }
            Event::Hole {
                cookie,
                offset,
                length,
            } => {
                if let Some(job) = &mut jobs[slot_index(cookie)] {
                    let at = (offset - job.request.offset) as usize;
                    job.data[at..at + length as usize].fill(0);
                }
            }
            Event::Done { cookie, result } => {
                if let Some(job) = jobs[slot_index(cookie)].take() {
                    let result = result.map(|()| job.data).map_err(Error::from);
                    // The waiting task may have been dropped.
                    let _ = job.reply.send(result);
                }
            }
            _ => {}
        }
    }
    let used = held.len() - input.len();
    held.drain(..used);
    Ok(())
}

/// The handshake. Also returns what was received after it.
async fn handshake(stream: &mut TcpStream, export: &str) -> Result<(Negotiated, Vec<u8>), Error> {
    let mut machine = Connect::new(Plan::new(export))?;
    let mut held = Vec::new();
    let mut out = Vec::new();
    loop {
        let mut input = held.as_slice();
        let (mut ready, mut failed) = (false, None);
        while let Some(event) = machine.receive(&mut input)? {
            match event {
                connect::Event::Ready => {
                    ready = true;
                    break;
                }
                connect::Event::Failed { reason, .. } => failed = Some(reason),
                _ => {}
            }
        }
        let used = held.len() - input.len();
        held.drain(..used);
        if ready {
            let negotiated = machine.into_negotiated().map_err(|_| "not ready")?;
            return Ok((negotiated, held));
        }
        while machine.transmit(&mut out)? > 0 {}
        stream.write_all(&out).await?;
        out.clear();
        if let Some(reason) = failed {
            return Err(reason.into());
        }
        if stream.read_buf(&mut held).await? == 0 {
            machine.end_of_input()?;
        }
    }
}
