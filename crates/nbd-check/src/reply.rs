//! The reply to a request, chunk by chunk; every chunk is checked.

use nbd_codec::Framing;
use nbd_codec::monitor::{Fault, Side};
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags, ReplyFlags};
use nbd_codec::wire::number::{ChunkType, Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::text::Text;

use crate::handshake::{Export, check_text};
use crate::outcome::{Checked, Finding, found};
use crate::request::Request;

/// What a session has agreed on, as far as replies depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) framing: Framing,
    /// Selected contexts.
    pub(crate) contexts: Vec<(ContextId, String)>,
    /// The advertised minimum block size.
    pub(crate) minimum: u64,
    /// The advertised maximum payload.
    pub(crate) maximum: Option<u64>,
    pub(crate) size: u64,
}

impl Rules {
    pub(crate) fn new(
        export: &Export,
        framing: Framing,
        contexts: Vec<(ContextId, String)>,
    ) -> Self {
        let sizes = export.block_sizes;
        Self {
            framing,
            contexts,
            minimum: sizes.map_or(1, |sizes| u64::from(sizes.minimum)).max(1),
            maximum: sizes.map(|sizes| sizes.maximum.into()),
            size: export.size,
        }
    }
}

/// A reply, whole or in part.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) request: Request,
    pub(crate) cookie: Cookie,
    /// The errors, with their offsets.
    pub(crate) errors: Vec<(ErrorValue, Option<u64>)>,
    /// The content of a read; zero where no chunk was.
    pub(crate) data: Vec<u8>,
    /// Covered ranges, from the offset of the request.
    covered: Vec<(u64, u64)>,
    /// Content chunks: how many of data and of holes.
    pub(crate) chunks: (usize, usize),
    /// The extents of each context.
    pub(crate) extents: Vec<(ContextId, Vec<Extent64>)>,
}

/// The longest read whose content is kept, in bytes.
const LONGEST: u64 = 1 << 27;

impl Reply {
    pub(crate) fn new(request: Request, cookie: Cookie) -> Self {
        Self {
            request,
            cookie,
            errors: Vec::new(),
            data: Vec::new(),
            covered: Vec::new(),
            chunks: (0, 0),
            extents: Vec::new(),
        }
    }

    /// The error of the reply; `None` if it is a success.
    pub(crate) fn error(&self) -> Option<ErrorValue> {
        self.errors.first().map(|(error, _)| *error)
    }

    pub(crate) fn is_success(&self) -> bool {
        self.errors.is_empty()
    }

    /// For reports.
    pub(crate) fn describe(&self) -> String {
        match self.error() {
            Some(error) => format!("{} failed with {error}", self.request.describe()),
            None => format!("{} succeeded", self.request.describe()),
        }
    }

    /// The data of a simple reply.
    pub(crate) fn simple(&mut self, error: ErrorValue, data: Vec<u8>) {
        if error.is_error() {
            self.errors.push((error, None));
        } else if self.request.command == Command::READ {
            self.data = data;
            self.chunks = (1, 0);
        }
    }

    /// Adds a chunk; true if it is the last one. What is advised only is added to
    /// `notes`.
    pub(crate) fn chunk(
        &mut self,
        chunk: ChunkType,
        flags: ReplyFlags,
        payload: &[u8],
        rules: &Rules,
        notes: &mut Vec<Finding>,
    ) -> Checked<bool> {
        let done = flags.contains(ReplyFlags::DONE);
        if flags != ReplyFlags::DONE && flags != ReplyFlags::NONE {
            return found("R17", format!("the reply flags are {flags}"));
        }
        let decoded = match Chunk::decode(chunk, payload) {
            Ok(decoded) => decoded,
            Err(error) => {
                let length = payload.len();
                let actual = format!("{chunk} with {length} bytes of payload: {error}");
                return found(Fault::Chunk(chunk, error).duty(Side::Server), actual);
            }
        };
        let read = self.request.command == Command::READ;
        let status = self.request.command == Command::BLOCK_STATUS;
        match decoded {
            Chunk::None if done => {}
            Chunk::None => return found("R15", "NBD_REPLY_TYPE_NONE without DONE"),
            Chunk::OffsetData { offset, data } if read => {
                let length = wide(data.len());
                self.content(offset, length, "R26")?;
                self.check_maximum(length, rules)?;
                self.place(offset, data);
                self.chunks.0 += 1;
                self.check_df()?;
            }
            Chunk::OffsetHole { offset, length } if read => {
                self.content(offset, length.into(), "R32")?;
                self.chunks.1 += 1;
                self.check_df()?;
            }
            Chunk::BlockStatus { context, extents } if status => {
                if rules.framing == Framing::Extended {
                    return found("R59", format!("{chunk} with extended headers"));
                }
                let extents = extents.map(Extent64::from).collect();
                self.status(context, extents, rules, notes)?;
            }
            Chunk::BlockStatusExt { context, extents } if status => {
                if rules.framing != Framing::Extended {
                    return found("R51", format!("{chunk} with structured replies"));
                }
                self.status(context, extents.collect(), rules, notes)?;
            }
            Chunk::Error { error, message, .. } => {
                check_message(message)?;
                if self.errors.iter().any(|(_, offset)| offset.is_none()) {
                    notes.push(Finding::new("R65", "NBD_REPLY_TYPE_ERROR came twice"));
                } else if !self.errors.is_empty() {
                    notes.push(Finding::new("R101", "both types of errors in one reply"));
                }
                self.errors.push((error, None));
            }
            Chunk::ErrorOffset {
                error,
                message,
                offset,
                ..
            } => {
                check_message(message)?;
                let from = self.request.offset;
                if offset < from || offset - from >= self.request.length.max(1) {
                    let request = self.request.describe();
                    return found("R71", format!("an error at {offset} of {request}"));
                }
                if self.errors.iter().any(|(_, other)| *other == Some(offset)) {
                    notes.push(Finding::new("R73", format!("two errors at {offset}")));
                }
                self.errors.push((error, Some(offset)));
            }
            _ => {
                let id = match (chunk, self.request.command) {
                    (ChunkType::OFFSET_DATA, _) => "R26",
                    (ChunkType::OFFSET_HOLE, _) => "R32",
                    (ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT, _) => "R39",
                    (_, Command::READ) => "R78",
                    (_, Command::BLOCK_STATUS) => "R144",
                    _ => "T21",
                };
                let request = self.request.describe();
                return found(id, format!("{chunk} in reply to {request}"));
            }
        }
        if done {
            self.check_complete(rules)?;
        }
        Ok(done)
    }

    /// A content chunk: within the request, and without overlap.
    fn content(&mut self, offset: u64, length: u64, outside: &str) -> Checked {
        let start = offset.checked_sub(self.request.offset);
        let end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(end)) = (start, end) else {
            return found(outside, format!("content at {offset} + {length}"));
        };
        if end > self.request.length {
            let request = self.request.describe();
            return found(
                outside,
                format!("content at {offset} + {length} of {request}"),
            );
        }
        let overlaps = |(from, to): &(u64, u64)| start < *to && *from < end;
        let covers = |at: &Option<u64>| at.is_some_and(|at| at >= offset && at - offset < length);
        if self.covered.iter().any(overlaps) || self.errors.iter().any(|(_, at)| covers(at)) {
            return found("R28", format!("content at {offset} + {length} overlaps"));
        }
        self.covered.push((start, end));
        Ok(())
    }

    fn place(&mut self, offset: u64, data: &[u8]) {
        let start = offset.saturating_sub(self.request.offset);
        if self.request.length > LONGEST {
            return;
        }
        self.reserve();
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let space = self.data.get_mut(start..).unwrap_or_default();
        if let Some(space) = space.get_mut(..data.len()) {
            space.copy_from_slice(data);
        }
    }

    /// Makes room for the content: zeroes.
    fn reserve(&mut self) {
        let length = self.request.length;
        if self.data.is_empty() && length <= LONGEST {
            self.data = vec![0; usize::try_from(length).unwrap_or(0)];
        }
    }

    fn check_maximum(&self, length: u64, rules: &Rules) -> Checked {
        match rules.maximum {
            Some(maximum) if length > maximum => {
                let actual = format!("{length} bytes of data; the maximum payload is {maximum}");
                found("R20", actual)
            }
            _ => Ok(()),
        }
    }

    /// With `DF` there is one content chunk.
    fn check_df(&self) -> Checked {
        let (data, holes) = self.chunks;
        if self.request.flags.contains(CommandFlags::DF) && data + holes > 1 {
            return found("R102", format!("{data} chunks of data and {holes} holes"));
        }
        Ok(())
    }

    /// A status chunk.
    fn status(
        &mut self,
        context: ContextId,
        extents: Vec<Extent64>,
        rules: &Rules,
        notes: &mut Vec<Finding>,
    ) -> Checked {
        let known = rules.contexts.iter().find(|(id, _)| *id == context);
        let Some((_, name)) = known else {
            return found("R39", format!("context {context} was not selected"));
        };
        if self.extents.iter().any(|(id, _)| *id == context) {
            return found("R39", format!("two chunks for context {context}"));
        }
        let one = self.request.flags.contains(CommandFlags::REQ_ONE);
        let first = extents.first().map_or(0, |extent| extent.length);
        if one && (extents.len() != 1 || first > self.effect_length()) {
            let count = extents.len();
            let actual = format!("{count} extents, the first one of {first} bytes");
            return found("R43", actual);
        }
        if extents.len() > 1 << 20 {
            notes.push(Finding::new("R47", format!("{} extents", extents.len())));
        }
        let mut total = 0u64;
        for (index, extent) in extents.iter().enumerate() {
            if index > 0 && total >= self.effect_length() {
                let actual = format!("extent {index} begins {total} bytes after the offset");
                return found("R45", actual);
            }
            if name.starts_with("base:") && extent.flags > u64::from(u32::MAX) {
                return found(
                    "R61",
                    format!("the status of {name} is {:#x}", extent.flags),
                );
            }
            if name == "base:allocation" && extent.flags > 3 {
                notes.push(Finding::new(
                    "M18",
                    format!("the status is {:#x}", extent.flags),
                ));
            }
            total = total.saturating_add(extent.length);
            let end = self.request.offset.saturating_add(total);
            if extent.length % rules.minimum != 0 && end != rules.size {
                let actual = format!("an extent of {} bytes", extent.length);
                notes.push(Finding::new("R155", actual));
            }
        }
        self.extents.push((context, extents));
        Ok(())
    }

    /// How much of the export a status request is about.
    fn effect_length(&self) -> u64 {
        match self.request.payload.first_chunk() {
            Some(length) => u64::from_be_bytes(*length),
            None => self.request.length,
        }
    }

    /// How many status chunks a success has: one for each context, or for each
    /// that the payload of the request names.
    fn wanted(&self, rules: &Rules) -> usize {
        match self.request.payload.len().checked_sub(8) {
            Some(ids) => ids / 4,
            None => rules.contexts.len(),
        }
    }

    /// Whether a reply without an error has everything.
    fn check_complete(&mut self, rules: &Rules) -> Checked {
        if !self.is_success() {
            return Ok(());
        }
        match self.request.command {
            Command::READ => {
                self.covered.sort_unstable();
                let covered: u64 = self.covered.iter().map(|(from, to)| to - from).sum();
                if covered != self.request.length {
                    let request = self.request.describe();
                    return found("R93", format!("{covered} bytes of {request}"));
                }
                self.reserve();
                Ok(())
            }
            Command::BLOCK_STATUS => {
                let (sent, wanted) = (self.extents.len(), self.wanted(rules));
                if sent != wanted {
                    return found("M2", format!("{sent} chunks for {wanted} contexts"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn check_message(message: Text<'_>) -> Checked {
    if message.len() > 4096 {
        return found("R66", format!("a message of {} bytes", message.len()));
    }
    check_text(message, "the message of an error")
}

/// The size in memory as a number of the protocol.
pub(crate) fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
