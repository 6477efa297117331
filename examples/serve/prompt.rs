//! Requests that are done where they are read.
//!
//! Handing a small request to another thread takes longer than doing it. So
//! whoever reads does those that need no waiting, all that one receive has
//! brought, and sends their replies at once: two system calls for a batch.

use std::io;

use nbd_codec::Framing;
use nbd_codec::server::{Read, Reply, Write};

use crate::disk::Disk;
use crate::job::SPARSE;
use crate::outbox::Outbox;

/// Larger ones are for others: they take long.
const LARGEST: u32 = 256 << 10;

/// Replies are sent before they are more bytes, or when no request is left.
const CAPACITY: usize = LARGEST as usize + HEAD;

/// No head is longer.
const HEAD: usize = 64;

pub struct Prompt<'c> {
    disk: &'c dyn Disk,
    outbox: &'c Outbox,
    /// Replies, one behind the other.
    replies: &'c mut Replies,
    /// Whether reads may be answered in pieces.
    cuts: bool,
    /// How many requests were done.
    done: u64,
    /// Somebody has to send the rest.
    rest: bool,
    /// Not when too many replies wait for the client to read them.
    open: bool,
}

/// Memory for replies.
pub struct Replies {
    bytes: Box<[u8]>,
    end: usize,
    /// The length of the head of data. It is the same for all of a connection,
    /// and known as soon as there was one.
    head: usize,
}

impl Replies {
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into(),
            end: 0,
            head: 0,
        }
    }

    fn put(&mut self, part: &[u8]) {
        let end = self.end + part.len();
        self.bytes[self.end..end].copy_from_slice(part);
        self.end = end;
    }
}

impl<'c> Prompt<'c> {
    pub fn new(
        disk: &'c dyn Disk,
        outbox: &'c Outbox,
        replies: &'c mut Replies,
        framing: Framing,
    ) -> Self {
        Self {
            disk,
            open: outbox.has_room(),
            outbox,
            replies,
            cuts: framing != Framing::Simple,
            done: 0,
            rest: false,
        }
    }

    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether a payload of so many bytes is for here.
    pub fn takes(&self, length: u32) -> bool {
        self.open && length <= LARGEST
    }

    /// Reads and answers, or gives the token back.
    pub fn read(&mut self, token: Read) -> io::Result<Result<(), Read>> {
        let length = token.length();
        if !self.takes(length) || !self.is_whole(&token) {
            return Ok(Err(token));
        }
        let length = length as usize;
        self.make_room(HEAD + length)?;
        let from = self.replies.end + self.replies.head;
        let place = &mut self.replies.bytes[from..from + length];
        if !self.disk.try_read(token.offset(), place) {
            return Ok(Err(token));
        }
        let head = token.data();
        let head = head.as_bytes();
        if head.len() != self.replies.head {
            // The first one. The data makes way.
            let to = self.replies.end + head.len();
            self.replies.bytes.copy_within(from..from + length, to);
            self.replies.head = head.len();
        }
        self.replies.put(head);
        self.replies.end += length;
        self.done += 1;
        Ok(Ok(()))
    }

    /// Whether the data goes in one piece: if it is short or all data.
    fn is_whole(&self, token: &Read) -> bool {
        let length = token.length();
        let may_be_cut = self.cuts && length >= SPARSE && !token.dont_fragment();
        !may_be_cut || self.disk.is_data(token.offset(), length.into())
    }

    /// Writes and answers, or gives the token back.
    pub fn write(&mut self, token: Write, data: &[u8]) -> io::Result<Result<(), Write>> {
        // To make it permanent takes time.
        let length = data.len() as u32;
        if !self.takes(length) || token.fua() || !self.disk.try_write(token.offset(), data) {
            return Ok(Err(token));
        }
        self.say(&token.succeed()).map(Ok)
    }

    /// A reply that is there already.
    fn say(&mut self, reply: &Reply<'_>) -> io::Result<()> {
        self.make_room(reply.size())?;
        for part in reply.parts() {
            self.replies.put(part);
        }
        self.done += 1;
        Ok(())
    }

    fn make_room(&mut self, length: usize) -> io::Result<()> {
        if self.replies.end + length > CAPACITY {
            self.send()?;
        }
        Ok(())
    }

    /// Whether somebody has to send the rest of the replies; asked once.
    pub fn take_rest(&mut self) -> bool {
        std::mem::take(&mut self.rest)
    }

    /// Sends what there is. Does not wait long: what the socket does not take
    /// is for somebody else to send.
    pub fn send(&mut self) -> io::Result<()> {
        let end = std::mem::take(&mut self.replies.end);
        if end > 0 {
            self.rest |= self.outbox.send_soon(&self.replies.bytes[..end])?;
            self.open = self.outbox.has_room();
        }
        Ok(())
    }
}
