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

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::{Limits, Need, Negotiated};

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
    /// Received and not consumed: at most a part of a header.
    held: Vec<u8>,
}

impl Client {
    fn connect(address: &str, export: &str) -> Result<Self, Box<dyn Error>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let negotiated = handshake(&mut stream, export)?;
        Ok(Self {
            stream,
            machine: Transmission::new(negotiated, [Slot::EMPTY], Limits::DEFAULT),
            held: Vec::new(),
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
        let head = self.machine.submit(request)?;
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(payload)?;
        let place = |offset: u64| (offset - request.offset) as usize;
        loop {
            // First all events, then the next read.
            let mut input = self.held.as_slice();
            let event = self.machine.receive(&mut input)?;
            let idle = event.is_none();
            let mut done = None;
            match event {
                // It is the only command in flight, so its cookie need not be checked.
                Some(Event::Done { result, .. }) => done = Some(result),
                Some(Event::Hole { offset, length, .. }) => {
                    data[place(offset)..][..length as usize].fill(0);
                }
                Some(Event::Error { message, .. }) => {
                    // `Done` follows, with the error value.
                    message.inspect(|text| eprintln!("server: {text}"));
                }
                _ => {}
            }
            let used = self.held.len() - input.len();
            self.held.drain(..used);
            if let Some(result) = done {
                return Ok(result?);
            }
            if !idle {
                continue;
            }
            match self.machine.need() {
                Need::Payload { offset, length, .. } => {
                    // Read directly into the buffer.
                    let place = &mut data[place(offset)..][..length as usize];
                    self.stream.read_exact(place)?;
                    self.machine.advance(length)?;
                }
                need => fill(&mut self.stream, &mut self.held, need)?,
            }
        }
    }

    fn disconnect(mut self) -> Result<(), Box<dyn Error>> {
        let head = self.machine.disconnect()?;
        Ok(self.stream.write_all(head.as_bytes())?)
    }
}

/// The handshake, with the most capable framing that both sides support.
fn handshake(stream: &mut TcpStream, export: &str) -> Result<Negotiated, Box<dyn Error>> {
    let mut machine = Connect::new(Plan::new(export))?;
    let mut held = Vec::new();
    loop {
        let mut input = held.as_slice();
        let event = machine.receive(&mut input)?;
        let idle = event.is_none();
        let mut failed = None;
        match event {
            Some(connect::Event::Ready) => break,
            Some(connect::Event::Failed { reason, .. }) => failed = Some(reason),
            _ => {}
        }
        let used = held.len() - input.len();
        held.drain(..used);
        let mut out = Vec::new();
        machine.transmit(&mut out)?;
        stream.write_all(&out)?;
        match failed {
            Some(reason) => return Err(reason.into()),
            None if idle => fill(stream, &mut held, machine.need())?,
            None => {}
        }
    }
    machine
        .into_negotiated()
        .map_err(|_| "the handshake has not ended".into())
}

/// Reads what is needed, or a part of it.
fn fill(stream: &mut TcpStream, held: &mut Vec<u8>, need: Need) -> io::Result<()> {
    let Need::Header(needed) = need else {
        return Ok(());
    };
    let missing = needed.saturating_sub(held.len()).min(8192);
    let start = held.len();
    held.resize(start + missing, 0);
    let read = stream.read(&mut held[start..])?;
    held.truncate(start + read);
    if missing > 0 && read == 0 {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(())
    }
}
