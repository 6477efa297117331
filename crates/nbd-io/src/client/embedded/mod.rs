//! The client over embedded-io-async: no allocator, no operating system.
//!
//! | file | what it has |
//! |---|---|
//! | `session` | sending one command and receiving its reply, resumable |

mod session;

use embedded_io_async::{Read, Write};
use nbd_codec::client::{Config, Request};
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Misuse, Negotiated, SessionError};

pub use self::session::{Extents, MINIMUM_BUFFER};
use self::session::{Reply, Session};

/// Why a call failed. `E` is the error of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error<E> {
    /// The link failed.
    #[error("the link failed")]
    Link(E),
    /// Connecting failed, the session is over, the call is not possible, or the server failed
    /// the command.
    #[error(transparent)]
    Session(SessionError),
    /// An earlier call was dropped while the data of a write was sent, and nothing can be sent
    /// after a part of a message. The connection is of no use.
    #[error("an earlier write was dropped when a part of it was sent")]
    Interrupted,
}

impl<E, S: Into<SessionError>> From<S> for Error<E> {
    fn from(error: S) -> Self {
        Self::Session(error.into())
    }
}

/// A client of an export, over a link of embedded-io-async, with one command in flight.
///
/// It needs no allocator: the caller provides a buffer for what is received, of at least
/// [`MINIMUM_BUFFER`] bytes. The data of reads and writes does not go through it, except for
/// the beginning of what is read.
///
/// # Calls
///
/// Ranges can have any length and any position: a call is split by the maximum payload of
/// the server, and reads of parts of blocks read whole ones. Writes of parts of blocks need a
/// second buffer, [`block_buffer`](Self::block_buffer).
///
/// # Cancellation
///
/// Every call can be dropped at any await if that is true of the link: a dropped `read` or
/// `write` of the link has read or written nothing.
///
/// - A dropped call is not a cancelled command: a write may happen or not, in whole or in
///   part. Its reply is taken from the stream by the next call.
/// - A message without data that was written in part is completed by the next call.
/// - If a call is dropped after a part of the data of a write was sent, the data is gone, and
///   every later call fails with [`Error::Interrupted`].
///
/// ```
/// # use embedded_io_async::{Read, Write};
/// use nbd_codec::client::Config;
/// use nbd_io::embedded::{Client, Error};
///
/// /// Copies the first block to the second one.
/// async fn copy<L: Read + Write>(link: L) -> Result<(), Error<L::Error>> {
///     let mut buffer = [0; 512];
///     let mut disk = Client::connect(link, Config::new("disk"), &mut buffer).await?;
///     let mut block = [0; 512];
///     disk.read_into(0, &mut block).await?;
///     disk.write_at(512, &block).await?;
///     disk.disconnect().await
/// }
/// ```
pub struct Client<'b, L> {
    session: Session<'b, L>,
    block: &'b mut [u8],
}

impl<'b, L: Read + Write> Client<'b, L> {
    /// Negotiates over a link. [`Config::limits`] is set by the length of the buffer; the
    /// request for the export has to fit into it.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Config::tls`] cannot be more than `Never`.
    pub async fn connect(
        link: L,
        config: Config<'_>,
        buffer: &'b mut [u8],
    ) -> Result<Self, Error<L::Error>> {
        Ok(Self {
            session: Session::connect(link, config, buffer).await?,
            block: &mut [],
        })
    }

    /// Provides memory for writes of parts of blocks, at least one block of the minimum size.
    #[must_use]
    pub fn block_buffer(mut self, block: &'b mut [u8]) -> Self {
        self.block = block;
        self
    }

    /// What was negotiated; the size follows [`resize`](Self::resize).
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        self.session.negotiated()
    }

    /// The size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.negotiated().size
    }

    /// Which of [`Config::contexts`] has this number on this connection.
    #[must_use]
    pub fn context(&self, id: ContextId) -> Option<usize> {
        self.session.context(id)
    }

    /// Reads into a slice. If the call fails or is dropped, a part of the slice may have been
    /// written.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn read_into(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Error<L::Error>> {
        let (start, length) = self.blocks(offset, wide(into.len()))?;
        self.run_split(
            Request::read(start, length),
            &[],
            &mut Reply::Data(offset, into),
        )
        .await
    }

    /// Writes data at `offset`, in bytes from the start of the export.
    ///
    /// # Errors
    ///
    /// [`Error`]. Of a part of a block, [`Misuse::Misaligned`] without a
    /// [`block_buffer`](Self::block_buffer) that is large enough.
    pub async fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), Error<L::Error>> {
        self.write_at_with(offset, data, CommandFlags::NONE).await
    }

    /// As [`write_at`](Self::write_at), with `FUA`.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at).
    pub async fn write_at_with(
        &mut self,
        mut offset: u64,
        mut data: &[u8],
        flags: CommandFlags,
    ) -> Result<(), Error<L::Error>> {
        self.blocks(offset, wide(data.len()))?;
        let block = self.block_size();
        while !data.is_empty() {
            let surplus = offset & (block - 1);
            let whole = wide(data.len()) & !(block - 1);
            let n = if surplus == 0 && whole > 0 {
                let (now, _) = data.split_at(clip(whole));
                let request = Request::write(offset, whole).with_flags(flags);
                self.run_split(request, now, &mut Reply::None).await?;
                now.len()
            } else {
                self.write_part(offset.saturating_sub(surplus), clip(surplus), data, flags)
                    .await?
            };
            offset = offset.saturating_add(wide(n));
            data = data.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Changes `data` at `from` in the block at `start`, as far as it is in it; returns how
    /// much that is.
    async fn write_part(
        &mut self,
        start: u64,
        from: usize,
        data: &[u8],
        flags: CommandFlags,
    ) -> Result<usize, Error<L::Error>> {
        let minimum = self.negotiated().constraints().minimum;
        let size = self.block_size();
        let memory = self.block.get_mut(..clip(size));
        let memory = memory.ok_or(Misuse::Misaligned { minimum })?;
        let read = Request::read(start, size);
        let mut reply = Reply::Data(start, memory);
        self.session.run(read, &[], &mut reply).await?;
        let Reply::Data(_, memory) = reply else {
            return Ok(0);
        };
        let place = memory.get_mut(from..).unwrap_or_default();
        let n = place.len().min(data.len());
        for (to, byte) in place.iter_mut().zip(data) {
            *to = *byte;
        }
        let write = Request::write(start, size).with_flags(flags);
        self.session.run(write, memory, &mut Reply::None).await?;
        Ok(n)
    }

    /// Waits until all writes that were answered before are on stable storage.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn flush(&mut self) -> Result<(), Error<L::Error>> {
        self.session
            .run(Request::flush(), &[], &mut Reply::None)
            .await
    }

    /// Tells the server that the content of a range is not needed. The range is of whole
    /// blocks.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn trim(&mut self, offset: u64, length: u64) -> Result<(), Error<L::Error>> {
        self.trim_with(offset, length, CommandFlags::NONE).await
    }

    /// As [`trim`](Self::trim), with `FUA`.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn trim_with(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<(), Error<L::Error>> {
        let request = Request::trim(offset, length).with_flags(flags);
        self.run_split(request, &[], &mut Reply::None).await
    }

    /// Writes zeroes; the server may make a hole. The range is of whole blocks.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<(), Error<L::Error>> {
        self.write_zeroes_with(offset, length, CommandFlags::NONE)
            .await
    }

    /// As [`write_zeroes`](Self::write_zeroes), with `FUA`, `NO_HOLE` or `FAST_ZERO`.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn write_zeroes_with(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<(), Error<L::Error>> {
        let request = Request::write_zeroes(offset, length).with_flags(flags);
        self.run_split(request, &[], &mut Reply::None).await
    }

    /// Asks the server to read a range into its cache. The range is of whole blocks.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn cache(&mut self, offset: u64, length: u64) -> Result<(), Error<L::Error>> {
        self.run_split(Request::cache(offset, length), &[], &mut Reply::None)
            .await
    }

    /// Asks for the status of a range of whole blocks in all metadata contexts that were
    /// granted. The extents are passed to `extents` as they arrive. They cover the range from
    /// its beginning, maybe not all of it.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn block_status(
        &mut self,
        offset: u64,
        length: u64,
        extents: &mut dyn FnMut(Extents<'_>),
    ) -> Result<(), Error<L::Error>> {
        self.block_status_with(offset, length, CommandFlags::NONE, extents)
            .await
    }

    /// As [`block_status`](Self::block_status), with `REQ_ONE`: one extent for each context.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn block_status_with(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
        extents: &mut dyn FnMut(Extents<'_>),
    ) -> Result<(), Error<L::Error>> {
        let whole = Request::block_status(offset, length).with_flags(flags);
        let request = self.negotiated().split(whole).next().unwrap_or(whole);
        self.session
            .run(request, &[], &mut Reply::Extents(extents))
            .await
    }

    /// Changes the size of the export to `size` bytes.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn resize(&mut self, size: u64) -> Result<(), Error<L::Error>> {
        self.session
            .run(Request::resize(size), &[], &mut Reply::None)
            .await
    }

    /// Ends the session.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn disconnect(self) -> Result<(), Error<L::Error>> {
        self.session.disconnect().await
    }

    /// Runs a command as pieces that the server accepts.
    async fn run_split(
        &mut self,
        request: Request,
        mut payload: &[u8],
        reply: &mut Reply<'_, '_>,
    ) -> Result<(), Error<L::Error>> {
        if request.length == 0 {
            return Ok(());
        }
        for piece in self.negotiated().split(request) {
            let n = payload.len().min(clip(piece.length));
            let (now, rest) = payload.split_at(n);
            payload = rest;
            self.session.run(piece, now, reply).await?;
        }
        Ok(())
    }

    /// The offset and the length of the whole blocks that hold a range.
    fn blocks(&self, offset: u64, length: u64) -> Result<(u64, u64), Misuse> {
        let size = self.size();
        let end = offset.checked_add(length).filter(|end| *end <= size);
        let end = end.ok_or(Misuse::OutOfBounds { size })?;
        let block = self.block_size();
        let start = offset & !(block - 1);
        let end = end.saturating_add(block - 1) & !(block - 1);
        match length {
            0 => Ok((offset, 0)),
            _ => Ok((start, end.saturating_sub(start))),
        }
    }

    /// The minimum block size in bytes, at least one.
    fn block_size(&self) -> u64 {
        u64::from(self.negotiated().constraints().minimum.max(1))
    }
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
