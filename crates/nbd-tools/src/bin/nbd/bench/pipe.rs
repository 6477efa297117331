//! The socket of a connection under load: each system call sends many messages.

use std::io::IoSlice;

use anyhow::Result;
use nbd_codec::client::RequestHeader;

use crate::connection::Link;
use crate::inbox::{READ_AHEAD, Received};

/// About as much as the receive buffer of a socket.
const CAPACITY: usize = 256 << 10;

/// The most slices that a system call accepts.
const MAX_SLICES: usize = 1024;

pub struct Pipe {
    link: Link,
    /// The headers to be sent.
    headers: Vec<u8>,
    /// The length of each.
    header_length: usize,
    /// The payload that follows each of them.
    payload: Vec<u8>,
    /// How many bytes of headers and payloads were sent.
    sent: usize,
}

impl Pipe {
    /// `payload` is sent after each header.
    pub fn new(mut link: Link, payload: Vec<u8>) -> Self {
        link.inbox.enlarge(CAPACITY);
        Self {
            link,
            headers: Vec::new(),
            header_length: 0,
            payload,
            sent: 0,
        }
    }

    /// What was received and not consumed yet.
    pub fn unread(&self) -> &[u8] {
        self.link.inbox.unread()
    }

    /// Drops all but the last `left` bytes.
    pub fn keep_last(&mut self, left: usize) {
        self.link.inbox.keep_last(left);
    }

    /// Queues a command.
    pub fn queue(&mut self, header: &RequestHeader) {
        self.header_length = header.as_bytes().len();
        self.headers.extend_from_slice(header.as_bytes());
    }

    pub fn is_all_sent(&self) -> bool {
        self.headers.is_empty()
    }

    /// Sends what the socket accepts now.
    pub fn send(&mut self) -> Result<()> {
        while !self.headers.is_empty() {
            let sent = if self.payload.is_empty() {
                let headers = IoSlice::new(&self.headers[self.sent..]);
                self.link.socket.write(&[headers])?
            } else {
                self.send_with_payload()?
            };
            match sent {
                Some(n) => self.sent += n,
                None => return Ok(()),
            }
            let messages = self.headers.len() / self.header_length;
            if self.sent == self.headers.len() + messages * self.payload.len() {
                self.headers.clear();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn send_with_payload(&mut self) -> Result<Option<usize>> {
        let message = self.header_length + self.payload.len();
        let mut already_sent = self.sent % message;
        let headers = &self.headers[self.sent / message * self.header_length..];
        let mut slices = Vec::with_capacity(MAX_SLICES.min(headers.len() / self.header_length * 2));
        for header in headers
            .chunks_exact(self.header_length)
            .take(MAX_SLICES / 2)
        {
            for part in [header, &self.payload] {
                let skipped = already_sent.min(part.len());
                already_sent -= skipped;
                slices.push(IoSlice::new(&part[skipped..]));
            }
        }
        self.link.socket.write(&slices)
    }

    /// Sends the last message, which has no payload.
    pub fn finish(&mut self, header: &RequestHeader) -> Result<()> {
        self.payload.clear();
        self.queue(header);
        loop {
            self.send()?;
            if self.is_all_sent() {
                return Ok(());
            }
            self.link.socket.wait(false)?;
        }
    }

    /// Waits until there is something to read or the socket accepts more; returns
    /// whether there is something to read.
    pub fn wait(&self) -> Result<bool> {
        self.link.socket.wait(true)
    }

    /// Waits for input and reads it: first into `place`, which may be empty.
    pub fn receive(&mut self, place: &mut [u8]) -> Result<Received> {
        let most = if place.is_empty() {
            CAPACITY
        } else {
            READ_AHEAD
        };
        self.link.inbox.receive(&mut self.link.socket, place, most)
    }
}
