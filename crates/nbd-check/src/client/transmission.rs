//! The transmission phase of the scripted server.

use std::time::Duration;

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, ReplyFlags, TransmissionFlags};
use nbd_codec::wire::greeting::OPTION_MAGIC;
use nbd_codec::wire::number::{Command, Cookie, ErrorValue as Error};
use nbd_codec::wire::request::{
    CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, REQUEST_MAGIC,
};

use super::handshake::Session;
use super::message::Message;
use super::reply::Reply;
use super::script::Asked;
use super::server::{Gone, Left, Server};
use crate::request::Request;

/// How many requests in flight are answered out of order.
const WINDOW: usize = 16;
/// How long the server waits for the next of them.
const NEXT: Duration = Duration::from_millis(3);
/// How often a client may send the same request after a fault.
const AGAIN: usize = 1000;
/// Longer payloads are not taken: the client is out of sync.
const LONGEST: u64 = 1 << 27;

impl Server<'_> {
    /// Answers requests until the client leaves.
    pub(super) fn transmission(&mut self, session: Session) -> Result<(), Gone> {
        loop {
            let mut batch = vec![self.request(&session)?];
            let leaves = |batch: &[Request]| {
                let last = batch.last();
                last.is_some_and(|request| request.command == Command::DISC)
            };
            let wait = if self.script.dialect.out_of_order {
                NEXT
            } else {
                Duration::ZERO
            };
            while batch.len() < WINDOW && !leaves(&batch) {
                let more = self.connection.has_input()
                    || !wait.is_zero() && self.connection.has_more(wait);
                if !more {
                    break;
                }
                batch.push(self.request(&session)?);
            }
            if leaves(&batch) {
                self.served.left = Left::Disc;
                batch.pop();
                // After an error the client may leave at once.
                if !batch.is_empty() && !self.served.twisted {
                    let actual = format!("DISC with {} requests in flight", batch.len());
                    self.found("T37", actual);
                }
            }
            if self.script.dialect.out_of_order {
                batch.reverse();
            }
            for request in &batch {
                let messages = self.perform(&session, request);
                self.answer(Asked::Request(request, session.framing), messages)?;
            }
            if self.served.left == Left::Disc {
                return Ok(());
            }
        }
    }

    /// The next request, with its payload.
    fn request(&mut self, session: &Session) -> Result<Request, Gone> {
        let extended = session.framing == Framing::Extended;
        let magic = if extended {
            EXTENDED_REQUEST_MAGIC
        } else {
            REQUEST_MAGIC
        };
        let start = self.connection.peek(4).map_err(|_| Gone)?;
        // After a handshake with a fault the client may still abort it.
        let option = OPTION_MAGIC.to_be_bytes();
        if !session.trusted && option.starts_with(start) {
            self.aborts()?;
            return Err(Gone);
        }
        if start != magic.to_be_bytes() {
            return Err(Gone);
        }
        let size = if extended {
            ExtendedRequest::SIZE
        } else {
            CompactRequest::SIZE
        };
        let mut request = parse(self.connection.peek(size).map_err(|_| Gone)?);
        let meaning = request.describe();
        self.take(size, |_| meaning)?;
        let write = request.command == Command::WRITE;
        if write || extended && request.flags.contains(Flag::PAYLOAD_LEN) {
            if request.length > LONGEST {
                return Err(Gone);
            }
            let length = usize::try_from(request.length).map_err(|_| Gone)?;
            request.payload = self.take(length, |_| format!("{length} bytes of payload"))?;
        }
        self.served.commands.push(request.command);
        self.check_progress(&request)?;
        if request.command == Command::READ {
            self.served.read = self.served.read.saturating_add(request.length);
        }
        Ok(request)
    }

    /// After a fault a client may ask again, but not without end.
    fn check_progress(&mut self, request: &Request) -> Result<(), Gone> {
        let this = Some((request.command, request.offset, request.length));
        self.again = if self.last == this { self.again + 1 } else { 0 };
        self.last = this;
        if self.again == AGAIN && self.served.twisted {
            let actual = format!("the same request {AGAIN} times, without progress");
            self.found("X3", actual);
            return Err(Gone);
        }
        Ok(())
    }

    /// Does what the request says, unless a twist refuses it; the answer as it should
    /// be.
    fn perform(&self, session: &Session, request: &Request) -> Vec<Message> {
        let reply = Reply {
            framing: session.framing,
            request,
        };
        let range = offset_range(request);
        let Ok(mut disk) = self.disk.lock() else {
            return Vec::new();
        };
        match request.command {
            Command::READ => match range.and_then(|range| disk.get(range)) {
                Some(data) => reply.read(data, self.script.dialect.pieces),
                None => reply.error(Error::EINVAL),
            },
            Command::WRITE | Command::WRITE_ZEROES | Command::TRIM
                if session.flags.contains(TransmissionFlags::READ_ONLY) =>
            {
                reply.error(Error::EPERM)
            }
            Command::WRITE | Command::WRITE_ZEROES | Command::TRIM => {
                let Some(part) = range.and_then(|range| disk.get_mut(range)) else {
                    return reply.error(Error::ENOSPC);
                };
                let done = reply.success();
                let mut twisted = done.clone();
                // What is refused is not done.
                if let Some(twist) = &self.script.twist {
                    twist(Asked::Request(request, session.framing), &mut twisted);
                }
                if !refuses(&twisted, reply.cookie()) {
                    match request.command {
                        Command::WRITE if part.len() == request.payload.len() => {
                            part.copy_from_slice(&request.payload);
                        }
                        _ => part.fill(0),
                    }
                }
                done
            }
            Command::FLUSH | Command::CACHE => reply.success(),
            Command::BLOCK_STATUS if session.context => reply.status(self.script.dialect.extents),
            _ => reply.error(Error::EINVAL),
        }
    }
}

/// Whether an answer to a command without data reports no success, as far as it goes.
fn refuses(messages: &[Message], of: Cookie) -> bool {
    for message in messages {
        match message {
            Message::Simple { error, cookie, .. } if *cookie == of => return error.is_error(),
            Message::Chunk(chunk) if chunk.cookie == of => {
                if chunk.chunk.is_error() {
                    return true;
                }
                if chunk.flags.contains(ReplyFlags::DONE) {
                    return false;
                }
            }
            Message::Simple { .. } | Message::Chunk(_) => {}
            _ => return true,
        }
    }
    true
}

fn parse(bytes: &[u8]) -> Request {
    let mut input = bytes;
    let extended = ExtendedRequest::decode(&mut input).ok().flatten();
    let (flags, command, cookie, offset, length) = match extended {
        Some(one) => (one.flags, one.command, one.cookie, one.offset, one.length),
        None => match CompactRequest::decode(&mut input).ok().flatten() {
            Some(one) => {
                let length = u64::from(one.length);
                (one.flags, one.command, one.cookie, one.offset, length)
            }
            None => (Flag::NONE, Command::DISC, Cookie(0), 0, 0),
        },
    };
    let mut request = Request::new(command, offset, length).flags(flags);
    request.cookie = Some(cookie);
    request
}

fn offset_range(request: &Request) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(request.offset).ok()?;
    let length = usize::try_from(request.length).ok()?;
    Some(start..start.checked_add(length)?)
}
