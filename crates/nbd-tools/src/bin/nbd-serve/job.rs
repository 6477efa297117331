//! A request, done.

use std::io;

use nbd_codec::server::{
    BlockStatus32, BlockStatus64, Chunks, Read, Reply, Request, Write, WriteZeroes, narrow,
};
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::AllocationFlags;
use nbd_codec::wire::number::{Command, ErrorValue};

use crate::budget::Permit;
use crate::buffer::Buffer;
use crate::disk::{Disk, Extent, Extents, Zero};
use crate::log::say;
use crate::outbox::{Content, Message};

/// Reads from here on look for holes, in framings that can say so.
pub const SPARSE: u32 = 64 << 10;

/// Most pieces of a read.
const PIECES: usize = 64;

/// Most extents in a reply; the client asks again for what is behind them.
const EXTENTS: usize = 4096;

/// Most bytes of a status reply.
pub const MOST_STATUS: usize = EXTENTS * Extent64::SIZE;

pub enum Job {
    Do {
        request: Request,
        /// Of a write.
        data: Option<Buffer>,
        permit: Permit,
    },
    /// Replies wait in the outbox for somebody who has time.
    Send,
    /// A reply is there already.
    Say {
        reply: Reply<'static>,
        permit: Permit,
    },
}

impl Job {
    /// Does it; the reply's parts go to `out`. `block` is the minimum block
    /// size.
    pub fn run(self, disk: &dyn Disk, block: u32, out: &mut Vec<Message>) {
        let permit = match self {
            Self::Send => return,
            Self::Say { reply, permit } => {
                put(out, Content::Reply(reply));
                permit
            }
            Self::Do {
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

/// An error has a text that is gone before the reply is.
fn fail(out: &mut Vec<Message>, reply: &Reply<'_>) {
    let mut bytes = Vec::with_capacity(reply.size());
    // It grows as it must.
    let _: Result<usize, EncodeError> = reply.encode(&mut bytes);
    put(out, Content::Bytes(bytes));
}

/// Does a request, as [`Job::run`] does.
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
        let text = complain(&error, request.command());
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
        // It was refused above.
        _ => return,
    };
    put(out, Content::Reply(reply));
}

/// What a client is told of an error: the number and a text.
pub fn explain(error: &io::Error, command: Command) -> (ErrorValue, String) {
    (error_value(error), complain(error, command))
}

/// Trouble with the disk is of interest here as well as there.
fn complain(error: &io::Error, command: Command) -> String {
    let text = error.to_string();
    if error.kind() != io::ErrorKind::Unsupported {
        say(&format!("{command}: {text}"));
    }
    text
}

/// What a client is told of it.
fn error_value(error: &io::Error) -> ErrorValue {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => ErrorValue::from_linux_errno(errno.unsigned_abs()),
        (None, io::ErrorKind::Unsupported) => ErrorValue::ENOTSUP,
        (None, io::ErrorKind::OutOfMemory) => ErrorValue::ENOMEM,
        (None, _) => ErrorValue::EIO,
    }
}

fn sync(fua: bool, disk: &dyn Disk) -> io::Result<()> {
    match fua {
        true => disk.flush(),
        false => Ok(()),
    }
}

fn write(write: &Write, data: &[u8], disk: &dyn Disk) -> io::Result<()> {
    disk.write(write.offset(), data)?;
    sync(write.fua(), disk)
}

fn write_zeroes(zeroes: &WriteZeroes, disk: &dyn Disk) -> io::Result<()> {
    let how = Zero {
        hole: !zeroes.no_hole(),
        fast: zeroes.fast(),
    };
    disk.zero(zeroes.offset(), zeroes.length(), how)?;
    sync(zeroes.fua(), disk)
}

fn read(token: Read, disk: &dyn Disk, block: u32, out: &mut Vec<Message>) {
    let (offset, length) = (token.offset(), token.length());
    let worthwhile = length >= SPARSE && !token.dont_fragment();
    let pieces = worthwhile.then(|| pieces(offset, length, disk, block));
    let (token, pieces) = match pieces.flatten() {
        None => return read_whole(token, disk, out),
        Some(pieces) => match token.into_chunks() {
            Ok(chunks) => (chunks, pieces),
            // Simple replies have no holes.
            Err(token) => return read_whole(token, disk, out),
        },
    };
    let start = out.len();
    if let Err((token, error)) = read_pieces(token, offset, &pieces, disk, out) {
        // Nothing of it is on its way yet.
        out.truncate(start);
        let text = complain(&error, Command::READ);
        fail(out, &token.fail(error_value(&error), &text));
    }
}

/// What a read consists of, if it has holes and they are few.
fn pieces(offset: u64, length: u32, disk: &dyn Disk, block: u32) -> Option<Vec<Extent>> {
    let extents = Extents::new(disk, offset, length.into(), block);
    let pieces: io::Result<Vec<_>> = extents.take(PIECES + 1).collect();
    // If there is an error, reading will tell.
    let pieces = pieces.ok()?;
    let holes = pieces.iter().any(|piece| piece.hole);
    (holes && pieces.len() <= PIECES).then_some(pieces)
}

fn read_whole(token: Read, disk: &dyn Disk, out: &mut Vec<Message>) {
    let mut data = Buffer::new(token.length() as usize);
    match disk.read(token.offset(), &mut data) {
        Ok(()) => put(out, Content::Data(token.data(), data)),
        Err(error) => {
            let text = complain(&error, Command::READ);
            fail(out, &token.fail(error_value(&error), &text));
        }
    }
}

fn read_pieces(
    mut token: Chunks,
    mut at: u64,
    pieces: &[Extent],
    disk: &dyn Disk,
    out: &mut Vec<Message>,
) -> Result<(), (Chunks, io::Error)> {
    for piece in pieces {
        // They are parts of a read, whose length has 32 bits.
        let length = piece.length as u32;
        let content = match piece.hole {
            true => token.hole(at, length).map(Content::Reply),
            false => {
                let mut data = Buffer::new(length as usize);
                if let Err(error) = disk.read(at, &mut data) {
                    return Err((token, error));
                }
                token.data(at, length).map(|head| Content::Data(head, data))
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
        Err(returned) => return Err((returned.token, io::Error::other(returned.misuse))),
    }
    Ok(())
}

/// The map of a range, in the words of `base:allocation`.
fn map(offset: u64, length: u64, disk: &dyn Disk, block: u32) -> io::Result<Vec<Extent64>> {
    let extents = Extents::new(disk, offset, length, block);
    let flags = |hole| match hole {
        true => (AllocationFlags::HOLE | AllocationFlags::ZERO).0,
        false => AllocationFlags::NONE.0,
    };
    let extents = extents.map(|extent| {
        extent.map(|Extent { length, hole }| Extent64 {
            length,
            flags: flags(hole).into(),
        })
    });
    extents.take(EXTENTS).collect()
}

/// Narrow and wide status are two types; what is done with them is the same.
macro_rules! status {
    ($name:ident, $token:ident, $in_its_width:expr) => {
        fn $name(token: $token, disk: &dyn Disk, block: u32, out: &mut Vec<Message>) {
            let extents = match map(token.offset(), token.length(), disk, block) {
                Ok(extents) => extents,
                Err(error) => {
                    let text = complain(&error, Command::BLOCK_STATUS);
                    return fail(out, &token.fail(error_value(&error), &text));
                }
            };
            let mut bytes = Vec::new();
            let contexts = token.contexts();
            let mut left = Some(token);
            for context in contexts {
                let Some(token) = left.take() else { break };
                let extents = token.cut(extents.iter().copied().flat_map($in_its_width));
                match token.answer(context, extents, &mut bytes) {
                    Ok(rest) => left = rest,
                    Err(returned) => {
                        let text = returned.misuse.to_string();
                        return fail(out, &returned.token.fail(ErrorValue::EIO, &text));
                    }
                }
            }
            put(out, Content::Bytes(bytes));
        }
    };
}

status!(status64, BlockStatus64, Some::<Extent64>);
// No flag of base:allocation is beyond 32 bits: every extent can be split.
status!(status32, BlockStatus32, |wide| narrow::split(wide)
    .into_iter()
    .flatten());

#[cfg(test)]
mod tests;
