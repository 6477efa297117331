//! The socket of a connection under load: many messages in one system call,
//! and one system call where others take three.
//!
//! The socket waits where waiting is right: for replies, when there is nothing
//! to send. Sending never waits, for the server may want its replies read
//! first.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use nbd_codec::client::Head;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};

use crate::connection::Link;

/// As much as a socket has for its reader, in round figures.
const CAPACITY: usize = 256 << 10;

/// Behind a payload that is read to its place: headers, and not much of what
/// had to be copied to its place.
const BEHIND: usize = 512;

/// The system takes no more slices at once.
const MOST_SLICES: usize = 1024;

pub struct Pipe {
    fd: OwnedFd,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Heads of commands, one behind the other.
    heads: Vec<u8>,
    /// The length of each.
    head: usize,
    /// What follows each of them.
    payload: Vec<u8>,
    /// How much was sent, heads and payloads.
    sent: usize,
}

impl Pipe {
    /// With `payload` behind each command.
    pub fn new(link: Link, payload: Vec<u8>) -> Result<Self> {
        let mut bytes = vec![0; CAPACITY];
        let unread = link.inbox.unread();
        let end = unread.len();
        bytes[..end].copy_from_slice(unread);
        Ok(Self {
            fd: link.socket.into_blocking()?,
            bytes: bytes.into(),
            start: 0,
            end,
            heads: Vec::new(),
            head: 0,
            payload,
            sent: 0,
        })
    }

    /// What was received and not understood yet.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Says that only the last `left` bytes are still to be understood.
    pub fn keep_last(&mut self, left: usize) {
        self.start = self.end - left;
    }

    /// To be sent.
    pub fn queue(&mut self, head: &Head) {
        self.head = head.as_bytes().len();
        self.heads.extend_from_slice(head.as_bytes());
    }

    pub fn is_all_sent(&self) -> bool {
        self.heads.is_empty()
    }

    /// Sends as much as the socket takes now.
    pub fn send(&mut self) -> Result<()> {
        while !self.heads.is_empty() {
            let result = match self.payload.is_empty() {
                true => send(&self.fd, &self.heads[self.sent..], FLAGS),
                false => self.send_with_payload(),
            };
            match result {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error).context("the connection broke while sending"),
            }
            let messages = self.heads.len() / self.head;
            if self.sent == self.heads.len() + messages * self.payload.len() {
                self.heads.clear();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn send_with_payload(&self) -> rustix::io::Result<usize> {
        let message = self.head + self.payload.len();
        let mut skip = self.sent % message;
        let heads = &self.heads[self.sent / message * self.head..];
        let mut slices = Vec::with_capacity(MOST_SLICES.min(heads.len() / self.head * 2));
        for head in heads.chunks_exact(self.head).take(MOST_SLICES / 2) {
            for part in [head, &self.payload] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                slices.push(IoSlice::new(&part[skipped..]));
            }
        }
        sendmsg(
            &self.fd,
            &slices,
            &mut SendAncillaryBuffer::default(),
            FLAGS,
        )
    }

    /// Waits until there is something to read, or until the socket takes more,
    /// whichever is first; whether there is something to read.
    pub fn wait(&self) -> Result<bool> {
        let events = PollFlags::IN | PollFlags::OUT;
        let mut fds = [PollFd::new(&self.fd, events)];
        loop {
            match poll(&mut fds, None) {
                Ok(_) => return Ok(fds[0].revents() != PollFlags::OUT),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives, and waits for it: first into `place`, which may be empty,
    /// and then behind what is unread. How much of `place` was filled, and
    /// whether anything came.
    pub fn receive(&mut self, place: &mut [u8]) -> Result<(usize, bool)> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = place.len();
        let inbox = &mut self.bytes[self.end..];
        let n = loop {
            let result = match room {
                0 => rustix::io::read(&self.fd, &mut *inbox),
                _ => {
                    let behind = BEHIND.min(inbox.len());
                    let slices = [&mut *place, &mut inbox[..behind]];
                    rustix::io::readv(&self.fd, &mut slices.map(IoSliceMut::new))
                }
            };
            match result {
                Ok(n) => break n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => bail!("the server was silent for longer than --timeout"),
                Err(error) => return Err(error).context("the connection broke"),
            }
        };
        self.end += n.saturating_sub(room);
        Ok((n.min(room), n > 0))
    }
}

const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
