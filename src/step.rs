//! What to do next: the answer of every state machine to `receive`.

use core::num::NonZeroUsize;

use crate::error::{Error, Misuse};
use crate::wire::bytes::{clip, wide};
use crate::wire::number::Cookie;

/// What to do next.
///
/// `E` is the state machine's event, `D` the type of its data: a slice of the
/// input, or `Bytes` where the caller wants to own it
/// (`inbox::receive_owned`).
///
/// An event tells; every other step asks for something. So a driver may ignore
/// events, and loses no data by it. It handles the other steps by name and
/// returns the ones it has no use for as [errors](Self::unexpected).
///
/// | step | what the caller does |
/// |---|---|
/// | [`Event`](Self::Event) | acts on it, or ignores it |
/// | [`Content`](Self::Content) | puts it in its place |
/// | [`Transmit`](Self::Transmit) | calls `transmit` and writes the bytes |
/// | [`Read`](Self::Read) | reads, and offers what arrived |
/// | [`ReadPayload`](Self::ReadPayload) | reads the payload into its place, or as with `Read` |
/// | [`StartTls`](Self::StartTls) | runs TLS and states the outcome |
/// | [`Finished`](Self::Finished) | leaves the loop |
// A number of its own for each step: without it the number of a step is that of
// an event, and compilers do not see which step a fast path returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[must_use = "a step that is not taken is asked for again"]
pub enum Step<E, D> {
    /// Something happened.
    Event(E),
    /// Data or a hole of a read (client), data of a write (server).
    Content(Content<D>),
    /// Handshakes: bytes are due. Call `transmit`.
    Transmit,
    /// Read at least one byte and at most `n` bytes, and offer them after
    /// those that were not consumed.
    ///
    /// `n` bytes all belong to the message under way. The bytes that were not
    /// consumed and these `n` fit the buffer that
    /// [`Limits::buffer`](crate::Limits::buffer) names, whatever length the
    /// peer claims: what is discarded, and lists of extents, come in pieces. A
    /// driver may read more than `n` bytes (read-ahead).
    Read(NonZeroUsize),
    /// Payload follows. Read up to `length` bytes directly into their place,
    /// at once or in pieces, and report each piece with `advance`; or read on
    /// as with `Read`, and get them as [`Content`](Self::Content).
    ReadPayload {
        /// The command it belongs to.
        cookie: Cookie,
        /// Where its next byte belongs, in bytes from the start of the export.
        offset: u64,
        /// Bytes left, at least one.
        length: u64,
    },
    /// Handshakes: run the TLS handshake on the connection now, and state the
    /// outcome with `tls_established` or `tls_failed`.
    StartTls,
    /// Nothing more will be received: the handshake is over, or the session
    /// has ended as it should.
    Finished,
}

impl<E, D> Step<E, D> {
    /// A read of `n` bytes. Callers ask for what is missing, which is never
    /// zero.
    #[inline]
    pub(crate) fn read(n: usize) -> Self {
        Self::Read(NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN))
    }

    /// At most how many bytes to read now: those of [`Read`](Self::Read), or
    /// of the payload for drivers that take it as [`Content`](Self::Content).
    #[must_use]
    pub fn read_limit(&self) -> Option<NonZeroUsize> {
        match *self {
            Self::Read(n) => Some(n),
            Self::ReadPayload { length, .. } => NonZeroUsize::new(clip(length)),
            _ => None,
        }
    }

    /// The error for a step that a driver has no use for, as `StartTls` where
    /// it has no TLS.
    #[must_use]
    pub fn unexpected(&self) -> UnexpectedStep {
        match self {
            Self::Event(_) => UnexpectedStep::Event,
            Self::Content(_) => UnexpectedStep::Content,
            Self::Transmit => UnexpectedStep::Transmit,
            Self::Read(_) => UnexpectedStep::Read,
            Self::ReadPayload { .. } => UnexpectedStep::ReadPayload,
            Self::StartTls => UnexpectedStep::StartTls,
            Self::Finished => UnexpectedStep::Finished,
        }
    }
}

/// A step that the driver does not handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum UnexpectedStep {
    /// [`Step::Event`].
    #[error("an event that the driver does not handle")]
    Event,
    /// [`Step::Content`].
    #[error("data that the driver does not handle")]
    Content,
    /// [`Step::Transmit`].
    #[error("bytes are due to be sent, and the driver does not send them here")]
    Transmit,
    /// [`Step::Read`].
    #[error("the message is incomplete, and the driver does not read here")]
    Read,
    /// [`Step::ReadPayload`].
    #[error("payload follows, and the driver does not read it here")]
    ReadPayload,
    /// [`Step::StartTls`].
    #[error("TLS is to be started, and the driver has no TLS")]
    StartTls,
    /// [`Step::Finished`].
    #[error("the session ended before the driver had what it waits for")]
    Finished,
}

/// A part of the export, in one piece.
///
/// The client gets it for its reads (content chunks), the server for the data
/// of writes, which never has holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "content that is not put in its place is lost"]
pub enum Content<D> {
    /// Data: as much of it as the input held.
    Data {
        /// The command.
        cookie: Cookie,
        /// Where it belongs, in bytes from the start of the export.
        offset: u64,
        /// The data, at least one byte.
        data: D,
    },
    /// All zeroes, and not in the input.
    Hole {
        /// The command.
        cookie: Cookie,
        /// Where it begins, in bytes from the start of the export.
        offset: u64,
        /// Its length in bytes, never zero.
        length: u32,
    },
}

impl<D: AsRef<[u8]>> Content<D> {
    /// The command it belongs to.
    #[must_use]
    pub fn cookie(&self) -> Cookie {
        match *self {
            Self::Data { cookie, .. } | Self::Hole { cookie, .. } => cookie,
        }
    }

    /// Where it belongs, in bytes from the start of the export.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match *self {
            Self::Data { offset, .. } | Self::Hole { offset, .. } => offset,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data { data, .. } => wide(data.as_ref().len()),
            Self::Hole { length, .. } => u64::from(*length),
        }
    }

    /// Copies data, or writes zeroes, to its place in `block`, whose first
    /// byte is at `start`, in bytes from the start of the export.
    ///
    /// Returns `false` if some of it is outside of the block; then nothing was
    /// copied.
    #[must_use = "false means that nothing was copied"]
    pub fn copy_to(&self, start: u64, block: &mut [u8]) -> bool {
        let place = || {
            let from = usize::try_from(self.offset().checked_sub(start)?).ok()?;
            let to = from.checked_add(usize::try_from(self.length()).ok()?)?;
            Some(from..to)
        };
        match (place().and_then(|place| block.get_mut(place)), self) {
            (Some(place), Self::Data { data, .. }) => place.copy_from_slice(data.as_ref()),
            (Some(place), Self::Hole { .. }) => place.fill(0),
            (None, _) => return false,
        }
        true
    }
}

/// What the five state machines have in common, so that a driver can be
/// generic. Each has the same methods of its own, with more to say about them.
///
/// In a driver that is generic over `M: Receive` a step holds the borrow of the
/// inbox to the end of its `match`, because the event could have a destructor.
/// There, copy what the step asks for out of it, and fill the inbox after the
/// `match`.
pub trait Receive {
    /// The state machine's event. It borrows the input, never the state
    /// machine.
    type Event<'i>;

    /// Takes the next step. `input` is all that arrived and was not consumed;
    /// it is advanced past what this step consumes.
    ///
    /// # Errors
    ///
    /// [`Error`].
    fn receive<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Step<Self::Event<'i>, &'i [u8]>, Error>;

    /// Reports that `n` bytes of the payload that [`Step::ReadPayload`]
    /// announced were read into their place. Handshakes have no payload.
    ///
    /// # Errors
    ///
    /// [`Misuse::TooMuchPayload`] if `n` is more than is left of the payload.
    fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        match n {
            0 => Ok(()),
            _ => Err(Misuse::TooMuchPayload { expected: 0 }),
        }
    }

    /// Reports that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::ClosedDuring`] unless the session had come
    /// to its end. Later calls return the same.
    fn end_of_input(&mut self) -> Result<(), Error>;
}

/// Implements [`Receive`] by the methods of a state machine.
macro_rules! receive {
    ([$($generics:tt)*] $machine:ty, $event:ty $(, $advance:ident)?) => {
        impl $($generics)* crate::step::Receive for $machine {
            type Event<'i> = $event;

            #[inline]
            fn receive<'i>(
                &mut self,
                input: &mut &'i [u8],
            ) -> Result<crate::step::Step<$event, &'i [u8]>, Error> {
                self.receive(input)
            }

            $(
                #[inline]
                fn $advance(&mut self, n: u64) -> Result<(), Misuse> {
                    self.$advance(n)
                }
            )?

            fn end_of_input(&mut self) -> Result<(), Error> {
                self.end_of_input()
            }
        }
    };
}
pub(crate) use receive;
