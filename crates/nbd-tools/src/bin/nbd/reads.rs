//! Reads in flight, and their results.

use std::collections::VecDeque;
use std::ops::Range;

use anyhow::{Result, anyhow, bail};
use nbd_codec::client::{Request, TransmissionEvent, slot_index};
use nbd_codec::wire::number::Cookie;

use crate::align::{length, round_down, to_usize};
use crate::session::{Replies, Session, WINDOW, describe, detail, explain};

/// The most bytes that one request reads or writes. This much is still in the
/// processor's cache when it is written after the read. Longer requests are not
/// faster, and requests in flight take memory.
pub const CHUNK: u64 = 256 << 10;

/// The longest payload for the export: [`CHUNK`], or less if the server permits
/// less.
pub fn chunk(session: &Session) -> u64 {
    let sizes = session.negotiated().constraints();
    let minimum = u64::from(sizes.minimum);
    let most = u64::from(sizes.maximum).min(CHUNK);
    round_down(most, minimum).max(minimum)
}

/// The result of one read.
pub struct Piece {
    pub offset: u64,
    pub data: Vec<u8>,
    /// The ranges of `data` that the server sent as holes.
    pub holes: Vec<Range<usize>>,
}

/// Reads in flight, by slot, and those that have ended.
pub struct Reads {
    running: [Option<Read>; WINDOW],
    ended: VecDeque<Result<Piece>>,
    /// Buffers to be reused, the last one first.
    spare: Vec<Vec<u8>>,
}

struct Read {
    cookie: Cookie,
    request: Request,
    /// Allocated when the first part of the reply arrives, so that few buffers are
    /// in use at a time.
    data: Vec<u8>,
    holes: Vec<Range<usize>>,
    /// What the server reported or did wrong.
    message: String,
}

impl Reads {
    pub fn new() -> Self {
        Self {
            running: [const { None }; WINDOW],
            ended: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Requests `range`, which is not longer than [`chunk`].
    pub fn submit(&mut self, session: &mut Session, range: Range<u64>) -> Result<()> {
        let request = Request::read(range.start, length(&range));
        let cookie = session.submit(request, Vec::new())?;
        self.running[slot_index(cookie)] = Some(Read {
            cookie,
            request,
            data: Vec::new(),
            holes: Vec::new(),
            message: String::new(),
        });
        Ok(())
    }

    /// The next read that has ended.
    pub fn next_ended(&mut self) -> Option<Result<Piece>> {
        self.ended.pop_front()
    }

    /// Takes a buffer to be reused.
    pub fn reuse(&mut self, data: Vec<u8>) {
        if data.capacity() > 0 {
            self.spare.push(data);
        }
    }

    /// The buffer for `length` bytes at `offset`.
    fn part(&mut self, cookie: Cookie, offset: u64, length: usize) -> Option<Part<'_>> {
        let read = find(&mut self.running, cookie)?;
        if read.data.is_empty() {
            read.data = self.spare.pop().unwrap_or_default();
            read.data.resize(to_usize(read.request.length), 0);
        }
        let start = to_usize(offset.checked_sub(read.request.offset)?);
        let place = start..start.checked_add(length)?;
        Some(Part {
            bytes: read.data.get_mut(place.clone())?,
            place,
            holes: &mut read.holes,
        })
    }
}

fn find(running: &mut [Option<Read>], cookie: Cookie) -> Option<&mut Read> {
    let read = running.get_mut(slot_index(cookie))?.as_mut();
    read.filter(|read| read.cookie == cookie)
}

fn unexpected() -> anyhow::Error {
    anyhow!("an event for a read that is not in flight")
}

/// A part of a read.
struct Part<'r> {
    bytes: &'r mut [u8],
    place: Range<usize>,
    holes: &'r mut Vec<Range<usize>>,
}

impl Read {
    fn finish(self, result: Result<(), String>) -> Result<Piece> {
        match result {
            Ok(()) => Ok(Piece {
                offset: self.request.offset,
                data: self.data,
                holes: self.holes,
            }),
            Err(error) => {
                let what = describe(&self.request);
                bail!("{what} failed: {error}{}", self.message)
            }
        }
    }
}

impl Replies for Reads {
    fn place(&mut self, cookie: Cookie, offset: u64, length: usize) -> Option<&mut [u8]> {
        Some(self.part(cookie, offset, length)?.bytes)
    }

    fn hole(&mut self, cookie: Cookie, offset: u64, length: usize) -> Result<()> {
        let part = self.part(cookie, offset, length);
        let part = part.ok_or_else(unexpected)?;
        part.bytes.fill(0);
        part.holes.push(part.place);
        Ok(())
    }

    fn event(&mut self, event: TransmissionEvent<'_>) -> Result<()> {
        if let Some((cookie, text)) = detail(&event) {
            let read = find(&mut self.running, cookie).ok_or_else(unexpected)?;
            read.message += &text;
        }
        if let TransmissionEvent::Done { cookie, result } = event {
            let read = self.running.get_mut(slot_index(cookie));
            let read = read.and_then(Option::take).ok_or_else(unexpected)?;
            self.ended.push_back(read.finish(result.map_err(explain)));
        }
        Ok(())
    }
}
