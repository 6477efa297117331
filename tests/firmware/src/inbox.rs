//! The receive buffer.

use crate::Failure;
use crate::board::Uart;

/// Bytes that arrived and were not consumed, at the front of a buffer.
pub struct Inbox {
    buffer: &'static mut [u8],
    held: usize,
}

impl Inbox {
    pub fn new(buffer: &'static mut [u8]) -> Self {
        Self { buffer, held: 0 }
    }

    /// The bytes, to offer to a machine.
    pub fn held(&self) -> &[u8] {
        self.buffer.get(..self.held).unwrap_or_default()
    }

    /// A machine left the last `rest` bytes: they move to the front.
    pub fn keep(&mut self, rest: usize) {
        let from = self.held.saturating_sub(rest);
        if from > 0 {
            for to in 0..rest {
                if let Some(&byte) = self.buffer.get(from.saturating_add(to))
                    && let Some(place) = self.buffer.get_mut(to)
                {
                    *place = byte;
                }
            }
            self.held = rest;
        }
    }

    /// Reads until `want` bytes are held, or the buffer is full.
    pub fn fill(&mut self, link: &mut Uart, want: usize) -> Result<(), Failure> {
        if want > self.held && self.held == self.buffer.len() {
            return Err(Failure::BufferTooSmall);
        }
        if let Some(room) = self.buffer.get_mut(..want.min(self.buffer.len())) {
            for place in room.iter_mut().skip(self.held) {
                *place = link.read_byte();
            }
            self.held = self.held.max(room.len());
        }
        Ok(())
    }
}
