//! "Transmission phase": the server's replies.

use super::{Parse, Stream, Validity, ensure, invalid};
use crate::reply_event::{ReplyEvent, push};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    #[default]
    Simple,
    Structured,
    Extended,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub framing: Framing,
    /// The selected contexts, and whether the status has 64 bits.
    pub contexts: Vec<(u32, bool)>,
    /// Policy: longer error messages are discarded.
    pub max_message: u64,
    /// Policy: longer error chunks are an error.
    pub max_error: u64,
    /// Policy: more extents in one chunk are an error.
    pub max_extents: u64,
}

#[derive(Debug, Clone)]
pub struct Command {
    pub at: usize,
    pub cookie: u64,
    pub kind: u64,
    pub flags: u64,
    pub offset: u64,
    pub length: u64,
    /// The contexts it asks for.
    pub contexts: Vec<u32>,
}

const READ: u64 = 0;
const FLUSH: u64 = 3;
const BLOCK_STATUS: u64 = 7;
const RESIZE: u64 = 8;
const FLAG_DF: u64 = 1 << 2;
const FLAG_REQ_ONE: u64 = 1 << 3;

/// A command in flight, and its reply so far.
struct Open<'a> {
    command: &'a Command,
    chunks: usize,
    error: u64,
    /// The ranges of the content, as start and end.
    content: Vec<(u128, u128)>,
    described: Vec<u64>,
}

struct Parser<'a> {
    config: &'a Config,
    stream: Stream<'a>,
    commands: &'a [Command],
    open: Vec<Open<'a>>,
    reply_events: Vec<ReplyEvent>,
}

/// Parses all bytes of a server during transmission.
pub fn parse(config: &Config, commands: &[Command], bytes: &[u8]) -> (Vec<ReplyEvent>, Validity) {
    let mut parser = Parser {
        config,
        stream: Stream { bytes, at: 0 },
        commands,
        open: Vec::new(),
        reply_events: Vec::new(),
    };
    while parser.stream.left() > 0 {
        if let Err(validity) = parser.message() {
            return (parser.reply_events, validity);
        }
    }
    (parser.reply_events, Validity::Valid)
}

impl<'a> Parser<'a> {
    fn message(&mut self) -> Parse<()> {
        let magic = self.stream.number(4)?;
        match (self.config.framing, magic) {
            (Framing::Simple | Framing::Structured, 0x67446698) => self.simple(),
            (Framing::Structured, 0x668e33ef) => self.chunk(),
            (Framing::Extended, 0x6e8a278c) => self.chunk(),
            _ => invalid("magic"),
        }
    }

    /// The command of a header that ends at the current position.
    fn find(&mut self, cookie: u64) -> Parse<usize> {
        while let Some((first, rest)) = self.commands.split_first() {
            if first.at >= self.stream.at {
                break;
            }
            self.commands = rest;
            self.open.push(Open {
                command: first,
                chunks: 0,
                error: 0,
                content: Vec::new(),
                described: Vec::new(),
            });
        }
        let found = |open: &Open| open.command.cookie == cookie;
        let place = self.open.iter().position(found);
        place.ok_or(Validity::Invalid("cookie matches no request"))
    }

    /// "Simple reply message"
    fn simple(&mut self) -> Parse<()> {
        self.stream.require(4 + 8)?;
        let error = self.stream.number(4)?;
        let cookie = self.stream.number(8)?;
        let place = self.find(cookie)?;
        let open = &self.open[place];
        let Command {
            kind,
            offset,
            length,
            ..
        } = *open.command;
        if self.config.framing == Framing::Structured {
            ensure(kind != READ, "simple reply to a read")?;
            let status = kind == BLOCK_STATUS && error == 0;
            ensure(!status, "status without chunks")?;
            ensure(open.chunks == 0, "simple reply among chunks")?;
        }
        if kind == BLOCK_STATUS && error == 0 {
            let nothing = self.open[place].command.contexts.is_empty();
            ensure(nothing, "a context is missing")?;
        }
        if kind == READ && error == 0 {
            self.data(cookie, offset, length)?;
        }
        self.done(place, error);
        Ok(())
    }

    /// Data, as much as has arrived.
    fn data(&mut self, cookie: u64, offset: u64, length: u64) -> Parse<()> {
        let bytes = self.stream.bytes(length.min(self.stream.left()))?.to_vec();
        let received = bytes.len() as u64;
        if received > 0 {
            push(
                &mut self.reply_events,
                ReplyEvent::Data {
                    cookie,
                    offset,
                    bytes,
                },
            );
        }
        if received == length {
            Ok(())
        } else {
            Err(Validity::Incomplete)
        }
    }

    fn done(&mut self, place: usize, error: u64) {
        let cookie = self.open.remove(place).command.cookie;
        let error = error as u32;
        push(&mut self.reply_events, ReplyEvent::Done { cookie, error });
    }

    /// "Structured reply chunk message", "Extended reply chunk message"
    fn chunk(&mut self) -> Parse<()> {
        let extended = self.config.framing == Framing::Extended;
        self.stream.require(if extended { 28 } else { 16 })?;
        let flags = self.stream.number(2)?;
        let kind = self.stream.number(2)?;
        let cookie = self.stream.number(8)?;
        let offset = if extended {
            Some(self.stream.number(8)?)
        } else {
            None
        };
        let length = self.stream.number(if extended { 8 } else { 4 })?;
        let place = self.find(cookie)?;
        let command = self.open[place].command;
        ensure(
            offset.is_none_or(|offset| offset == command.offset),
            "offset of another request",
        )?;
        let last = flags & 1 == 1;
        match kind {
            0 => {
                ensure(length == 0, "NONE with a payload")?;
                ensure(last, "NONE without DONE")?;
            }
            1 => self.offset_data(place, length)?,
            2 => self.offset_hole(place, length)?,
            5 => {
                ensure(!extended, "narrow status with extended headers")?;
                self.status(place, length, false)?;
            }
            6 => {
                ensure(extended, "wide status without extended headers")?;
                self.status(place, length, true)?;
            }
            kind if kind & 1 << 15 != 0 => self.error(place, kind, length)?,
            _ => return invalid("unknown chunk"),
        }
        self.open[place].chunks += 1;
        if last { self.finish(place) } else { Ok(()) }
    }

    fn offset_data(&mut self, place: usize, length: u64) -> Parse<()> {
        let command = self.open[place].command;
        ensure(command.kind == READ, "content for no read")?;
        ensure(length >= 9, "empty data")?;
        let length = length - 8;
        ensure(length <= command.length, "data outside the request")?;
        let offset = self.stream.number(8)?;
        self.content(place, offset, length)?;
        self.data(command.cookie, offset, length)
    }

    fn offset_hole(&mut self, place: usize, length: u64) -> Parse<()> {
        let command = self.open[place].command;
        ensure(command.kind == READ, "content for no read")?;
        ensure(length == 12, "length of a hole chunk")?;
        self.stream.require(12)?;
        let offset = self.stream.number(8)?;
        let length = self.stream.number(4)?;
        ensure(length > 0, "empty hole")?;
        self.content(place, offset, length)?;
        let cookie = command.cookie;
        push(
            &mut self.reply_events,
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            },
        );
        Ok(())
    }

    fn content(&mut self, place: usize, offset: u64, length: u64) -> Parse<()> {
        let open = &mut self.open[place];
        let (begin, end) = range(offset, length);
        let (from, to) = open.command.range();
        ensure(begin >= from && end <= to, "content outside the request")?;
        let alone = open.command.flags & FLAG_DF != 0;
        ensure(!alone || open.content.is_empty(), "fragments with DF")?;
        open.content.push((begin, end));
        // Policy: overlaps are detected at the end of the reply, or once there
        // is more content than was requested.
        let received: u128 = open.content.iter().map(|part| part.1 - part.0).sum();
        ensure(received <= open.command.length.into(), "content twice")
    }

    fn status(&mut self, place: usize, length: u64, wide: bool) -> Parse<()> {
        let command = self.open[place].command;
        ensure(command.kind == BLOCK_STATUS, "status for another command")?;
        let (fixed, size) = if wide { (8, 16) } else { (4, 8) };
        ensure(
            length > fixed && (length - fixed).is_multiple_of(size),
            "length of a status chunk",
        )?;
        let extents = (length - fixed) / size;
        ensure(extents <= self.config.max_extents, "too many extents")?;
        let one = command.flags & FLAG_REQ_ONE != 0;
        ensure(!one || extents == 1, "several extents with REQ_ONE")?;
        self.stream.require(fixed)?;
        let context = self.stream.number(4)?;
        if wide {
            let count = self.stream.number(4)?;
            ensure(count == extents, "descriptor count")?;
        }
        let open = &mut self.open[place];
        let query = command.contexts.iter().any(|id| u64::from(*id) == context);
        ensure(query, "status of a context that was not requested")?;
        ensure(!open.described.contains(&context), "context twice")?;
        open.described.push(context);
        let known = |selected: &&(u32, bool)| u64::from(selected.0) == context;
        let many_bits = self.config.contexts.iter().find(known).is_some_and(|c| c.1);
        let mut at = 0u128;
        for _ in 0..extents {
            self.stream.require(size)?;
            let extent = self.stream.number(size / 2)?;
            let flags = self.stream.number(size / 2)?;
            ensure(extent > 0, "empty extent")?;
            // "The sum of the first N-1 extents MUST be less than the requested
            // length." Policy: not applied to a length of zero.
            let begins = command.length == 0 || at < command.length.into();
            ensure(begins, "extent after the request")?;
            ensure(
                !one || extent <= command.length,
                "extent exceeds the request",
            )?;
            ensure(many_bits || flags < 1 << 32, "64 bits of status")?;
            let offset = u128::from(command.offset).saturating_add(at);
            push(
                &mut self.reply_events,
                ReplyEvent::Status {
                    cookie: command.cookie,
                    context: context as u32,
                    wide,
                    offset: u64::try_from(offset).unwrap_or(u64::MAX),
                    extents: vec![(extent, flags)],
                },
            );
            at += u128::from(extent);
        }
        Ok(())
    }

    fn error(&mut self, place: usize, kind: u64, length: u64) -> Parse<()> {
        let command = self.open[place].command;
        let with_offset = kind == (1 << 15 | 2);
        let fixed = if with_offset { 14 } else { 6 };
        ensure(length >= fixed, "length of an error chunk")?;
        ensure(length <= self.config.max_error, "error is too long")?;
        self.stream.require(6)?;
        let error = self.stream.number(4)?;
        let message_length = self.stream.number(2)?;
        ensure(
            message_length <= length - fixed,
            "message exceeds its chunk",
        )?;
        ensure(error != 0, "error value is zero")?;
        let tail = if with_offset { 8 } else { 0 };
        self.stream.require(message_length + tail)?;
        let message = self.stream.bytes(message_length)?;
        let offset = if with_offset {
            Some(self.stream.number(8)?)
        } else {
            None
        };
        // Policy: the offset is not validated for commands without a range.
        let ranged = command.kind != FLUSH && command.kind != RESIZE && command.length > 0;
        if let Some(offset) = offset.filter(|_| ranged) {
            let (from, to) = command.range();
            let inside = u128::from(offset) >= from && u128::from(offset) < to;
            ensure(inside, "error outside the request")?;
        }
        let open = &mut self.open[place];
        if open.error == 0 {
            open.error = error;
        }
        let is_reported = message_length <= self.config.max_message;
        push(
            &mut self.reply_events,
            ReplyEvent::Error {
                cookie: command.cookie,
                error: error as u32,
                offset,
                message: is_reported.then(|| message.to_vec()),
            },
        );
        self.stream.bytes(length - fixed - message_length)?;
        Ok(())
    }

    /// The chunk with DONE has ended.
    fn finish(&mut self, place: usize) -> Parse<()> {
        let open = &mut self.open[place];
        let command = open.command;
        if open.error == 0 && command.kind == READ {
            open.content.sort();
            let (mut at, to) = command.range();
            for (begin, end) in &open.content {
                ensure(*begin >= at, "content overlaps")?;
                ensure(*begin == at, "content is missing")?;
                at = *end;
            }
            // Policy: a read past the largest offset is never complete.
            let is_complete = at == to && command.says_its_range();
            ensure(is_complete, "content is missing")?;
        }
        if open.error == 0 && command.kind == BLOCK_STATUS {
            let described = open.described.len() == command.contexts.len();
            ensure(described, "a context is missing")?;
        }
        let error = open.error;
        self.done(place, error);
        Ok(())
    }
}

fn range(offset: u64, length: u64) -> (u128, u128) {
    let begin = u128::from(offset);
    (begin, begin + u128::from(length))
}

impl Command {
    /// Policy: a range ends at the largest offset.
    fn range(&self) -> (u128, u128) {
        let (begin, end) = range(self.offset, self.length);
        (begin, end.min(u64::MAX.into()))
    }

    fn says_its_range(&self) -> bool {
        self.offset.checked_add(self.length).is_some()
    }
}
