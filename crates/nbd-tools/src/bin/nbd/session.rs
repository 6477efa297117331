//! Transmission over a socket: queues and sends commands and reads replies, many at
//! a time. It never waits for one direction only: if the client waited until the
//! server receives, and the server until the client reads replies, neither would
//! continue once the buffers of both sockets are full.

use std::collections::VecDeque;
use std::io::IoSlice;

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::client::{Request, RequestHeader, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue};
use nbd_codec::{Content, Limits, Negotiated, Step};

use crate::align::{length, round_down, to_usize};
use crate::inbox::{Inbox, READ_AHEAD};
use crate::socket::Socket;

/// Commands in flight at once.
pub const WINDOW: usize = 16;

/// The most messages that one system call sends.
const BATCH: usize = 64;

/// Receives the replies.
pub trait Replies {
    /// The buffer for a part of the payload of a read.
    fn place(&mut self, cookie: Cookie, offset: u64, length: usize) -> Option<&mut [u8]>;

    /// Handles a hole in the payload of a read.
    fn hole(&mut self, cookie: Cookie, offset: u64, length: usize) -> Result<()> {
        let place = self.place(cookie, offset, length).ok_or_else(not_a_read)?;
        place.fill(0);
        Ok(())
    }

    /// Handles an event.
    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()>;
}

/// A message to be sent.
struct Message {
    header: RequestHeader,
    payload: Vec<u8>,
}

pub struct Session {
    socket: Socket,
    machine: Transmission<[Slot; WINDOW]>,
    inbox: Inbox,
    /// What to read next.
    next: Next,
    outbox: VecDeque<Message>,
    /// How many bytes of the first message were sent.
    sent: usize,
    /// Buffers of payloads that were sent.
    spare: Vec<Vec<u8>>,
}

/// What the last step of the state machine asks for.
enum Next {
    /// This many bytes at least, for the inbox.
    Bytes(usize),
    /// A part of the payload of a read, for its buffer.
    Payload {
        cookie: Cookie,
        offset: u64,
        length: usize,
    },
}

impl Session {
    pub fn new(socket: Socket, inbox: Inbox, negotiated: Negotiated) -> Self {
        Self {
            socket,
            machine: Transmission::new(negotiated, [Slot::EMPTY; WINDOW], Limits::DEFAULT),
            inbox,
            next: Next::Bytes(0),
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
        let header = self
            .machine
            .submit(request)
            .with_context(|| describe(&request))?;
        Ok(self.queue(header, payload))
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
        let header = self
            .machine
            .block_status_of(contexts, offset, length, flags, &mut payload)
            .with_context(|| describe(&Request::block_status(offset, length)))?;
        Ok(self.queue(header, payload))
    }

    fn queue(&mut self, header: RequestHeader, payload: Vec<u8>) -> Cookie {
        self.outbox.push_back(Message { header, payload });
        header.cookie()
    }

    /// A buffer for a payload.
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

    /// Sends everything, and delivers the replies that arrive meanwhile.
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

    /// Sends until everything is sent, or the socket accepts no more.
    fn send(&mut self) -> Result<()> {
        while !self.outbox.is_empty() {
            let mut already_sent = self.sent;
            let mut buffers = Vec::with_capacity(self.outbox.len().min(BATCH).saturating_mul(2));
            for message in self.outbox.iter().take(BATCH) {
                for part in [message.header.as_bytes(), &message.payload] {
                    let skipped = already_sent.min(part.len());
                    already_sent = already_sent.saturating_sub(skipped);
                    if skipped < part.len() {
                        buffers.push(IoSlice::new(&part[skipped..]));
                    }
                }
            }
            match self.socket.write(&buffers)? {
                Some(n) => self.sent = self.sent.saturating_add(n),
                None => return Ok(()),
            }
            self.remove_sent();
        }
        Ok(())
    }

    fn remove_sent(&mut self) {
        while let Some(first) = self.outbox.front() {
            let header = first.header.as_bytes().len();
            let length = header.saturating_add(first.payload.len());
            if self.sent < length {
                return;
            }
            self.sent = self.sent.saturating_sub(length);
            if let Some(message) = self.outbox.pop_front()
                && message.payload.capacity() > 0
            {
                self.spare.push(message.payload);
            }
        }
    }

    /// Delivers what has arrived; returns whether there was an event.
    fn deliver(&mut self, replies: &mut dyn Replies) -> Result<bool> {
        let mut any = false;
        loop {
            let mut input = self.inbox.unread();
            let step = self.machine.receive(&mut input)?;
            let left = input.len();
            let mut next = None;
            match step {
                Step::Event(event) => {
                    replies.event(event)?;
                    any = true;
                }
                Step::Content(Content::Data {
                    cookie,
                    offset,
                    data,
                }) => place(replies, cookie, offset, data.len())?.copy_from_slice(data),
                Step::Content(Content::Hole {
                    cookie,
                    offset,
                    length,
                }) => replies.hole(cookie, offset, to_usize(length.into()))?,
                Step::Read(n) => next = Some(Next::Bytes(n.get())),
                Step::ReadPayload {
                    cookie,
                    offset,
                    length,
                } => {
                    next = Some(Next::Payload {
                        cookie,
                        offset,
                        length: to_usize(length),
                    });
                }
                other => return Err(other.unexpected().into()),
            }
            self.inbox.keep_last(left);
            if let Some(next) = next {
                self.next = next;
                return Ok(any);
            }
        }
    }

    /// Waits for input, and reads it: payload into its buffer, all else into the
    /// inbox.
    fn read(&mut self, replies: &mut dyn Replies) -> Result<()> {
        let (place, most) = match self.next {
            Next::Payload {
                cookie,
                offset,
                length,
            } => (place(replies, cookie, offset, length)?, READ_AHEAD),
            // Only a little more than needed: what follows may be payload, which
            // would have to be copied.
            Next::Bytes(n) => (&mut [][..], n.max(READ_AHEAD)),
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
            format!(
                "the connection was lost with {} unanswered; the server may have stopped",
                commands(waiting)
            )
        })?;
        bail!("the server closed the connection")
    }

    /// Sends `NBD_CMD_DISC`. Everything is answered, and this command has no reply:
    /// if it cannot be sent, because the server has closed the connection already,
    /// nothing is lost.
    pub fn close(mut self) -> Result<()> {
        let waiting = self.in_flight();
        if waiting > 0 {
            bail!("{} unanswered", commands(waiting));
        }
        let header = self.machine.disconnect()?;
        self.queue(header, Vec::new());
        let _ = self.flush();
        Ok(())
    }

    /// Sends everything.
    fn flush(&mut self) -> Result<()> {
        self.send()?;
        while !self.outbox.is_empty() {
            self.socket.wait(false)?;
            self.send()?;
        }
        Ok(())
    }
}

/// Sends `NBD_CMD_DISC`, if that does not block.
impl Drop for Session {
    fn drop(&mut self) {
        if let (true, Ok(header)) = (self.outbox.is_empty(), self.machine.disconnect()) {
            self.queue(header, Vec::new());
            let _ = self.send();
        }
    }
}

/// The buffer for `length` bytes of payload.
fn place(
    replies: &mut dyn Replies,
    cookie: Cookie,
    offset: u64,
    length: usize,
) -> Result<&mut [u8]> {
    replies.place(cookie, offset, length).ok_or_else(not_a_read)
}

fn not_a_read() -> anyhow::Error {
    anyhow!("the server sent a payload for a command that is not a read")
}

/// The end of the last whole block of an export, in bytes.
pub fn whole_blocks(negotiated: &Negotiated) -> u64 {
    let block = u64::from(negotiated.constraints().minimum.max(1));
    round_down(negotiated.size, block)
}

/// Fails if an export has bytes after its last whole block.
pub fn check_last_block(negotiated: &Negotiated) -> Result<()> {
    let left = length(&(whole_blocks(negotiated)..negotiated.size));
    if left > 0 {
        bail!(
            "the last {left} of {} bytes cannot be accessed: they are less than a block of {} bytes, the minimum of the server",
            negotiated.size,
            negotiated.constraints().minimum
        );
    }
    Ok(())
}

/// A number of commands, for messages.
pub fn commands(number: usize) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} command{plural}")
}

/// A command, for messages.
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

/// What an event adds to the message of a command that fails: where the server had
/// an error and what it says, or how it broke the protocol.
pub fn detail(event: &TransmissionEvent<'_>) -> Option<(Cookie, String)> {
    match event {
        TransmissionEvent::Error {
            cookie,
            offset,
            message,
            ..
        } => {
            let mut text = offset.map_or(String::new(), |offset| format!(" at offset {offset}"));
            if let Some(message) = message.filter(|message| !message.is_empty()) {
                text += &format!(" (server: {message})");
            }
            Some((*cookie, text))
        }
        TransmissionEvent::Fault { cookie, error } => Some((*cookie, format!(": {error}"))),
        _ => None,
    }
}

/// An error value, for messages.
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
