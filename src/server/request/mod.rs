//! Requests as tokens: each is answered exactly once, and only in the ways
//! that are legal for it.

mod block_status;
pub mod narrow;
mod read;
mod reply;

pub(super) use self::block_status::ContextSet;
pub use self::block_status::{BlockStatus32, BlockStatus64};
pub use self::read::{Chunks, Read};
pub(super) use self::reply::Ticket;
pub use self::reply::{Head, Reply};
use crate::error::Misuse;
use crate::wire::flags::CommandFlags;
use crate::wire::number::{Command, Cookie, ErrorValue};

/// A request of the client, checked against what was advertised.
///
/// Every request is answered exactly once, in any order, and apart from the
/// [`Transmission`](super::Transmission) that it came from: send it to
/// whoever does the work. A request has no `Clone`, and answering consumes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the reply to every request"]
#[non_exhaustive]
pub enum Request {
    /// Read data.
    Read(Read),
    /// Write the payload, which has arrived.
    Write(Write),
    /// Make finished writes permanent.
    Flush(Flush),
    /// Data is no longer needed.
    Trim(Trim),
    /// Data will be needed soon.
    Cache(Cache),
    /// Write zeroes.
    WriteZeroes(WriteZeroes),
    /// Report narrow extents (structured replies).
    BlockStatus32(BlockStatus32),
    /// Report wide extents (extended headers).
    BlockStatus64(BlockStatus64),
    /// Change the size of the export. Only where the caller advertised
    /// `SEND_RESIZE`.
    Resize(Resize),
}

impl Request {
    /// What the replies name; the client's choice, and no number to rely on.
    #[must_use]
    pub const fn cookie(&self) -> Cookie {
        self.ticket().cookie
    }

    /// What is to be done.
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
        self.ticket().error(error, None, true, text)
    }

    const fn ticket(&self) -> &Ticket {
        match self {
            Self::Read(token) => &token.ticket,
            Self::Write(Write(ticket))
            | Self::Flush(Flush(ticket))
            | Self::Trim(Trim(ticket))
            | Self::Cache(Cache(ticket))
            | Self::WriteZeroes(WriteZeroes(ticket))
            | Self::Resize(Resize(ticket)) => ticket,
            Self::BlockStatus32(token) => &token.ticket,
            Self::BlockStatus64(token) => &token.ticket,
        }
    }
}

/// What was refused, and the token that comes back with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{misuse}")]
pub struct Returned<T> {
    /// Why.
    pub misuse: Misuse,
    /// The token, as it was.
    pub token: T,
}

impl<T> Returned<T> {
    pub(super) fn new(misuse: impl Into<Misuse>, token: T) -> Self {
        let misuse = misuse.into();
        Self { misuse, token }
    }
}

/// Forgets the token: the client will never be answered.
impl<T> From<Returned<T>> for Misuse {
    fn from(returned: Returned<T>) -> Self {
        returned.misuse
    }
}

/// A request that is answered by success or an error.
macro_rules! tokens {
    ($($(#[$meta:meta])* $name:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Debug, PartialEq, Eq)]
        #[must_use = "a client waits for the reply to every request"]
        pub struct $name(pub(super) Ticket);

        impl $name {
            /// What the replies name; the client's choice, and no number to
            /// rely on.
            #[must_use]
            pub const fn cookie(&self) -> Cookie {
                self.0.cookie
            }

            /// Answers with an error. Framings without texts leave the text
            /// out; it is cut after 4096 bytes.
            pub fn fail(self, error: ErrorValue, text: &str) -> Reply<'_> {
                self.0.error(error, None, true, text)
            }
        }
    )*};
}

/// As [`tokens`], and it has a range of the export.
macro_rules! ranged {
    ($($name:ident)*) => {$(
        impl $name {
            /// Where, in bytes from the start of the export.
            #[must_use]
            pub const fn offset(&self) -> u64 {
                self.0.offset
            }

            /// How much, in bytes; never zero.
            #[must_use]
            pub const fn length(&self) -> u64 {
                self.0.length
            }

            /// Answers with an error at a place, in bytes from the start of
            /// the export. Simple framing leaves out text and place.
            ///
            /// # Errors
            ///
            /// [`Misuse::OutsideRequest`], with the token.
            pub fn fail_at(
                self,
                error: ErrorValue,
                offset: u64,
                text: &str,
            ) -> Result<Reply<'_>, Returned<Self>> {
                match self.0.holds(offset, 1) {
                    true => Ok(self.0.error(error, Some(offset), true, text)),
                    false => Err(Returned::new(Misuse::OutsideRequest, self)),
                }
            }
        }
    )*};
}

/// As [`tokens`], and success has no condition.
macro_rules! simple {
    ($($name:ident)*) => {$(
        impl $name {
            /// Answers that it is done.
            pub fn succeed(self) -> Reply<'static> {
                self.0.success()
            }
        }
    )*};
}

/// As [`tokens`], and it may have to be permanent.
macro_rules! fua {
    ($($name:ident)*) => {$(
        impl $name {
            /// Whether success may be answered only when what was written is
            /// on permanent storage (`FUA`).
            #[must_use]
            pub const fn fua(&self) -> bool {
                self.0.flags.contains(CommandFlags::FUA)
            }
        }
    )*};
}

tokens! {
    /// `NBD_CMD_WRITE`, of which all data has arrived.
    Write;
    /// `NBD_CMD_FLUSH`: success means that every write answered before is on
    /// permanent storage.
    Flush;
    /// `NBD_CMD_TRIM`: what it held may read as anything.
    Trim;
    /// `NBD_CMD_CACHE`: a hint.
    Cache;
    /// `NBD_CMD_WRITE_ZEROES`: reads as zeroes afterwards.
    WriteZeroes;
    /// `NBD_CMD_RESIZE` of the resize extension. Success goes through
    /// [`Transmission::resized`](super::Transmission::resized), so that later
    /// requests are judged by the new size.
    Resize;
}
ranged! { Write Trim Cache WriteZeroes }
simple! { Write Flush Trim Cache WriteZeroes }
fua! { Write Trim WriteZeroes }

impl WriteZeroes {
    /// Whether no hole may be made: later writes must not fail for lack of
    /// space (`NO_HOLE`).
    #[must_use]
    pub const fn no_hole(&self) -> bool {
        self.0.flags.contains(CommandFlags::NO_HOLE)
    }

    /// Whether to fail at once with `ENOTSUP` unless it is faster than
    /// writing (`FAST_ZERO`). Without it `ENOTSUP` is no answer.
    #[must_use]
    pub const fn fast(&self) -> bool {
        self.0.flags.contains(CommandFlags::FAST_ZERO)
    }
}

impl Resize {
    /// The size wanted, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.0.offset
    }
}
