//! Transmission over a socket: commands queued and sent, replies read, many at
//! once, without ever waiting for one direction only. (A client that only
//! sends, to a server that only answers, waits for ever when both sides'
//! buffers are full.)

use std::collections::VecDeque;
use std::io::IoSlice;

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::client::{Event, Head, Request, Slot, Transmission};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue};
use nbd_codec::{Limits, Need, Negotiated};

use crate::inbox::{Inbox, LITTLE};
use crate::socket::Socket;

/// Commands in flight at once.
pub const WINDOW: usize = 16;

/// Messages that leave in one system call, at most.
const BATCH: usize = 64;

/// Who waits for the replies.
pub trait Replies {
    /// Where payload of a read belongs.
    fn place(&mut self, cookie: Cookie, offset: u64, length: usize) -> Option<&mut [u8]>;

    /// Everything but [`Event::Data`], whose bytes go to their place.
    fn event(&mut self, event: Event<'_>) -> Result<()>;
}

/// A message on its way out.
struct Message {
    head: Head,
    payload: Vec<u8>,
}

pub struct Session {
    socket: Socket,
    machine: Transmission<[Slot; WINDOW]>,
    inbox: Inbox,
    outbox: VecDeque<Message>,
    /// How much of the first message was sent.
    sent: usize,
    /// Memory of payloads that were sent.
    spare: Vec<Vec<u8>>,
}

impl Session {
    pub fn new(socket: Socket, inbox: Inbox, negotiated: Negotiated) -> Self {
        Self {
            socket,
            machine: Transmission::new(negotiated, [Slot::EMPTY; WINDOW], Limits::DEFAULT),
            inbox,
            outbox: VecDeque::new(),
            sent: 0,
            spare: Vec::new(),
        }
    }

    pub fn negotiated(&self) -> &Negotiated {
        self.machine.negotiated()
    }

    pub fn in_flight(&self) -> usize {
        self.machine.in_flight()
    }

    /// Queues a command. `payload` is the data of a write.
    pub fn submit(&mut self, request: Request, payload: Vec<u8>) -> Result<Cookie> {
        let head = self
            .machine
            .submit(request)
            .with_context(|| describe(&request))?;
        Ok(self.queue(head, payload))
    }

    /// Queues a block status command for some of the contexts only.
    pub fn block_status_of(
        &mut self,
        contexts: &[ContextId],
        offset: u64,
        length: u64,
    ) -> Result<Cookie> {
        let mut payload = Vec::new();
        let flags = CommandFlags::NONE;
        let head = self
            .machine
            .block_status_of(contexts, offset, length, flags, &mut payload)
            .with_context(|| describe(&Request::block_status(offset, length)))?;
        Ok(self.queue(head, payload))
    }

    fn queue(&mut self, head: Head, payload: Vec<u8>) -> Cookie {
        self.outbox.push_back(Message { head, payload });
        head.cookie()
    }

    /// Memory to make a payload in.
    pub fn spare(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Sends and receives until at least one event was delivered.
    pub fn step(&mut self, replies: &mut dyn Replies) -> Result<()> {
        loop {
            self.send()?;
            if self.deliver(replies)? {
                return Ok(());
            }
            if self.outbox.is_empty() || self.socket.wait(true)? {
                self.read(replies)?;
            }
        }
    }

    /// Sends everything; replies that come meanwhile are delivered.
    pub fn send_all(&mut self, replies: &mut dyn Replies) -> Result<()> {
        self.send()?;
        while !self.outbox.is_empty() {
            if self.socket.wait(true)? {
                self.read(replies)?;
                self.deliver(replies)?;
            }
            self.send()?;
        }
        Ok(())
    }

    /// Sends until everything is sent, or the socket takes no more.
    fn send(&mut self) -> Result<()> {
        while !self.outbox.is_empty() {
            let mut skip = self.sent;
            let mut buffers = Vec::with_capacity(2 * self.outbox.len().min(BATCH));
            for message in self.outbox.iter().take(BATCH) {
                for part in [message.head.as_bytes(), &message.payload] {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    if skipped < part.len() {
                        buffers.push(IoSlice::new(&part[skipped..]));
                    }
                }
            }
            match self.socket.write(&buffers)? {
                Some(n) => self.sent += n,
                None => return Ok(()),
            }
            self.forget_sent();
        }
        Ok(())
    }

    fn forget_sent(&mut self) {
        while let Some(first) = self.outbox.front() {
            let length = first.head.as_bytes().len() + first.payload.len();
            if self.sent < length {
                return;
            }
            self.sent -= length;
            if let Some(message) = self.outbox.pop_front()
                && message.payload.capacity() > 0
            {
                self.spare.push(message.payload);
            }
        }
    }

    /// Delivers what has arrived; whether that was anything.
    fn deliver(&mut self, replies: &mut dyn Replies) -> Result<bool> {
        let mut any = false;
        loop {
            let mut input = self.inbox.unread();
            let event = self.machine.receive(&mut input)?;
            let left = input.len();
            let more = event.is_some();
            match event {
                Some(Event::Data {
                    cookie,
                    offset,
                    data,
                }) => place(replies, cookie, offset, data.len())?.copy_from_slice(data),
                Some(event) => {
                    replies.event(event)?;
                    any = true;
                }
                None => {}
            }
            self.inbox.keep_last(left);
            if !more {
                return Ok(any);
            }
        }
    }

    /// Reads what there is, and waits for it: payload to its place, all else to
    /// the inbox.
    fn read(&mut self, replies: &mut dyn Replies) -> Result<()> {
        let (place, most) = match self.machine.need() {
            Need::Payload {
                cookie,
                offset,
                length,
            } => (place(replies, cookie, offset, length as usize)?, LITTLE),
            // More than needed, but little: what follows may be payload.
            Need::Header(length) => (&mut [][..], length.max(LITTLE)),
            Need::Nothing => (&mut [][..], LITTLE),
        };
        let received = self.inbox.receive(&mut self.socket, place, most)?;
        if received.end {
            self.lost()?;
        }
        self.machine.advance(received.placed as u64)?;
        Ok(())
    }

    /// The server closed the connection.
    fn lost(&mut self) -> Result<()> {
        let waiting = self.in_flight();
        self.machine.end_of_input().with_context(|| {
            format!("the connection was lost with {waiting} commands unanswered; the server may have stopped")
        })?;
        bail!("the server closed the connection")
    }

    /// Ends the session as a client should.
    pub fn close(mut self) -> Result<()> {
        let head = self.machine.disconnect()?;
        self.queue(head, Vec::new());
        self.send()?;
        while !self.outbox.is_empty() {
            self.socket.wait(false)?;
            self.send()?;
        }
        Ok(())
    }
}

/// Says goodbye, if that can be said without waiting.
impl Drop for Session {
    fn drop(&mut self) {
        if let (true, Ok(head)) = (self.outbox.is_empty(), self.machine.disconnect()) {
            self.queue(head, Vec::new());
            let _ = self.send();
        }
    }
}

/// Where `length` bytes of payload go.
fn place(
    replies: &mut dyn Replies,
    cookie: Cookie,
    offset: u64,
    length: usize,
) -> Result<&mut [u8]> {
    replies
        .place(cookie, offset, length)
        .ok_or_else(|| anyhow!("payload for a command that reads nothing"))
}

/// A command as people call it.
pub fn describe(request: &Request) -> String {
    let Request {
        command,
        offset,
        length,
        ..
    } = request;
    let name = command.to_string();
    let name = name.trim_start_matches("NBD_CMD_").to_lowercase();
    match length {
        0 => name,
        _ => format!("{name} of {length} bytes at offset {offset}"),
    }
}

/// An error value as people call it.
pub fn explain(error: ErrorValue) -> String {
    let meaning = match error.or_invalid() {
        ErrorValue::EPERM => "operation not permitted",
        ErrorValue::EIO => "input/output error",
        ErrorValue::ENOMEM => "the server is out of memory",
        ErrorValue::EINVAL => "invalid argument",
        ErrorValue::ENOSPC => "no space left on the server",
        ErrorValue::EOVERFLOW => "value too large",
        ErrorValue::ENOTSUP => "operation not supported",
        ErrorValue::ESHUTDOWN => "the server is shutting down",
        _ => "unknown error",
    };
    format!("{meaning} ({error})")
}
