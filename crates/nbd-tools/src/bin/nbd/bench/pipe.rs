//! The socket of a connection under load: many messages in one system call.

use std::io::IoSlice;

use anyhow::Result;
use nbd_codec::client::Head;

use crate::connection::Link;
use crate::inbox::{LITTLE, Received};

/// As much as a socket has for its reader, in round figures.
const CAPACITY: usize = 256 << 10;

/// The system takes no more slices at once.
const MOST_SLICES: usize = 1024;

pub struct Pipe {
    link: Link,
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
    pub fn new(mut link: Link, payload: Vec<u8>) -> Self {
        link.inbox.enlarge(CAPACITY);
        Self {
            link,
            heads: Vec::new(),
            head: 0,
            payload,
            sent: 0,
        }
    }

    /// What was received and not understood yet.
    pub fn unread(&self) -> &[u8] {
        self.link.inbox.unread()
    }

    /// Says that only the last `left` bytes are still to be understood.
    pub fn keep_last(&mut self, left: usize) {
        self.link.inbox.keep_last(left);
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
            let sent = if self.payload.is_empty() {
                let heads = IoSlice::new(&self.heads[self.sent..]);
                self.link.socket.write(&[heads])?
            } else {
                self.send_with_payload()?
            };
            match sent {
                Some(n) => self.sent += n,
                None => return Ok(()),
            }
            let messages = self.heads.len() / self.head;
            if self.sent == self.heads.len() + messages * self.payload.len() {
                self.heads.clear();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn send_with_payload(&mut self) -> Result<Option<usize>> {
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
        self.link.socket.write(&slices)
    }

    /// Sends the last message, which has no payload, whatever the others had.
    pub fn finish(&mut self, head: &Head) -> Result<()> {
        self.payload.clear();
        self.queue(head);
        loop {
            self.send()?;
            if self.is_all_sent() {
                return Ok(());
            }
            self.link.socket.wait(false)?;
        }
    }

    /// Waits until there is something to read, or until the socket takes more,
    /// whichever is first; whether there is something to read.
    pub fn wait(&self) -> Result<bool> {
        self.link.socket.wait(true)
    }

    /// Receives, and waits for it: first into `place`, if that is not empty.
    pub fn receive(&mut self, place: &mut [u8]) -> Result<Received> {
        let most = if place.is_empty() { CAPACITY } else { LITTLE };
        self.link.inbox.receive(&mut self.link.socket, place, most)
    }
}
