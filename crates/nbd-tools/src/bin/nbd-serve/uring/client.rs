//! A connection: its handshake, its requests and its replies, without blocking.

use std::collections::HashSet;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use anyhow::{Error, Result};
use nbd_codec::Framing;
use nbd_codec::server::Request;
use nbd_codec::wire::number::Command;

use super::Ring;
use super::mailbox::Mailbox;
use super::operation::{self, Operation, Receive};
use super::pool::{Done, Pool, Task};
use super::replies::Replies;
use super::requests::{Requests, Work};
use crate::batch::Batch;
use crate::connection::{describe, report_end};
use crate::handshake::{OngoingHandshake, Progress};
use crate::inbox::Inbox;
use crate::job;
use crate::server::{NewClient, Registration, Server};
use crate::socket::Socket;

/// What serves a client.
pub struct Resources<'r> {
    pub ring: &'r mut Ring<Operation>,
    pub server: &'r Server,
    pub pool: &'r Arc<Pool>,
    pub mailbox: &'r Arc<Mailbox>,
    /// Clients that wait for memory.
    pub starved: &'r mut HashSet<usize>,
}

pub struct Client {
    /// Its index among the clients of the ring.
    key: usize,
    pub number: u64,
    name: String,
    socket: Arc<Socket>,
    /// Removes the client from the list of the server when it is dropped.
    registration: Registration,
    phase: Phase,
    /// `None` while the ring fills it.
    inbox: Option<Inbox>,
    replies: Replies,
    /// How many of its requests the ring or the pool executes.
    executing: usize,
    /// Set when nothing more will be received: how the connection ended.
    end: Option<Result<String>>,
}

enum Phase {
    Handshake(Box<OngoingHandshake>),
    Transmission(Box<Requests>),
}

/// What to do next.
pub enum Next {
    Receive,
    /// Wait until replies are sent.
    Wait,
    /// The client has sent `NBD_OPT_ABORT` or `NBD_CMD_DISC`.
    Disconnected,
}

impl Client {
    pub fn new(key: usize, new_client: NewClient, server: &Server) -> Result<Self> {
        let NewClient {
            number,
            socket,
            name,
            registration,
        } = new_client;
        socket.prepare()?;
        Ok(Self {
            key,
            number,
            replies: Replies::new(key, &socket, server.export.payload_budget(), &server.memory)?,
            socket,
            name,
            registration,
            phase: Phase::Handshake(Box::new(OngoingHandshake::new(&server.export)?)),
            inbox: Some(Inbox::new()?),
            executing: 0,
            end: None,
        })
    }

    /// Does all that does not block; returns whether the connection is finished.
    /// `alone`: no other client has anything to do.
    pub fn advance(&mut self, resources: &mut Resources<'_>, alone: bool) -> io::Result<bool> {
        loop {
            let next = self.take_arrived(resources);
            if matches!(next, Next::Disconnected) && self.end.is_none() {
                self.end = Some(Ok(self.disconnected()));
            }
            let waits = matches!(next, Next::Wait) && !self.replies.next.is_empty();
            self.replies.send(resources.ring, alone)?;
            // If all replies were sent at once, no completion follows, and there is
            // room for more requests.
            if waits && self.end.is_none() && self.replies.are_sent() {
                continue;
            }
            if matches!(next, Next::Receive) {
                self.receive(resources.ring)?;
            }
            break;
        }
        let idle = self.executing == 0 && self.inbox.is_some() && self.replies.are_sent();
        Ok(self.end.is_some() && idle)
    }

    /// Handles what has arrived, unless the connection is ending.
    fn take_arrived(&mut self, resources: &mut Resources<'_>) -> Next {
        let inbox = self.inbox.take_if(|_| self.end.is_none());
        let Some(mut inbox) = inbox else {
            return Next::Wait;
        };
        let next = self.take(&mut inbox, resources);
        self.inbox = Some(inbox);
        next.unwrap_or_else(|error| {
            self.end(error);
            Next::Disconnected
        })
    }

    /// Reports the end and closes the connection.
    pub fn close(self, server: &Server) {
        report_end(
            server,
            &self.name,
            self.end.unwrap_or_else(|| Ok("disconnected".into())),
        );
        self.socket.shut_down(Shutdown::Both);
    }

    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Closes the connection because of an error.
    pub fn abort(&mut self, error: io::Error) {
        self.end(error.into());
        self.replies.discard();
        // Completes the pending operations on the socket.
        self.socket.shut_down(Shutdown::Both);
    }

    fn end(&mut self, error: Error) {
        if self.end.is_none() {
            self.end = Some(Err(match &self.phase {
                Phase::Handshake(_) => error.context("in the handshake"),
                Phase::Transmission(requests) => {
                    error.context(format!("after {} requests", requests.requests))
                }
            }));
        }
    }

    fn receive(&mut self, ring: &mut Ring<Operation>) -> io::Result<()> {
        let Some(inbox) = self.inbox.take() else {
            return Ok(());
        };
        let mut incoming = None;
        if let Phase::Transmission(requests) = &mut self.phase {
            incoming = requests.incoming.take();
        }
        let socket = Arc::clone(&self.socket);
        let receive = Receive {
            socket,
            incoming,
            inbox,
        };
        ring.start(Operation::Receive(self.key, receive))
    }

    /// A receive is completed.
    pub fn received(&mut self, mut receive: Receive, result: io::Result<usize>) {
        let result = result.map_err(Error::from).and_then(|n| {
            let (placed, _) = receive.arrived(n);
            match &mut self.phase {
                Phase::Handshake(handshake) if n == 0 => {
                    handshake.end_of_input()?;
                    return Ok(true);
                }
                Phase::Transmission(requests) if n == 0 => requests.machine.end_of_input()?,
                Phase::Transmission(requests) if placed > 0 => {
                    requests.machine.advance(placed as u64)?
                }
                _ => {}
            }
            Ok(n == 0)
        });
        if let Phase::Transmission(requests) = &mut self.phase {
            requests.incoming = receive.incoming;
        }
        self.inbox = Some(receive.inbox);
        match result {
            Ok(false) => {}
            Ok(true) if self.end.is_none() => self.end = Some(Ok(self.disconnected())),
            Ok(true) => {}
            Err(error) => self.end(error),
        }
    }

    fn disconnected(&self) -> String {
        match &self.phase {
            Phase::Handshake(_) => "disconnected in the handshake".into(),
            Phase::Transmission(requests) => {
                format!("disconnected after {} requests", requests.requests)
            }
        }
    }

    /// Handles what has arrived, as far as the limits permit.
    fn take(&mut self, inbox: &mut Inbox, resources: &mut Resources<'_>) -> Result<Next> {
        if let Phase::Handshake(handshake) = &mut self.phase {
            if !self.replies.are_sent() {
                return Ok(Next::Wait);
            }
            let server = resources.server;
            let progress = handshake.step(inbox, &server.export, server.is_shutting_down());
            self.replies.next.put(&handshake.out());
            match progress? {
                Progress::Continue if self.replies.next.is_empty() => return Ok(Next::Receive),
                Progress::Continue => return Ok(Next::Wait),
                Progress::Receive => return Ok(Next::Receive),
                Progress::Ended(None) => return Ok(Next::Disconnected),
                Progress::Ended(Some(negotiated)) => {
                    self.registration.enter_transmission()?;
                    server.report_verbose(|| format!("{}: {}", self.name, describe(&negotiated)));
                    self.phase = Phase::Transmission(Box::new(Requests::new(negotiated)?));
                }
            }
        }
        let Phase::Transmission(requests) = &mut self.phase else {
            return Ok(Next::Wait);
        };
        if resources.server.is_shutting_down() {
            requests.machine.shut_down();
        }
        let negotiated = requests.machine.negotiated();
        let mut work = Work {
            key: self.key,
            block: negotiated.constraints().minimum,
            may_split: negotiated.framing != Framing::Simple,
            replies: &mut self.replies,
            executing: &mut self.executing,
            resources,
        };
        requests.take(inbox, &mut work)
    }

    /// A send is completed.
    pub fn sent(
        &mut self,
        batch: Batch,
        result: io::Result<usize>,
        ring: &mut Ring<Operation>,
    ) -> io::Result<()> {
        if let Err(error) = self.replies.sent(batch, result, ring)? {
            self.abort(error);
        }
        Ok(())
    }

    /// A read is completed.
    pub fn read(
        &mut self,
        mut read: operation::Read,
        result: io::Result<usize>,
        ring: &mut Ring<Operation>,
    ) -> io::Result<()> {
        let batch = &mut self.replies.next;
        match result.and_then(|n| read.arrived(n)) {
            Ok(false) => return ring.start(Operation::Read(self.key, read)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return ring.start(Operation::Read(self.key, read));
            }
            Ok(true) => {
                let cost = read.data.len();
                batch.put(read.token.data().as_bytes());
                batch.put_data(read.data);
                batch.end_reply(cost);
            }
            Err(error) => {
                let cost = read.data.len();
                let (value, text) = job::explain(&error, Command::READ);
                batch.put_reply(&read.token.fail(value, &text));
                batch.end_reply(cost);
            }
        }
        self.executing -= 1;
        Ok(())
    }

    /// A write is completed.
    pub fn written(
        &mut self,
        mut write: operation::Write,
        result: io::Result<usize>,
        resources: &mut Resources<'_>,
    ) -> io::Result<()> {
        let batch = &mut self.replies.next;
        let cost = write.data.len();
        match result.and_then(|n| write.wrote(n)) {
            Ok(false) => return resources.ring.start(Operation::Write(self.key, write)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return resources.ring.start(Operation::Write(self.key, write));
            }
            Ok(true) if write.token.fua() => {
                // The data is written. Without data, only the sync is left.
                resources.pool.add(Task {
                    mailbox: Arc::clone(resources.mailbox),
                    client: self.key,
                    request: Request::Write(write.token),
                    data: None,
                    block: 1,
                    cost,
                });
                return Ok(());
            }
            Ok(true) => batch.put_reply(&write.token.succeed()),
            Err(error) => {
                let (value, text) = job::explain(&error, Command::WRITE);
                batch.put_reply(&write.token.fail(value, &text));
            }
        }
        batch.end_reply(cost);
        self.executing -= 1;
        Ok(())
    }

    /// The pool has executed a request.
    pub fn executed(&mut self, done: Done) {
        let batch = &mut self.replies.next;
        for message in done.replies {
            batch.put_content(message.content);
        }
        batch.end_reply(done.cost);
        self.executing -= 1;
    }
}
