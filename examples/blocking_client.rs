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
use nbd_codec::{Limits, Negotiated, SessionError, Step};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args
        .next()
        .ok_or("usage: blocking_client ADDR:PORT [EXPORT]")?;
    let export = args.next().unwrap_or_default();

    let mut client = Client::connect(&address, &export)?;
    let negotiated = client.session.negotiated();
    let size = negotiated.size;
    let maximum = negotiated.constraints().maximum.min(1 << 20);
    let mut buffer = vec![0; maximum as usize];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(maximum.into());
        let part = &mut buffer[..length as usize];
        client.read(offset, part)?;
        io::stdout().write_all(part)?;
        offset += length;
    }
    Ok(client.disconnect()?)
}

struct Client {
    stream: TcpStream,
    session: Transmission<[Slot; 1]>,
    inbox: Inbox<Vec<u8>>,
}

impl Client {
    fn connect(address: &str, export: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
        let negotiated = handshake(&mut stream, &mut inbox, export)?;
        Ok(Self {
            stream,
            session: Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT),
            inbox,
        })
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let request = Request::read(offset, data.len() as u64);
        self.command(request, &[], data)
    }

    /// Sends a command and waits until it is done. `payload` is the data of a write;
    /// `data` is the buffer of a read.
    fn command(&mut self, request: Request, payload: &[u8], data: &mut [u8]) -> io::Result<()> {
        let header = self.session.submit(request)?;
        self.stream.write_all(header.as_bytes())?;
        self.stream.write_all(payload)?;
        let start = request.offset;
        loop {
            match self.inbox.receive(&mut self.session)? {
                // It is the only command in flight, so its cookie need not be checked.
                Step::Event(TransmissionEvent::Done { result, .. }) => {
                    return Ok(result.map_err(SessionError::from)?);
                }
                Step::Event(TransmissionEvent::Error { message, .. }) => {
                    // `Done` follows, with the error value.
                    message.inspect(|text| eprintln!("server: {text}"));
                }
                Step::Event(_) => {}
                // The session has checked that it is within the request.
                Step::Content(content) => assert!(content.copy_to(start, data)),
                Step::Read(n) => drop(self.inbox.fill(n, |space| self.stream.read(space))?),
                Step::ReadPayload { offset, length, .. } => {
                    // Read directly into the buffer.
                    let place = &mut data[(offset - start) as usize..][..length as usize];
                    self.stream.read_exact(place)?;
                    self.session.advance(length)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
    }

    fn disconnect(mut self) -> io::Result<()> {
        let header = self.session.disconnect()?;
        self.stream.write_all(header.as_bytes())
    }
}

/// The handshake, with the most capable framing that both sides support.
fn handshake(
    stream: &mut TcpStream,
    inbox: &mut Inbox<Vec<u8>>,
    export: &str,
) -> io::Result<Negotiated> {
    let mut connector = Connector::new(Config::new(export))?;
    let (mut out, mut failed) = (Vec::new(), None);
    loop {
        match inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Failed { reason, .. }) => failed = Some(reason),
            Step::Event(_) => {}
            Step::Transmit => drop(connector.transmit(&mut out)?),
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::Finished => break,
            other => return Err(other.unexpected().into()),
        }
        stream.write_all(&out)?;
        out.clear();
    }
    match failed {
        Some(reason) => Err(reason.into()),
        None => Ok(connector
            .into_negotiated()
            .map_err(|_| SessionError::NotReady)?),
    }
}
