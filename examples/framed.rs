//! Both roles with `Framed` of tokio-util: a client, and a server of a disk in
//! memory. Payloads are `Bytes` that share the memory they were read into.
//!
//! ```text
//! cargo run --example framed -- serve 127.0.0.1:10809
//! cargo run --example framed -- copy 127.0.0.1:10809 > disk.img
//! ```

use std::{io, io::Write, mem::take, sync::Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use nbd_codec::client::{self, ConnectEvent, Connector, OwnedTransmissionEvent::Done, Slot};
use nbd_codec::inbox::{Inbox, Payloads, ReceiveOwned, receive_owned};
use nbd_codec::server::HandshakeEvent::{Export, List, MetaContexts, Ready};
use nbd_codec::server::{self, Handshake, Request::*, TransmissionEvent::*};
use nbd_codec::wire::{flags::TransmissionFlags, number::ErrorValue};
use nbd_codec::{Content, Limits, SessionError, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Framed};

static DISK: Mutex<[u8; 16 << 20]> = Mutex::new([0; 16 << 20]);

#[tokio::main]
async fn main() -> io::Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let (role, address) = match &args[..] {
        [role, address] => (role.as_str(), address),
        _ => return Err(io::Error::other("usage: framed serve|copy ADDR:PORT")),
    };
    if role == "copy" {
        let image = copy(&mut connect(TcpStream::connect(address).await?).await?).await?;
        return io::stdout().write_all(&image);
    }
    let listener = TcpListener::bind(address).await?;
    println!("nbd://{}", listener.local_addr()?);
    loop {
        tokio::spawn(serve(listener.accept().await?.0));
    }
}

/// A state machine of the transmission phase, as a decoder.
pub struct Codec<M>(pub M);

impl<M: ReceiveOwned> Decoder for Codec<M> {
    type Item = Step<M::Owned, Bytes>;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        let step = receive_owned(&mut self.0, buffer, Payloads::Whole)?;
        Ok(step.read_limit().is_none().then_some(step))
    }
}

/// A client's connection.
pub type Client = Framed<TcpStream, Codec<client::Transmission<[Slot; 1]>>>;

/// Connects to the default export. Nothing is read that comes after the handshake.
pub async fn connect(mut stream: TcpStream) -> io::Result<Client> {
    let mut connector = Connector::new(client::Config::new(""))?;
    let (mut inbox, mut out) = (Inbox::new(vec![0; Limits::DEFAULT.buffer()]), Vec::new());
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(n) => drop(
                inbox
                    .fill_async(n, async |to| stream.read(to).await)
                    .await?,
            ),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&take(&mut out)).await?;
    }
    let negotiated = connector.into_negotiated().map_err(SessionError::from)?;
    let session = client::Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT);
    Ok(Framed::new(stream, Codec(session)))
}

/// Reads the whole export.
pub async fn copy(client: &mut Client) -> io::Result<Vec<u8>> {
    let negotiated = client.codec().0.negotiated();
    let mut image = vec![0; negotiated.size as usize];
    for read in negotiated.split(client::Request::read(0, negotiated.size)) {
        let header = client.codec_mut().0.submit(read)?;
        client.get_mut().write_all(header.as_bytes()).await?;
        loop {
            match client.next().await.transpose()? {
                Some(Step::Content(content)) => assert!(content.copy_to(0, &mut image)),
                Some(Step::Event(Done { result, .. })) => {
                    break result.map_err(SessionError::from)?;
                }
                Some(Step::Event(_)) => {}
                Some(other) => return Err(other.unexpected().into()),
                None => client.codec_mut().0.end_of_input()?,
            }
        }
    }
    Ok(image)
}

/// Serves the disk to one client.
pub async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let disk = server::Export::new("", 16 << 20, TransmissionFlags::CAN_MULTI_CONN);
    let mut server = Handshake::new(server::Config::new())?;
    let (mut inbox, mut out) = (Inbox::new(vec![0; Limits::DEFAULT.buffer()]), Vec::new());
    loop {
        match inbox.receive(&mut server)? {
            Step::Event(Ready { .. }) => break,
            Step::Event(List) => drop(server.finish_list(&mut out)?),
            Step::Event(Export(q) | MetaContexts(q)) => drop(server.grant(&q, &disk, &mut out)?),
            Step::Transmit => drop(server.transmit(&mut out)?),
            Step::Read(n) => drop(
                inbox
                    .fill_async(n, async |to| stream.read(to).await)
                    .await?,
            ),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&take(&mut out)).await?;
    }
    let negotiated = server.into_negotiated().map_err(SessionError::from)?;
    let session = server::Transmission::new(negotiated, Limits::DEFAULT)?;
    let (mut client, mut payload) = (Framed::new(stream, Codec(session)), Bytes::new());
    while let Some(step) = client.next().await.transpose()? {
        let reply = match step {
            // It is followed by the request of the write.
            Step::Content(Content::Data { data, .. }) => {
                payload = data;
                continue;
            }
            Step::Event(Request(Read(read))) => {
                let range =
                    read.offset() as usize..(read.offset() + u64::from(read.length())) as usize;
                [read.data().as_bytes(), &DISK.lock().unwrap()[range]].concat()
            }
            Step::Event(Request(Write(write))) => {
                let at = write.offset() as usize;
                DISK.lock().unwrap()[at..][..payload.len()].copy_from_slice(&payload);
                write.succeed().parts().concat()
            }
            Step::Event(Request(other)) => other.fail(ErrorValue::EINVAL, "").parts().concat(),
            Step::Event(Answered { reply, .. }) => reply.parts().concat(),
            Step::Event(_) => continue,
            Step::Finished => break,
            other => return Err(other.unexpected().into()),
        };
        client.get_mut().write_all(&reply).await?;
    }
    Ok(client.codec_mut().0.end_of_input()?)
}
