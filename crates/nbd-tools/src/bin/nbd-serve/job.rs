//! Execution of requests.

use std::cell::Cell;
use std::io;

use nbd_codec::server::{
    BlockStatus32Request, BlockStatus64Request, ChunkedRead, ReadRequest, Reply, Request,
    WriteRequest, WriteZeroesRequest, narrow,
};
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::number::{Command, ErrorValue};

use crate::budget::Permit;
use crate::buffer::{self, Buffer};
use crate::disk::{Disk, Extent, Extents, Zero};
use crate::log::report;
use crate::outbox::{Content, Message, Payload};

/// Reads of at least this length look for holes, in framings that can send them.
pub const SPARSE: u32 = 64 << 10;

/// The most chunks of a read.
const PIECES: usize = 64;

/// The most extents in a reply; the client asks again for what follows them.
const EXTENTS: usize = 4096;

/// The longest block status reply, in bytes.
pub const MAX_STATUS: usize = EXTENTS * Extent64::SIZE;

pub enum Job {
    Execute {
        request: Request,
        /// Of a write.
        data: Option<Buffer>,
        permit: Permit,
    },
    /// Send the replies that are in the outbox.
    Send,
    /// Send a reply.
    Reply {
        reply: Reply<'static>,
        permit: Permit,
    },
}

impl Job {
    /// Executes the job; the parts of the reply go to `out`. `block` is the
    /// minimum block size.
    pub fn run(self, disk: &dyn Disk, block: u32, out: &mut Vec<Message>) {
        let permit = match self {
            Self::Send => return,
            Self::Reply { reply, permit } => {
                put(out, Content::Reply(reply));
                permit
            }
            Self::Execute {
                request,
                data,
                permit,
            } => {
                run(request, data.as_deref(), disk, block, out);
                permit
            }
        };
        if let Some(last) = out.last_mut() {
            last.permit = Some(permit);
        }
    }
}

fn put(out: &mut Vec<Message>, content: Content) {
    let permit = None;
    out.push(Message { content, permit });
}

/// Adds an error reply as bytes, because it borrows its text.
fn fail(out: &mut Vec<Message>, reply: &Reply<'_>) {
    let mut bytes = Vec::with_capacity(reply.size());
    // A `Vec` grows, so this does not fail.
    let _: Result<usize, EncodeError> = reply.encode(&mut bytes);
    put(out, Content::Bytes(bytes));
}

/// Executes a request, as [`Job::run`] does.
pub fn run(
    request: Request,
    data: Option<&[u8]>,
    disk: &dyn Disk,
    block: u32,
    out: &mut Vec<Message>,
) {
    let result = match &request {
        Request::Read(_) | Request::BlockStatus32(_) | Request::BlockStatus64(_) => Ok(()),
        Request::Write(write) => self::write(write, data.unwrap_or_default(), disk),
        Request::Flush(_) => disk.flush(),
        Request::Trim(trim) => disk
            .trim(trim.offset(), trim.length())
            .and_then(|()| sync(trim.fua(), disk)),
        Request::Cache(cache) => disk.cache(cache.offset(), cache.length()),
        Request::WriteZeroes(zeroes) => write_zeroes(zeroes, disk),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    if let Err(error) = result {
        let text = report_error(&error, request.command());
        return fail(out, &request.fail(error_value(&error), &text));
    }
    let reply = match request {
        Request::Read(token) => return read(token, disk, block, out),
        Request::BlockStatus32(token) => return status32(token, disk, block, out),
        Request::BlockStatus64(token) => return status64(token, disk, block, out),
        Request::Write(token) => token.succeed(),
        Request::Flush(token) => token.succeed(),
        Request::Trim(token) => token.succeed(),
        Request::Cache(token) => token.succeed(),
        Request::WriteZeroes(token) => token.succeed(),
        // `Unsupported` above.
        _ => return,
    };
    put(out, Content::Reply(reply));
}

/// The text of an error, which is also reported to the operator.
fn report_error(error: &io::Error, command: Command) -> String {
    let text = error.to_string();
    if error.kind() != io::ErrorKind::Unsupported {
        report(&format!("{command}: {text}"));
    }
    text
}

/// The error value that a client gets.
fn error_value(error: &io::Error) -> ErrorValue {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => ErrorValue::from_linux_errno(errno.unsigned_abs()),
        (None, io::ErrorKind::Unsupported) => ErrorValue::ENOTSUP,
        (None, io::ErrorKind::OutOfMemory) => ErrorValue::ENOMEM,
        (None, _) => ErrorValue::EIO,
    }
}

fn sync(fua: bool, disk: &dyn Disk) -> io::Result<()> {
    if fua { disk.flush() } else { Ok(()) }
}

fn write(write: &WriteRequest, data: &[u8], disk: &dyn Disk) -> io::Result<()> {
    disk.write(write.offset(), data)?;
    sync(write.fua(), disk)
}

fn write_zeroes(zeroes: &WriteZeroesRequest, disk: &dyn Disk) -> io::Result<()> {
    let how = Zero {
        hole: !zeroes.no_hole(),
        fast: zeroes.fast_zero(),
    };
    disk.zero(zeroes.offset(), zeroes.length(), how)?;
    sync(zeroes.fua(), disk)
}

fn read(token: ReadRequest, disk: &dyn Disk, block: u32, out: &mut Vec<Message>) {
    let (offset, length) = (token.offset(), token.length());
    let may_be_sparse = length >= SPARSE && !token.dont_fragment();
    let pieces = may_be_sparse.then(|| pieces(offset, length, disk, block));
    let (token, pieces) = match pieces.flatten() {
        None => return read_whole(token, disk, out),
        Some(pieces) => match token.into_chunks() {
            Ok(chunks) => (chunks, pieces),
            // Simple replies cannot send holes.
            Err(token) => return read_whole(token, disk, out),
        },
    };
    let start = out.len();
    if let Err((token, error)) = read_pieces(token, offset, &pieces, disk, out) {
        // Nothing of the reply is sent yet.
        out.truncate(start);
        let text = report_error(&error, Command::READ);
        fail(out, &token.fail(error_value(&error), &text));
    }
}

/// The data and holes of a range, if it has holes and they are few.
fn pieces(offset: u64, length: u32, disk: &dyn Disk, block: u32) -> Option<Vec<Extent>> {
    // A shorter hole saves no memory.
    let block = block.max(buffer::SMALLEST as u32);
    let extents = Extents::new(disk, offset, length.into(), block);
    let pieces: io::Result<Vec<_>> = extents.take(PIECES + 1).collect();
    // If this fails, the read fails, too.
    let pieces = pieces.ok()?;
    let holes = pieces.iter().any(|piece| piece.hole);
    (holes && pieces.len() <= PIECES).then_some(pieces)
}

fn read_whole(token: ReadRequest, disk: &dyn Disk, out: &mut Vec<Message>) {
    match self::data(disk, token.offset(), token.length()) {
        Ok(data) => put(out, Content::Data(token.data(), data)),
        Err(error) => {
            let text = report_error(&error, Command::READ);
            fail(out, &token.fail(error_value(&error), &text));
        }
    }
}

fn data(disk: &dyn Disk, offset: u64, length: u32) -> io::Result<Payload> {
    let length = length as usize;
    if let Some(pipe) = disk.pipe(offset, length, false)? {
        return Ok(Payload::Piped(pipe));
    }
    let mut data = Buffer::new(length)?;
    disk.read(offset, &mut data)?;
    Ok(Payload::Copied(data))
}

fn read_pieces(
    mut token: ChunkedRead,
    mut at: u64,
    pieces: &[Extent],
    disk: &dyn Disk,
    out: &mut Vec<Message>,
) -> Result<(), (ChunkedRead, io::Error)> {
    for piece in pieces {
        // It is part of a read, whose length has 32 bits.
        let length = piece.length as u32;
        let content = if piece.hole {
            token.hole(at, length).map(Content::Reply)
        } else {
            match self::data(disk, at, length) {
                Err(error) => return Err((token, error)),
                Ok(data) => token
                    .data(at, length)
                    .map(|header| Content::Data(header, data)),
            }
        };
        match content {
            Ok(content) => put(out, content),
            Err(misuse) => return Err((token, io::Error::other(misuse))),
        }
        at += piece.length;
    }
    match token.finish() {
        Ok(reply) => put(out, Content::Reply(reply)),
        Err(rejected) => return Err((rejected.request, io::Error::other(rejected.reason))),
    }
    Ok(())
}

/// The flags of `base:allocation`.
fn with_flags(extent: Extent) -> Extent64 {
    let flags = if extent.hole {
        AllocationFlags::HOLE | AllocationFlags::ZERO
    } else {
        AllocationFlags::NONE
    };
    Extent64 {
        length: extent.length,
        flags: flags.0.into(),
    }
}

/// Narrow and wide block status are different types with equal methods.
macro_rules! status {
    ($name:ident, $token:ident, $in_its_width:expr) => {
        fn $name(token: $token, disk: &dyn Disk, block: u32, out: &mut Vec<Message>) {
            let error = Cell::new(None);
            let until_error =
                |extent: io::Result<Extent>| extent.map_err(|reason| error.set(Some(reason))).ok();
            let extents = Extents::new(disk, token.offset(), token.length(), block)
                .map_while(until_error)
                .map(with_flags)
                .flat_map($in_its_width)
                .take(EXTENTS);
            // Looks for as many extents as the reply holds.
            let extents: Vec<_> = token.truncate(extents).collect();
            if let Some(error) = error.take() {
                let text = report_error(&error, Command::BLOCK_STATUS);
                return fail(out, &token.fail(error_value(&error), &text));
            }
            let mut bytes = Vec::new();
            let contexts = token.contexts();
            let mut left = Some(token);
            for context in contexts {
                let Some(token) = left.take() else { break };
                match token.reply(context, extents.iter().copied(), &mut bytes) {
                    Ok(next) => left = next,
                    Err(rejected) => {
                        let text = rejected.reason.to_string();
                        return fail(out, &rejected.request.fail(ErrorValue::EIO, &text));
                    }
                }
            }
            put(out, Content::Bytes(bytes));
        }
    };
}

status!(status64, BlockStatus64Request, Some::<Extent64>);
// The flags of base:allocation fit 32 bits, so every extent can be split.
status!(status32, BlockStatus32Request, |wide| narrow::split(wide)
    .into_iter()
    .flatten());

#[cfg(test)]
mod tests;
