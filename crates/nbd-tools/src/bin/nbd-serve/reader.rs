//! The receiving side of a connection: it reads requests, and executes them or
//! makes jobs of them.

use std::io::Read;
use std::mem;
use std::sync::Arc;

use anyhow::Result;
use nbd_codec::server::{Reply, Request, Transmission, TransmissionEvent};
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Content, Limits, Negotiated, Step};

use crate::batch::Batch;
use crate::budget::{Budget, NO_MEMORY, Permit};
use crate::buffer::{self, Buffer};
use crate::immediate::Immediate;
use crate::inbox::Inbox;
use crate::job::{self, Job};
use crate::log::report;
use crate::outbox::Outbox;
use crate::server::Server;

pub struct Reader {
    source: Box<dyn Read + Send>,
    machine: Transmission,
    inbox: Inbox,
    /// The inbox may hold requests that arrived during the handshake.
    unread: bool,
    /// The write whose payload is arriving.
    incoming: Option<Incoming>,
    /// There was no memory for that payload: it is discarded.
    refused: bool,
    budget: Arc<Budget>,
    replies: Batch,
    /// How many requests were executed here.
    done: u64,
}

struct Incoming {
    data: Buffer,
    filled: usize,
    permit: Permit,
}

impl Reader {
    pub fn new(
        source: Box<dyn Read + Send>,
        negotiated: Negotiated,
        inbox: Inbox,
        budget: Arc<Budget>,
    ) -> Result<Self> {
        Ok(Self {
            source,
            machine: Transmission::new(negotiated, Limits::DEFAULT)?,
            inbox,
            unread: true,
            incoming: None,
            refused: false,
            budget,
            replies: Batch::new()?,
            done: 0,
        })
    }

    /// Waits until something arrives, and takes all requests out of it. Those that
    /// do not block are executed; the others go to `deliver`. Returns false if no
    /// more requests will come.
    pub fn read(
        &mut self,
        server: &Server,
        outbox: &Outbox,
        mut deliver: impl FnMut(&mut Vec<Job>) -> Result<()>,
    ) -> Result<bool> {
        if !mem::take(&mut self.unread) && self.receive()? == 0 {
            self.machine.end_of_input()?;
            return Ok(false);
        }
        if server.is_shutting_down() {
            self.machine.shut_down();
        }
        let mut work = Work {
            immediate: Immediate::new(
                &*server.export.disk,
                outbox,
                &mut self.replies,
                self.machine.negotiated(),
            ),
            jobs: Vec::new(),
            deliver: &mut deliver,
            budget: &self.budget,
        };
        let result = take_all(
            &mut self.machine,
            &mut self.inbox,
            &mut self.incoming,
            &mut self.refused,
            &mut work,
        );
        // What was executed is answered, after an error too.
        let handed_out = work.hand_out();
        self.done += work.immediate.done();
        handed_out?;
        result
    }

    /// How many requests were executed here since the last call.
    pub fn take_done(&mut self) -> u64 {
        mem::take(&mut self.done)
    }

    /// Waits for bytes; a payload is read directly into its buffer.
    fn receive(&mut self) -> Result<usize> {
        let source = &mut *self.source;
        // It is set only when the last step was `ReadPayload`.
        match &mut self.incoming {
            Some(incoming) => {
                let place = &mut incoming.data[incoming.filled..];
                let (payload, after) = self.inbox.fill_after(place, source)?;
                incoming.filled += payload;
                self.machine.advance(payload as u64)?;
                Ok(payload + after)
            }
            None => Ok(self.inbox.fill(source)?),
        }
    }
}

/// The requests of one receive.
struct Work<'w> {
    immediate: Immediate<'w>,
    /// For other threads.
    jobs: Vec<Job>,
    deliver: &'w mut dyn FnMut(&mut Vec<Job>) -> Result<()>,
    budget: &'w Arc<Budget>,
}

impl Work<'_> {
    /// Sends the replies, and hands the jobs to other threads.
    fn hand_out(&mut self) -> Result<()> {
        let sent = self.immediate.send();
        if self.immediate.take_unsent() {
            self.jobs.push(Job::Send);
        }
        (self.deliver)(&mut self.jobs)?;
        Ok(sent?)
    }

    /// Waits until the budget admits a request. `None`: there is no memory.
    fn admit(&mut self, bytes: usize) -> Result<Option<Permit>> {
        if let Some(permit) = self.budget.try_admit(bytes) {
            return Ok(Some(permit));
        }
        // Only requests that are answered leave the budget.
        self.hand_out()?;
        Ok(self.budget.admit(bytes))
    }

    /// Memory for a payload; `None` if there is none.
    fn incoming(&mut self, length: usize) -> Result<Option<Incoming>> {
        let Some(permit) = self.admit(buffer::size(length))? else {
            return Ok(None);
        };
        let incoming = Buffer::new(length).ok().map(|data| Incoming {
            data,
            filled: 0,
            permit,
        });
        Ok(incoming)
    }

    /// Adds a reply that is known already.
    fn reply(&mut self, reply: Reply<'static>) -> Result<()> {
        // It needs no memory, so it is admitted.
        if let Some(permit) = self.admit(0)? {
            self.jobs.push(Job::Reply { reply, permit });
        }
        Ok(())
    }

    fn refuse(&mut self, request: Request) -> Result<()> {
        report(&format!("{}: {NO_MEMORY}", request.command()));
        self.reply(request.fail(ErrorValue::ENOMEM, NO_MEMORY))
    }

    /// Executes a request, or makes it a job. `small` is the payload of a write
    /// that has no buffer of its own.
    fn request(
        &mut self,
        request: Request,
        small: &[u8],
        incoming: Option<Incoming>,
    ) -> Result<()> {
        let (request, incoming) = match (request, incoming) {
            (Request::Read(token), None) => match self.immediate.read(token)? {
                Ok(()) => return Ok(()),
                Err(token) => (Request::Read(token), None),
            },
            (Request::Write(token), None) => match self.immediate.write(token, small)? {
                Ok(()) => return Ok(()),
                Err(token) => {
                    let Some(mut incoming) = self.incoming(small.len())? else {
                        return self.refuse(Request::Write(token));
                    };
                    incoming.data.copy_from_slice(small);
                    (Request::Write(token), Some(incoming))
                }
            },
            (Request::Write(token), Some(incoming)) => {
                match self.immediate.write(token, &incoming.data)? {
                    Ok(()) => return Ok(()),
                    Err(token) => (Request::Write(token), Some(incoming)),
                }
            }
            (request, None) => match self.immediate.one_extent(request)? {
                Ok(()) => return Ok(()),
                Err(request) => (request, None),
            },
            other => other,
        };
        let job = match incoming {
            Some(Incoming { data, permit, .. }) => Job::Execute {
                request,
                data: Some(data),
                permit,
            },
            None => match self.admit(reply_payload(&request))? {
                None => return self.refuse(request),
                Some(permit) => Job::Execute {
                    request,
                    data: None,
                    permit,
                },
            },
        };
        self.jobs.push(job);
        Ok(())
    }
}

fn take_all(
    machine: &mut Transmission,
    inbox: &mut Inbox,
    incoming: &mut Option<Incoming>,
    refused: &mut bool,
    work: &mut Work<'_>,
) -> Result<bool> {
    let mut input = inbox.unread();
    // The payload of a small write, all of which is in the inbox.
    let mut small = &[][..];
    loop {
        match machine.receive(&mut input)? {
            Step::Event(TransmissionEvent::Disconnect) | Step::Finished => return Ok(false),
            Step::Event(TransmissionEvent::WritePayload { length, .. }) => {
                let whole = input.len() >= length as usize;
                if !(whole && work.immediate.takes(length)) {
                    *incoming = work.incoming(length as usize)?;
                    *refused = incoming.is_none();
                }
            }
            Step::Content(_) if *refused => {}
            Step::Content(Content::Data { data, .. }) => match incoming {
                None => small = data,
                Some(incoming) => {
                    let end = incoming.filled + data.len();
                    incoming.data[incoming.filled..end].copy_from_slice(data);
                    incoming.filled = end;
                }
            },
            Step::Event(TransmissionEvent::Request(request)) if mem::take(refused) => {
                work.refuse(request)?;
            }
            Step::Event(TransmissionEvent::Request(request)) => {
                work.request(request, mem::take(&mut small), incoming.take())?;
            }
            Step::Event(TransmissionEvent::Answered { reply, .. }) => {
                work.reply(reply)?;
            }
            Step::Event(_) => {}
            Step::Read(_) | Step::ReadPayload { .. } => break,
            other => return Err(other.unexpected().into()),
        }
    }
    let left = input.len();
    inbox.keep_last(left);
    Ok(true)
}

/// The memory for the reply's payload, in bytes, if it can be long.
fn reply_payload(request: &Request) -> usize {
    match request {
        Request::Read(read) => buffer::size(read.length() as usize),
        Request::BlockStatus32(_) | Request::BlockStatus64(_) => job::MAX_STATUS,
        _ => 0,
    }
}
