//! The transmission phase of the scripted server.

use std::time::Duration;

use nbd_codec::Framing;
use nbd_codec::wire::flags::{CommandFlags as Flag, ReplyFlags, TransmissionFlags as Has};
use nbd_codec::wire::greeting::OPTION_MAGIC;
use nbd_codec::wire::number::{Command, Cookie, ErrorValue as Error};
use nbd_codec::wire::request::{
    BlockStatusPayload, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest, REQUEST_MAGIC,
};

use super::handshake::{CONTEXT, Session};
use super::message::Message;
use super::reply::Reply;
use super::script::{Asked, SIZE};
use super::server::{Gone, Left, Server};
use crate::request::Request;

/// How many requests in flight are answered out of order.
const WINDOW: usize = 16;
/// How long the server waits for the next of them.
const NEXT: Duration = Duration::from_millis(3);
/// The maximum payload without advertised sizes (specification, "Size constraints").
const MAXIMUM: u64 = 1 << 25;
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
            self.check_cookies(&batch);
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
                if self.connection.has_input() {
                    self.found("R113", "bytes after DISC");
                }
                return Ok(());
            }
        }
    }

    fn check_cookies(&self, batch: &[Request]) {
        for (index, request) in batch.iter().enumerate() {
            let earlier = batch.iter().take(index);
            if earlier.clone().any(|one| one.cookie == request.cookie) {
                let actual = format!("{}: the cookie is in flight", request.describe());
                self.found("T3", actual);
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
            let actual = format!("a request begins with {start:02x?}, not {magic:#x}");
            self.found("O105", actual);
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
            let too_long = request.length > LONGEST;
            self.check(session, &request);
            if too_long {
                return Err(Gone);
            }
            let length = usize::try_from(request.length).map_err(|_| Gone)?;
            request.payload = self.take(length, |_| format!("{length} bytes of payload"))?;
        } else {
            self.check(session, &request);
        }
        self.served.commands.push(request.command);
        if request.command == Command::READ {
            self.served.read = self.served.read.saturating_add(request.length);
        }
        if request.command == Command::BLOCK_STATUS && !request.payload.is_empty() {
            self.check_filter(&request);
        }
        Ok(request)
    }

    /// Checks a request.
    fn check(&self, session: &Session, request: &Request) {
        if !session.trusted {
            return;
        }
        let (command, flags) = (request.command, request.flags);
        let found = |id: &str, what: &str| {
            self.found(id, format!("{}: {what}", request.describe()));
        };
        let extended = session.framing == Framing::Extended;
        let has = |flag| session.flags.contains(flag);
        let advertised = match command {
            Command::READ | Command::WRITE | Command::DISC => true,
            Command::FLUSH => has(Has::SEND_FLUSH),
            Command::TRIM => has(Has::SEND_TRIM),
            Command::CACHE => has(Has::SEND_CACHE),
            Command::WRITE_ZEROES => has(Has::SEND_WRITE_ZEROES),
            Command::BLOCK_STATUS => {
                if !session.context {
                    found("M4", "no context was selected");
                }
                true
            }
            _ => false,
        };
        if !advertised {
            found("O13", "the command is not advertised");
        }
        let writes = matches!(
            command,
            Command::WRITE | Command::TRIM | Command::WRITE_ZEROES
        );
        if writes && has(Has::READ_ONLY) {
            found("O13", "the export is read-only");
        }
        // FUA may be set on every command if it is advertised.
        let mut allowed = Flag::NONE;
        if has(Has::SEND_FUA) {
            allowed |= Flag::FUA;
        }
        match command {
            Command::READ => allowed |= Flag::DF,
            Command::WRITE_ZEROES => allowed |= Flag::NO_HOLE | Flag::FAST_ZERO,
            Command::BLOCK_STATUS => allowed |= Flag::REQ_ONE,
            _ => {}
        }
        let payload = write_or_filter(command, session);
        if extended && payload {
            allowed |= Flag::PAYLOAD_LEN;
        }
        if flags.contains(Flag::PAYLOAD_LEN) && !extended {
            found("T9", "PAYLOAD_LEN in a compact request");
        } else if flags.contains(Flag::FUA) && !has(Has::SEND_FUA) {
            found("O13", "FUA is not advertised");
        } else if !allowed.contains(flags) {
            found("R1", "a flag that the command does not have");
        }
        if flags.contains(Flag::DF) && !has(Has::SEND_DF) {
            found("R8", "SEND_DF is not advertised");
        }
        if flags.contains(Flag::FAST_ZERO) && !has(Has::SEND_FAST_ZERO) {
            found("R11", "SEND_FAST_ZERO is not advertised");
        }
        if extended && command == Command::WRITE && !flags.contains(Flag::PAYLOAD_LEN) {
            found("T11", "WRITE without PAYLOAD_LEN");
        }
        self.check_range(session, request, &found);
    }

    fn check_range(&self, session: &Session, request: &Request, found: &dyn Fn(&str, &str)) {
        let Request {
            command,
            offset,
            length,
            ..
        } = *request;
        match command {
            Command::DISC | Command::FLUSH => {
                if (offset, length) != (0, 0) {
                    let id = if command == Command::DISC {
                        "R114"
                    } else {
                        "R117"
                    };
                    found(id, "offset or length is not zero");
                }
                return;
            }
            Command::BLOCK_STATUS if request.flags.contains(Flag::PAYLOAD_LEN) => return,
            _ => {}
        }
        if length == 0 {
            let id = match command {
                Command::WRITE => "R108",
                Command::TRIM => "R118",
                Command::WRITE_ZEROES => "R125",
                Command::BLOCK_STATUS => "R141",
                _ => "R79",
            };
            found(id, "the length is zero");
        }
        if offset.checked_add(length).is_none_or(|end| end > SIZE) {
            found("S24", "it exceeds the end of the export");
        }
        let sizes = self.script.dialect.sizes.filter(|_| session.sizes);
        let minimum = sizes.map_or(1, |sizes| u64::from(sizes.minimum)).max(1);
        if !offset.is_multiple_of(minimum) || !length.is_multiple_of(minimum) {
            found("S22", &format!("the minimum block size is {minimum}"));
        }
        let (id, maximum) = match sizes {
            Some(sizes) => ("S19", u64::from(sizes.maximum)),
            None => ("S6", MAXIMUM),
        };
        let payload = command == Command::WRITE
            || command == Command::READ && session.framing == Framing::Simple;
        if payload && length > maximum {
            found(id, &format!("the maximum payload is {maximum}"));
        }
    }

    /// Checks the payload of a block status request.
    fn check_filter(&self, request: &Request) {
        let payload = BlockStatusPayload::decode(&request.payload);
        let known = payload.is_ok_and(|payload| {
            payload.contexts.len() <= 1 && payload.contexts.iter().all(|id| id == CONTEXT)
        });
        if !known {
            self.found("R147", format!("{}: the payload", request.describe()));
        }
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

fn write_or_filter(command: Command, session: &Session) -> bool {
    command == Command::WRITE
        || command == Command::BLOCK_STATUS && session.flags.contains(Has::BLOCK_STATUS_PAYLOAD)
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
