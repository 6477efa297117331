//! The operations of the ring.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nbd_codec::server;

use super::mailbox::Waker;
use crate::batch::Batch;
use crate::buffer::Buffer;
use crate::file::truncated;
use crate::inbox::Inbox;
use crate::ring::{self, Entry, EntryBuilder};
use crate::socket::Socket;

/// Each but the last has the key of its client.
pub enum Operation {
    Receive(usize, Receive),
    Send(usize, Arc<Socket>, Batch),
    Read(usize, Read),
    Write(usize, Write),
    /// Completes when another thread has put something into the mailbox.
    Wake(Waker, [u8; 8]),
}

/// Receives the rest of a payload into its buffer, if one is due, and what
/// follows into the inbox.
pub struct Receive {
    pub socket: Arc<Socket>,
    pub incoming: Option<Incoming>,
    pub inbox: Inbox,
}

/// The payload of a write, partly received.
pub struct Incoming {
    pub data: Buffer,
    pub filled: usize,
}

pub struct Read {
    pub file: Arc<File>,
    pub token: server::ReadRequest,
    pub data: Buffer,
    pub filled: usize,
}

pub struct Write {
    pub file: Arc<File>,
    pub token: server::WriteRequest,
    pub data: Buffer,
    pub written: usize,
}

impl Receive {
    /// `n` bytes were received. Returns how many went to the payload, and how many
    /// to the inbox.
    pub fn arrived(&mut self, n: usize) -> (usize, usize) {
        let mut placed = 0;
        if let Some(Incoming { data, filled }) = &mut self.incoming {
            placed = n.min(data.len() - *filled);
            *filled += placed;
        }
        self.inbox.arrived(n - placed);
        (placed, n - placed)
    }
}

impl Read {
    /// `n` bytes were read; returns whether all are. If not, another operation is
    /// needed.
    pub fn arrived(&mut self, n: usize) -> io::Result<bool> {
        if n == 0 {
            return Err(truncated());
        }
        self.filled += n;
        Ok(self.filled == self.data.len())
    }
}

impl Write {
    /// `n` bytes were written; returns whether all are. If not, another operation
    /// is needed.
    pub fn wrote(&mut self, n: usize) -> io::Result<bool> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += n;
        Ok(self.written == self.data.len())
    }
}

impl ring::Operation for Operation {
    fn entry<'f>(&'f mut self, builder: EntryBuilder<'f>) -> Entry<'f> {
        match self {
            Self::Receive(_, receive) => {
                let place = match &mut receive.incoming {
                    Some(Incoming { data, filled }) => &mut data[*filled..],
                    None => &mut [],
                };
                let after = receive.inbox.space(!place.is_empty());
                builder.receive(receive.socket.as_fd(), place, after)
            }
            Self::Send(_, socket, batch) => builder.send((**socket).as_fd(), batch.parts()),
            Self::Read(_, read) => {
                let offset = read.token.offset() + read.filled as u64;
                builder.read(read.file.as_fd(), offset, &mut read.data[read.filled..])
            }
            Self::Write(_, write) => {
                let offset = write.token.offset() + write.written as u64;
                builder.write(write.file.as_fd(), offset, &write.data[write.written..])
            }
            Self::Wake(waker, count) => builder.read(waker.0.as_fd(), 0, count),
        }
    }
}
