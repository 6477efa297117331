//! Replies to block status, narrow and wide: two types that take extents of
//! their own width, and nothing else.

use super::reply::{Reply, RequestInfo};
use super::{Rejected, accessors};
use crate::error::Misuse;
use crate::wire::extent::{Extent32, Extent64};
use crate::wire::flags::CommandFlags;
use crate::wire::number::{ChunkType, ContextId, Cookie, ErrorValue};
use crate::wire::{Sink, check_room};

/// Most extents in a chunk (specification, `NBD_REPLY_TYPE_BLOCK_STATUS`).
const MOST: u32 = 1 << 20;

/// A set of context ids, which are below 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct ContextSet(u32);

impl ContextSet {
    pub(in crate::server) const NONE: Self = Self(0);

    /// The set of one; empty for an id that no handshake makes.
    pub(in crate::server) fn of(id: ContextId) -> Self {
        Self(1u32.checked_shl(id.0).unwrap_or(0))
    }

    pub(in crate::server) fn holds(self, id: ContextId) -> bool {
        self.0 & Self::of(id).0 != 0
    }

    pub(in crate::server) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(in crate::server) fn with(self, id: ContextId) -> Self {
        Self(self.0 | Self::of(id).0)
    }

    fn without(self, id: ContextId) -> Self {
        Self(self.0 & !Self::of(id).0)
    }

    fn iter(self) -> impl Iterator<Item = ContextId> + Clone {
        (0..u32::BITS)
            .map(ContextId)
            .filter(move |id| self.holds(*id))
    }
}

/// What the extents of a chunk come to.
struct Sum {
    count: u32,
    /// Where the last one begins, in bytes from the start of the request.
    begins: u64,
    /// All together, in bytes.
    total: u64,
    /// All flags.
    flags: u64,
}

impl RequestInfo {
    fn wants_one(&self) -> bool {
        self.flags.contains(CommandFlags::REQ_ONE)
    }

    /// Most extents of `size` bytes in a chunk.
    fn most_extents(&self, size: u32) -> u32 {
        if self.wants_one() {
            1
        } else {
            // No chunk carries more than the maximum payload.
            self.maximum.checked_div(size).unwrap_or(0).clamp(1, MOST)
        }
    }

    /// Checks the extents of a chunk by the rules of the specification.
    fn sum(&self, extents: impl Iterator<Item = Extent64>, size: u32) -> Result<Sum, Misuse> {
        let maximum = self.most_extents(size);
        let mask = u64::from(self.minimum).saturating_sub(1);
        let mut sum = Sum {
            count: 0,
            begins: 0,
            total: 0,
            flags: 0,
        };
        for extent in extents {
            if extent.length == 0 {
                return Err(Misuse::EmptyExtent);
            }
            if sum.count == maximum {
                return Err(if self.wants_one() {
                    Misuse::NotOne
                } else {
                    Misuse::TooManyExtents { maximum }
                });
            }
            if extent.length & mask != 0 {
                let minimum = self.minimum;
                return Err(Misuse::Misaligned { minimum });
            }
            sum.count = sum.count.saturating_add(1);
            sum.begins = sum.total;
            sum.total = sum.total.saturating_add(extent.length);
            sum.flags |= extent.flags;
        }
        match sum.count {
            0 => Err(Misuse::EmptyExtent),
            _ if self.wants_one() && sum.total > self.length => Err(Misuse::NotOne),
            _ if sum.begins >= self.length => Err(Misuse::ExtentBeyond),
            _ => Ok(sum),
        }
    }
}

/// The two widths have the same rules and differ in their chunks.
macro_rules! block_status {
    ($name:ident, $extent:ident, $word:ident, $size:literal, $(#[$meta:meta])*) => {
        $(#[$meta])*
        ///
        /// One answer for each context, in any order; the last one ends the
        /// reply.
        #[derive(Debug, PartialEq, Eq)]
        #[must_use = "a client waits for the reply to every request"]
        pub struct $name {
            pub(in crate::server) info: RequestInfo,
            /// The contexts that are still to be answered.
            pub(in crate::server) missing: ContextSet,
            /// Those that may have more than 32 bits of status.
            pub(in crate::server) wide: ContextSet,
        }

        accessors! { $name: offset length }

        impl $name {
            /// Whether the client wants one extent of each context, no longer
            /// than the request (`REQ_ONE`).
            #[must_use]
            pub fn req_one(&self) -> bool {
                self.info.wants_one()
            }

            /// The contexts that are still to be answered: their places in
            /// [`Export::contexts`](crate::server::Export::contexts).
            pub fn contexts(&self) -> impl Iterator<Item = ContextId> + Clone + use<> {
                self.missing.iter()
            }

            /// The front of a list of extents that may be sent: it ends with
            /// the extent that reaches the end of the request, or with what
            /// one chunk may hold; with `REQ_ONE` it is the first extent, and
            /// that is shortened to the request. Nothing is split or joined.
            pub fn truncate<I>(&self, extents: I) -> impl Iterator<Item = $extent> + Clone + use<I>
            where
                I: Iterator<Item = $extent> + Clone,
            {
                let length = self.info.length;
                let one = self.info.wants_one();
                let most = usize::try_from(self.info.most_extents($size)).unwrap_or(usize::MAX);
                extents.take(most).scan(0u64, move |at, mut extent| {
                    if *at >= length {
                        return None;
                    }
                    if one {
                        extent.length = $word::try_from(length)
                            .map_or(extent.length, |length| extent.length.min(length));
                    }
                    *at = at.saturating_add(u64::from(extent.length));
                    Some(extent)
                })
            }

            /// Replies for one context: extents, each beginning where the one
            /// before it ends, from the request's offset on. The last may reach past the
            /// end of the request, none may begin there ([`truncate`](Self::truncate) sees
            /// to it); they may also cover less, and the client asks again for the rest.
            ///
            /// Returns the request while contexts are missing, and `None` when
            /// the reply is complete.
            ///
            /// # Errors
            ///
            /// [`Misuse`], with the request as it was; nothing was written:
            /// `Context` for one that is not asked about, or answered;
            /// `EmptyExtent`, `TooManyExtents`, `NotOne`, `ExtentBeyond`,
            /// `Misaligned` and `StatusTooWide` for extents that must not be
            /// sent; `Encode` if the chunk does not fit `sink`.
            pub fn reply(
                mut self,
                context: ContextId,
                extents: impl IntoIterator<Item = $extent, IntoIter: Clone>,
                sink: &mut dyn Sink,
            ) -> Result<Option<Self>, Rejected<Self>> {
                let missing = self.missing.without(context);
                let result = self.encode(context, extents.into_iter(), missing, sink);
                match result {
                    Err(misuse) => Err(Rejected::new(misuse, self)),
                    Ok(()) if missing.is_empty() => Ok(None),
                    Ok(()) => {
                        self.missing = missing;
                        Ok(Some(self))
                    }
                }
            }

            /// Answers for one context from a map that may reach further:
            /// [`truncate`](Self::truncate), then [`reply`](Self::reply).
            ///
            /// # Errors
            ///
            /// As [`reply`](Self::reply).
            pub fn reply_truncated(
                self,
                context: ContextId,
                map: impl IntoIterator<Item = $extent, IntoIter: Clone>,
                sink: &mut dyn Sink,
            ) -> Result<Option<Self>, Rejected<Self>> {
                let extents = self.truncate(map.into_iter());
                self.reply(context, extents, sink)
            }

            fn encode(
                &self,
                context: ContextId,
                extents: impl Iterator<Item = $extent> + Clone,
                missing: ContextSet,
                sink: &mut dyn Sink,
            ) -> Result<(), Misuse> {
                if !self.missing.holds(context) {
                    return Err(Misuse::Context(context));
                }
                let sum = self.info.sum(extents.clone().map(Extent64::from), $size)?;
                if !self.wide.holds(context) && sum.flags > u64::from(u32::MAX) {
                    return Err(Misuse::StatusTooWide(context));
                }
                // At most 2^20 of them: the sum stays below 2^25.
                let body = sum.count.saturating_mul($size);
                let front = self.front(context, sum.count, body, missing.is_empty());
                let front = Reply::new(front);
                let needed = usize::try_from(body).unwrap_or(usize::MAX);
                let needed = needed.saturating_add(front.size());
                check_room(sink, needed)?;
                front.encode(sink)?;
                for extent in extents {
                    sink.put(&extent.encode());
                }
                Ok(())
            }
        }
    };
}

block_status! {
    BlockStatus32Request, Extent32, u32, 8,
    /// `NBD_CMD_BLOCK_STATUS` with structured replies: takes narrow extents.
    /// Those of a map in 64 bits go through [`narrow::split`](super::narrow).
}

block_status! {
    BlockStatus64Request, Extent64, u64, 16,
    /// `NBD_CMD_BLOCK_STATUS` with extended headers: takes wide extents.
}

impl BlockStatus32Request {
    fn front(&self, context: ContextId, _: u32, body: u32, last: bool) -> super::reply::Front {
        self.info
            .header(ChunkType::BLOCK_STATUS, last, body.saturating_add(4))
            .put(context.0.to_be_bytes())
    }
}

impl BlockStatus64Request {
    fn front(&self, context: ContextId, count: u32, body: u32, last: bool) -> super::reply::Front {
        self.info
            .header(ChunkType::BLOCK_STATUS_EXT, last, body.saturating_add(8))
            .put(context.0.to_be_bytes())
            .put(count.to_be_bytes())
    }
}

impl BlockStatus32Request {
    /// Replies for one context from a map in 64 bits, narrowed on the caller's
    /// word: extents are [split](super::narrow::split) into narrow pieces, and
    /// the list is [truncated](Self::truncate). The reply may so cover less of
    /// the request than the map did; the client asks again for the rest of it.
    ///
    /// No more of the map is looked at than the reply has room for.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply); `StatusTooWide` for flags of more than 32
    /// bits.
    pub fn reply_wide(
        self,
        context: ContextId,
        map: impl IntoIterator<Item = Extent64, IntoIter: Clone>,
        sink: &mut dyn Sink,
    ) -> Result<Option<Self>, Rejected<Self>> {
        let length = self.info.length;
        let most = usize::try_from(self.info.most_extents(8)).unwrap_or(usize::MAX);
        let used = map.into_iter().take(most).scan(0u64, move |at, extent| {
            let begins = *at;
            *at = at.saturating_add(extent.length);
            (begins < length).then_some(extent)
        });
        if used
            .clone()
            .any(|extent| extent.flags > u64::from(u32::MAX))
        {
            return Err(Rejected::new(Misuse::StatusTooWide(context), self));
        }
        let pieces = used.flat_map(|extent| super::narrow::split(extent).into_iter().flatten());
        self.reply_truncated(context, pieces, sink)
    }
}

impl BlockStatus64Request {
    /// Replies for one context from a map in 64 bits:
    /// [`reply_truncated`](Self::reply_truncated), so that both widths are
    /// answered by the same code.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    pub fn reply_wide(
        self,
        context: ContextId,
        map: impl IntoIterator<Item = Extent64, IntoIter: Clone>,
        sink: &mut dyn Sink,
    ) -> Result<Option<Self>, Rejected<Self>> {
        self.reply_truncated(context, map, sink)
    }
}
