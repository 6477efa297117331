//! Transmission, client side: commands out, replies in (specification,
//! "Transmission").
//!
//! | file | what it has |
//! |---|---|
//! | `send` | commands: checked, and made |
//! | `recv` | replies: received, and checked against their commands |
//! | `chunk` | what each type of chunk must be |
//! | `extents` | the extents of a status chunk |
//! | `faults` | faults that cost their command alone |
//! | `capabilities` | what the server accepts |
//! | `slots` | the table of commands in flight |
//! | `state` | where in the stream of replies the input is |

mod capabilities;
pub(crate) mod chunk;
mod extents;
mod faults;
#[cfg(feature = "alloc")]
mod owned;
pub(crate) mod recv;
mod send;
mod slots;
pub(crate) mod state;

use self::capabilities::Capabilities;
pub use self::capabilities::Split;
#[cfg(feature = "alloc")]
pub use self::owned::OwnedTransmissionEvent;
use self::slots::Slots;
pub use self::slots::{Slot, slot_index};
use self::state::State;
use crate::coverage::Seed;
use crate::error::{Error, Misuse};
use crate::limits::Limits;
use crate::negotiated::Negotiated;
use crate::step::receive;
use crate::wire::extent::{Extents32, Extents64};
use crate::wire::number::{ContextId, Cookie, ErrorValue};
use crate::wire::text::Text;

/// What a reply says. The content of reads is [`Step::Content`](crate::Step).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransmissionEvent<'i> {
    /// Narrow block status (structured replies): as many whole extents as the
    /// input held. More events follow for the other extents of the chunk.
    Extents32 {
        /// The command.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where the first of them begins, in bytes from the start of the
        /// export.
        offset: u64,
        /// The extents, each beginning where the one before it ends; none is
        /// empty, and each begins within the request. The last one may reach
        /// past its end, with `REQ_ONE` too.
        extents: Extents32<'i>,
    },
    /// Wide block status (extended headers), as [`Extents32`](Self::Extents32).
    /// The last extent may reach past 2^64 from its offset: `offset` plus its
    /// length does not always fit in 64 bits.
    Extents64 {
        /// The command.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where the first of them begins, in bytes from the start of the
        /// export.
        offset: u64,
        /// The extents, each beginning where the one before it ends; none is
        /// empty.
        extents: Extents64<'i>,
    },
    /// The server reports an error in an error chunk; the command will complete
    /// with the first one. (The error of a simple reply comes with
    /// [`Done`](Self::Done) only.)
    Error {
        /// The command.
        cookie: Cookie,
        /// What happened.
        error: ErrorValue,
        /// Where, in bytes from the start of the export, if the server said,
        /// and it is within the request.
        offset: Option<u64>,
        /// For people, often empty; `None` if it was longer than
        /// [`Limits::error_message`] or than its chunk, and discarded.
        message: Option<Text<'i>>,
    },
    /// The reply breaks the protocol, and only its command is lost: it will
    /// complete with the first error that was reported, or with `EIO`. The
    /// faulty part is discarded. [The guide](crate::guide::faults) lists these
    /// faults; after [`Transmission::strict`] they end the session.
    Fault {
        /// The command.
        cookie: Cookie,
        /// What is wrong.
        error: Error,
    },
    /// The command is complete. Comes exactly once for each command.
    ///
    /// A client that gets `ESHUTDOWN` must end the session with
    /// [`Transmission::disconnect`].
    Done {
        /// The command.
        cookie: Cookie,
        /// Whether it succeeded; else the first error that was reported, or
        /// `EIO` after a [`Fault`](Self::Fault).
        result: Result<(), ErrorValue>,
    },
}

/// The client's side of the transmission phase.
///
/// `S` is the table of commands in flight: `[Slot; N]`, `&mut [Slot]`,
/// `Vec<Slot>`.
///
/// Write what [`submit`](Self::submit) makes; offer what arrives to
/// [`receive`](Self::receive) and take the step that it answers with.
#[derive(Debug)]
pub struct Transmission<S> {
    export: Negotiated,
    limits: Limits,
    slots: Slots<S>,
    state: State,
    /// Bytes of the next header and its prefix, as far as it is known.
    want: usize,
    /// The size a resize in flight asks for.
    resizing: Option<u64>,
    capabilities: Capabilities,
    /// For the hash that tells whether a read is covered.
    seed: Seed,
    lenient: bool,
    strict: bool,
    disconnected: bool,
}

receive!([<S: AsRef<[Slot]> + AsMut<[Slot]>>] Transmission<S>, TransmissionEvent<'i>, advance);

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Transmission<S> {
    /// Starts where a handshake ended.
    ///
    /// No handshake ends with a framing that is not compiled. The session that
    /// begins with one has failed: [`Error::Framing`].
    pub fn new(negotiated: Negotiated, slots: S, limits: Limits) -> Self {
        let mut this = Self {
            capabilities: Capabilities::new(&negotiated),
            export: negotiated,
            limits,
            slots: Slots::new(slots),
            state: State::Header,
            want: 0,
            resizing: None,
            seed: Seed::new(),
            lenient: false,
            strict: false,
            disconnected: false,
        };
        if negotiated.framing.check().is_err() {
            this.fail(Error::Framing(negotiated.framing));
        }
        this
    }

    /// For testers of servers: from now on commands are not checked against
    /// what the server advertised. Only what the framing cannot express is
    /// refused. Replies are checked all the same.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// For testers of servers: from now on each fault that
    /// [the guide](crate::guide::faults) lists as tolerated ends the session
    /// with its [`Violation`](crate::Violation).
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// A number that the server cannot know, such as a random one.
    ///
    /// Chunks of a read that arrive out of order are compared by hash. A
    /// malicious server that knows the seed can search for chunks that leave a
    /// part of the read uncovered and pass as complete; one that does not know
    /// it can only guess, with a probability of 2^-61 for each read. Without
    /// this call the seed is random with the feature `std`, and zero otherwise.
    /// Set it before the first command.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Seed::given(seed);
        self
    }

    /// What was negotiated; the size follows a successful resize.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.export
    }

    /// Reports that the export has `size` bytes now, as after a resize on another
    /// connection.
    ///
    /// # Errors
    ///
    /// [`Misuse::Resizing`] if a resize is in flight on this one; nothing has
    /// changed.
    pub fn set_size(&mut self, size: u64) -> Result<(), Misuse> {
        if self.resizing.is_some() {
            return Err(Misuse::Resizing);
        }
        self.resized(Some(size));
        Ok(())
    }

    /// How many commands are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Reports that `n` bytes of the payload that
    /// [`Step::ReadPayload`](crate::Step::ReadPayload) announced were read into
    /// their place. A payload that is read in pieces may be reported piece by
    /// piece, without a call of [`receive`](Self::receive) in between.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if `n` is more than is left of the payload; nothing has
    /// changed.
    #[inline]
    pub fn advance(&mut self, n: u64) -> Result<(), Misuse> {
        self.state.advance(n)
    }

    /// Reports that the peer closed the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if commands are in flight or a reply is incomplete;
    /// [`pop_unanswered`](Self::pop_unanswered) names them. Later calls return
    /// the same.
    pub fn end_of_input(&mut self) -> Result<(), Error> {
        match self.state {
            State::Failed(error) => Err(error),
            State::Ended => Ok(()),
            State::Header if self.slots.in_flight() == 0 => {
                self.state = State::Ended;
                self.capabilities.fast_end = 0;
                Ok(())
            }
            _ => {
                self.fail(Error::Closed);
                Err(Error::Closed)
            }
        }
    }

    /// After the session is over: a command that will never be answered, and
    /// `None` when there are no more. Together with the `Done` events this
    /// names every command exactly once.
    pub fn pop_unanswered(&mut self) -> Option<Cookie> {
        let State::Failed(_) = self.state else {
            return None;
        };
        let (cookie, _) = self.slots.iter().next()?;
        self.slots.remove(cookie);
        Some(cookie)
    }

    /// Ends the session.
    #[cold]
    fn fail(&mut self, error: Error) {
        self.state = State::Failed(error);
        self.capabilities.fast_end = 0;
    }

    /// A resize is done: the new size, if it was granted.
    #[cold]
    fn resized(&mut self, size: Option<u64>) {
        self.export.size = size.unwrap_or(self.export.size);
        self.resizing = None;
        let open = !matches!(self.state, State::Failed(_) | State::Ended);
        if !self.disconnected && open {
            self.capabilities.fast_end = self.export.size;
        }
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::negotiated::Framing;
    use crate::wire::flags::TransmissionFlags;

    #[test]
    fn the_seed_is_random_unless_it_is_given() {
        let export = Negotiated::new(Framing::Structured, 512, TransmissionFlags::HAS_FLAGS);
        let session = || Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT);
        assert_ne!(session().seed.word(), session().seed.word());
        assert_ne!(session().seed.word(), 0);
        assert_eq!(session().with_seed(0).seed.word(), 0);
        assert_eq!(session().with_seed(7).seed.word(), 7);
        let mut one = session();
        assert_eq!(one.seed.word(), one.seed.word());
    }
}
