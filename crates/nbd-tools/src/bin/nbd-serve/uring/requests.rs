//! The requests of a connection: taken out of what has arrived, then executed at
//! once, by the ring, or by the pool.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use nbd_codec::server::{
    ReadRequest, Reply, Request, Transmission, TransmissionEvent, WriteRequest,
};
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Content, Limits, Negotiated, Step};

use super::client::{Next, Resources};
use super::operation::{self, Incoming, Operation};
use super::pool::Task;
use super::replies::{Admission, Replies};
use crate::budget::{MEMORY_WAIT, NO_MEMORY};
use crate::buffer::Buffer;
use crate::inbox::Inbox;
use crate::job::SPARSE;
use crate::log::report;
use crate::reader::reply_payload;

/// Payloads up to this many bytes are received into the inbox, many at a time.
/// Longer ones are received into their own buffers.
const SMALL: u32 = 32 << 10;

/// Requests up to this many bytes are executed at once if they do not block. The
/// other clients wait meanwhile.
const IMMEDIATE: usize = 1 << 20;

/// Data of files is copied into one batch up to this many bytes.
const GATHERED: usize = (256 << 10) + 4096;

pub struct Requests {
    pub machine: Transmission,
    /// The payload that is received into its own buffer.
    pub incoming: Option<Incoming>,
    /// The length of the payload that is due in the inbox.
    due: usize,
    /// What the limits do not admit yet.
    waiting: Option<Waiting>,
    /// Since when it gets no memory, because other clients have it.
    starved: Option<Instant>,
    /// There was no memory for the payload that arrives: it is discarded.
    refused: bool,
    /// How many requests were received.
    pub requests: u64,
}

enum Waiting {
    Payload(u32),
    Request(Request),
    Rejected(Reply<'static>),
}

/// The data of a write.
enum Data<'d> {
    /// In the inbox.
    Small(&'d [u8]),
    Large(Buffer),
}

/// What executes requests.
pub struct Work<'w, 'r> {
    /// The key of the client.
    pub key: usize,
    /// The minimum block size.
    pub block: u32,
    /// Whether reads may be answered in chunks.
    pub may_split: bool,
    pub replies: &'w mut Replies,
    pub executing: &'w mut usize,
    pub resources: &'w mut Resources<'r>,
}

impl Requests {
    pub fn new(negotiated: Negotiated) -> Result<Self> {
        Ok(Self {
            machine: Transmission::new(negotiated, Limits::DEFAULT)?,
            incoming: None,
            due: 0,
            waiting: None,
            starved: None,
            refused: false,
            requests: 0,
        })
    }

    /// Takes all requests that the limits admit.
    pub fn take(&mut self, inbox: &mut Inbox, work: &mut Work<'_, '_>) -> Result<Next> {
        let mut input = inbox.unread();
        let next = self.take_from(&mut input, work);
        let left = input.len();
        inbox.keep_last(left);
        next
    }

    fn take_from(&mut self, input: &mut &[u8], work: &mut Work<'_, '_>) -> Result<Next> {
        // The payload of a small write, all of which is in the inbox.
        let mut small = &[][..];
        loop {
            if let Some(waiting) = self.waiting.take()
                && let Some(waiting) = self.admit(waiting, work)?
            {
                self.waiting = Some(waiting);
                return Ok(Next::Wait);
            }
            if input.len() < self.due {
                return Ok(Next::Receive);
            }
            match self.machine.receive(input)? {
                Step::Read(_) | Step::ReadPayload { .. } => return Ok(Next::Receive),
                Step::Event(TransmissionEvent::Disconnect) | Step::Finished => {
                    return Ok(Next::Disconnected);
                }
                Step::Event(TransmissionEvent::WritePayload { length, .. }) => {
                    self.waiting = Some(Waiting::Payload(length));
                }
                Step::Content(_) if self.refused => {}
                Step::Content(Content::Data { data, .. }) => match &mut self.incoming {
                    None => {
                        self.due = 0;
                        small = data;
                    }
                    Some(Incoming {
                        data: place,
                        filled,
                    }) => {
                        let end = *filled + data.len();
                        place[*filled..end].copy_from_slice(data);
                        *filled = end;
                    }
                },
                Step::Event(TransmissionEvent::Request(request))
                    if mem::take(&mut self.refused) =>
                {
                    self.requests += 1;
                    work.refuse(request, 0);
                }
                // It is already admitted, with its payload.
                Step::Event(TransmissionEvent::Request(Request::Write(token))) => {
                    self.requests += 1;
                    let data = match self.incoming.take() {
                        Some(incoming) => Data::Large(incoming.data),
                        None => Data::Small(mem::take(&mut small)),
                    };
                    work.write(token, data)?;
                }
                Step::Event(TransmissionEvent::Request(request)) => {
                    self.requests += 1;
                    self.waiting = Some(Waiting::Request(request));
                }
                Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                    self.requests += 1;
                    self.waiting = Some(Waiting::Rejected(reply));
                }
                Step::Event(_) => {}
                other => return Err(other.unexpected().into()),
            }
        }
    }

    /// Goes on if the limits admit it; otherwise returns it.
    fn admit(&mut self, waiting: Waiting, work: &mut Work<'_, '_>) -> Result<Option<Waiting>> {
        let cost = match &waiting {
            Waiting::Payload(length) => *length as usize,
            Waiting::Request(request) => reply_payload(request),
            Waiting::Rejected(_) => 0,
        };
        match work.replies.admit(cost) {
            Admission::Admitted => self.starved = None,
            Admission::Full => return Ok(Some(waiting)),
            Admission::NoMemory => {
                let since = *self.starved.get_or_insert_with(Instant::now);
                if since.elapsed() < MEMORY_WAIT {
                    work.resources.starved.insert(work.key);
                    return Ok(Some(waiting));
                }
                // It needs no memory, so it is admitted.
                work.replies.admit(0);
                match waiting {
                    Waiting::Payload(_) => self.refused = true,
                    Waiting::Request(request) => work.refuse(request, 0),
                    Waiting::Rejected(reply) => work.add_reply(&reply, 0),
                }
                return Ok(None);
            }
        }
        match waiting {
            Waiting::Payload(length) if length <= SMALL => self.due = length as usize,
            Waiting::Payload(length) => match Buffer::new(length as usize) {
                Ok(data) => self.incoming = Some(Incoming { data, filled: 0 }),
                Err(_) => {
                    work.replies.refund(cost);
                    self.refused = true;
                }
            },
            Waiting::Request(request) => work.request(request, cost)?,
            Waiting::Rejected(reply) => work.add_reply(&reply, 0),
        }
        Ok(None)
    }
}

impl Work<'_, '_> {
    /// Executes a request, or gives it to the ring or the pool.
    fn request(&mut self, request: Request, cost: usize) -> std::io::Result<()> {
        match request {
            Request::Read(token) if self.is_whole(&token) => self.read(token, cost),
            request => {
                self.delegate(request, None, cost);
                Ok(())
            }
        }
    }

    /// Whether the data is sent as one chunk: if it is short, or has no holes.
    fn is_whole(&self, token: &ReadRequest) -> bool {
        let length = token.length();
        let may_be_split = self.may_split && length >= SPARSE && !token.dont_fragment();
        let disk = &self.resources.server.export.disk;
        !may_be_split || disk.is_data(token.offset(), length.into())
    }

    fn read(&mut self, token: ReadRequest, cost: usize) -> std::io::Result<()> {
        let disk = &self.resources.server.export.disk;
        let (offset, length) = (token.offset(), token.length());
        let batch = &mut self.replies.next;
        if disk.lends() {
            batch.put(token.data().as_bytes());
            disk.lend(offset, length.into(), &mut |lent| batch.put_lent(lent));
            batch.end_reply(cost);
            return Ok(());
        }
        // Copying cached data takes less time than an operation of the ring. It is
        // sent before there is more of it than a processor's cache holds.
        if batch.size().0 + cost > GATHERED {
            self.replies.send_now();
        }
        let batch = &mut self.replies.next;
        let gathered = batch.size().0 + cost <= GATHERED;
        if gathered && disk.try_read(offset, batch.space(cost)) {
            batch.put_filled(token.data().as_bytes(), cost);
            batch.end_reply(cost);
            return Ok(());
        }
        let Ok(mut data) = Buffer::new(cost) else {
            self.refuse(Request::Read(token), cost);
            return Ok(());
        };
        if !gathered && cost <= IMMEDIATE && disk.try_read(offset, &mut data) {
            batch.put(token.data().as_bytes());
            batch.put_data(data);
            batch.end_reply(cost);
            return Ok(());
        }
        match disk.file() {
            Some(file) => {
                let read = operation::Read {
                    file: Arc::clone(file),
                    token,
                    data,
                    filled: 0,
                };
                self.start(Operation::Read(self.key, read))
            }
            None => {
                self.delegate(Request::Read(token), None, cost);
                Ok(())
            }
        }
    }

    fn write(&mut self, token: WriteRequest, data: Data<'_>) -> std::io::Result<()> {
        let disk = &self.resources.server.export.disk;
        let bytes = match &data {
            Data::Small(bytes) => bytes,
            Data::Large(buffer) => &buffer[..],
        };
        let cost = bytes.len();
        let file = disk.file();
        let immediate = file.is_none() && !token.fua() && cost <= IMMEDIATE;
        if immediate && disk.try_write(token.offset(), bytes) {
            self.add_reply(&token.succeed(), cost);
            return Ok(());
        }
        let data = match data {
            Data::Large(buffer) => buffer,
            Data::Small(bytes) => {
                let Ok(mut buffer) = Buffer::new(bytes.len()) else {
                    self.refuse(Request::Write(token), cost);
                    return Ok(());
                };
                buffer.copy_from_slice(bytes);
                buffer
            }
        };
        match file {
            Some(file) => {
                let write = operation::Write {
                    file: Arc::clone(file),
                    token,
                    data,
                    written: 0,
                };
                self.start(Operation::Write(self.key, write))
            }
            None => {
                self.delegate(Request::Write(token), Some(data), cost);
                Ok(())
            }
        }
    }

    /// There is no memory for a request.
    fn refuse(&mut self, request: Request, cost: usize) {
        report(&format!("{}: {NO_MEMORY}", request.command()));
        self.add_reply(&request.fail(ErrorValue::ENOMEM, NO_MEMORY), cost);
    }

    /// Adds a reply.
    fn add_reply(&mut self, reply: &Reply<'_>, cost: usize) {
        self.replies.next.put_reply(reply);
        self.replies.next.end_reply(cost);
    }

    fn start(&mut self, operation: Operation) -> std::io::Result<()> {
        *self.executing += 1;
        self.resources.ring.start(operation)
    }

    fn delegate(&mut self, request: Request, data: Option<Buffer>, cost: usize) {
        *self.executing += 1;
        self.resources.pool.add(Task {
            mailbox: Arc::clone(self.resources.mailbox),
            client: self.key,
            request,
            data,
            block: self.block,
            cost,
        });
    }
}
