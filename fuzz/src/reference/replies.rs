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
    /// Policy: without it, faults that the specification lets a client tolerate
    /// cost their command alone.
    pub strict: bool,
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
/// Policy: what a command ends with after a fault that costs it alone.
const EIO: u64 = 5;

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
        let strict = self.config.strict;
        if self.config.framing == Framing::Structured {
            // Only an error is known to have no data.
            let read = kind == READ && (error == 0 || strict);
            ensure(!read, "simple reply to a read")?;
            let status = kind == BLOCK_STATUS && error == 0;
            ensure(!status || !strict, "status without chunks")?;
            let among = open.chunks > 0 && strict;
            ensure(!among, "simple reply among chunks")?;
        }
        if kind == READ && error == 0 {
            self.data(cookie, offset, length)?;
        }
        let open = &mut self.open[place];
        if open.error == 0 {
            open.error = error;
        }
        let described = open.described.len() == open.command.contexts.len();
        if kind == BLOCK_STATUS && open.error == 0 && !described {
            self.fault(place, "a context is missing")?;
        }
        self.done(place);
        Ok(())
    }

    /// A fault that costs its command alone, or a strict client the session.
    fn fault(&mut self, place: usize, why: &'static str) -> Parse<()> {
        ensure(!self.config.strict, why)?;
        let open = &mut self.open[place];
        if open.error == 0 {
            open.error = EIO;
        }
        let cookie = open.command.cookie;
        push(&mut self.reply_events, ReplyEvent::Fault { cookie });
        Ok(())
    }

    /// A chunk with such a fault, `left` bytes before its end. Policy: one that is
    /// longer than any error may be ends the session.
    fn discard(&mut self, place: usize, length: u64, left: u64, why: &'static str) -> Parse<()> {
        ensure(length <= self.config.max_error, why)?;
        self.fault(place, why)?;
        self.stream.bytes(left)?;
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

    fn done(&mut self, place: usize) {
        let open = self.open.remove(place);
        let (cookie, error) = (open.command.cookie, open.error as u32);
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
        let last = flags & 1 == 1;
        let same_offset = offset.is_none_or(|offset| offset == command.offset);
        match kind {
            5 if extended => return invalid("narrow status with extended headers"),
            6 if !extended => return invalid("wide status without extended headers"),
            _ if !same_offset => self.discard(place, length, length, "another offset")?,
            0 => {
                ensure(length == 0, "NONE with a payload")?;
                ensure(last, "NONE without DONE")?;
            }
            1 => self.offset_data(place, length)?,
            2 => self.offset_hole(place, length)?,
            5 => self.status(place, length, false)?,
            6 => self.status(place, length, true)?,
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
        let data = length - 8;
        if data > command.length {
            return self.discard(place, length, length, "data outside the request");
        }
        let offset = self.stream.number(8)?;
        match self.content(place, offset, data) {
            Ok(()) => self.data(command.cookie, offset, data),
            Err(why) => self.discard(place, length, data, why),
        }
    }

    fn offset_hole(&mut self, place: usize, length: u64) -> Parse<()> {
        let command = self.open[place].command;
        ensure(command.kind == READ, "content for no read")?;
        ensure(length == 12, "length of a hole chunk")?;
        self.stream.require(12)?;
        let offset = self.stream.number(8)?;
        let length = self.stream.number(4)?;
        ensure(length > 0, "empty hole")?;
        if let Err(why) = self.content(place, offset, length) {
            return self.discard(place, 12, 0, why);
        }
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

    /// Notes content, or says why it is not accepted.
    fn content(&mut self, place: usize, offset: u64, length: u64) -> Result<(), &'static str> {
        let open = &mut self.open[place];
        let (begin, end) = range(offset, length);
        let (from, to) = open.command.range();
        if begin < from || end > to {
            return Err("content outside the request");
        }
        let alone = open.command.flags & FLAG_DF != 0;
        if alone && !open.content.is_empty() {
            return Err("fragments with DF");
        }
        // Policy: overlaps are detected at the end of the reply, or once there
        // is more content than was requested.
        let received: u128 = open.content.iter().map(|part| part.1 - part.0).sum();
        if received + (end - begin) > open.command.length.into() {
            return Err("content twice");
        }
        open.content.push((begin, end));
        Ok(())
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
        let strict = self.config.strict;
        let one = command.flags & FLAG_REQ_ONE != 0;
        let several = one && extents > 1 && strict;
        ensure(!several, "several extents with REQ_ONE")?;
        self.stream.require(fixed)?;
        let context = self.stream.number(4)?;
        if wide {
            let count = self.stream.number(4)?;
            ensure(count == extents, "descriptor count")?;
        }
        let open = &mut self.open[place];
        let query = command.contexts.iter().any(|id| u64::from(*id) == context);
        if !query {
            ensure(!strict, "status of a context that was not requested")?;
            self.stream.bytes(length - fixed)?;
            return Ok(());
        }
        if open.described.contains(&context) {
            return self.discard(place, length, length - fixed, "context twice");
        }
        open.described.push(context);
        let known = |selected: &&(u32, bool)| u64::from(selected.0) == context;
        let many_bits = self.config.contexts.iter().find(known).is_some_and(|c| c.1);
        let mut at = 0u128;
        for before in 0..extents {
            self.stream.require(size)?;
            let extent = self.stream.number(size / 2)?;
            let flags = self.stream.number(size / 2)?;
            // "The sum of the first N-1 extents MUST be less than the requested
            // length." Policy: not applied to a length of zero.
            let begins = command.length == 0 || at < command.length.into();
            let exceeds = one && (before > 0 || strict && extent > command.length);
            let wrong = if extent == 0 {
                Some("empty extent")
            } else if !begins {
                Some("extent after the request")
            } else if exceeds {
                Some("extent exceeds the request")
            } else if !many_bits && flags >= 1 << 32 {
                Some("64 bits of status")
            } else {
                None
            };
            if let Some(why) = wrong {
                // Policy: what comes before the fault is an answer, if there is any.
                if strict || before == 0 {
                    self.fault(place, why)?;
                }
                self.stream.bytes((extents - before - 1) * size)?;
                return Ok(());
            }
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
        let strict = self.config.strict;
        let fixed = if with_offset && strict { 14 } else { 6 };
        ensure(length >= fixed, "length of an error chunk")?;
        ensure(length <= self.config.max_error, "error is too long")?;
        self.stream.require(6)?;
        let error = self.stream.number(4)?;
        let message_length = self.stream.number(2)?;
        let fits = message_length <= length - fixed;
        ensure(fits || !strict, "message exceeds its chunk")?;
        ensure(error != 0, "error value is zero")?;
        // Policy: of a message that does not fit, and of an offset that does not, the
        // bytes are discarded.
        let mut left = length - 6;
        let message_length = if fits { message_length } else { left };
        let tail = fits && with_offset && left - message_length >= 8;
        self.stream
            .require(message_length + if tail { 8 } else { 0 })?;
        let message = self.stream.bytes(message_length)?;
        left -= message_length;
        let mut offset = None;
        if tail {
            offset = Some(self.stream.number(8)?);
            left -= 8;
        }
        // Policy: the offset is not validated for commands without a range.
        let ranged = command.kind != FLUSH && command.kind != RESIZE && command.length > 0;
        if let Some(place) = offset.filter(|_| ranged) {
            let (from, to) = command.range();
            let inside = u128::from(place) >= from && u128::from(place) < to;
            ensure(inside || !strict, "error outside the request")?;
            offset = offset.filter(|_| inside);
        }
        let open = &mut self.open[place];
        if open.error == 0 {
            open.error = error;
        }
        let is_reported = fits && message_length <= self.config.max_message;
        push(
            &mut self.reply_events,
            ReplyEvent::Error {
                cookie: command.cookie,
                error: error as u32,
                offset,
                message: is_reported.then(|| message.to_vec()),
            },
        );
        self.stream.bytes(left)?;
        Ok(())
    }

    /// The chunk with DONE has ended.
    fn finish(&mut self, place: usize) -> Parse<()> {
        let open = &mut self.open[place];
        let command = open.command;
        let mut is_complete = true;
        if open.error == 0 && command.kind == READ {
            open.content.sort();
            let (mut at, to) = command.range();
            for (begin, end) in &open.content {
                is_complete &= *begin == at;
                at = *end;
            }
            // Policy: a read past the largest offset is never complete.
            is_complete &= at == to && command.says_its_range();
        }
        if open.error == 0 && command.kind == BLOCK_STATUS {
            is_complete = open.described.len() == command.contexts.len();
        }
        if !is_complete {
            self.fault(
                place,
                "content or a context is missing, or content overlaps",
            )?;
        }
        self.done(place);
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
