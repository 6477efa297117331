//! The transmission phase: any number of requests in flight, every reply checked.

use nbd_codec::Framing;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie};
use nbd_codec::wire::reply::{
    EXTENDED_REPLY_MAGIC, ExtendedHeader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
    StructuredHeader,
};

use crate::connection::{Connection, Shared};
use crate::duty::Level;
use crate::handshake::Export;
use crate::outcome::{Checked, End, Finding, Stop, found};
use crate::reply::{Reply, Rules};
use crate::request::{Request, TRAP};

/// A connection in the transmission phase.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) rules: Rules,
    pub(crate) export: Export,
    /// The first block of the export; no case writes to it.
    pub(crate) first_block: Vec<u8>,
    /// The duty that the server breaks if it disconnects, is silent, or sends
    /// something else than a reply. `None`: what the situation says.
    pub(crate) breaks: Option<&'static str>,
    /// How binding it is not to disconnect now: a client that broke a rule may be
    /// disconnected.
    pub(crate) closing: Level,
    /// Whether errors should be chunks: one case reports it for all.
    pub(crate) notes_simple_errors: bool,
    pub(crate) record: Shared,
    pending: Vec<Reply>,
    done: Vec<Reply>,
    next_cookie: u64,
}

/// What a request is answered.
pub(crate) enum Answer {
    Reply(Reply),
    /// The server ended the connection.
    Closed(End),
}

/// The longest payload of a chunk that is read, in bytes.
const LONGEST: u64 = (1 << 27) + 4096;

impl Session {
    pub(crate) fn new(
        connection: Connection,
        export: Export,
        rules: Rules,
        first_block: Vec<u8>,
        record: Shared,
    ) -> Self {
        Self {
            connection,
            rules,
            export,
            first_block,
            breaks: None,
            closing: Level::Must,
            notes_simple_errors: false,
            record,
            pending: Vec::new(),
            done: Vec::new(),
            next_cookie: 0x6e62_645f_0000_0001,
        }
    }

    /// The header of a request and its cookie, as it is sent in this session.
    pub(crate) fn encode(&mut self, mut request: Request) -> (Vec<u8>, Reply) {
        let cookie = request.cookie.unwrap_or(Cookie(self.next_cookie));
        self.next_cookie = self.next_cookie.wrapping_add(1);
        let extended = self.rules.framing == Framing::Extended;
        if extended && request.command == Command::WRITE {
            request.flags |= CommandFlags::PAYLOAD_LEN;
        }
        let bytes = request.encode(self.rules.framing, cookie);
        (bytes, Reply::new(request, cookie))
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, request: Request) -> Cookie {
        self.send_all(vec![request])
    }

    /// Sends requests in one piece; returns the cookie of the last one.
    pub(crate) fn send_all(&mut self, requests: Vec<Request>) -> Cookie {
        let mut all = Vec::new();
        let mut meanings = Vec::new();
        let mut last = Cookie(0);
        for request in requests {
            let (bytes, reply) = self.encode(request);
            all.extend(bytes);
            meanings.push(reply.request.describe());
            last = reply.cookie;
            self.expect(reply);
        }
        self.connection.send(&all, meanings.join("; "));
        last
    }

    /// Notes that a reply is due to a request that was sent otherwise.
    pub(crate) fn expect(&mut self, reply: Reply) {
        if reply.request.command != Command::DISC {
            self.pending.push(reply);
        }
    }

    /// Sends a request and waits for the reply; the server must not disconnect.
    pub(crate) fn ask(&mut self, request: Request) -> Checked<Reply> {
        let text = request.describe();
        match self.answer(request)? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Closed(end) => {
                let actual = format!("the connection was {end} after {text}");
                Err(self.closed(actual).into())
            }
        }
    }

    /// The server disconnected.
    pub(crate) fn closed(&self, actual: String) -> Finding {
        Finding::new(self.breaks.unwrap_or("T38"), actual).at(self.closing)
    }

    /// Sends a request and waits for the reply or the end of the connection.
    pub(crate) fn answer(&mut self, request: Request) -> Checked<Answer> {
        let cookie = self.send(request);
        self.wait(cookie)
    }

    /// Waits for the reply to a request that was sent.
    pub(crate) fn reply(&mut self, cookie: Cookie) -> Checked<Reply> {
        match self.wait(cookie)? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Closed(end) => {
                let actual = format!("the connection was {end} before a reply");
                Err(self.closed(actual).into())
            }
        }
    }

    /// Waits for the reply to a request, or the end of the connection.
    pub(crate) fn wait(&mut self, cookie: Cookie) -> Checked<Answer> {
        loop {
            let index = self.done.iter().position(|reply| reply.cookie == cookie);
            if let Some(index) = index {
                return Ok(Answer::Reply(self.done.remove(index)));
            }
            match self.receive()? {
                Ok(()) => {}
                Err(end) if end.is_by_server() => return Ok(Answer::Closed(end)),
                Err(end) => return Err(self.no_reply(cookie, end).into()),
            }
        }
    }

    /// The server did not reply to a request.
    pub(crate) fn no_reply(&self, cookie: Cookie, end: End) -> Finding {
        let pending = self.pending.iter().find(|reply| reply.cookie == cookie);
        let command = pending.map_or(Command::READ, |reply| reply.request.command);
        let id = self.breaks.unwrap_or(match (command, self.rules.framing) {
            (Command::READ, _) => "R78",
            (_, Framing::Extended) => "T28",
            _ => "T15",
        });
        let text = pending.map(|reply| reply.request.describe());
        let text = text.unwrap_or_default();
        Finding::new(id, format!("no reply to {text}: {end}"))
    }

    /// The cookie of a request that is not answered.
    pub(crate) fn oldest(&self) -> Option<Cookie> {
        self.pending.first().map(|reply| reply.cookie)
    }

    /// Takes the replies that are complete.
    pub(crate) fn take_done(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.done)
    }

    /// Whether replies are due.
    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Receives one message.
    pub(crate) fn receive(&mut self) -> Checked<Result<(), End>> {
        let magic = match self.connection.peek(4) {
            Ok(bytes) => bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
            Err(end) => return Ok(Err(end)),
        };
        let simple = self.rules.framing != Framing::Extended;
        match (magic, self.rules.framing) {
            (Some(SIMPLE_REPLY_MAGIC), _) if simple => self.simple(),
            (Some(STRUCTURED_REPLY_MAGIC), Framing::Structured) => self.chunk(),
            (Some(EXTENDED_REPLY_MAGIC), Framing::Extended) => self.chunk(),
            (magic, framing) => {
                self.connection.rest();
                let id = match (magic, framing) {
                    (Some(SIMPLE_REPLY_MAGIC), _) => "T16",
                    (Some(STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC), Framing::Simple) => "T19",
                    (Some(STRUCTURED_REPLY_MAGIC), _) => "T28",
                    _ => self.breaks.unwrap_or("T15"),
                };
                let magic = magic.unwrap_or_default();
                found(id, format!("a reply begins with {magic:#010x}"))
            }
        }
    }

    /// The index of the request that a reply belongs to.
    fn find(&mut self, cookie: Cookie) -> Checked<usize> {
        let index = self.pending.iter().position(|one| one.cookie == cookie);
        match index {
            Some(index) => Ok(index),
            None if cookie == TRAP => {
                let extended = self.rules.framing == Framing::Extended;
                found(
                    self.breaks.unwrap_or(if extended { "T14" } else { "T10" }),
                    "the server took the payload of a request for requests",
                )
            }
            None if self.done.iter().any(|one| one.cookie == cookie) => {
                found("T25", format!("another message of the reply to {cookie}"))
            }
            None => found(
                self.breaks.unwrap_or("T4"),
                format!("a reply to {cookie}, which is not in flight"),
            ),
        }
    }

    fn simple(&mut self) -> Checked<Result<(), End>> {
        const SIZE: usize = SimpleReply::SIZE;
        let header = match self.connection.peek(SIZE) {
            Ok(mut bytes) => SimpleReply::decode(&mut bytes).ok().flatten(),
            Err(end) => return Ok(Err(end)),
        };
        let Some(header) = header else {
            return Ok(Ok(()));
        };
        let index = match self.find(header.cookie) {
            Ok(index) => index,
            Err(stop) => return self.abandon(SIZE, stop),
        };
        let request = self.pending.get(index).map(|reply| reply.request.clone());
        let request = request.unwrap_or(Request::read(0, 0));
        let read = request.command == Command::READ;
        let text = request.describe();
        if self.rules.framing == Framing::Structured {
            if read {
                let stop = Finding::new("T22", format!("a simple reply to {text}")).into();
                return self.abandon(SIZE, stop);
            }
            if header.error.is_error() && self.notes_simple_errors {
                self.note(Finding::new("T24", format!("a simple reply to {text}")));
            }
        }
        let length = if read && !header.error.is_error() {
            usize::try_from(request.length).unwrap_or(usize::MAX)
        } else {
            0
        };
        let meaning = |_: &[u8]| format!("simple reply, {}, to {text}", header.error);
        let bytes = match self.connection.take(SIZE.saturating_add(length), meaning) {
            Ok(bytes) => bytes,
            // An error in the middle of the data leaves the server no other choice.
            Err(end) => return Ok(Err(end)),
        };
        let data = bytes.get(SIZE..).unwrap_or_default().to_vec();
        let mut reply = self.pending.remove(index);
        reply.simple(header.error, data);
        self.finish_reply(reply);
        Ok(Ok(()))
    }

    fn chunk(&mut self) -> Checked<Result<(), End>> {
        let extended = self.rules.framing == Framing::Extended;
        let size = if extended {
            ExtendedHeader::SIZE
        } else {
            StructuredHeader::SIZE
        };
        let header = match self.connection.peek(size) {
            Ok(mut bytes) if extended => ExtendedHeader::decode(&mut bytes).ok().flatten(),
            Ok(mut bytes) => {
                let header = StructuredHeader::decode(&mut bytes).ok().flatten();
                header.map(|header| ExtendedHeader {
                    flags: header.flags,
                    chunk: header.chunk,
                    cookie: header.cookie,
                    offset: 0,
                    length: header.length.into(),
                })
            }
            Err(end) => return Ok(Err(end)),
        };
        let Some(header) = header else {
            return Ok(Ok(()));
        };
        let index = match self.find(header.cookie) {
            Ok(index) => index,
            Err(stop) => return self.abandon(size, stop),
        };
        let request = self.pending.get(index).map(|reply| reply.request.clone());
        let request = request.unwrap_or(Request::read(0, 0));
        let text = request.describe();
        if header.length > LONGEST {
            let actual = format!("{} of {} bytes to {text}", header.chunk, header.length);
            return self.abandon(size, Finding::new("R20", actual).into());
        }
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let meaning = |_: &[u8]| {
            let (chunk, flags) = (header.chunk, header.flags);
            format!("{chunk}, {flags}, {length} bytes, to {text}")
        };
        let bytes = match self.connection.take(size.saturating_add(length), meaning) {
            Ok(bytes) => bytes,
            Err(end) => {
                return found("R78", format!("a part of a chunk to {text}, then {end}"));
            }
        };
        if extended && header.offset != request.offset {
            let offset = header.offset;
            return found("T29", format!("the offset {offset} in a reply to {text}"));
        }
        let payload = bytes.get(size..).unwrap_or_default();
        let mut notes = Vec::new();
        let mut reply = self.pending.remove(index);
        let done = reply.chunk(header.chunk, header.flags, payload, &self.rules, &mut notes);
        for note in notes {
            self.note(note);
        }
        if done? {
            self.finish_reply(reply);
        } else {
            self.pending.insert(index, reply);
        }
        Ok(Ok(()))
    }

    /// Records the header that shows a fault, and ends the case.
    fn abandon<T>(&mut self, size: usize, stop: Stop) -> Checked<T> {
        let _ = self.connection.take(size, |_| "not expected".to_owned());
        Err(stop)
    }

    /// A reply is complete: checks which errors it may have.
    fn finish_reply(&mut self, reply: Reply) {
        use nbd_codec::wire::number::ErrorValue as E;
        for (error, _) in &reply.errors {
            let text = reply.describe();
            let request = &reply.request;
            let fast = request.flags.contains(CommandFlags::FAST_ZERO);
            let long = request.length > self.rules.maximum.unwrap_or(1 << 25);
            let fits = request.command == Command::READ || request.payload.is_empty() && long;
            match *error {
                E::EOVERFLOW if !fits => self.note(Finding::new("E6", text)),
                E::ENOTSUP if !fast => self.note(Finding::new("E7", text)),
                E::ENOMEM => self.note(Finding::new("E11", text)),
                error if !error.is_known() => self.note(Finding::new("E12", text)),
                _ => {}
            }
        }
        self.done.push(reply);
    }

    /// Adds a finding; the case continues.
    pub(crate) fn note(&self, finding: Finding) {
        self.record.borrow_mut().findings.push(finding);
    }

    /// A good command is still answered: the first block has the known data.
    pub(crate) fn still_good(&mut self) -> Checked {
        let expected = self.first_block.clone();
        let length = match crate::reply::wide(expected.len()) {
            0 => self.rules.minimum.max(512),
            length => length,
        };
        if length > self.export.size {
            return Ok(());
        }
        let reply = self.ask(Request::read(0, length))?;
        if let Some(error) = reply.error() {
            let id = self.breaks.unwrap_or("R81");
            return found(id, format!("READ of the first block failed with {error}"));
        }
        if !expected.is_empty() && reply.data != expected {
            let id = self.breaks.unwrap_or("R81");
            return found(
                id,
                "READ of the first block returned other data than before",
            );
        }
        Ok(())
    }

    /// Disconnects; the server must close the connection.
    pub(crate) fn disconnect(&mut self) -> Checked {
        self.send(Request::new(Command::DISC, 0, 0));
        match self.connection.expect_end() {
            Ok(_) => Ok(()),
            Err(bytes) if bytes.is_empty() => {
                found("T32", "the connection stays open after NBD_CMD_DISC")
            }
            Err(bytes) => found("T32", format!("{} bytes after NBD_CMD_DISC", bytes.len())),
        }
    }
}
