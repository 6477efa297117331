//! The replies to a client: one batch that is being sent and one that is being
//! filled. Limits the requests in flight of the client.

use std::io::{self, IoSlice};
use std::mem;
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::Ring;
use super::operation::Operation;
use crate::batch::{Batch, MAX_SLICES};
use crate::budget::{Memory, REQUESTS};
use crate::socket::Socket;

/// Whether a request is admitted.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// Not before requests of this client are answered.
    Full,
    /// It has none, and other clients have the memory.
    NoMemory,
}

pub struct Replies {
    /// The client's key.
    key: usize,
    socket: Arc<Socket>,
    /// Not being sent yet.
    pub next: Batch,
    /// An empty one, for its memory.
    spare: Batch,
    sending: bool,
    /// Sending failed.
    broken: bool,
    /// What is admitted, from the arrival of a request until its reply is sent.
    requests: usize,
    cost: usize,
    max_cost: usize,
    memory: Arc<Memory>,
    /// What is taken from it: `cost` or more.
    taken: usize,
}

/// So much is taken at a time: other threads use the same counter, and each use
/// costs time.
const PORTION: usize = 256 << 10;

impl Drop for Replies {
    fn drop(&mut self) {
        self.memory.give_back(self.taken);
    }
}

impl Replies {
    pub fn new(
        key: usize,
        socket: &Arc<Socket>,
        max_cost: usize,
        memory: &Arc<Memory>,
    ) -> io::Result<Self> {
        Ok(Self {
            key,
            socket: Arc::clone(socket),
            next: Batch::new()?,
            spare: Batch::new()?,
            sending: false,
            broken: false,
            requests: 0,
            cost: 0,
            max_cost,
            memory: Arc::clone(memory),
            taken: 0,
        })
    }

    /// Admits one more request, with a payload of `cost` bytes in either
    /// direction, if the limits permit it.
    pub fn admit(&mut self, cost: usize) -> Admission {
        let fits = self.requests < REQUESTS
            && cost <= self.max_cost - self.cost
            && self.take(self.cost + cost);
        if fits {
            self.requests += 1;
            self.cost += cost;
            Admission::Admitted
        } else if self.requests > 0 {
            Admission::Full
        } else {
            Admission::NoMemory
        }
    }

    /// Takes memory for `cost` bytes in all.
    fn take(&mut self, cost: usize) -> bool {
        let Some(missing) = cost.checked_sub(self.taken).filter(|n| *n > 0) else {
            return true;
        };
        let portions = [missing.next_multiple_of(PORTION), missing];
        let taken = portions
            .into_iter()
            .find(|bytes| self.memory.try_take(self.taken, *bytes));
        self.taken += taken.unwrap_or(0);
        taken.is_some()
    }

    /// Gives back the bytes of a request that was admitted with them.
    pub fn refund(&mut self, cost: usize) {
        self.release(0, cost);
    }

    pub fn are_sent(&self) -> bool {
        !self.sending && self.next.is_empty()
    }

    /// Sends all replies, unless others are being sent. If no other client has
    /// anything to do, what the socket accepts at once is sent without the ring.
    pub fn send(&mut self, ring: &mut Ring<Operation>, alone: bool) -> io::Result<()> {
        if self.broken {
            self.release(self.next.requests, self.next.cost);
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

    /// Sends what the socket accepts at once, unless replies are being sent;
    /// returns whether all were sent. Errors are left for the ring to report.
    pub fn send_now(&mut self) -> bool {
        if self.sending || self.broken || self.next.is_empty() {
            return false;
        }
        let parts = self.next.parts().take(MAX_SLICES);
        let slices: Vec<_> = parts.map(IoSlice::new).collect();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        let sent = match &slices[..] {
            [only] => rustix::net::send(&self.socket, only, flags),
            slices => sendmsg(&self.socket, slices, &mut control, flags),
        };
        let all = self.next.advance(sent.unwrap_or(0));
        if all {
            self.release(self.next.requests, self.next.cost);
            self.next.clear();
        }
        all
    }

    fn start(&mut self, batch: Batch, ring: &mut Ring<Operation>) -> io::Result<()> {
        self.sending = true;
        ring.start(Operation::Send(self.key, Arc::clone(&self.socket), batch))
    }

    /// A send is completed.
    pub fn sent(
        &mut self,
        mut batch: Batch,
        result: io::Result<usize>,
        ring: &mut Ring<Operation>,
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
        self.release(batch.requests, batch.cost);
        batch.clear();
        self.spare = batch;
        Ok(result.map(drop))
    }

    /// Discards all replies, also later ones.
    pub fn discard(&mut self) {
        self.broken = true;
    }

    fn release(&mut self, requests: usize, cost: usize) {
        self.requests -= requests;
        self.cost -= cost;
        if self.cost == 0 {
            self.memory.give_back(mem::take(&mut self.taken));
        }
    }
}
