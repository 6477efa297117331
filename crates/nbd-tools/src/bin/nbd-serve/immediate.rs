//! Requests that are executed at once, by the thread that reads them.
//!
//! Handing a small request to another thread takes longer than executing it. So
//! the reading thread executes the requests of one receive that do not block, and
//! sends their replies together: two system calls for a batch.

use std::io;

use nbd_codec::server::{ReadRequest, Reply, Request, WriteRequest};
use nbd_codec::{Framing, Negotiated};

use crate::batch::{Batch, MAX_SLICES};
use crate::disk::Disk;
use crate::job::{self, SPARSE};
use crate::outbox::Outbox;
use crate::pipe::SHORTEST;

/// Requests with a longer payload are jobs, because they take long.
const LARGEST: u32 = 256 << 10;

/// Replies are sent before they have more bytes than this, and when no request
/// is left.
const CAPACITY: usize = LARGEST as usize + HEADER;

/// The longest header.
const HEADER: usize = 64;

/// More than a reply with one extent, or with an error.
const STATUS: usize = 1024;

/// The most slices of a reply: one for each page, one more if it begins within a
/// page, and one for the header.
const SLICES: usize = LARGEST as usize / 4096 + 2;

pub struct Immediate<'c> {
    disk: &'c dyn Disk,
    outbox: &'c Outbox,
    replies: &'c mut Batch,
    /// Whether reads may be answered in chunks.
    may_split: bool,
    /// The minimum block size.
    block: u32,
    /// How many requests were executed.
    done: u64,
    /// The outbox has replies that no thread is sending.
    unsent: bool,
    /// False if the outbox holds too much that the client has not read.
    open: bool,
}

impl<'c> Immediate<'c> {
    pub fn new(
        disk: &'c dyn Disk,
        outbox: &'c Outbox,
        replies: &'c mut Batch,
        negotiated: &Negotiated,
    ) -> Self {
        Self {
            disk,
            open: outbox.has_room(),
            outbox,
            replies,
            may_split: negotiated.framing != Framing::Simple,
            block: negotiated.constraints().minimum,
            done: 0,
            unsent: false,
        }
    }

    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether a request with a payload of `length` bytes may be executed here.
    pub fn takes(&self, length: u32) -> bool {
        self.open && length <= LARGEST
    }

    /// Reads and answers, or returns the request.
    pub fn read(&mut self, token: ReadRequest) -> io::Result<Result<(), ReadRequest>> {
        let length = token.length();
        if !self.takes(length) || !self.is_whole(&token) {
            return Ok(Err(token));
        }
        let length = length as usize;
        self.make_room(HEADER + length)?;
        let piped = || self.disk.pipe(token.offset(), length, true);
        if self.disk.lends() {
            let (offset, length) = (token.offset(), token.length().into());
            self.replies.put(token.data().as_bytes());
            let mut take = |lent| self.replies.put_lent(lent);
            self.disk.lend(offset, length, &mut take);
        } else if length >= SHORTEST
            && let Ok(Some(pipe)) = piped()
        {
            self.replies.put(token.data().as_bytes());
            self.replies.pipe = Some(pipe);
            // Nothing can follow it.
            self.send()?;
        } else {
            let place = self.replies.space(length);
            if !self.disk.try_read(token.offset(), place) {
                return Ok(Err(token));
            }
            self.replies.put_filled(token.data().as_bytes(), length);
        }
        self.done += 1;
        Ok(Ok(()))
    }

    /// Whether the data is sent as one chunk: if it is short, or has no holes.
    fn is_whole(&self, token: &ReadRequest) -> bool {
        let length = token.length();
        let may_be_split = self.may_split && length >= SPARSE && !token.dont_fragment();
        !may_be_split || self.disk.is_data(token.offset(), length.into())
    }

    /// Writes and answers, or returns the request.
    pub fn write(
        &mut self,
        token: WriteRequest,
        data: &[u8],
    ) -> io::Result<Result<(), WriteRequest>> {
        // FUA waits for the storage.
        let length = data.len() as u32;
        if !self.takes(length) || token.fua() || !self.disk.try_write(token.offset(), data) {
            return Ok(Err(token));
        }
        self.add_reply(&token.succeed()).map(Ok)
    }

    /// Answers block status for one extent, or returns the request. Finding it takes
    /// less time than a hand-over, unless metadata of the file has to be read.
    pub fn one_extent(&mut self, request: Request) -> io::Result<Result<(), Request>> {
        let one = match &request {
            Request::BlockStatus32(token) => token.req_one(),
            Request::BlockStatus64(token) => token.req_one(),
            _ => false,
        };
        if !one || !self.takes(0) {
            return Ok(Err(request));
        }
        self.make_room(STATUS)?;
        let mut parts = Vec::new();
        job::run(request, None, self.disk, self.block, &mut parts);
        for part in parts {
            let parts = part.content.parts();
            parts.iter().for_each(|part| self.replies.put(part));
        }
        self.done += 1;
        Ok(Ok(()))
    }

    /// Adds a reply.
    fn add_reply(&mut self, reply: &Reply<'_>) -> io::Result<()> {
        self.make_room(reply.size())?;
        self.replies.put_reply(reply);
        self.done += 1;
        Ok(())
    }

    fn make_room(&mut self, length: usize) -> io::Result<()> {
        let (size, slices) = self.replies.size();
        if size + length > CAPACITY || slices + SLICES > MAX_SLICES {
            self.send()?;
        }
        Ok(())
    }

    /// Whether a `Job::Send` is needed for replies that were not sent; resets
    /// the answer.
    pub fn take_unsent(&mut self) -> bool {
        std::mem::take(&mut self.unsent)
    }

    /// Sends all replies. Does not wait long: what the socket does not accept
    /// remains in the outbox.
    pub fn send(&mut self) -> io::Result<()> {
        if !self.replies.is_empty() {
            let sent = self.outbox.send_soon(self.replies);
            self.replies.clear();
            self.unsent |= sent?;
            self.open = self.outbox.has_room();
        }
        Ok(())
    }
}
