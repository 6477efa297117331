//! The calls of a client.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nbd_codec::client::Request;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::Command;
use nbd_codec::{Misuse, Negotiated};

use super::link::{Engine, Link};
use super::pool::Pool;
use super::ranges::Guard;
use super::table::{Reply, Submission};
use crate::client::{BlockStatus, Error, Payload};
use crate::lock;

/// Where bytes of the export are, from start to end.
type Span = Range<u64>;

impl<E: Engine> Pool<E> {
    /// Reads.
    pub(crate) async fn read(
        &self,
        offset: u64,
        length: usize,
        flags: CommandFlags,
    ) -> Result<Bytes, Error> {
        let blocks = self.blocks(offset, wide(length))?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let whole = clip(blocks.end.saturating_sub(blocks.start));
        let mut all = Vec::new();
        self.read_blocks(&blocks, flags, &mut |data| {
            if data.len() == whole {
                all = data;
            } else {
                all.reserve_exact(whole.saturating_sub(all.len()));
                all.extend_from_slice(&data);
            }
        })
        .await?;
        let mut bytes = Bytes::from(all);
        if whole > length {
            bytes = bytes.split_off(clip(offset.saturating_sub(blocks.start)));
            bytes.truncate(length);
        }
        Ok(bytes)
    }

    /// Reads into a slice. If it fails, the slice may hold a part.
    pub(crate) async fn read_into(
        &self,
        offset: u64,
        into: &mut [u8],
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let length = wide(into.len());
        let blocks = self.blocks(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let mut surplus = clip(offset.saturating_sub(blocks.start));
        let mut at = 0_usize;
        self.read_blocks(&blocks, flags, &mut |data| {
            let data = data.get(surplus..).unwrap_or_default();
            surplus = 0;
            let space = into.get_mut(at..).unwrap_or_default();
            let n = data.len().min(space.len());
            space[..n].copy_from_slice(&data[..n]);
            at = at.saturating_add(n);
        })
        .await
    }

    async fn read_blocks(
        &self,
        blocks: &Span,
        flags: CommandFlags,
        take: &mut (dyn FnMut(Vec<u8>) + Send),
    ) -> Result<(), Error> {
        let request = Request::read(blocks.start, blocks.end.saturating_sub(blocks.start));
        self.transfer(
            request.with_flags(flags),
            &Payload::NONE,
            None,
            &mut |reply| {
                take(reply.data);
            },
        )
        .await
    }

    /// Writes. Blocks that are written in part are read before.
    pub(crate) async fn write(
        &self,
        offset: u64,
        payload: Payload<'_>,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let length = wide(payload.as_ref().len());
        let blocks = self.blocks(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let whole = is_whole(&blocks, offset, length);
        let guard = self.hold(&blocks, !whole).await;
        if whole {
            let request = Request::write(offset, length).with_flags(flags);
            return self.modify(request, &payload, guard.as_ref()).await;
        }
        self.write_part(&blocks, offset, &payload, flags, guard.as_ref())
            .await
    }

    /// Read-modify-write. The blocks are held by `guard`.
    async fn write_part(
        &self,
        blocks: &Span,
        offset: u64,
        payload: &Payload<'_>,
        flags: CommandFlags,
        guard: Option<&Arc<Guard>>,
    ) -> Result<(), Error> {
        let block = u64::from(self.negotiated().constraints().minimum);
        let mut data = BytesMut::zeroed(clip(blocks.end.saturating_sub(blocks.start)));
        let last = blocks.end.saturating_sub(block);
        let end = offset.saturating_add(wide(payload.as_ref().len()));
        let first = (offset > blocks.start).then_some(blocks.start);
        let last = (end < blocks.end && first != Some(last)).then_some(last);
        for start in first.into_iter().chain(last) {
            let edge = start..start.saturating_add(block);
            let place = data.get_mut(clip(start.saturating_sub(blocks.start))..);
            let place = place.unwrap_or_default();
            self.read_blocks(&edge, CommandFlags::NONE, &mut |read| {
                let n = read.len().min(place.len());
                place[..n].copy_from_slice(&read[..n]);
            })
            .await?;
        }
        let from = clip(offset.saturating_sub(blocks.start));
        let bytes = payload.as_ref();
        if let Some(place) = data.get_mut(from..from.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
        let request = Request::write(blocks.start, wide(data.len())).with_flags(flags);
        self.modify(request, &data.into(), guard).await
    }

    /// Discards whole blocks. It is a hint: parts of blocks keep their content.
    pub(crate) async fn trim(
        &self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let blocks = self.blocks(offset, length)?;
        let Some(inner) = self.inner(&blocks, offset, length) else {
            return Ok(());
        };
        let guard = self.hold(&inner, false).await;
        let length = inner.end.saturating_sub(inner.start);
        let request = Request::trim(inner.start, length).with_flags(flags);
        self.modify(request, &Payload::NONE, guard.as_ref()).await
    }

    /// Writes zeroes; parts of blocks by read-modify-write.
    pub(crate) async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let blocks = self.blocks(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let guard = self.hold(&blocks, !is_whole(&blocks, offset, length)).await;
        let guard = guard.as_ref();
        let end = offset.saturating_add(length);
        let inner = self.inner(&blocks, offset, length);
        // First, as a server can refuse it with FAST_ZERO: then nothing has changed.
        if let Some(Span { start, end }) = inner.clone() {
            let request = Request::write_zeroes(start, end.saturating_sub(start));
            self.modify(request.with_flags(flags), &Payload::NONE, guard)
                .await?;
        }
        let inner = inner.unwrap_or(end..end);
        let flags = flags.intersection(CommandFlags::FUA);
        for edge in [offset..inner.start, inner.end..end] {
            if edge.is_empty() {
                continue;
            }
            let length = edge.end.saturating_sub(edge.start);
            let zeroes = Bytes::from(vec![0; clip(length)]).into();
            let blocks = self.blocks(edge.start, length)?;
            self.write_part(&blocks, edge.start, &zeroes, flags, guard)
                .await?;
        }
        Ok(())
    }

    /// Asks the server to read ahead.
    pub(crate) async fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        let blocks = self.blocks(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let request = Request::cache(blocks.start, blocks.end.saturating_sub(blocks.start));
        self.transfer(request, &Payload::NONE, None, &mut |_| {})
            .await
    }

    /// Flushes the writes that were answered.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let covered = self.unflushed.flushing();
        self.transfer(Request::flush(), &Payload::NONE, None, &mut |_| {})
            .await?;
        if self.strict_flush() && self.unflushed.take_suspect() {
            return Err(Error::UnflushedWrites);
        }
        self.unflushed.flushed(covered);
        Ok(())
    }

    /// The status of a range, in all contexts or in those with these names.
    pub(crate) async fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
        names: Option<&[&str]>,
    ) -> Result<BlockStatus, Error> {
        let blocks = self.blocks(offset, length)?;
        let whole = Request::block_status(blocks.start, blocks.end.saturating_sub(blocks.start));
        let surplus = offset.saturating_sub(blocks.start);
        let busy = self.pick()?;
        let mut resent = 0;
        loop {
            let link = busy.0.link();
            let find = |name: &&str| {
                let found = link.contexts.iter().find(|context| *context.name == **name);
                found.map(|context| context.id).ok_or(Misuse::NoContext)
            };
            let contexts = match names {
                Some(names) => Some(names.iter().map(find).collect::<Result<Vec<_>, _>>()?),
                None => None,
            };
            // The server may describe less than it was asked for: so does a first piece.
            let request = link.negotiated.split(whole).next().unwrap_or(whole);
            let submission = Submission {
                request: request.with_flags(flags),
                payload: &Payload::NONE,
                contexts: contexts.as_deref(),
                guard: None,
            };
            match link.run(submission).await {
                Ok(Reply { extents, .. }) => {
                    let extents = extents.ok_or(Misuse::NoContext)?;
                    return Ok(extents.named(&link.contexts, surplus));
                }
                Err(failure) => self.recover(busy.0, &link, failure, &mut resent).await?,
            }
        }
    }

    /// Changes the size of the export.
    pub(crate) async fn resize(&self, size: u64) -> Result<(), Error> {
        let _turn = self.resize.take().await;
        let Some(lane) = self.lanes.first() else {
            return Err(Error::Disconnected);
        };
        let _resizing = Resizing::begin(self, size);
        let mut resent = 0;
        loop {
            let link = lane.link();
            let submission = Submission {
                request: Request::resize(size),
                payload: &Payload::NONE,
                contexts: None,
                guard: None,
            };
            match link.run(submission).await {
                Ok(_) => break,
                Err(failure) => self.recover(lane, &link, failure, &mut resent).await?,
            }
            // It was done, and the reply was lost.
            if lane.link().negotiated.size == size {
                break;
            }
        }
        lock(&self.export).negotiated.size = size;
        for lane in self.lanes.iter().skip(1) {
            lane.link().lock().table.session().set_size(size)?;
        }
        Ok(())
    }

    /// Runs a command that changes the export.
    async fn modify(
        &self,
        request: Request,
        payload: &Payload<'_>,
        guard: Option<&Arc<Guard>>,
    ) -> Result<(), Error> {
        self.transfer(request, payload, guard, &mut |_| {}).await?;
        if !request.flags.contains(CommandFlags::FUA) {
            self.unflushed.written();
        }
        Ok(())
    }

    /// Runs a command, split if it has to be, and again after a reconnect.
    async fn transfer(
        &self,
        request: Request,
        payload: &Payload<'_>,
        guard: Option<&Arc<Guard>>,
        take: &mut (dyn FnMut(Reply) + Send),
    ) -> Result<(), Error> {
        let submission = Submission {
            request,
            payload,
            contexts: None,
            guard,
        };
        let busy = self.pick()?;
        let mut rest = request;
        let mut resent = 0;
        loop {
            let link = busy.0.link();
            let whole = rest == request && is_one(&link, request);
            let result = if whole {
                link.run(submission).await.map(&mut *take)
            } else {
                link.run_split(submission, &mut rest, take).await
            };
            match result {
                Ok(()) => return Ok(()),
                Err(failure) => self.recover(busy.0, &link, failure, &mut resent).await?,
            }
        }
    }

    /// The whole blocks that hold a range.
    fn blocks(&self, offset: u64, length: u64) -> Result<Span, Error> {
        let export = lock(&self.export);
        let size = export.negotiated.size;
        let end = offset.checked_add(length).filter(|end| *end <= size);
        let end = end.ok_or(Misuse::OutOfBounds { size })?;
        let block = block(&export.negotiated);
        Ok(down(offset, block)..down(end.saturating_add(block - 1), block))
    }

    /// The whole blocks within a range whose outer blocks are `blocks`.
    fn inner(&self, blocks: &Span, offset: u64, length: u64) -> Option<Span> {
        let block = block(&self.negotiated());
        let end = offset.saturating_add(length);
        let start = if offset == blocks.start {
            offset
        } else {
            blocks.start.saturating_add(block)
        };
        let end = down(end, block);
        (start < end).then_some(start..end)
    }

    /// Holds blocks that are going to be written. Where every write is of whole blocks there
    /// is nothing to hold.
    async fn hold(&self, blocks: &Span, exclusive: bool) -> Option<Arc<Guard>> {
        if block(&lock(&self.export).negotiated) == 1 {
            return None;
        }
        let guard = self.ranges.hold(blocks.clone(), exclusive).await;
        Some(Arc::new(guard))
    }
}

/// A resize under way: a new connection may have the size before it or after it.
struct Resizing<'p, E: Engine>(&'p Pool<E>);

impl<'p, E: Engine> Resizing<'p, E> {
    fn begin(pool: &'p Pool<E>, size: u64) -> Self {
        lock(&pool.export).resizing = Some(size);
        Self(pool)
    }
}

impl<E: Engine> Drop for Resizing<'_, E> {
    fn drop(&mut self) {
        lock(&self.0.export).resizing = None;
    }
}

/// Whether a command needs no splitting.
fn is_one<E>(link: &Link<E>, request: Request) -> bool {
    match request.command {
        Command::READ | Command::WRITE => {
            request.length <= u64::from(link.negotiated.constraints().maximum)
        }
        _ => request.length <= u64::from(u32::MAX),
    }
}

fn is_whole(blocks: &Span, offset: u64, length: u64) -> bool {
    *blocks == (offset..offset.saturating_add(length))
}

/// The minimum block size in bytes, at least one.
fn block(negotiated: &Negotiated) -> u64 {
    u64::from(negotiated.constraints().minimum.max(1))
}

/// Rounds down to a multiple of `block`, a power of two.
fn down(n: u64, block: u64) -> u64 {
    n & !(block - 1)
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn clip(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
