//! A client: its handshake, its requests and its replies, a step at a time.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use anyhow::{Error, Result};
use nbd_codec::Framing;
use nbd_codec::server::Request;
use nbd_codec::wire::number::Command;

use super::Ring;
use super::door::{Door, Newcomer};
use super::flight::{self, Flight, Receive};
use super::pool::{Done, Pool};
use super::ready::{Ready, Work};
use super::replies::Replies;
use crate::batch::Batch;
use crate::connection::{describe, farewell};
use crate::disk::Disk;
use crate::handshake::{Shaking, Step};
use crate::inbox::Inbox;
use crate::job;
use crate::server::{Present, Server};
use crate::socket::Socket;

/// Whoever works for a client.
pub struct Hands<'h> {
    pub ring: &'h mut Ring<Flight>,
    pub server: &'h Server,
    pub pool: &'h Arc<Pool>,
    pub door: &'h Arc<Door>,
}

pub struct Client {
    /// Its place among the clients.
    key: usize,
    pub number: u64,
    name: String,
    socket: Arc<Socket>,
    /// Its end is seen by the server.
    _present: Present,
    phase: Phase,
    /// Away while it is being filled.
    inbox: Option<Inbox>,
    replies: Replies,
    /// How many of its requests are with the ring or with the pool.
    elsewhere: usize,
    /// Nothing is received any more, and why.
    end: Option<Result<String>>,
}

enum Phase {
    Shaking(Box<Shaking>),
    Ready(Box<Ready>),
}

/// What to do when everything was taken.
pub enum Next {
    Receive,
    /// Wait until replies are out.
    Wait,
    /// The client has said goodbye.
    Over,
}

impl Client {
    pub fn new(key: usize, newcomer: Newcomer, server: &Server) -> Result<Self> {
        let Newcomer {
            number,
            socket,
            name,
            present,
        } = newcomer;
        socket.prepare()?;
        Ok(Self {
            key,
            number,
            replies: Replies::new(key, &socket, server.export.payload_budget()),
            socket,
            name,
            _present: present,
            phase: Phase::Shaking(Box::new(Shaking::new(&server.export)?)),
            inbox: Some(Inbox::new()),
            elsewhere: 0,
            end: None,
        })
    }

    /// What can be done now; whether that was the last. `alone`: nobody else
    /// has anything to do.
    pub fn go_on(&mut self, hands: &mut Hands<'_>, alone: bool) -> io::Result<bool> {
        let mut receive = false;
        if self.end.is_none()
            && let Some(mut inbox) = self.inbox.take()
        {
            let next = self.take(&mut inbox, hands);
            self.inbox = Some(inbox);
            match next {
                Ok(Next::Receive) => receive = true,
                Ok(Next::Wait) => {}
                Ok(Next::Over) => self.end = Some(Ok(self.left())),
                Err(error) => self.end(error),
            }
        }
        self.replies.send(hands.ring, alone)?;
        if receive {
            self.receive(hands.ring)?;
        }
        let idle = self.elsewhere == 0 && self.inbox.is_some() && self.replies.are_sent();
        Ok(self.end.is_some() && idle)
    }

    /// The last word on it.
    pub fn leave(self, server: &Server) {
        farewell(
            server,
            &self.name,
            self.end.unwrap_or_else(|| Ok("left".into())),
        );
        self.socket.shut_down(Shutdown::Both);
    }

    pub fn is_shaking_hands(&self) -> bool {
        matches!(self.phase, Phase::Shaking(_))
    }

    /// Whatever it was up to, it is over.
    pub fn cut(&mut self, error: io::Error) {
        self.end(error.into());
        self.replies.give_up();
        // Ends what the ring has in hand.
        self.socket.shut_down(Shutdown::Both);
    }

    fn end(&mut self, error: Error) {
        if self.end.is_none() {
            self.end = Some(Err(match &self.phase {
                Phase::Shaking(_) => error.context("in the handshake"),
                Phase::Ready(ready) => error.context(format!("after {} requests", ready.requests)),
            }));
        }
    }

    fn receive(&mut self, ring: &mut Ring<Flight>) -> io::Result<()> {
        let Some(inbox) = self.inbox.take() else {
            return Ok(());
        };
        let mut incoming = None;
        if let Phase::Ready(ready) = &mut self.phase {
            incoming = ready.incoming.take();
        }
        let socket = Arc::clone(&self.socket);
        let receive = Receive {
            socket,
            incoming,
            inbox,
        };
        ring.start(Flight::Receive(self.key, receive))
    }

    /// Something has arrived.
    pub fn received(&mut self, mut receive: Receive, result: io::Result<usize>) {
        let result = result.map_err(Error::from).and_then(|n| {
            let (placed, _) = receive.arrived(n);
            match &mut self.phase {
                Phase::Shaking(shaking) if n == 0 => {
                    shaking.end_of_input()?;
                    return Ok(true);
                }
                Phase::Ready(ready) if n == 0 => ready.machine.end_of_input()?,
                Phase::Ready(ready) if placed > 0 => ready.machine.advance(placed as u64)?,
                _ => {}
            }
            Ok(n == 0)
        });
        if let Phase::Ready(ready) = &mut self.phase {
            ready.incoming = receive.incoming;
        }
        self.inbox = Some(receive.inbox);
        match result {
            Ok(false) => {}
            Ok(true) if self.end.is_none() => self.end = Some(Ok(self.left())),
            Ok(true) => {}
            Err(error) => self.end(error),
        }
    }

    fn left(&self) -> String {
        match &self.phase {
            Phase::Shaking(_) => "left in the handshake".into(),
            Phase::Ready(ready) => format!("left after {} requests", ready.requests),
        }
    }

    /// Takes what has arrived, as far as there is room for it.
    fn take(&mut self, inbox: &mut Inbox, hands: &mut Hands<'_>) -> Result<Next> {
        if let Phase::Shaking(shaking) = &mut self.phase {
            if !self.replies.are_sent() {
                return Ok(Next::Wait);
            }
            let server = hands.server;
            let step = shaking.step(inbox, &server.export, server.is_shutting_down());
            self.replies.next.put(&shaking.out());
            match step? {
                Step::GoOn if self.replies.next.is_empty() => return Ok(Next::Receive),
                Step::GoOn => return Ok(Next::Wait),
                Step::Receive => return Ok(Next::Receive),
                Step::Over(None) => return Ok(Next::Over),
                Step::Over(Some(negotiated)) => {
                    server.note(|| format!("{}: {}", self.name, describe(&negotiated)));
                    self.phase = Phase::Ready(Box::new(Ready::new(negotiated)?));
                }
            }
        }
        let Phase::Ready(ready) = &mut self.phase else {
            return Ok(Next::Wait);
        };
        if hands.server.is_shutting_down() {
            ready.machine.shut_down();
        }
        let negotiated = ready.machine.negotiated();
        let mut work = Work {
            key: self.key,
            block: negotiated.constraints().minimum,
            cuts: negotiated.framing != Framing::Simple,
            replies: &mut self.replies,
            elsewhere: &mut self.elsewhere,
            hands,
        };
        ready.take(inbox, &mut work)
    }

    /// The replies are out, or a part of them.
    pub fn sent(
        &mut self,
        batch: Batch,
        result: io::Result<usize>,
        ring: &mut Ring<Flight>,
    ) -> io::Result<()> {
        if let Err(error) = self.replies.sent(batch, result, ring)? {
            self.cut(error);
        }
        Ok(())
    }

    /// A read has come back from the ring.
    pub fn read(
        &mut self,
        mut read: flight::Read,
        result: io::Result<usize>,
        ring: &mut Ring<Flight>,
    ) -> io::Result<()> {
        let batch = &mut self.replies.next;
        match result.and_then(|n| read.arrived(n)) {
            Ok(false) => return ring.start(Flight::Read(self.key, read)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return ring.start(Flight::Read(self.key, read));
            }
            Ok(true) => {
                let room = read.data.len();
                batch.put(read.token.data().as_bytes());
                batch.put_data(read.data);
                batch.end_reply(room);
            }
            Err(error) => {
                let room = read.data.len();
                let (value, text) = job::explain(&error, Command::READ);
                batch.put_reply(&read.token.fail(value, &text));
                batch.end_reply(room);
            }
        }
        self.elsewhere -= 1;
        Ok(())
    }

    /// A write has come back from the ring.
    pub fn written(
        &mut self,
        mut write: flight::Write,
        result: io::Result<usize>,
        ring: &mut Ring<Flight>,
    ) -> io::Result<()> {
        let batch = &mut self.replies.next;
        let room = write.data.len();
        match result.and_then(|n| write.wrote(n)) {
            Ok(false) => return ring.start(Flight::Write(self.key, write)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return ring.start(Flight::Write(self.key, write));
            }
            Ok(true) if write.token.fua() => {
                let request = Request::Write(write.token);
                let file = write.file;
                let sync = flight::Sync {
                    file,
                    request,
                    room,
                };
                return ring.start(Flight::Sync(self.key, sync));
            }
            Ok(true) => batch.put_reply(&write.token.succeed()),
            Err(error) => {
                let (value, text) = job::explain(&error, Command::WRITE);
                batch.put_reply(&write.token.fail(value, &text));
            }
        }
        batch.end_reply(room);
        self.elsewhere -= 1;
        Ok(())
    }

    /// What was written is permanent.
    pub fn synced(&mut self, sync: flight::Sync, result: io::Result<usize>, disk: &dyn Disk) {
        let batch = &mut self.replies.next;
        let result = disk.flushed(result.map(drop));
        match (result, sync.request) {
            (Ok(()), Request::Write(token)) => batch.put_reply(&token.succeed()),
            (Ok(()), Request::Flush(token)) => batch.put_reply(&token.succeed()),
            (result, request) => {
                let error = result.err().unwrap_or(io::ErrorKind::Unsupported.into());
                let (value, text) = job::explain(&error, request.command());
                batch.put_reply(&request.fail(value, &text));
            }
        }
        batch.end_reply(sync.room);
        self.elsewhere -= 1;
    }

    /// The pool has done something.
    pub fn done(&mut self, done: Done) {
        let batch = &mut self.replies.next;
        for message in done.replies {
            batch.put_content(message.content);
        }
        batch.end_reply(done.room);
        self.elsewhere -= 1;
    }
}
