//! How little memory is enough: 64 bytes to receive in during transmission,
//! with every framing, and 256 bytes for a whole handshake. The receive buffer
//! is the crate's `Inbox`.

mod client_handshake;
mod client_transmission;
mod server;

use std::num::NonZeroUsize;

use nbd_codec::Framing;
use nbd_codec::inbox::Inbox;

pub(crate) const TRANSMISSION: usize = 64;
pub(crate) const HANDSHAKE: usize = 256;

pub(crate) const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// How a driver reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// As many bytes as the step asks for.
    Exact,
    /// As many bytes as the buffer has space for.
    ReadAhead,
    /// One byte at a time.
    Byte,
}

pub(crate) const PACES: [Pace; 3] = [Pace::Exact, Pace::ReadAhead, Pace::Byte];

/// A receive buffer of `N` bytes, and the bytes that the peer sent and that are
/// not read yet.
pub(crate) struct Receiver<const N: usize> {
    pub(crate) inbox: Inbox<[u8; N]>,
    pub(crate) unread: Vec<u8>,
    pace: Pace,
}

impl<const N: usize> Receiver<N> {
    pub(crate) fn new(pace: Pace, unread: Vec<u8>) -> Self {
        Self {
            inbox: Inbox::new([0; N]),
            unread,
            pace,
        }
    }

    /// Whether everything that the peer sent was consumed.
    pub(crate) fn is_empty(&self) -> bool {
        self.inbox.held().is_empty() && self.unread.is_empty()
    }

    /// Reads for a step that asks for at most `limit` bytes; false if there are
    /// none.
    pub(crate) fn read(&mut self, limit: NonZeroUsize) -> bool {
        let space = match self.pace {
            Pace::Exact => self.inbox.space_for(limit),
            Pace::ReadAhead => self.inbox.space(),
            Pace::Byte => self.inbox.space_for(NonZeroUsize::MIN),
        };
        assert!(!space.is_empty(), "the inbox says when it is full");
        let n = space.len().min(self.unread.len());
        if n == 0 {
            return false;
        }
        space[..n].copy_from_slice(&self.unread[..n]);
        self.unread.drain(..n);
        assert_eq!(self.inbox.filled(n), Ok(()));
        true
    }

    /// Reads up to `length` bytes of payload past the buffer.
    pub(crate) fn read_payload(&mut self, length: u64) -> Vec<u8> {
        assert!(self.inbox.held().is_empty(), "payload was held back");
        let n = self.unread.len().min(usize::try_from(length).unwrap());
        self.unread.drain(..n).collect()
    }
}
