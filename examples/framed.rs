//! Both roles with `Framed` of tokio-util: a client, and a server of a disk in
//! memory. Payloads are `Bytes` that share the memory they were read into.
//!
//! ```text
//! cargo run --example framed -- serve 127.0.0.1:10809
//! cargo run --example framed -- copy 127.0.0.1:10809 > disk.img
//! ```

use std::io::{self, Write};
use std::{mem::take, num::NonZeroUsize, sync::Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use nbd_codec::client::OwnedTransmissionEvent::Done;
use nbd_codec::client::{self, ConnectEvent, Connector, Slot};
use nbd_codec::inbox::{Inbox, Payloads, ReceiveOwned, receive_owned};
use nbd_codec::server::HandshakeEvent::{Export, List, MetaContexts, Ready};
use nbd_codec::server::{self, Handshake, Request, TransmissionEvent as Event};
use nbd_codec::wire::{flags::TransmissionFlags as Flags, number::ErrorValue};
use nbd_codec::{Content, Limits, SessionError, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Encoder, Framed};

const PART: u64 = 256 << 10;
static DISK: Mutex<[u8; 16 << 20]> = Mutex::new([0; 16 << 20]);

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("serve"), Some(address)) => {
            let listener = TcpListener::bind(address).await?;
            println!("nbd://{}", listener.local_addr()?);
            loop {
                tokio::spawn(serve(listener.accept().await?.0));
            }
        }
        (Some("copy"), Some(address)) => {
            let mut client = connect(TcpStream::connect(address).await?).await?;
            let mut image = vec![0; client.codec().0.negotiated().size as usize];
            let put = |content: Content<Bytes>| assert!(content.copy_to(0, &mut image));
            copy(&mut client, put).await?;
            io::stdout().write_all(&image)
        }
        _ => Err(io::Error::other("usage: framed serve|copy ADDR:PORT")),
    }
}

/// A state machine of the transmission phase as a codec.
pub struct Codec<M>(pub M);

impl<M: ReceiveOwned> Decoder for Codec<M> {
    type Item = Step<M::Owned, Bytes>;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        let step = receive_owned(&mut self.0, buffer, Payloads::Whole)?;
        Ok(step.read_limit().is_none().then_some(step))
    }
}

impl<M, H: AsRef<[u8]>, P: AsRef<[u8]>> Encoder<(H, P)> for Codec<M> {
    type Error = io::Error;

    fn encode(&mut self, (header, payload): (H, P), buffer: &mut BytesMut) -> io::Result<()> {
        buffer.extend_from_slice(header.as_ref());
        buffer.extend_from_slice(payload.as_ref());
        Ok(())
    }
}

/// A client's connection.
pub type Client = Framed<TcpStream, Codec<client::Transmission<[Slot; 16]>>>;

/// Connects to the default export.
pub async fn connect(mut stream: TcpStream) -> io::Result<Client> {
    let mut connector = Connector::new(client::Config::new(""))?;
    let (mut inbox, mut out) = (Inbox::new(vec![0; 8216]), BytesMut::new());
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(n) => fill(&mut inbox, n, &mut stream).await?,
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&take(&mut out)).await?;
    }
    let ready = connector.into_negotiated();
    let negotiated = ready.map_err(|_| SessionError::NotReady)?;
    let session = client::Transmission::new(negotiated, [Slot::EMPTY; 16], Limits::DEFAULT);
    Ok(Framed::new(stream, Codec(session)))
}

/// Reads the export, with many reads in flight. Content comes in any order.
pub async fn copy(client: &mut Client, mut put: impl FnMut(Content<Bytes>)) -> io::Result<()> {
    let size = client.codec().0.negotiated().size;
    let mut parts = (0..size).step_by(PART as usize);
    loop {
        for offset in parts.by_ref().take(16 - client.codec().0.in_flight()) {
            let read = client::Request::read(offset, PART.min(size - offset));
            let header = client.codec_mut().0.submit(read)?;
            client.send((header, "")).await?;
        }
        if client.codec().0.in_flight() == 0 {
            let disc = client.codec_mut().0.disconnect()?;
            return client.send((disc, "")).await;
        }
        match client.next().await.transpose()? {
            Some(Step::Content(content)) => put(content),
            Some(Step::Event(Done { result, .. })) => result.map_err(SessionError::from)?,
            Some(Step::Event(_)) => {}
            Some(other) => return Err(other.unexpected().into()),
            None => client.codec_mut().0.end_of_input()?,
        }
    }
}

/// Serves the disk to one client.
pub async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let disk = server::Export::new("", 16 << 20, Flags::SEND_FLUSH | Flags::CAN_MULTI_CONN);
    let mut server = Handshake::new(server::Config::new())?;
    let (mut inbox, mut out) = (Inbox::new(vec![0; 8216]), BytesMut::new());
    loop {
        match inbox.receive(&mut server)? {
            Step::Event(Ready { .. }) => break,
            Step::Event(List) => drop(server.finish_list(&mut out)?),
            Step::Event(Export(q) | MetaContexts(q)) => drop(server.grant(&q, &disk, &mut out)?),
            Step::Transmit => drop(server.transmit(&mut out)?),
            Step::Read(n) => fill(&mut inbox, n, &mut stream).await?,
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&take(&mut out)).await?;
    }
    let ready = server.into_negotiated();
    let negotiated = ready.map_err(|_| SessionError::NotReady)?;
    let session = server::Transmission::new(negotiated, Limits::DEFAULT)?;
    let (mut client, mut payload) = (Framed::new(stream, Codec(session)), Bytes::new());
    while let Some(step) = client.next().await {
        match step? {
            // The request of a write follows its payload.
            Step::Content(Content::Data { data, .. }) => payload = data,
            Step::Event(Event::Request(request)) => client.send(reply(request, &payload)).await?,
            Step::Event(Event::Rejected { reply, .. }) => {
                client.send((Bytes::from(reply), "")).await?
            }
            Step::Event(_) => {}
            Step::Finished => break,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(client.codec_mut().0.end_of_input()?)
}

/// The header and the data of the reply.
fn reply(request: Request, payload: &[u8]) -> (Bytes, Vec<u8>) {
    let mut disk = DISK.lock().unwrap();
    let reply = match request {
        Request::Read(read) => {
            let data = disk[read.offset() as usize..][..read.length() as usize].to_vec();
            return (Bytes::copy_from_slice(read.data().as_bytes()), data);
        }
        Request::Write(write) => {
            disk[write.offset() as usize..][..payload.len()].copy_from_slice(payload);
            write.succeed()
        }
        Request::Flush(flush) => flush.succeed(),
        other => other.fail(ErrorValue::EINVAL, ""),
    };
    (reply.into(), vec![])
}

/// Reads nothing that comes after the handshake, so that `Framed` reads it.
async fn fill(inbox: &mut Inbox<Vec<u8>>, n: NonZeroUsize, from: &mut TcpStream) -> io::Result<()> {
    let n = from.read(inbox.space_for(n)).await?;
    Ok(inbox.filled(n)?)
}
