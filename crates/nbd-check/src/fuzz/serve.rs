//! A server that follows a script, and checks what the client sends.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use anyhow::bail;
use nbd_codec::inbox::Inbox;
use nbd_codec::monitor::{self, Monitor, Side, Slot};
use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, MetaContext, ReadRequest, Request, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::TransmissionFlags as Has;
use nbd_codec::wire::number::{ErrorValue, OptionReplyType};
use nbd_codec::wire::option_reply::OptionReplyHeader;
use nbd_codec::{Content, Framing, Limits, Step};

use super::link::Link;
use super::messages::Mutation;
use super::script::{ClientScript, Reaction};
use crate::connection::Shared;
use crate::transcript::{Entry, Event};
use crate::watch::Watch;

/// A server that follows a script.
pub(super) struct Serve<'a> {
    script: &'a ClientScript,
    phase: Phase,
    inbox: Inbox<Vec<u8>>,
    link: Link,
    disk: Vec<u8>,
    /// The offset and the data of the write that arrives.
    write: (u64, Vec<u8>),
    reactions: std::slice::Iter<'a, Reaction>,
    /// How many messages are sent before the next reaction.
    correct: u8,
    /// A message was invalid: what the client does then is not checked.
    altered: bool,
    /// Something was sent since the client has read.
    sent: bool,
    out: Vec<u8>,
    watch: Watch,
    pub(super) record: Shared,
}

enum Phase {
    Handshake(Box<Handshake>),
    Transmission(Box<Transmission>),
    Over,
}

/// The size of the export in bytes.
const SIZE: usize = 1 << 16;

/// What the export holds: no eight bytes come twice, and none is zero.
pub(super) fn content() -> Vec<u8> {
    let byte = |at: usize| {
        u8::try_from(match at % 8 {
            0 => at / 8 % 128,
            1 => at / 8 / 128,
            other => other,
        })
    };
    (0..SIZE).map(|at| byte(at).unwrap_or(0) | 0x80).collect()
}

impl<'a> Serve<'a> {
    pub(super) fn new(script: &'a ClientScript, link: Link) -> Self {
        let framing = match script.framing % 3 {
            0 => Framing::Simple,
            1 => Framing::Structured,
            _ => Framing::Extended,
        };
        let config = Config::new().framing(framing).strict(true);
        let phase = Handshake::new(config).map_or(Phase::Over, |handshake| {
            Phase::Handshake(Box::new(handshake))
        });
        Self {
            script,
            phase,
            inbox: Inbox::new(vec![0; Limits::DEFAULT.buffer()]),
            link,
            disk: content(),
            write: (0, Vec::new()),
            reactions: script.actions.0.iter(),
            correct: 0,
            altered: false,
            sent: false,
            out: Vec::new(),
            watch: Watch::new(),
            record: Shared::default(),
        }
    }

    /// Takes what the client has sent, and answers it; false at the end of the
    /// connection.
    ///
    /// # Errors
    ///
    /// What the client did wrong.
    pub(super) fn advance(&mut self) -> Result<bool, String> {
        self.sent = false;
        loop {
            let step = match &mut self.phase {
                Phase::Handshake(_) => self.negotiate(),
                Phase::Transmission(_) => self.transmit(),
                Phase::Over => return Ok(self.sent),
            };
            match step {
                Ok(Some(n)) => {
                    let link = &mut self.link;
                    let mut received = Vec::new();
                    let filled = self.inbox.fill(n, |space| {
                        let n = link.read(space)?;
                        received.extend(space.iter().take(n));
                        Ok::<_, io::Error>(n)
                    });
                    match filled {
                        Ok(_) if !received.is_empty() => self.log(Event::Sent(received), ""),
                        // The client has closed the connection.
                        Ok(_) => self.phase = Phase::Over,
                        // Nothing more has come.
                        _ if self.sent || self.altered => return Ok(self.sent),
                        _ => {
                            self.phase = Phase::Over;
                            return Err("the client waits, but nothing is due".into());
                        }
                    }
                }
                Ok(None) => {}
                Err(_) if self.altered => self.phase = Phase::Over,
                Err(error) => {
                    self.phase = Phase::Over;
                    return Err(format!("the client breaks a rule: {error}"));
                }
            }
            let out = std::mem::take(&mut self.out);
            self.put_all(&out);
        }
    }

    fn log(&mut self, event: Event, note: &str) {
        let mut meaning = Vec::new();
        let tell = &mut |_: &Monitor<Vec<Slot>>, step: monitor::Step<'_>| match step {
            monitor::Step::Message(message) => meaning.push(message.to_string()),
            monitor::Step::Violation(finding) => meaning.push(finding.to_string()),
            _ => {}
        };
        match &event {
            Event::Sent(bytes) => self.watch.see(Side::Client, bytes, tell),
            Event::Received(bytes, _) => self.watch.see(Side::Server, bytes, tell),
            _ => {}
        }
        if !note.is_empty() {
            meaning.push(note.to_owned());
        }
        self.record.borrow_mut().entries.push(Entry {
            connection: 1,
            event,
            meaning: meaning.join("; "),
        });
    }

    /// One step of the handshake; how many bytes it needs.
    fn negotiate(&mut self) -> anyhow::Result<Option<NonZeroUsize>> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return Ok(None);
        };
        let mut flags = match self.script.export % 4 {
            1 => Has::READ_ONLY,
            2 => Has::NONE,
            _ => {
                Has::SEND_FLUSH
                    | Has::SEND_FUA
                    | Has::SEND_TRIM
                    | Has::SEND_WRITE_ZEROES
                    | Has::SEND_CACHE
            }
        };
        if handshake.agreed().framing != Framing::Simple {
            flags |= Has::SEND_DF;
        }
        let contexts = [MetaContext::narrow("base:allocation")];
        let mut export = Export::new("", SIZE as u64, flags);
        export.contexts = &contexts;
        match self.inbox.receive(&mut **handshake)? {
            Step::Event(HandshakeEvent::List) => {
                handshake.list(&export, &mut self.out)?;
                handshake.finish_list(&mut self.out)?;
            }
            Step::Event(HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query)) => {
                if query.export().is_empty() {
                    handshake.grant(&query, &export, &mut self.out)?;
                } else {
                    let error = OptionReplyType::ERR_UNKNOWN;
                    handshake.refuse(error, "no such export", &mut self.out)?;
                }
            }
            Step::Event(HandshakeEvent::Ready { .. }) => {
                if let Phase::Handshake(handshake) = std::mem::replace(&mut self.phase, Phase::Over)
                {
                    let negotiated = handshake
                        .into_negotiated()
                        .map_err(nbd_codec::SessionError::from)?;
                    let session = Transmission::new(negotiated, Limits::DEFAULT)?.strict();
                    self.phase = Phase::Transmission(Box::new(session));
                }
            }
            Step::Transmit => drop(handshake.transmit(&mut self.out)?),
            Step::Read(n) => return Ok(Some(n)),
            Step::Finished => self.phase = Phase::Over,
            _ => {}
        }
        Ok(None)
    }

    fn transmit(&mut self) -> anyhow::Result<Option<NonZeroUsize>> {
        let Phase::Transmission(session) = &mut self.phase else {
            return Ok(None);
        };
        match self.inbox.receive(&mut **session)? {
            Step::Event(TransmissionEvent::WritePayload { offset, length, .. }) => {
                let length = usize::try_from(length).unwrap_or(0);
                self.write = (offset, vec![0; length]);
            }
            Step::Content(data @ Content::Data { .. }) => {
                let _ = data.copy_to(self.write.0, &mut self.write.1);
            }
            Step::ReadPayload { length, .. } => {
                // Taken in pieces by the next reads.
                let n = usize::try_from(length).unwrap_or(usize::MAX);
                return Ok(NonZeroUsize::new(n));
            }
            Step::Event(TransmissionEvent::Request(request)) => self.answer(request)?,
            Step::Event(TransmissionEvent::Answered { result, reply, .. }) => {
                reply.encode(&mut self.out)?;
                if let (Err(error), false) = (result, self.altered) {
                    bail!("a request that must be refused with {error}");
                }
            }
            Step::Read(n) => return Ok(Some(n)),
            Step::Finished => self.phase = Phase::Over,
            _ => {}
        }
        Ok(None)
    }

    /// Does a request and answers it.
    fn answer(&mut self, request: Request) -> anyhow::Result<()> {
        if let Some(Reaction::Fail { error }) = self.reactions.as_slice().first()
            && self.correct == 0
        {
            self.reactions.next();
            let error = match error % 4 {
                0 => ErrorValue::EIO,
                1 => ErrorValue::ENOSPC,
                2 => ErrorValue::ESHUTDOWN,
                _ => ErrorValue(u32::from(*error) + 1000),
            };
            request.fail(error, "it fails").encode(&mut self.out)?;
            return Ok(());
        }
        let place = |offset: u64, length: u64| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            start..start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX))
        };
        let reply = match request {
            Request::Read(read) => {
                let data = self.disk.get(place(read.offset(), read.length().into()));
                let data = data.unwrap_or_default().to_vec();
                return self.read(read, &data);
            }
            Request::Write(write) => {
                let (_, data) = std::mem::take(&mut self.write);
                let space = self.disk.get_mut(place(write.offset(), write.length()));
                if let Some(space) = space.filter(|space| space.len() == data.len()) {
                    space.copy_from_slice(&data);
                }
                write.succeed()
            }
            Request::WriteZeroes(zeroes) => {
                let space = self.disk.get_mut(place(zeroes.offset(), zeroes.length()));
                space.unwrap_or_default().fill(0);
                zeroes.succeed()
            }
            Request::Trim(trim) => trim.succeed(),
            Request::Cache(cache) => cache.succeed(),
            Request::Flush(flush) => flush.succeed(),
            Request::BlockStatus32(status) => {
                let extent = Extent32 {
                    length: u32::try_from(status.length())?,
                    flags: 0,
                };
                let id = status.contexts().next();
                if let Some(id) = id {
                    status.reply(id, [extent], &mut self.out)?;
                }
                return Ok(());
            }
            Request::BlockStatus64(status) => {
                let extent = Extent64 {
                    length: status.length(),
                    flags: 0,
                };
                let id = status.contexts().next();
                if let Some(id) = id {
                    status.reply(id, [extent], &mut self.out)?;
                }
                return Ok(());
            }
            other => other.fail(ErrorValue::EINVAL, ""),
        };
        reply.encode(&mut self.out)?;
        Ok(())
    }

    /// Answers a read: whole, or in two pieces, the second one first.
    fn read(&mut self, read: ReadRequest, data: &[u8]) -> anyhow::Result<()> {
        let pieces = self.script.fragments && data.len() > 1 && !read.dont_fragment();
        let chunks = if pieces {
            read.into_chunks()
        } else {
            Err(read)
        };
        let mut chunks = match chunks {
            Ok(chunks) => chunks,
            Err(read) => {
                let header = read.data().as_bytes().to_vec();
                self.put(header, data);
                return Ok(());
            }
        };
        let (first, second) = data.split_at(data.len() / 2);
        let start = chunks.offset();
        let length = |part: &[u8]| u32::try_from(part.len());
        let middle = start + u64::from(length(first)?);
        let header = chunks.data(middle, length(second)?)?.as_bytes().to_vec();
        self.put(header, second);
        let header = chunks.finish_with_data(start, length(first)?)?;
        self.put(header.as_bytes().to_vec(), first);
        Ok(())
    }

    /// Sends what one step has answered: replies to an option one by one.
    fn put_all(&mut self, mut out: &[u8]) {
        while !out.is_empty() {
            let mut rest = out;
            let length = match OptionReplyHeader::decode(&mut rest) {
                Ok(Some(header)) => {
                    OptionReplyHeader::SIZE + usize::try_from(header.length).unwrap_or(0)
                }
                _ => out.len(),
            };
            let (message, rest) = out.split_at(length.min(out.len()));
            self.put(message.to_vec(), &[]);
            out = rest;
        }
    }

    /// Sends a message, after the next reaction. The content of a read is not changed:
    /// no client could notice it.
    fn put(&mut self, mut message: Vec<u8>, data: &[u8]) {
        self.sent = true;
        let mut meaning = "";
        let mut cut = false;
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if let Some(correct) = self.correct.checked_sub(1) {
            self.correct = correct;
        } else {
            match self.reactions.next() {
                Some(Reaction::Correct { messages }) => self.correct = messages % 16,
                Some(Reaction::Mutated { mutation }) => {
                    let before = message.clone();
                    let lengthens = matches!(
                        mutation,
                        Mutation::Truncate { .. } | Mutation::Insert { .. }
                    );
                    if data.is_empty() || !lengthens {
                        mutation.apply(&mut message);
                    }
                    if message != before {
                        self.altered = true;
                        meaning = "altered";
                    }
                }
                Some(Reaction::Cut { after }) => {
                    message.truncate((*after).into());
                    (self.altered, cut) = (true, true);
                    meaning = "cut";
                }
                // Requests only can fail.
                Some(Reaction::Fail { .. }) | None => {}
            }
        }
        if !cut {
            message.extend(data);
        }
        // A link in memory takes everything.
        let _ = self.link.write(&message);
        self.log(Event::Received(message, 0), meaning);
        if cut {
            self.phase = Phase::Over;
        }
    }
}
