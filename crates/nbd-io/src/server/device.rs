//! What a server serves.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nbd_codec::server::MetaContext;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;

use super::{Extents, ReadReply};

/// A block device: what an export gives access to.
///
/// A device has a size and can be read. It offers whatever else is implemented:
/// without [`write`](Self::write) the export is read-only, without
/// [`trim`](Self::trim) no client sends `NBD_CMD_TRIM`, and so on. There is no
/// list of features that could differ from the methods.
///
/// ```
/// use nbd_io::server::{Device, ReadReply};
///
/// /// A read-only device of zeroes.
/// struct Zeroes;
///
/// impl Device for Zeroes {
///     fn size(&self) -> u64 {
///         1 << 40
///     }
///
///     async fn read(&self, _offset: u64, reply: &mut ReadReply) -> std::io::Result<()> {
///         reply.put_hole(reply.remaining());
///         Ok(())
///     }
/// }
/// ```
///
/// # Async or blocking
///
/// The same trait serves both. Under [`tokio`](crate::tokio) the methods run in
/// the task of the connection: several are in flight, and they may await. A
/// method that is ready at its first poll costs neither a task nor a wake-up, so
/// a short blocking operation (a `pread` of cached data) is fastest if it is
/// called directly; a long one belongs in `tokio::task::spawn_blocking`. Under
/// [`blocking`](crate::blocking) each method runs to its end on a thread of the
/// connection, and may block; it must not need the reactor of a runtime.
///
/// # What the server guarantees
///
/// - Requests are validated: ranges are not empty, are inside of
///   [`size`](Self::size), and keep to [`block_sizes`](Self::block_sizes); reads
///   and writes are at most its maximum long. Offsets and lengths are in bytes.
/// - `FUA` is a [`flush`](Self::flush) after the operation, and is advertised
///   if `flush` is implemented.
/// - All connections to an [`Export`](super::Export) share its device. A client
///   that sends overlapping requests at the same time gets either order.
/// - A future is dropped before its end if the connection breaks. The client has
///   no reply then, so the operation may have had its effect, or not, or in part.
///
/// # Errors
///
/// The client gets the number of an `io::Error` of the operating system as the
/// specification maps it, and its text; of others, what its kind corresponds to
/// (`StorageFull` is `ENOSPC`), or `EIO`.
///
/// # How the server knows what is implemented
///
/// The default of an optional method returns [`not_offered`], which the server
/// notices when the method is *called*. A method written as `async fn` runs only
/// when it is polled. So the server calls each of them once with an empty range
/// when it describes the export, and drops the futures. (A constant or a
/// `features` method would be a second statement that can contradict the methods,
/// and an `Option` around each future would keep methods from being written as
/// `async fn`.) Two rules follow for methods that are not written as `async fn`:
///
/// - They act in the future that they return, not before.
/// - A device around another one passes on what that one offers if it returns the
///   other's future (`fn flush(&self) -> impl Future<..> { self.0.flush() }`). To
///   offer something depending on the device, return [`not_offered`] in one branch.
pub trait Device: Send + Sync + 'static {
    /// Size in bytes. It may change at any time: later handshakes report the new
    /// size, and requests past the end fail.
    fn size(&self) -> u64;

    /// Reads the range from `offset` on whose length is
    /// [`reply.remaining()`](ReadReply::remaining), in order, into `reply`.
    fn read(
        &self,
        offset: u64,
        reply: &mut ReadReply,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Writes `data`. Without this method the export is read-only.
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        let _ = (offset, data);
        not_offered()
    }

    /// Makes all writes that have finished permanent (`NBD_CMD_FLUSH`).
    fn flush(&self) -> impl Future<Output = io::Result<()>> + Send {
        not_offered()
    }

    /// The data of the range is not needed any more (`NBD_CMD_TRIM`).
    fn trim(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + Send {
        let _ = (offset, length);
        not_offered()
    }

    /// The range reads as zeroes afterwards (`NBD_CMD_WRITE_ZEROES`). With
    /// `may_trim` it may become a hole; otherwise later writes to it must not fail
    /// for lack of space.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_trim: bool,
    ) -> impl Future<Output = io::Result<()>> + Send {
        let _ = (offset, length, may_trim);
        not_offered()
    }

    /// As [`write_zeroes`](Self::write_zeroes), but only if it is faster than a
    /// write: otherwise it fails at once with `io::ErrorKind::Unsupported` and
    /// changes nothing (`NBD_CMD_FLAG_FAST_ZERO`).
    fn write_zeroes_fast(
        &self,
        offset: u64,
        length: u64,
        may_trim: bool,
    ) -> impl Future<Output = io::Result<()>> + Send {
        let _ = (offset, length, may_trim);
        not_offered()
    }

    /// The range will be read soon (`NBD_CMD_CACHE`).
    fn cache(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + Send {
        let _ = (offset, length);
        not_offered()
    }

    /// Changes the size to `size` bytes (`NBD_CMD_RESIZE` of the resize
    /// extension).
    fn resize(&self, size: u64) -> impl Future<Output = io::Result<()>> + Send {
        let _ = size;
        not_offered()
    }

    /// Reports the status of the range in `context`, one of
    /// [`contexts`](Self::contexts), as extents from `offset` on
    /// (`NBD_CMD_BLOCK_STATUS`). They may end early: the client asks again for the
    /// rest; the last may reach past the range.
    fn block_status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> impl Future<Output = io::Result<()>> + Send {
        let _ = (context, offset, length, extents);
        not_offered()
    }

    /// The metadata contexts of [`block_status`](Self::block_status), always the
    /// same list, at most 32. They count only if that is implemented. Default:
    /// `base:allocation`.
    fn contexts(&self) -> &[MetaContext<'_>] {
        const { &[MetaContext::narrow("base:allocation")] }
    }

    /// The size constraints. The maximum is lowered to what the memory of the
    /// server permits. Default: 1, 4096 and 32 MiB.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::DEFAULT
    }
}

/// Shares a device between exports, or with the program.
impl<D: Device> Device for Arc<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read(
        &self,
        offset: u64,
        reply: &mut ReadReply,
    ) -> impl Future<Output = io::Result<()>> + Send {
        (**self).read(offset, reply)
    }

    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        (**self).write(offset, data)
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + Send {
        (**self).flush()
    }

    fn trim(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + Send {
        (**self).trim(offset, length)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_trim: bool,
    ) -> impl Future<Output = io::Result<()>> + Send {
        (**self).write_zeroes(offset, length, may_trim)
    }

    fn write_zeroes_fast(
        &self,
        offset: u64,
        length: u64,
        may_trim: bool,
    ) -> impl Future<Output = io::Result<()>> + Send {
        (**self).write_zeroes_fast(offset, length, may_trim)
    }

    fn cache(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + Send {
        (**self).cache(offset, length)
    }

    fn resize(&self, size: u64) -> impl Future<Output = io::Result<()>> + Send {
        (**self).resize(size)
    }

    fn block_status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> impl Future<Output = io::Result<()>> + Send {
        (**self).block_status(context, offset, length, extents)
    }

    fn contexts(&self) -> &[MetaContext<'_>] {
        (**self).contexts()
    }

    fn block_sizes(&self) -> BlockSizes {
        (**self).block_sizes()
    }
}

thread_local! {
    /// Whether [`not_offered`] was called since [`is_offered`] last reset it.
    static CALLED: Cell<bool> = const { Cell::new(false) };
}

/// The result of a method that a [`Device`] does not offer.
pub fn not_offered() -> NotOffered {
    CALLED.set(true);
    NotOffered(())
}

/// The future of [`not_offered`]. It fails with `io::ErrorKind::Unsupported`.
#[derive(Debug)]
#[must_use = "a Device method returns it"]
pub struct NotOffered(());

impl Future for NotOffered {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Whether a method is implemented: `call` calls it and drops its future.
fn is_offered<F>(call: impl FnOnce() -> F) -> bool {
    CALLED.set(false);
    drop(call());
    !CALLED.get()
}

/// Whether there are metadata contexts.
pub(super) fn has_status<D: Device>(device: &D) -> bool {
    is_offered(|| drop(device.block_status("", 0, 0, &mut Extents::new(0))))
}

/// The transmission flags for what the device implements.
pub(super) fn offered<D: Device>(device: &D) -> TransmissionFlags {
    let offers = [
        (
            TransmissionFlags::SEND_TRIM,
            is_offered(|| device.trim(0, 0)),
        ),
        (
            TransmissionFlags::SEND_WRITE_ZEROES,
            is_offered(|| device.write_zeroes(0, 0, true)),
        ),
        (
            TransmissionFlags::SEND_FAST_ZERO,
            is_offered(|| device.write_zeroes_fast(0, 0, true)),
        ),
        (
            TransmissionFlags::SEND_CACHE,
            is_offered(|| device.cache(0, 0)),
        ),
        (
            TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA,
            is_offered(|| device.flush()),
        ),
        (
            TransmissionFlags::SEND_RESIZE,
            is_offered(|| device.resize(device.size())),
        ),
        (TransmissionFlags::BLOCK_STATUS_PAYLOAD, has_status(device)),
        (
            TransmissionFlags::READ_ONLY,
            !is_offered(|| device.write(0, Bytes::new())),
        ),
        (TransmissionFlags::SEND_DF, true),
    ];
    let offered = offers.into_iter().filter(|(_, offered)| *offered);
    let flags = offered.fold(TransmissionFlags::NONE, |flags, (flag, _)| flags | flag);
    if flags.contains(TransmissionFlags::READ_ONLY) {
        read_only(flags)
    } else {
        flags
    }
}

/// What is left of the flags if nothing may be written.
pub(super) fn read_only(flags: TransmissionFlags) -> TransmissionFlags {
    let writes = TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_FAST_ZERO
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_RESIZE;
    flags.difference(writes) | TransmissionFlags::READ_ONLY
}
