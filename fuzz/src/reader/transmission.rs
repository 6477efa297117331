//! "Transmission phase": requests were made, replies come.

use super::{Read, Stream, Verdict, bad, must};
use crate::facts::{Fact, push};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    #[default]
    Simple,
    Structured,
    Extended,
}

#[derive(Debug, Clone)]
pub struct Terms {
    pub framing: Framing,
    /// The contexts selected, and whether they may have 64 bits of status.
    pub contexts: Vec<(u32, bool)>,
    /// Policy: the longest error message that is told.
    pub longest_message: u64,
    /// Policy: the longest error chunk that is no attack.
    pub longest_error: u64,
    /// Policy: the most extents in one chunk.
    pub most_extents: u64,
}

#[derive(Debug, Clone)]
pub struct Command {
    pub at: usize,
    pub cookie: u64,
    pub kind: u64,
    pub flags: u64,
    pub offset: u64,
    pub length: u64,
    /// The contexts that it asks for.
    pub contexts: Vec<u32>,
}

const READ: u64 = 0;
const FLUSH: u64 = 3;
const BLOCK_STATUS: u64 = 7;
const RESIZE: u64 = 8;
const FLAG_DF: u64 = 1 << 2;
const FLAG_REQ_ONE: u64 = 1 << 3;

/// A command, and what came in reply so far.
struct Open<'a> {
    command: &'a Command,
    chunks: usize,
    error: u64,
    /// Content: where each part begins and ends.
    content: Vec<(u128, u128)>,
    answered: Vec<u64>,
}

struct Reader<'a> {
    terms: &'a Terms,
    stream: Stream<'a>,
    commands: &'a [Command],
    open: Vec<Open<'a>>,
    facts: Vec<Fact>,
}

/// Reads everything a server has said during transmission.
pub fn read(terms: &Terms, commands: &[Command], bytes: &[u8]) -> (Vec<Fact>, Verdict) {
    let mut reader = Reader {
        terms,
        stream: Stream { bytes, at: 0 },
        commands,
        open: Vec::new(),
        facts: Vec::new(),
    };
    while reader.stream.left() > 0 {
        if let Err(verdict) = reader.message() {
            return (reader.facts, verdict);
        }
    }
    (reader.facts, Verdict::Good)
}

impl<'a> Reader<'a> {
    fn message(&mut self) -> Read<()> {
        let magic = self.stream.number(4)?;
        match (self.terms.framing, magic) {
            (Framing::Simple | Framing::Structured, 0x67446698) => self.simple(),
            (Framing::Structured, 0x668e33ef) => self.chunk(),
            (Framing::Extended, 0x6e8a278c) => self.chunk(),
            _ => bad("magic"),
        }
    }

    /// The command that a header, which ends here, is about.
    fn find(&mut self, cookie: u64) -> Read<usize> {
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
                answered: Vec::new(),
            });
        }
        let found = |open: &Open| open.command.cookie == cookie;
        let place = self.open.iter().position(found);
        place.ok_or(Verdict::Bad("cookie matches no request"))
    }

    /// "Simple reply message"
    fn simple(&mut self) -> Read<()> {
        self.stream.expect(4 + 8)?;
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
        if self.terms.framing == Framing::Structured {
            must(kind != READ, "simple reply to a read")?;
            let status = kind == BLOCK_STATUS && error == 0;
            must(!status, "status without chunks")?;
            must(open.chunks == 0, "simple reply among chunks")?;
        }
        if kind == BLOCK_STATUS && error == 0 {
            let nothing = self.open[place].command.contexts.is_empty();
            must(nothing, "a context is missing")?;
        }
        if kind == READ && error == 0 {
            self.data(cookie, offset, length)?;
        }
        self.done(place, error);
        Ok(())
    }

    /// Data, as much as is there.
    fn data(&mut self, cookie: u64, offset: u64, length: u64) -> Read<()> {
        let bytes = self.stream.bytes(length.min(self.stream.left()))?.to_vec();
        let got = bytes.len() as u64;
        if got > 0 {
            push(
                &mut self.facts,
                Fact::Data {
                    cookie,
                    offset,
                    bytes,
                },
            );
        }
        match got == length {
            true => Ok(()),
            false => Err(Verdict::Torn),
        }
    }

    fn done(&mut self, place: usize, error: u64) {
        let cookie = self.open.remove(place).command.cookie;
        let error = error as u32;
        push(&mut self.facts, Fact::Done { cookie, error });
    }

    /// "Structured reply chunk message", "Extended reply chunk message"
    fn chunk(&mut self) -> Read<()> {
        let extended = self.terms.framing == Framing::Extended;
        self.stream.expect(if extended { 28 } else { 16 })?;
        let flags = self.stream.number(2)?;
        let kind = self.stream.number(2)?;
        let cookie = self.stream.number(8)?;
        let offset = match extended {
            true => Some(self.stream.number(8)?),
            false => None,
        };
        let length = self.stream.number(if extended { 8 } else { 4 })?;
        let place = self.find(cookie)?;
        let command = self.open[place].command;
        must(
            offset.is_none_or(|offset| offset == command.offset),
            "offset of another request",
        )?;
        let last = flags & 1 == 1;
        match kind {
            0 => {
                must(length == 0, "NONE with a payload")?;
                must(last, "NONE without DONE")?;
            }
            1 => self.offset_data(place, length)?,
            2 => self.offset_hole(place, length)?,
            5 => {
                must(!extended, "narrow status with extended headers")?;
                self.status(place, length, false)?;
            }
            6 => {
                must(extended, "wide status without extended headers")?;
                self.status(place, length, true)?;
            }
            kind if kind & 1 << 15 != 0 => self.error(place, kind, length)?,
            _ => return bad("unknown chunk"),
        }
        self.open[place].chunks += 1;
        match last {
            true => self.finish(place),
            false => Ok(()),
        }
    }

    fn offset_data(&mut self, place: usize, length: u64) -> Read<()> {
        let command = self.open[place].command;
        must(command.kind == READ, "content for no read")?;
        must(length >= 9, "data of no bytes")?;
        let length = length - 8;
        must(length <= command.length, "data outside the request")?;
        let offset = self.stream.number(8)?;
        self.content(place, offset, length)?;
        self.data(command.cookie, offset, length)
    }

    fn offset_hole(&mut self, place: usize, length: u64) -> Read<()> {
        let command = self.open[place].command;
        must(command.kind == READ, "content for no read")?;
        must(length == 12, "length of a hole chunk")?;
        self.stream.expect(12)?;
        let offset = self.stream.number(8)?;
        let length = self.stream.number(4)?;
        must(length > 0, "empty hole")?;
        self.content(place, offset, length)?;
        let cookie = command.cookie;
        push(
            &mut self.facts,
            Fact::Hole {
                cookie,
                offset,
                length,
            },
        );
        Ok(())
    }

    fn content(&mut self, place: usize, offset: u64, length: u64) -> Read<()> {
        let open = &mut self.open[place];
        let (begin, end) = range(offset, length);
        let (from, to) = open.command.range();
        must(begin >= from && end <= to, "content outside the request")?;
        let alone = open.command.flags & FLAG_DF != 0;
        must(
            !alone || open.content.is_empty(),
            "fragments in spite of DF",
        )?;
        open.content.push((begin, end));
        // Policy: overlaps are looked for at the end; but what is more
        // than was asked for must overlap somewhere.
        let received: u128 = open.content.iter().map(|part| part.1 - part.0).sum();
        must(received <= open.command.length.into(), "content twice")
    }

    fn status(&mut self, place: usize, length: u64, wide: bool) -> Read<()> {
        let command = self.open[place].command;
        must(command.kind == BLOCK_STATUS, "status for another command")?;
        let (fixed, size) = if wide { (8, 16) } else { (4, 8) };
        must(
            length > fixed && (length - fixed).is_multiple_of(size),
            "length of a status chunk",
        )?;
        let extents = (length - fixed) / size;
        must(extents <= self.terms.most_extents, "too many extents")?;
        let one = command.flags & FLAG_REQ_ONE != 0;
        must(!one || extents == 1, "several extents in spite of REQ_ONE")?;
        self.stream.expect(fixed)?;
        let context = self.stream.number(4)?;
        if wide {
            let count = self.stream.number(4)?;
            must(count == extents, "descriptor count")?;
        }
        let open = &mut self.open[place];
        let asked = command.contexts.iter().any(|id| u64::from(*id) == context);
        must(asked, "status of a context that was not asked for")?;
        must(!open.answered.contains(&context), "context twice")?;
        open.answered.push(context);
        let known = |selected: &&(u32, bool)| u64::from(selected.0) == context;
        let many_bits = self.terms.contexts.iter().find(known).is_some_and(|c| c.1);
        let mut at = 0u128;
        for _ in 0..extents {
            self.stream.expect(size)?;
            let extent = self.stream.number(size / 2)?;
            let flags = self.stream.number(size / 2)?;
            must(extent > 0, "empty extent")?;
            // "The sum of the first N-1 extents MUST be less than the
            // requested length." Policy: of a length of zero nothing can
            // be said.
            let begins = command.length == 0 || at < command.length.into();
            must(begins, "extent behind the request")?;
            must(
                !one || extent <= command.length,
                "extent beyond the request",
            )?;
            must(many_bits || flags < 1 << 32, "64 bits of status")?;
            let offset = u128::from(command.offset).saturating_add(at);
            push(
                &mut self.facts,
                Fact::Status {
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

    fn error(&mut self, place: usize, kind: u64, length: u64) -> Read<()> {
        let command = self.open[place].command;
        let with_offset = kind == (1 << 15 | 2);
        let fixed = if with_offset { 14 } else { 6 };
        must(length >= fixed, "length of an error chunk")?;
        must(length <= self.terms.longest_error, "endless error")?;
        self.stream.expect(6)?;
        let error = self.stream.number(4)?;
        let message_length = self.stream.number(2)?;
        must(message_length <= length - fixed, "message behind its chunk")?;
        must(error != 0, "an error that is none")?;
        let tail = if with_offset { 8 } else { 0 };
        self.stream.expect(message_length + tail)?;
        let message = self.stream.bytes(message_length)?;
        let offset = match with_offset {
            true => Some(self.stream.number(8)?),
            false => None,
        };
        // Policy: where a command has no range, an offset says nothing.
        let ranged = command.kind != FLUSH && command.kind != RESIZE && command.length > 0;
        if let Some(offset) = offset.filter(|_| ranged) {
            let (from, to) = command.range();
            let inside = u128::from(offset) >= from && u128::from(offset) < to;
            must(inside, "error outside the request")?;
        }
        let open = &mut self.open[place];
        if open.error == 0 {
            open.error = error;
        }
        let told = message_length <= self.terms.longest_message;
        push(
            &mut self.facts,
            Fact::Error {
                cookie: command.cookie,
                error: error as u32,
                offset,
                message: told.then(|| message.to_vec()),
            },
        );
        self.stream.bytes(length - fixed - message_length)?;
        Ok(())
    }

    /// Behind the chunk with DONE.
    fn finish(&mut self, place: usize) -> Read<()> {
        let open = &mut self.open[place];
        let command = open.command;
        if open.error == 0 && command.kind == READ {
            open.content.sort();
            let (mut at, to) = command.range();
            for (begin, end) in &open.content {
                must(*begin >= at, "content overlaps")?;
                must(*begin == at, "content is missing")?;
                at = *end;
            }
            // A range that no number can say is never complete.
            let whole = at == to && command.says_its_range();
            must(whole, "content is missing")?;
        }
        if open.error == 0 && command.kind == BLOCK_STATUS {
            let answered = open.answered.len() == command.contexts.len();
            must(answered, "a context is missing")?;
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
    /// Policy: what ends behind the last number ends there.
    fn range(&self) -> (u128, u128) {
        let (begin, end) = range(self.offset, self.length);
        (begin, end.min(u64::MAX.into()))
    }

    fn says_its_range(&self) -> bool {
        self.offset.checked_add(self.length).is_some()
    }
}
