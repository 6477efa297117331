//! A client that keeps 32 reads in flight. Each reply is read from the socket
//! directly into the buffer of its command: the data is never copied.
//!
//! Copies an export to a file:
//!
//! ```text
//! cargo run --release --example direct_reads -- 127.0.0.1:10809 EXPORT disk.img
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::{Event, Request, Slot, Transmission, slot_index};
use nbd_codec::{Limits, Need, Negotiated};

const IN_FLIGHT: usize = 32;
const LENGTH: u64 = 256 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, export, path] = args.as_slice() else {
        return Err("usage: direct_reads ADDR:PORT EXPORT FILE".into());
    };
    let mut file = File::create(path)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let negotiated = handshake(&mut stream, export)?;
    file.set_len(negotiated.size)?;
    copy(&mut stream, negotiated, &mut file)
}

/// A read in flight, and the buffer for its data.
#[derive(Default)]
struct Job {
    offset: u64,
    data: Vec<u8>,
}

impl Job {
    /// The buffer for a part of it; `offset` is from the start of the export.
    fn place(&mut self, offset: u64, length: u64) -> &mut [u8] {
        let at = (offset - self.offset) as usize;
        &mut self.data[at..at + length as usize]
    }
}

fn copy(
    stream: &mut TcpStream,
    negotiated: Negotiated,
    file: &mut File,
) -> Result<(), Box<dyn Error>> {
    let size = negotiated.size;
    let most = LENGTH.min(negotiated.constraints().maximum.into());
    let mut machine = Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT);
    // One for each slot; `slot_index` of a cookie is the slot of its command.
    let mut jobs: [Job; IN_FLIGHT] = Default::default();
    let mut held = Vec::new();
    let mut next = 0;
    loop {
        // Fills all slots. (Requests are short: the socket accepts them even while
        // the server waits until its replies are read.)
        let mut out = Vec::new();
        while next < size && machine.in_flight() < IN_FLIGHT {
            let length = most.min(size - next);
            let head = machine.submit(Request::read(next, length))?;
            out.extend(head.as_bytes());
            let job = &mut jobs[slot_index(head.cookie())];
            job.offset = next;
            job.data.resize(length as usize, 0);
            next += length;
        }
        stream.write_all(&out)?;
        if machine.in_flight() == 0 {
            let goodbye = machine.disconnect()?;
            return Ok(stream.write_all(goodbye.as_bytes())?);
        }

        let mut input = held.as_slice();
        let event = machine.receive(&mut input)?;
        let used = held.len() - input.len();
        match event {
            Some(Event::Hole {
                cookie,
                offset,
                length,
            }) => {
                jobs[slot_index(cookie)]
                    .place(offset, length.into())
                    .fill(0);
            }
            Some(Event::Done { cookie, result }) => {
                result?;
                let job = &jobs[slot_index(cookie)];
                file.seek(SeekFrom::Start(job.offset))?;
                file.write_all(&job.data)?;
            }
            Some(_) => {}
            None => {
                held.drain(..used);
                read_more(stream, &mut machine, &mut jobs, &mut held)?;
                continue;
            }
        }
        held.drain(..used);
    }
}

/// Reads as much of a header as is needed, and nothing of the payload that follows;
/// or the payload, directly into its buffer.
fn read_more(
    stream: &mut TcpStream,
    machine: &mut Transmission<[Slot; IN_FLIGHT]>,
    jobs: &mut [Job; IN_FLIGHT],
    held: &mut Vec<u8>,
) -> Result<(), Box<dyn Error>> {
    match machine.need() {
        Need::Payload {
            cookie,
            offset,
            length,
        } => {
            let place = jobs[slot_index(cookie)].place(offset, length);
            let read = stream.read(place)?;
            if read == 0 {
                machine.end_of_input()?;
            }
            // What is missing is read by the next call.
            Ok(machine.advance(read as u64)?)
        }
        need => Ok(fill(stream, held, need)?),
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
