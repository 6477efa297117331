//! Memory for payloads, which is reused: getting a large block from the system
//! takes longer than reading data into it. If there is none, that is an error of
//! one request or one client, and the others are served.

use std::io;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The smallest size, and the unit of all sizes.
pub const SMALLEST: usize = 4096;

/// Large allocations leave at least this much to small ones, which end the process
/// if they fail.
pub const MARGIN: usize = 1 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    unused: [const { Vec::new() }; CLASSES],
    kept: 0,
    allocated: 0,
    limit: usize::MAX,
});

const CLASSES: usize = usize::BITS as usize * 8;

struct Pool {
    /// By their size.
    unused: [Vec<Vec<u8>>; CLASSES],
    /// Bytes of unused buffers.
    kept: usize,
    /// Bytes of all buffers.
    allocated: usize,
    limit: usize,
}

impl Pool {
    /// Frees unused buffers until `size` more bytes are within the limit.
    fn make_room(&mut self, size: usize) -> io::Result<()> {
        while size > self.limit.saturating_sub(self.allocated) {
            let largest = self.unused.iter_mut().rev().find_map(Vec::pop);
            let Some(bytes) = largest else {
                return Err(io::ErrorKind::OutOfMemory.into());
            };
            self.kept -= bytes.len();
            self.allocated -= bytes.len();
        }
        Ok(())
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets how many bytes all buffers may have together.
pub fn set_limit(bytes: usize) {
    pool().limit = bytes;
}

/// How many bytes a buffer for `length` bytes takes; zero takes none.
pub fn size(length: usize) -> usize {
    if length == 0 { 0 } else { class(length).0 }
}

/// Memory for one payload. Its initial content is left from other uses and must
/// not be sent to a client.
///
/// Unused buffers are kept, up to a fifth of the limit in all.
pub struct Buffer {
    /// Its length is that of a class.
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// # Errors
    ///
    /// If there is no memory, or all buffers would exceed the limit.
    pub fn new(length: usize) -> io::Result<Self> {
        let (size, class) = class(length);
        let mut pool = pool();
        if let Some(bytes) = pool.unused[class].pop() {
            pool.kept -= size;
            return Ok(Self { bytes, length });
        }
        pool.make_room(size)?;
        pool.allocated += size;
        drop(pool);
        match zeroed(size) {
            Ok(bytes) => Ok(Self { bytes, length }),
            Err(error) => {
                self::pool().allocated -= size;
                Err(error)
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        let mut pool = pool();
        if pool.kept + bytes.len() <= pool.limit / 5 {
            pool.kept += bytes.len();
            pool.unused[class(bytes.len()).1].push(bytes);
        } else {
            pool.allocated -= bytes.len();
            drop(pool);
            drop(bytes);
        }
    }
}

/// The size of a buffer for `length` bytes, and the number of that size. There are
/// eight sizes from a power of two to the next.
fn class(length: usize) -> (usize, usize) {
    let length = length.max(SMALLEST);
    let step = (1 << length.ilog2()) / 8;
    let size = length.next_multiple_of(step.max(SMALLEST));
    let power = size.ilog2();
    (size, power as usize * 8 + (size >> (power - 3)) % 8)
}

/// Zeroes, which take memory when they are first written to: `vec!` gets them from
/// the kernel. It ends the process if there are none, so the same is first
/// allocated fallibly; by one thread at a time, and with a margin for the others.
pub fn zeroed(length: usize) -> io::Result<Vec<u8>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let lock = ONE_AT_A_TIME.lock();
    check_memory(length)?;
    let bytes = vec![0; length];
    drop(lock);
    Ok(bytes)
}

/// Fails if there are not `length` bytes of memory, and a margin.
pub fn check_memory(length: usize) -> io::Result<()> {
    let mut memory = Vec::<u8>::new();
    memory
        .try_reserve_exact(length + MARGIN)
        .map_err(|_| io::ErrorKind::OutOfMemory.into())
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
