//! What a handshake is exchanged over.

use std::future::Future;
use std::io;

/// A stream during a handshake, of tokio or of threads: the futures of the latter are ready
/// at once.
pub(crate) trait Duplex {
    fn read(&mut self, space: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}
