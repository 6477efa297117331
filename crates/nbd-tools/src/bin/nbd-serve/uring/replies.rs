//! The replies to a client, one batch under way and one being filled; and how
//! much room they and their requests take.

use std::io::{self, IoSlice};
use std::mem;
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::Ring;
use super::flight::Flight;
use crate::batch::{Batch, MOST_SLICES};
use crate::socket::Socket;

/// Most requests at a time.
const REQUESTS: usize = 256;

pub struct Replies {
    /// The client's key.
    key: usize,
    socket: Arc<Socket>,
    /// Not on its way yet.
    pub next: Batch,
    /// An empty one, for its memory.
    spare: Batch,
    sending: bool,
    /// The client takes no more.
    broken: bool,
    /// What is admitted, from when a request comes to when its reply is out.
    requests: usize,
    room: usize,
    most_room: usize,
}

impl Replies {
    pub fn new(key: usize, socket: &Arc<Socket>, most_room: usize) -> Self {
        Self {
            key,
            socket: Arc::clone(socket),
            next: Batch::default(),
            spare: Batch::default(),
            sending: false,
            broken: false,
            requests: 0,
            room: 0,
            most_room,
        }
    }

    /// Whether there is room for one more request, with so many bytes of
    /// payload in either direction. If so, it is taken.
    pub fn admit(&mut self, room: usize) -> bool {
        let admitted = self.requests < REQUESTS && room <= self.most_room - self.room;
        if admitted {
            self.requests += 1;
            self.room += room;
        }
        admitted
    }

    pub fn are_sent(&self) -> bool {
        !self.sending && self.next.is_empty()
    }

    /// Sends what there is, unless something is on its way: that first. If
    /// nobody else has something to do, what the socket takes at once goes
    /// without the ring.
    pub fn send(&mut self, ring: &mut Ring<Flight>, alone: bool) -> io::Result<()> {
        if self.broken {
            self.release(self.next.requests, self.next.room);
            self.next.clear();
        }
        if self.are_sent() || self.sending {
            return Ok(());
        }
        if alone && self.send_now() {
            return Ok(());
        }
        let batch = mem::replace(&mut self.next, mem::take(&mut self.spare));
        self.start(batch, ring)
    }

    /// Sends what the socket takes at once, if nothing is on its way; whether
    /// that was all. What is wrong with the socket is for the ring to say.
    pub fn send_now(&mut self) -> bool {
        if self.sending || self.broken || self.next.is_empty() {
            return false;
        }
        let parts = self.next.parts().take(MOST_SLICES);
        let slices: Vec<_> = parts.map(IoSlice::new).collect();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        let sent = match &slices[..] {
            [only] => rustix::net::send(&self.socket, only, flags),
            slices => sendmsg(&self.socket, slices, &mut nothing, flags),
        };
        let all = self.next.advance(sent.unwrap_or(0));
        if all {
            self.release(self.next.requests, self.next.room);
            self.next.clear();
        }
        all
    }

    fn start(&mut self, batch: Batch, ring: &mut Ring<Flight>) -> io::Result<()> {
        self.sending = true;
        ring.start(Flight::Send(self.key, Arc::clone(&self.socket), batch))
    }

    /// A batch has come back.
    pub fn sent(
        &mut self,
        mut batch: Batch,
        result: io::Result<usize>,
        ring: &mut Ring<Flight>,
    ) -> io::Result<Result<(), io::Error>> {
        self.sending = false;
        let result = match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        };
        match result {
            Ok(n) if !batch.advance(n) => {
                self.start(batch, ring)?;
                return Ok(Ok(()));
            }
            _ => {}
        }
        self.release(batch.requests, batch.room);
        batch.clear();
        self.spare = batch;
        Ok(result.map(drop))
    }

    /// Nobody reads them any more.
    pub fn give_up(&mut self) {
        self.broken = true;
    }

    fn release(&mut self, requests: usize, room: usize) {
        self.requests -= requests;
        self.room -= room;
    }
}
