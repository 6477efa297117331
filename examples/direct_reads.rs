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

use nbd_codec::client::{Config, ConnectEvent, Connector};
use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent, slot_index};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Limits, Negotiated, SessionError, Step};

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
    Ok(copy(&mut stream, &mut inbox, negotiated, &mut file)?)
}

/// A read in flight, and the buffer for its data.
#[derive(Default)]
struct Job {
    offset: u64,
    data: Vec<u8>,
}

fn copy(
    stream: &mut TcpStream,
    inbox: &mut Inbox<Vec<u8>>,
    negotiated: Negotiated,
    file: &mut File,
) -> io::Result<()> {
    let size = negotiated.size;
    let maximum = LENGTH.min(negotiated.constraints().maximum.into());
    let mut session = Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT);
    // One for each slot; `slot_index` of a cookie is the slot of its command.
    let mut jobs: [Job; IN_FLIGHT] = Default::default();
    let (mut next, mut out) = (0, Vec::new());
    loop {
        // Fills all slots. (Requests are short: the socket accepts them even while
        // the server waits until its replies are read.)
        while next < size && session.in_flight() < IN_FLIGHT {
            let length = maximum.min(size - next);
            let header = session.submit(Request::read(next, length))?;
            out.extend(header.as_bytes());
            let job = &mut jobs[slot_index(header.cookie())];
            job.offset = next;
            job.data.resize(length as usize, 0);
            next += length;
        }
        if session.in_flight() == 0 {
            return stream.write_all(session.disconnect()?.as_bytes());
        }
        stream.write_all(&out)?;
        out.clear();

        match inbox.receive(&mut session)? {
            Step::Event(TransmissionEvent::Done { cookie, result }) => {
                result.map_err(SessionError::from)?;
                let job = &jobs[slot_index(cookie)];
                file.seek(SeekFrom::Start(job.offset))?;
                file.write_all(&job.data)?;
            }
            Step::Event(_) => {}
            // A hole. The session has checked that it is within the request.
            Step::Content(content) => {
                let job = &mut jobs[slot_index(content.cookie())];
                assert!(content.copy_to(job.offset, &mut job.data));
            }
            // As much of a header as is needed, and nothing of the payload that follows.
            Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
            // The payload, directly into its buffer.
            Step::ReadPayload {
                cookie,
                offset,
                length,
            } => {
                let job = &mut jobs[slot_index(cookie)];
                let start = (offset - job.offset) as usize;
                let n = stream.read(&mut job.data[start..][..length as usize])?;
                if n == 0 {
                    session.end_of_input()?;
                }
                // What is missing is asked for by the next step.
                session.advance(n as u64)?;
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
