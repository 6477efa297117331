//! A server for tokio: an export in memory, any number of connections, and many
//! requests in flight on each. Each is answered when it is done, so that a long
//! request does not delay later ones. SIZE is in bytes.
//!
//! ```text
//! cargo run --release --example tokio_server -- 127.0.0.1:10809 67108864
//! ```

use std::sync::Arc;
use std::time::Duration;

use nbd_codec::inbox::Inbox;
use nbd_codec::server::{Config, Export, Handshake, HandshakeEvent, Request};
use nbd_codec::server::{Transmission, TransmissionEvent};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ErrorValue, OptionReplyType};
use nbd_codec::{Limits, Misuse, Negotiated, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, mpsc};
use tokio::time::{sleep, timeout};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Disk = Arc<RwLock<Vec<u8>>>;

const EXPORT: &str = "memory";
/// The most requests in flight on a connection, and the longest payload of each.
/// Their product is the most memory of a connection, but for small buffers.
const IN_FLIGHT: usize = 16;
const MAXIMUM: u32 = 4 << 20;
/// How long the handshake of a client may take, in all.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long to wait if no client can be accepted, for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// How much is read at a time.
const BUFFER: usize = 64 << 10;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: tokio_server ADDR:PORT SIZE";
    let (address, size) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let size: usize = size.parse()?;
    let disk: Disk = Arc::new(RwLock::new(vec![0; size]));
    let listener = TcpListener::bind(address).await?;
    println!("nbd://{}/{EXPORT}", listener.local_addr()?);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // The client has disconnected already, or there are too many: the
            // others are still served.
            sleep(PAUSE).await;
            continue;
        };
        let disk = Arc::clone(&disk);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, disk, size as u64).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

async fn serve(mut stream: TcpStream, disk: Disk, size: u64) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let mut inbox = Inbox::new(vec![0; BUFFER]);
    let negotiated = handshake(&mut stream, &mut inbox, size);
    let Some(negotiated) = timeout(HANDSHAKE_TIME, negotiated).await?? else {
        return Ok(());
    };
    let (from, to) = stream.into_split();
    let (replies, queue) = mpsc::channel(IN_FLIGHT);
    // It ends when the last request in flight has sent its reply.
    let writer = tokio::spawn(write(to, queue));
    let received = receive(from, inbox, negotiated, disk, replies).await;
    let written = writer.await?;
    received.and(written)
}

/// A reply, and its place among the requests in flight.
type Sent = (Vec<u8>, OwnedSemaphorePermit);

/// Writes replies, each as a whole, in the order in which requests are done.
async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Sent>) -> Result<(), Error> {
    while let Some((reply, permit)) = queue.recv().await {
        to.write_all(&reply).await?;
        // A request is in flight until its reply is written: a client that does not
        // read gets no more memory.
        drop((reply, permit));
    }
    Ok(())
}

/// Receives requests, and starts a task for each.
async fn receive(
    mut from: impl AsyncReadExt + Unpin,
    mut inbox: Inbox<Vec<u8>>,
    negotiated: Negotiated,
    disk: Disk,
    replies: mpsc::Sender<Sent>,
) -> Result<(), Error> {
    let mut session = Transmission::new(negotiated, Limits::DEFAULT)?;
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    // The data of the write that arrives, and its offset.
    let (mut start, mut payload) = (0, Vec::new());
    let mut admitted = None;
    loop {
        match inbox.receive(&mut session)? {
            Step::Event(TransmissionEvent::WritePayload { offset, length, .. }) => {
                admitted = Some(Arc::clone(&room).acquire_owned().await?);
                (start, payload) = (offset, vec![0; length as usize]);
            }
            // What has arrived with the header.
            Step::Content(data) => assert!(data.copy_to(start, &mut payload)),
            // What follows, directly into the buffer.
            Step::ReadPayload { offset, length, .. } => {
                let place = &mut payload[(offset - start) as usize..][..length as usize];
                from.read_exact(place).await?;
                session.advance(length)?;
            }
            Step::Event(TransmissionEvent::Request(request)) => {
                let permit = match admitted.take() {
                    Some(permit) => permit,
                    None => Arc::clone(&room).acquire_owned().await?,
                };
                let payload = std::mem::take(&mut payload);
                let (disk, replies) = (Arc::clone(&disk), replies.clone());
                tokio::spawn(async move {
                    let reply = answer(request, &payload, &disk).await;
                    // An error means that the connection is closed.
                    let _ = replies.send((reply, permit)).await;
                });
            }
            Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                let permit = Arc::clone(&room).acquire_owned().await?;
                replies.send((reply.parts().concat(), permit)).await?;
            }
            Step::Event(_) => {} // Disconnect: `Step::Finished` follows.
            Step::Read(_) => read_more(&mut from, &mut inbox).await?,
            Step::Finished => return Ok(()),
            other => return Err(other.unexpected().into()),
        }
    }
}

/// Executes a request, which the state machine has validated, and encodes the reply.
async fn answer(request: Request, payload: &[u8], disk: &Disk) -> Vec<u8> {
    let place = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
    let reply = match request {
        Request::Read(read) => {
            let place = place(read.offset(), read.length().into());
            let disk = disk.read().await;
            return [read.data().as_bytes(), &disk[place]].concat();
        }
        Request::Write(write) => {
            let place = place(write.offset(), write.length());
            disk.write().await[place].copy_from_slice(payload);
            write.succeed()
        }
        Request::WriteZeroes(zeroes) => {
            let place = place(zeroes.offset(), zeroes.length());
            disk.write().await[place].fill(0);
            zeroes.succeed()
        }
        Request::Flush(flush) => flush.succeed(),
        // No other command is advertised.
        other => other.fail(ErrorValue::EINVAL, "not advertised"),
    };
    reply.parts().concat()
}

/// The handshake. What was received after it stays in the inbox. `None`: the client
/// ended the handshake without entering transmission.
async fn handshake(
    stream: &mut TcpStream,
    inbox: &mut Inbox<Vec<u8>>,
    size: u64,
) -> Result<Option<Negotiated>, Error> {
    // Memory needs no flush, so that FUA is kept by every write.
    let flags = TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_DF
        | TransmissionFlags::CAN_MULTI_CONN;
    let mut export = Export::new(EXPORT, size, flags);
    export.block_sizes.maximum = MAXIMUM;
    let mut handshake = Handshake::new(Config::new())?;
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut handshake)? {
            Step::Event(event) => react(&mut handshake, event, &export, &mut out)?,
            Step::Transmit => drop(handshake.transmit(&mut out)?),
            Step::Read(_) => read_more(stream, inbox).await?,
            Step::Finished => return Ok(handshake.into_negotiated().ok()),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out).await?;
        out.clear();
    }
}

/// Answers what the client asks about exports.
fn react(
    handshake: &mut Handshake,
    event: HandshakeEvent<'_>,
    export: &Export<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Misuse> {
    match event {
        HandshakeEvent::List => {
            handshake.list(export, out)?;
            handshake.finish_list(out)?;
        }
        HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
            match query.export() {
                "" | EXPORT => drop(handshake.grant(&query, export, out)?),
                _ => drop(handshake.refuse(OptionReplyType::ERR_UNKNOWN, "no such export", out)?),
            }
        }
        // Ready or aborted: `Step::Finished` follows.
        _ => {}
    }
    Ok(())
}

/// Reads what is available.
async fn read_more(
    from: &mut (impl AsyncReadExt + Unpin),
    inbox: &mut Inbox<Vec<u8>>,
) -> Result<(), Error> {
    let n = from.read(inbox.space()).await?;
    Ok(inbox.filled(n)?)
}
