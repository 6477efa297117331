//! The receiving side of a connection: bytes in, jobs out.

use std::io::Read;
use std::mem;
use std::sync::Arc;

use anyhow::Result;
use nbd_codec::server::{Event, Request, Transmission};
use nbd_codec::{Limits, Need, Negotiated};

use crate::budget::{Budget, Permit};
use crate::buffer::Buffer;
use crate::inbox::Inbox;
use crate::job::{self, Job};
use crate::server::Server;

pub struct Reader {
    source: Box<dyn Read + Send>,
    machine: Transmission,
    inbox: Inbox,
    /// The inbox has not been looked into: the client need not wait for the
    /// end of the handshake.
    fresh: bool,
    /// The write whose payload is arriving.
    incoming: Option<Incoming>,
    budget: Arc<Budget>,
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
            fresh: true,
            incoming: None,
            budget,
        })
    }

    /// Waits until something arrives and takes every request out of it; false
    /// if there will be no more. Jobs go to `deliver`.
    pub fn read(
        &mut self,
        server: &Server,
        mut deliver: impl FnMut(&mut Vec<Job>),
    ) -> Result<bool> {
        let mut jobs = Vec::new();
        if !mem::take(&mut self.fresh) && self.receive()? == 0 {
            self.machine.end_of_input()?;
            return Ok(false);
        }
        if server.is_shutting_down() {
            self.machine.shut_down();
        }
        let result = self.take_all(&mut jobs, &mut deliver);
        deliver(&mut jobs);
        result
    }

    /// Waits for bytes; those of a payload go straight to their place.
    fn receive(&mut self) -> Result<usize> {
        let source = &mut *self.source;
        match (self.machine.need(), &mut self.incoming) {
            (Need::Payload { .. }, Some(incoming)) => {
                let place = &mut incoming.data[incoming.filled..];
                let (payload, behind) = self.inbox.fill_behind(place, source)?;
                incoming.filled += payload;
                self.machine.advance(payload as u64)?;
                Ok(payload + behind)
            }
            _ => Ok(self.inbox.fill(source)?),
        }
    }

    fn take_all(
        &mut self,
        jobs: &mut Vec<Job>,
        deliver: &mut impl FnMut(&mut Vec<Job>),
    ) -> Result<bool> {
        loop {
            let mut input = self.inbox.unread();
            let event = self.machine.receive(&mut input)?;
            let left = input.len();
            let mut admit = |bytes: usize| match self.budget.try_admit(bytes) {
                Some(permit) => permit,
                None => {
                    // Room comes from requests that are done.
                    deliver(jobs);
                    self.budget.admit(bytes)
                }
            };
            match event {
                None => {
                    self.inbox.keep_last(left);
                    return Ok(true);
                }
                Some(Event::Disconnect) => return Ok(false),
                Some(Event::Payload { length, .. }) => {
                    let length = length as usize;
                    let permit = admit(length);
                    self.incoming = Some(Incoming {
                        data: Buffer::new(length),
                        filled: 0,
                        permit,
                    });
                }
                Some(Event::Data { data, .. }) => {
                    if let Some(incoming) = &mut self.incoming {
                        let end = incoming.filled + data.len();
                        incoming.data[incoming.filled..end].copy_from_slice(data);
                        incoming.filled = end;
                    }
                }
                Some(Event::Request(request)) => {
                    let job = match self.incoming.take() {
                        Some(Incoming { data, permit, .. }) => Job::Do {
                            request,
                            data: Some(data),
                            permit,
                        },
                        None => Job::Do {
                            permit: admit(reply_payload(&request)),
                            request,
                            data: None,
                        },
                    };
                    jobs.push(job);
                }
                Some(Event::Rejected { reply, .. }) => {
                    let permit = admit(0);
                    jobs.push(Job::Say { reply, permit });
                }
                Some(_) => {}
            }
            self.inbox.keep_last(left);
        }
    }
}

/// How much the reply to a request carries, in bytes, if it is much.
fn reply_payload(request: &Request) -> usize {
    match request {
        Request::Read(read) => read.length() as usize,
        Request::BlockStatus32(_) | Request::BlockStatus64(_) => job::MOST_STATUS,
        _ => 0,
    }
}
