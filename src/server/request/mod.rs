//! Requests: each is answered exactly once, and only in the ways that are legal
//! for it.

mod block_status;
pub mod narrow;
mod read;
mod reply;

pub(super) use self::block_status::ContextSet;
pub use self::block_status::{BlockStatus32Request, BlockStatus64Request};
pub use self::read::{ChunkedRead, ReadRequest};
pub(super) use self::reply::RequestInfo;
pub use self::reply::{Reply, ReplyHeader};
use crate::error::Misuse;
use crate::wire::flags::CommandFlags;
use crate::wire::number::{Command, Cookie, ErrorValue};

/// A request of the client, checked against what was advertised.
///
/// Every request is answered exactly once, in any order, and apart from the
/// [`Transmission`](super::Transmission) that it came from: send it to the task
/// that does the work. A request has no `Clone`, and answering consumes it.
///
/// Bind it by name: `Event(TransmissionEvent::Request(_))` drops it, and the
/// client waits for a reply that never comes.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the reply to every request"]
#[non_exhaustive]
pub enum Request {
    /// Read data.
    Read(ReadRequest),
    /// Write the payload, which has arrived.
    Write(WriteRequest),
    /// Make finished writes permanent.
    Flush(FlushRequest),
    /// Data is no longer needed.
    Trim(TrimRequest),
    /// Data will be needed soon.
    Cache(CacheRequest),
    /// Write zeroes.
    WriteZeroes(WriteZeroesRequest),
    /// Report narrow extents (structured replies).
    BlockStatus32(BlockStatus32Request),
    /// Report wide extents (extended headers).
    BlockStatus64(BlockStatus64Request),
    /// Change the size of the export. Only where the caller advertised
    /// `SEND_RESIZE`.
    Resize(ResizeRequest),
}

impl Request {
    /// The cookie that the replies will have; the client's choice, and perhaps
    /// not unique.
    #[must_use]
    pub const fn cookie(&self) -> Cookie {
        self.info().cookie
    }

    /// The command.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self {
            Self::Read(_) => Command::READ,
            Self::Write(_) => Command::WRITE,
            Self::Flush(_) => Command::FLUSH,
            Self::Trim(_) => Command::TRIM,
            Self::Cache(_) => Command::CACHE,
            Self::WriteZeroes(_) => Command::WRITE_ZEROES,
            Self::BlockStatus32(_) | Self::BlockStatus64(_) => Command::BLOCK_STATUS,
            Self::Resize(_) => Command::RESIZE,
        }
    }

    /// Answers with an error, whatever the request is; as `ESHUTDOWN` for
    /// what a server that shuts down does not do any more.
    pub fn fail(self, error: ErrorValue, text: &str) -> Reply<'_> {
        self.info().error(error, None, true, text)
    }

    const fn info(&self) -> &RequestInfo {
        match self {
            Self::Read(request) => &request.info,
            Self::Write(request) => &request.info,
            Self::Flush(request) => &request.info,
            Self::Trim(request) => &request.info,
            Self::Cache(request) => &request.info,
            Self::WriteZeroes(request) => &request.info,
            Self::BlockStatus32(request) => &request.info,
            Self::BlockStatus64(request) => &request.info,
            Self::Resize(request) => &request.info,
        }
    }
}

/// A call that was refused, and the request that comes back with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected<T> {
    /// Why.
    pub reason: Misuse,
    /// The request, as it was.
    pub request: T,
}

impl<T> Rejected<T> {
    pub(super) fn new(reason: impl Into<Misuse>, request: T) -> Self {
        let reason = reason.into();
        Self { reason, request }
    }
}

/// Drops the request: the client will never be answered.
impl<T> From<Rejected<T>> for Misuse {
    fn from(rejected: Rejected<T>) -> Self {
        rejected.reason
    }
}

/// What requests have in common, by what they have.
macro_rules! accessors {
    ($name:ident: $($has:ident)*) => {
        impl $name {
            /// The cookie that the replies will have; the client's choice, and
            /// perhaps not unique.
            #[must_use]
            pub const fn cookie(&self) -> Cookie {
                self.info.cookie
            }

            /// Answers with an error; what was sent before counts for nothing.
            /// Simple replies have no text; it is cut after 4096 bytes.
            pub fn fail(self, error: ErrorValue, text: &str) -> Reply<'_> {
                self.info.error(error, None, true, text)
            }

            $(accessors! { @$has })*
        }
    };
    (@offset) => {
        /// Where the range begins, in bytes from the start of the export.
        #[must_use]
        pub const fn offset(&self) -> u64 {
            self.info.offset
        }

        /// Answers with an error at a place, in bytes from the start of the
        /// export. Simple replies have neither text nor place.
        ///
        /// # Errors
        ///
        /// [`Misuse::OutsideRequest`], with the request.
        pub fn fail_at(
            self,
            error: ErrorValue,
            offset: u64,
            text: &str,
        ) -> Result<Reply<'_>, Rejected<Self>> {
            if self.info.holds(offset, 1) {
                Ok(self.info.error(error, Some(offset), true, text))
            } else {
                Err(Rejected::new(Misuse::OutsideRequest, self))
            }
        }
    };
    (@length) => {
        /// How long the range is, in bytes; never zero.
        #[must_use]
        pub const fn length(&self) -> u64 {
            self.info.length
        }
    };
    (@succeed) => {
        /// Answers with success.
        pub fn succeed(self) -> Reply<'static> {
            self.info.success()
        }
    };
    (@fua) => {
        /// Whether success may be answered only when what was written is on
        /// permanent storage (`FUA`).
        #[must_use]
        pub const fn fua(&self) -> bool {
            self.info.flags.contains(CommandFlags::FUA)
        }
    };
}
use accessors;

/// Requests that are answered by success or an error.
macro_rules! requests {
    ($($(#[$meta:meta])* $name:ident: $($has:ident)*;)*) => {$(
        $(#[$meta])*
        #[derive(Debug, PartialEq, Eq)]
        #[must_use = "a client waits for the reply to every request"]
        pub struct $name {
            pub(super) info: RequestInfo,
        }

        accessors! { $name: $($has)* }
    )*};
}

requests! {
    /// `NBD_CMD_WRITE`, of which all data has arrived.
    WriteRequest: offset length succeed fua;
    /// `NBD_CMD_FLUSH`: success means that every write answered before is on
    /// permanent storage.
    FlushRequest: succeed;
    /// `NBD_CMD_TRIM`: the range may read as anything afterwards.
    TrimRequest: offset length succeed fua;
    /// `NBD_CMD_CACHE`: a hint.
    CacheRequest: offset length succeed;
    /// `NBD_CMD_WRITE_ZEROES`: the range reads as zeroes afterwards.
    WriteZeroesRequest: offset length succeed fua;
    /// `NBD_CMD_RESIZE` of the resize extension. Success goes through
    /// [`Transmission::resized`](super::Transmission::resized), so that later
    /// requests are checked against the new size.
    ResizeRequest: ;
}

impl WriteZeroesRequest {
    /// Whether no hole may be made: later writes must not fail for lack of
    /// space (`NO_HOLE`).
    #[must_use]
    pub const fn no_hole(&self) -> bool {
        self.info.flags.contains(CommandFlags::NO_HOLE)
    }

    /// Whether to fail at once with `ENOTSUP` unless it is faster than
    /// writing (`FAST_ZERO`). Without it `ENOTSUP` is not a legal error.
    #[must_use]
    pub const fn fast_zero(&self) -> bool {
        self.info.flags.contains(CommandFlags::FAST_ZERO)
    }
}

impl ResizeRequest {
    /// The size wanted, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.info.offset
    }
}
