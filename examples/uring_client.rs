//! A client on `io_uring`, with 32 reads in flight. The kernel puts the data of
//! each into the page-aligned buffer of its command, and from there into the
//! file: the program never touches it.
//!
//! Copies an export to a file:
//!
//! ```text
//! cargo run --release --example uring_client -- 127.0.0.1:10809 EXPORT disk.img
//! ```
//!
//! This is what [`Need`] is for. Who hands a buffer to the kernel cannot use it
//! meanwhile, and has to say before how much is to go there. `need` says which
//! command the next bytes belong to, where in it, and how many they are, so the
//! buffer goes along with the order, and comes back with what was received.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::{Event, Request, Slot, Transmission, slot_index};
use nbd_codec::{Framing, Limits, Need, Negotiated};
use ring::{Desk, Order, Ring};

#[expect(dead_code, reason = "some of it is for the server")]
#[expect(
    unsafe_code,
    reason = "what the kernel works on is beyond the compiler"
)]
#[path = "shared/ring.rs"]
mod ring;

const IN_FLIGHT: usize = 32;
const LENGTH: u64 = 256 << 10;

/// As many again are being written to the file.
const BUFFERS: usize = 2 * IN_FLIGHT;

const PAGE: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, export, path] = args.as_slice() else {
        return Err("usage: uring_client ADDR:PORT EXPORT FILE".into());
    };
    let ring = Ring::new(64).map_err(|error| format!("no io_uring: {error}"))?;
    let file = File::create(path)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let negotiated = handshake(&mut stream, export)?;
    file.set_len(negotiated.size)?;
    Copy::new(ring, stream, file, negotiated).run()
}

/// A read in flight, and where its data goes.
struct Job {
    offset: u64,
    length: usize,
    /// With room to begin at a page.
    memory: Vec<u8>,
}

impl Job {
    fn new() -> Self {
        Self {
            offset: 0,
            length: 0,
            memory: vec![0; LENGTH as usize + PAGE],
        }
    }

    fn data(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(PAGE);
        &mut self.memory[start..start + self.length]
    }

    /// The place of a part of it; `offset` from the start of the export.
    fn place(&mut self, offset: u64, length: u64) -> &mut [u8] {
        let at = (offset - self.offset) as usize;
        &mut self.data()[at..at + length as usize]
    }
}

/// What the kernel has in hand, with everything it needs for it. A buffer is
/// here, or among the jobs, or spare; never in two places.
enum Flight {
    Send {
        socket: Arc<TcpStream>,
        heads: Vec<u8>,
        sent: usize,
    },
    /// A payload to its place, if one is due, and headers behind it.
    Receive {
        socket: Arc<TcpStream>,
        payload: Option<Payload>,
        headers: [u8; HEADERS],
        most: usize,
    },
    Write {
        file: Arc<File>,
        job: Job,
        written: usize,
    },
}

/// Of the command with this slot.
struct Payload {
    slot: usize,
    job: Job,
    offset: u64,
    length: u64,
}

/// The longest header with the offset of data behind it.
const HEADERS: usize = 40;

impl ring::Flight for Flight {
    fn order<'f>(&'f mut self, desk: Desk<'f>) -> Order<'f> {
        match self {
            Self::Send {
                socket,
                heads,
                sent,
            } => {
                let rest = &heads[*sent..];
                desk.send((**socket).as_fd(), [rest].into_iter())
            }
            Self::Receive {
                socket,
                payload,
                headers,
                most,
            } => {
                let place = match payload {
                    Some(payload) => payload.job.place(payload.offset, payload.length),
                    None => &mut [],
                };
                desk.receive((**socket).as_fd(), place, &mut headers[..*most])
            }
            Self::Write { file, job, written } => {
                let offset = job.offset + *written as u64;
                desk.write((**file).as_fd(), offset, &job.data()[*written..])
            }
        }
    }
}

struct Copy {
    ring: Ring<Flight>,
    socket: Arc<TcpStream>,
    file: Arc<File>,
    machine: Transmission<[Slot; IN_FLIGHT]>,
    /// One for each slot; the cookie of a command says which slot is its own.
    jobs: [Option<Job>; IN_FLIGHT],
    spare: Vec<Job>,
    /// What was received and is no payload, or came with a header.
    held: Vec<u8>,
    /// Where the next read begins.
    next: u64,
    sending: bool,
    receiving: bool,
    writing: usize,
}

impl Copy {
    fn new(ring: Ring<Flight>, socket: TcpStream, file: File, negotiated: Negotiated) -> Self {
        Self {
            ring,
            socket: Arc::new(socket),
            file: Arc::new(file),
            machine: Transmission::new(negotiated, [Slot::EMPTY; IN_FLIGHT], Limits::DEFAULT),
            jobs: Default::default(),
            spare: (0..BUFFERS).map(|_| Job::new()).collect(),
            held: Vec::new(),
            next: 0,
            sending: false,
            receiving: false,
            writing: 0,
        }
    }

    fn run(mut self) -> Result<(), Box<dyn Error>> {
        let mut landed = Vec::new();
        loop {
            self.take()?;
            self.submit()?;
            self.receive()?;
            if self.machine.in_flight() == 0 && self.writing == 0 {
                let goodbye = self.machine.disconnect()?;
                return Ok((&*self.socket).write_all(goodbye.as_bytes())?);
            }
            // One call for all of it.
            self.ring.wait(None)?;
            self.ring.landed(&mut landed);
            for (flight, result) in landed.drain(..) {
                self.land(flight, result?)?;
            }
        }
    }

    /// As many reads as there are slots and buffers.
    fn submit(&mut self) -> Result<(), Box<dyn Error>> {
        let size = self.machine.negotiated().size;
        let most = LENGTH.min(self.machine.negotiated().constraints().maximum.into());
        if self.sending {
            return Ok(());
        }
        let mut heads = Vec::new();
        while self.next < size && self.machine.in_flight() < IN_FLIGHT {
            let Some(mut job) = self.spare.pop() else {
                break;
            };
            let length = most.min(size - self.next);
            let head = self.machine.submit(Request::read(self.next, length))?;
            heads.extend_from_slice(head.as_bytes());
            (job.offset, job.length) = (self.next, length as usize);
            self.jobs[slot_index(head.cookie())] = Some(job);
            self.next += length;
        }
        if !heads.is_empty() {
            self.sending = true;
            let socket = Arc::clone(&self.socket);
            let sent = 0;
            self.ring.start(Flight::Send {
                socket,
                heads,
                sent,
            })?;
        }
        Ok(())
    }

    /// Takes what has arrived: headers, and the ends of commands.
    fn take(&mut self) -> Result<(), Box<dyn Error>> {
        if self.receiving {
            // The machine waits for a payload that has not come back yet.
            return Ok(());
        }
        let mut input = self.held.as_slice();
        while let Some(event) = self.machine.receive(&mut input)? {
            match event {
                Event::Hole {
                    cookie,
                    offset,
                    length,
                } => {
                    if let Some(job) = &mut self.jobs[slot_index(cookie)] {
                        job.place(offset, length.into()).fill(0);
                    }
                }
                // What came with its header; mostly nothing.
                Event::Data {
                    cookie,
                    offset,
                    data,
                } => {
                    if let Some(job) = &mut self.jobs[slot_index(cookie)] {
                        job.place(offset, data.len() as u64).copy_from_slice(data);
                    }
                }
                Event::Done { cookie, result } => {
                    result?;
                    if let Some(job) = self.jobs[slot_index(cookie)].take() {
                        self.writing += 1;
                        let file = Arc::clone(&self.file);
                        let written = 0;
                        self.ring.start(Flight::Write { file, job, written })?;
                    }
                }
                _ => {}
            }
        }
        let used = self.held.len() - input.len();
        self.held.drain(..used);
        Ok(())
    }

    /// Orders what the machine needs next. Behind a payload there is a header:
    /// it may come along, so that a reply takes one order, not two.
    fn receive(&mut self) -> Result<(), Box<dyn Error>> {
        if self.receiving || self.machine.in_flight() == 0 {
            return Ok(());
        }
        let mut payload = None;
        let most = match self.machine.need() {
            Need::Nothing => return Ok(()),
            Need::Header(needed) => needed.saturating_sub(self.held.len()).min(HEADERS),
            Need::Payload {
                cookie,
                offset,
                length,
            } => {
                let slot = slot_index(cookie);
                let job = self.jobs[slot].take().ok_or("a payload without a read")?;
                payload = Some(Payload {
                    slot,
                    job,
                    offset,
                    length,
                });
                match self.machine.negotiated().framing {
                    Framing::Simple => 16,
                    Framing::Structured => 20 + 8,
                    Framing::Extended => 32 + 8,
                }
            }
        };
        self.receiving = true;
        Ok(self.ring.start(Flight::Receive {
            socket: Arc::clone(&self.socket),
            payload,
            headers: [0; HEADERS],
            most,
        })?)
    }

    /// Something has come back. What is missing is ordered again.
    fn land(&mut self, flight: Flight, n: usize) -> Result<(), Box<dyn Error>> {
        match flight {
            Flight::Send {
                socket,
                heads,
                mut sent,
            } => {
                sent += n;
                self.sending = sent < heads.len();
                if self.sending {
                    self.ring.start(Flight::Send {
                        socket,
                        heads,
                        sent,
                    })?;
                }
            }
            Flight::Receive {
                payload, headers, ..
            } => {
                self.receiving = false;
                if n == 0 {
                    self.machine.end_of_input()?;
                }
                let mut placed = 0;
                if let Some(payload) = payload {
                    placed = n.min(payload.length as usize);
                    self.machine.advance(placed as u64)?;
                    self.jobs[payload.slot] = Some(payload.job);
                }
                self.held.extend_from_slice(&headers[..n - placed]);
            }
            Flight::Write {
                file,
                job,
                mut written,
            } => {
                written += n;
                if n == 0 {
                    return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                }
                if written < job.length {
                    self.ring.start(Flight::Write { file, job, written })?;
                } else {
                    self.writing -= 1;
                    self.spare.push(job);
                }
            }
        }
        Ok(())
    }
}

/// From the greeting to transmission, in the best framing that both sides
/// know; on blocking terms, for it is over soon.
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

/// Reads what is needed, or the first part of it.
fn fill(stream: &mut TcpStream, held: &mut Vec<u8>, need: Need) -> io::Result<()> {
    let Need::Header(needed) = need else {
        return Ok(());
    };
    let missing = needed.saturating_sub(held.len()).min(8192);
    let start = held.len();
    held.resize(start + missing, 0);
    let read = stream.read(&mut held[start..])?;
    held.truncate(start + read);
    match missing > 0 && read == 0 {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(()),
    }
}
