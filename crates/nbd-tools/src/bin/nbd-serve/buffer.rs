//! Memory for payloads, which is reused: getting a large block from the system
//! takes longer than reading data into it.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Unused buffers are kept up to this many bytes in all.
const KEPT: usize = 64 << 20;

/// The smallest size.
const SMALLEST: usize = 4096;

static FREE: Mutex<Free> = Mutex::new(Free {
    buffers: [const { Vec::new() }; CLASSES],
    bytes: 0,
});

const CLASSES: usize = usize::BITS as usize;

struct Free {
    /// By the logarithm of their size.
    buffers: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

/// Memory for one payload. Its initial content is left from other uses and must
/// not be sent to a client.
pub struct Buffer {
    /// Its length is a power of two.
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    pub fn new(length: usize) -> Self {
        let size = length.next_power_of_two().max(SMALLEST);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match free.buffers[class(size)].pop() {
            None => {
                drop(free);
                vec![0; size]
            }
            Some(bytes) => {
                free.bytes -= size;
                bytes
            }
        };
        Self { bytes, length }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.bytes + bytes.len() <= KEPT {
            free.bytes += bytes.len();
            free.buffers[class(bytes.len())].push(bytes);
        }
    }
}

fn class(size: usize) -> usize {
    size.trailing_zeros() as usize
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}
