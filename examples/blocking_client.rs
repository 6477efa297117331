//! A blocking client with the standard library alone: one command at a time, and
//! only the bytes that are needed are read.
//!
//! Copies an export to standard output:
//!
//! ```text
//! cargo run --example blocking_client -- 127.0.0.1:10809 EXPORT > disk.img
//! ```

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use nbd_codec::client::{Config, ConnectEvent, Connector};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Limits, Negotiated, Step};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args
        .next()
        .ok_or("usage: blocking_client ADDR:PORT [EXPORT]")?;
    let export = args.next().unwrap_or_default();

    let mut client = Client::connect(&address, &export)?;
    let size = client.machine.negotiated().size;
    let most = client
        .machine
        .negotiated()
        .constraints()
        .maximum
        .min(1 << 20);
    let mut buffer = vec![0; most as usize];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(u64::from(most));
        let part = &mut buffer[..length as usize];
        client.read(offset, part)?;
        io::stdout().write_all(part)?;
        offset += length;
    }
    client.disconnect()
}

struct Client {
    stream: TcpStream,
    machine: Transmission<[Slot; 1]>,
    inbox: Inbox<Vec<u8>>,
}

impl Client {
    fn connect(address: &str, export: &str) -> Result<Self, Box<dyn Error>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
        let negotiated = handshake(&mut stream, &mut inbox, export)?;
        Ok(Self {
            stream,
            machine: Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT),
            inbox,
        })
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Box<dyn Error>> {
        let request = Request::read(offset, data.len() as u64);
        self.command(request, &[], data)
    }

    /// Sends a command and waits until it is done. `payload` is the data of a write;
    /// `data` is the buffer of a read.
    fn command(
        &mut self,
        request: Request,
        payload: &[u8],
        data: &mut [u8],
    ) -> Result<(), Box<dyn Error>> {
        let Self {
            stream,
            machine,
            inbox,
        } = self;
        stream.write_all(machine.submit(request)?.as_bytes())?;
        stream.write_all(payload)?;
        loop {
            match inbox.receive(machine)? {
                // It is the only command in flight, so its cookie need not be checked.
                Step::Event(TransmissionEvent::Done { result, .. }) => return Ok(result?),
                Step::Event(TransmissionEvent::Error { message, .. }) => {
                    // `Done` follows, with the error value.
                    message.inspect(|text| eprintln!("server: {text}"));
                }
                Step::Event(_) => {}
                Step::Content(content) => assert!(content.copy_to(request.offset, data)),
                Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
                Step::ReadPayload { offset, length, .. } => {
                    // Read directly into the buffer.
                    let start = (offset - request.offset) as usize;
                    stream.read_exact(&mut data[start..][..length as usize])?;
                    machine.advance(length)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
    }

    fn disconnect(mut self) -> Result<(), Box<dyn Error>> {
        let header = self.machine.disconnect()?;
        Ok(self.stream.write_all(header.as_bytes())?)
    }
}

/// The handshake, with the most capable framing that both sides support.
fn handshake(
    stream: &mut TcpStream,
    inbox: &mut Inbox<Vec<u8>>,
    export: &str,
) -> Result<Negotiated, Box<dyn Error>> {
    let mut connector = Connector::new(Config::new(export))?;
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
    connector
        .into_negotiated()
        .map_err(|_| "the handshake has not ended".into())
}
