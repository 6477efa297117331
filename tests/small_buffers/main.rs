//! How little memory is enough: 64 bytes to receive in during transmission,
//! with every framing, and 256 bytes for a whole handshake.

mod client_handshake;
mod client_transmission;
mod server;

use nbd_codec::{Framing, Need};

pub(crate) const TRANSMISSION: usize = 64;
pub(crate) const HANDSHAKE: usize = 256;

pub(crate) const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// How a driver reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// What the machine needs, and not a byte more.
    Needed,
    /// As much as the buffer holds.
    Full,
    /// One byte at a time.
    Byte,
}

pub(crate) const PACES: [Pace; 3] = [Pace::Needed, Pace::Full, Pace::Byte];

/// The machine wants more, and the buffer is full.
#[derive(Debug, PartialEq)]
pub(crate) struct Stalled;

/// A receive buffer of `N` bytes at the end of a line.
pub(crate) struct Receiver<const N: usize> {
    pub(crate) buffer: [u8; N],
    pub(crate) held: usize,
    pace: Pace,
    /// What the peer sent and is not read yet.
    pub(crate) line: Vec<u8>,
}

impl<const N: usize> Receiver<N> {
    pub(crate) fn new(pace: Pace, line: Vec<u8>) -> Self {
        Self {
            buffer: [0; N],
            held: 0,
            pace,
            line,
        }
    }

    pub(crate) fn held(&self) -> &[u8] {
        &self.buffer[..self.held]
    }

    /// The machine left so much of what is held.
    pub(crate) fn keep(&mut self, left: usize) {
        self.buffer.copy_within(self.held - left..self.held, 0);
        self.held = left;
    }

    /// Reads a little; false if the line is silent.
    pub(crate) fn read(&mut self, need: Need) -> Result<bool, Stalled> {
        if self.line.is_empty() {
            return Ok(false);
        }
        let room = N - self.held;
        let wanted = match need {
            Need::Header(n) => n.saturating_sub(self.held),
            Need::Payload { length, .. } => usize::try_from(length).unwrap(),
            Need::Nothing => return Ok(false),
        };
        assert!(wanted > 0, "needs nothing, and took nothing");
        let n = match self.pace {
            Pace::Needed => wanted.min(room),
            Pace::Full => room,
            Pace::Byte => room.min(1),
        };
        if n == 0 {
            return Err(Stalled);
        }
        let n = n.min(self.line.len());
        let arrived: Vec<u8> = self.line.drain(..n).collect();
        self.buffer[self.held..][..n].copy_from_slice(&arrived);
        self.held += n;
        Ok(true)
    }
}
