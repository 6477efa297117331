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
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;

use nbd_codec::client::{Config, ConnectEvent, Connector};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Limits, Negotiated, Step};

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
    let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
    let negotiated = handshake(&mut stream, &mut inbox, export)?;
    file.set_len(negotiated.size)?;
    copy(&mut stream, &mut inbox, negotiated, &mut file)
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
    inbox: &mut Inbox<Vec<u8>>,
    negotiated: Negotiated,
    file: &mut File,
) -> Result<(), Box<dyn Error>> {
    let size = negotiated.size;
    let most = LENGTH.min(negotiated.constraints().maximum.into());
    let mut machine = Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT);
    // One for each slot; `slot_index` of a cookie is the slot of its command.
    let mut jobs: [Job; IN_FLIGHT] = Default::default();
    let mut next = 0;
    loop {
        // Fills all slots. (Requests are short: the socket accepts them even while
        // the server waits until its replies are read.)
        let mut out = Vec::new();
        while next < size && machine.in_flight() < IN_FLIGHT {
            let length = most.min(size - next);
            let header = machine.submit(Request::read(next, length))?;
            out.extend(header.as_bytes());
            let job = &mut jobs[slot_index(header.cookie())];
            job.offset = next;
            job.data.resize(length as usize, 0);
            next += length;
        }
        stream.write_all(&out)?;
        if machine.in_flight() == 0 {
            let disc = machine.disconnect()?;
            return Ok(stream.write_all(disc.as_bytes())?);
        }

        match inbox.receive(&mut machine)? {
            Step::Event(TransmissionEvent::Done { cookie, result }) => {
                result?;
                let job = &jobs[slot_index(cookie)];
                file.seek(SeekFrom::Start(job.offset))?;
                file.write_all(&job.data)?;
            }
            Step::Event(_) => {}
            // A hole: data is read directly.
            Step::Content(content) => {
                let job = &mut jobs[slot_index(content.cookie())];
                assert!(content.copy_to(job.offset, &mut job.data));
            }
            // As much of a header as is needed, and nothing of the payload after it.
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => {
                let read = stream.read(jobs[slot_index(cookie)].place(offset, length))?;
                if read == 0 {
                    machine.end_of_input()?;
                }
                // What is missing is read by the next step.
                machine.advance(read as u64)?;
            }
            other => return Err(other.unexpected().into()),
        }
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
