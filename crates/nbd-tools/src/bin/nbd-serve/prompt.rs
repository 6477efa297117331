//! Requests that are done where they are read.
//!
//! Handing a small request to another thread takes longer than doing it. So
//! whoever reads does those that need no waiting, all that one receive has
//! brought, and sends their replies at once: two system calls for a batch.

use std::io;

use nbd_codec::Framing;
use nbd_codec::server::{Read, Reply, Write};

use crate::batch::{Batch, MOST_SLICES};
use crate::disk::Disk;
use crate::job::SPARSE;
use crate::outbox::Outbox;

/// Larger ones are for others: they take long.
const LARGEST: u32 = 256 << 10;

/// Replies are sent before they are more bytes, or when no request is left.
const CAPACITY: usize = LARGEST as usize + HEAD;

/// No head is longer.
const HEAD: usize = 64;

/// Most slices of a reply: each page, one more if it begins within one, and the
/// head.
const SLICES: usize = LARGEST as usize / 4096 + 2;

pub struct Prompt<'c> {
    disk: &'c dyn Disk,
    outbox: &'c Outbox,
    replies: &'c mut Batch,
    /// Whether reads may be answered in pieces.
    cuts: bool,
    /// How many requests were done.
    done: u64,
    /// Somebody has to send the rest.
    rest: bool,
    /// Not when too many replies wait for the client to read them.
    open: bool,
}

impl<'c> Prompt<'c> {
    pub fn new(
        disk: &'c dyn Disk,
        outbox: &'c Outbox,
        replies: &'c mut Batch,
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
        if self.disk.lends() {
            let (offset, length) = (token.offset(), token.length().into());
            self.replies.put(token.data().as_bytes());
            let mut take = |lent| self.replies.put_lent(lent);
            self.disk.lend(offset, length, &mut take);
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
        self.replies.put_reply(reply);
        self.done += 1;
        Ok(())
    }

    fn make_room(&mut self, length: usize) -> io::Result<()> {
        let (size, slices) = self.replies.size();
        if size + length > CAPACITY || slices + SLICES > MOST_SLICES {
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
        if !self.replies.is_empty() {
            let sent = self.outbox.send_soon(self.replies);
            self.replies.clear();
            self.rest |= sent?;
            self.open = self.outbox.has_room();
        }
        Ok(())
    }
}
