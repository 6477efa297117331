//! What the ring has in hand.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nbd_codec::server;

use super::door::Bell;
use crate::batch::Batch;
use crate::buffer::Buffer;
use crate::inbox::Inbox;
use crate::ring::{self, Desk, Order};
use crate::socket::Socket;

/// With the client it is for.
pub enum Flight {
    Receive(usize, Receive),
    Send(usize, Arc<Socket>, Batch),
    Read(usize, Read),
    Write(usize, Write),
    Sync(usize, Sync),
    /// Somebody else has something for us.
    Bell(Bell, [u8; 8]),
}

/// To the place of a payload, if one is due, and behind it to the inbox.
pub struct Receive {
    pub socket: Arc<Socket>,
    pub incoming: Option<Incoming>,
    pub inbox: Inbox,
}

/// The payload of a write, arriving.
pub struct Incoming {
    pub data: Buffer,
    pub filled: usize,
}

pub struct Read {
    pub file: Arc<File>,
    pub token: server::Read,
    pub data: Buffer,
    pub filled: usize,
}

pub struct Write {
    pub file: Arc<File>,
    pub token: server::Write,
    pub data: Buffer,
    pub written: usize,
}

/// And then the request is done.
pub struct Sync {
    pub file: Arc<File>,
    pub request: server::Request,
    pub room: usize,
}

impl Receive {
    /// How much went to the payload, and how much to the inbox.
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
    /// Whether that was all; if not, the rest is for another flight.
    pub fn arrived(&mut self, n: usize) -> io::Result<bool> {
        if n == 0 {
            return Err(io::Error::other("the file has become shorter"));
        }
        self.filled += n;
        Ok(self.filled == self.data.len())
    }
}

impl Write {
    /// Whether that was all; if not, the rest is for another flight.
    pub fn wrote(&mut self, n: usize) -> io::Result<bool> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += n;
        Ok(self.written == self.data.len())
    }
}

impl ring::Flight for Flight {
    fn order<'f>(&'f mut self, desk: Desk<'f>) -> Order<'f> {
        match self {
            Self::Receive(_, receive) => {
                let place = match &mut receive.incoming {
                    Some(Incoming { data, filled }) => &mut data[*filled..],
                    None => &mut [],
                };
                let behind = receive.inbox.room(!place.is_empty());
                desk.receive(receive.socket.as_fd(), place, behind)
            }
            Self::Send(_, socket, batch) => desk.send((**socket).as_fd(), batch.parts()),
            Self::Read(_, read) => {
                let offset = read.token.offset() + read.filled as u64;
                desk.read(read.file.as_fd(), offset, &mut read.data[read.filled..])
            }
            Self::Write(_, write) => {
                let offset = write.token.offset() + write.written as u64;
                desk.write(write.file.as_fd(), offset, &write.data[write.written..])
            }
            Self::Sync(_, sync) => desk.sync_data(sync.file.as_fd()),
            Self::Bell(bell, count) => desk.read(bell.0.as_fd(), 0, count),
        }
    }
}
