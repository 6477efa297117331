//! A passive observer of a connection: both directions, no I/O.
//!
//! A [`Monitor`] is offered the bytes that client and server send, each with its
//! [`Side`]. It tells every [`Message`], and every [`Finding`]: which side broke
//! which duty of the specification. A tap, a decoder of recordings and a tester
//! are built on it.
//!
//! The rules are those of the state machines of the two roles: a reply is checked
//! as [`client::Transmission`](crate::client::Transmission) checks it, an option
//! and a request as the client checks them before it sends them. The monitor adds
//! what only an observer of both sides sees: messages out of turn, cookies that are
//! in flight already, connections that end too early.
//!
//! ```
//! use nbd_codec::monitor::{Message, Monitor, Side, Slot, Step};
//!
//! let mut monitor = Monitor::new([Slot::EMPTY; 16]);
//! let mut told = Vec::new();
//! let mut see = |side, mut input: &[u8]| loop {
//!     match monitor.receive(side, &mut input) {
//!         Step::Message(message) => told.push(format!("{side}: {message}")),
//!         Step::Violation(finding) => told.push(format!("{finding}")),
//!         Step::Payload { .. } | Step::Opaque(_) => {}
//!         // This example does not hold back what was not consumed.
//!         _ => return,
//!     }
//! };
//! see(Side::Server, b"NBDMAGICIHAVEOPT\0\x03");
//! see(Side::Client, b"\0\0\0\x07");
//! assert_eq!(told, [
//!     "S: greeting newstyle FIXED_NEWSTYLE | NO_ZEROES",
//!     "C: client flags FIXED_NEWSTYLE | NO_ZEROES | 0x4",
//!     "the client: client flags that were not offered: FIXED_NEWSTYLE | NO_ZEROES | 0x4 [O10]",
//! ]);
//! ```
//!
//! # Order
//!
//! Bytes are offered in the order in which they were seen, across both sides
//! ([`Order::Seen`]), or each side as a whole stream ([`Order::Unknown`]). The
//! slices of one side follow each other: what was not consumed is offered again,
//! followed by what came after it. [`Step::Wait`] means that the other side has
//! to be offered first what is held of it. Any fragmentation that keeps the order
//! gives the same messages and findings.
//!
//! # After a violation
//!
//! Most violations keep the place in the stream: the lengths in the headers say
//! where the next message begins, and the monitor goes on. What does not
//! ([`Finding::lost`]) makes the rest of the connection opaque, on both sides:
//! each side is checked against what the other has sent. The content of TLS is
//! opaque as well, until [`Monitor::tls_established`] says that what is offered
//! is the plain text in it.

mod finding;
mod handshake;
mod message;
mod reply;
mod request;
mod slots;

use core::fmt;
use core::num::NonZeroUsize;

pub use self::finding::{Fault, Finding};
pub use self::message::{ChunkContent, Message};
use self::reply::Reply;
pub use self::slots::Slot;
use self::slots::Slots;
use crate::coverage::Seed;
use crate::error::{Error, Misuse, Violation};
use crate::limits::Limits;
use crate::name::Name;
use crate::negotiated::{Framing, Negotiated};
use crate::wire::DecodeError;
use crate::wire::bytes::{clip, take_slice, wide};
use crate::wire::flags::{HandshakeFlags, TransmissionFlags};
use crate::wire::number::OptionType;

/// Which end of the connection sent the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client.
    Client,
    /// The server.
    Server,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// `C` or `S`.
impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "C",
            Self::Server => "S",
        })
    }
}

/// What is known of the order of bytes of different sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// They are offered in the order in which they were seen, as by a tap.
    #[default]
    Seen,
    /// Nothing: what depends on the order is not checked, and a side waits for
    /// the other where it can. [`Monitor::end_of_input`] ends the waiting.
    Unknown,
}

/// What the monitor sees next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Step<'i> {
    /// A message, or the part of one that is told by itself, as each extent of
    /// a status chunk.
    Message(Message<'i>),
    /// Some of the payload of the last message of this side, as much as the
    /// input held. It can be ignored.
    Payload {
        /// The bytes.
        bytes: &'i [u8],
        /// How many follow.
        left: u64,
    },
    /// A side broke a rule. It is reported after the message that did so.
    Violation(Finding),
    /// Bytes that are not followed: all of the input. They come after
    /// [`Finding::lost`], or belong to TLS.
    Opaque(&'i [u8]),
    /// Offer more of this side, after what was not consumed: at least
    /// this many bytes belong to the message under way.
    Read(NonZeroUsize),
    /// Offer what is held of the other side first, and then this side again, also if
    /// the other side answers that more is needed. Nothing was consumed.
    Wait,
    /// Every slot is in use: give more with [`Monitor::slots_mut`], or offer the
    /// other side first. If both sides answer so, only more slots help. Nothing
    /// was consumed.
    Full,
}

/// Where the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    ClientFlags,
    /// The client sends an option.
    Options,
    /// The server replies to this option.
    Replies(OptionType),
    /// The server replies to `EXPORT_NAME`.
    ExportName,
    Transmission,
    /// After `ABORT`, or after `STARTTLS` was acknowledged.
    Aborted,
    Tls,
    /// The place in the stream is lost.
    Opaque,
}

/// One direction of the connection.
#[derive(Debug, Clone, Copy, Default)]
struct Direction {
    /// Bytes of payload that are still to come.
    payload: u64,
    /// The last step was to wait, so that the caller holds bytes of this side.
    waits: bool,
    /// Bytes came while the other side had to send first.
    early: bool,
    /// A part of a message is held.
    partial: bool,
    /// It broke a rule.
    faulty: bool,
    /// It was opaque before.
    opaque: bool,
    ended: bool,
}

/// Findings of one message at most.
const FINDINGS: usize = 6;

/// Follows a connection. `S` is the table of requests in flight: `[Slot; N]`,
/// `&mut [Slot]`, `Vec<Slot>`.
#[derive(Debug)]
pub struct Monitor<S> {
    limits: Limits,
    order: Order,
    phase: Phase,
    client: Direction,
    server: Direction,
    offered: HandshakeFlags,
    no_zeroes: bool,
    agreed: Negotiated,
    /// One bit for each information that the replies have brought.
    informed: u8,
    contexts_for: Option<Name>,
    /// Which export `GO` or `EXPORT_NAME` asks for, if that was decoded.
    chosen: Option<Name>,
    /// Contexts may be selected that `agreed` does not have.
    unknown_contexts: bool,
    slots: Slots<S>,
    /// For the hash that tells whether a read is covered.
    seed: Seed,
    reply: Reply,
    /// `DISC` was sent.
    disconnected: bool,
    /// Reported before anything else.
    findings: [Option<Finding>; FINDINGS],
}

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Monitor<S> {
    /// Before the server's greeting.
    #[must_use]
    pub fn new(slots: S) -> Self {
        Self {
            limits: Limits::DEFAULT,
            order: Order::Seen,
            phase: Phase::Greeting,
            client: Direction::default(),
            server: Direction::default(),
            offered: HandshakeFlags::NONE,
            no_zeroes: false,
            agreed: Negotiated::new(Framing::Simple, 0, TransmissionFlags::NONE),
            informed: 0,
            contexts_for: None,
            chosen: None,
            unknown_contexts: false,
            slots: Slots::new(slots),
            seed: Seed::new(),
            reply: Reply::default(),
            disconnected: false,
            findings: [None; FINDINGS],
        }
    }

    /// After a handshake that was not seen and agreed on this.
    #[must_use]
    pub fn after_handshake(negotiated: Negotiated, slots: S) -> Self {
        Self {
            phase: Phase::Transmission,
            agreed: negotiated,
            ..Self::new(slots)
        }
    }

    /// What is known of the order of the two sides. Default: everything.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// How much is told of a message: what is longer than
    /// [`Limits::option_data`] or [`Limits::error_message`] is told as payload.
    /// If a message that selects metadata contexts is longer, the ids of contexts are
    /// not checked during transmission.
    /// The caller holds at most [`Limits::buffer`] bytes of a side that waits for
    /// nothing.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The table of requests in flight, to give it more slots.
    pub fn slots_mut(&mut self) -> &mut S {
        self.slots.storage()
    }

    /// What was agreed on so far. Of more than
    /// [`SelectedContexts::CAPACITY`](crate::SelectedContexts::CAPACITY) contexts it
    /// has the first.
    #[must_use]
    pub fn agreed(&self) -> &Negotiated {
        &self.agreed
    }

    /// Whether the handshake is over, and requests and replies are followed.
    #[must_use]
    pub fn in_transmission(&self) -> bool {
        self.phase == Phase::Transmission
    }

    /// States that what is offered from here on is the plain text in TLS.
    ///
    /// # Errors
    ///
    /// [`Misuse::State`] unless `STARTTLS` was acknowledged just before.
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        if self.phase != Phase::Tls || self.client.opaque || self.server.opaque {
            return Err(Misuse::State("no TLS handshake is under way"));
        }
        self.agreed.tls = true;
        self.phase = Phase::Options;
        Ok(())
    }

    /// Takes the next step. `input` is all that was seen of this side and not
    /// consumed; it is advanced past what this step consumes.
    pub fn receive<'i>(&mut self, side: Side, input: &mut &'i [u8]) -> Step<'i> {
        if let Some(finding) = self.next_finding() {
            return Step::Violation(finding);
        }
        let before = input.len();
        let step = self.step(side, input);
        let held = !input.is_empty();
        let direction = self.direction(side);
        direction.waits = held && matches!(step, Step::Wait | Step::Full);
        direction.partial = held && matches!(step, Step::Read(_));
        if before != input.len() && direction.payload == 0 && side == Side::Server {
            self.settle();
        }
        step
    }

    fn step<'i>(&mut self, side: Side, input: &mut &'i [u8]) -> Step<'i> {
        let direction = self.direction(side);
        if direction.payload > 0 {
            let n = clip(direction.payload).min(input.len());
            let bytes = take_slice(input, n).unwrap_or_default();
            direction.payload = direction.payload.saturating_sub(wide(n));
            let left = direction.payload;
            return match n {
                0 => read(clip(left)),
                _ => Step::Payload { bytes, left },
            };
        }
        if input.is_empty() {
            return read(1);
        }
        match (self.phase, side) {
            (Phase::Tls, _) => self.tls(side, input),
            (Phase::Opaque, _) => Step::Opaque(core::mem::take(input)),
            (Phase::Greeting, Side::Server) => self.greeting(input),
            (Phase::Greeting, Side::Client) => Step::Wait,
            (Phase::ClientFlags, Side::Client) => self.client_flags(input),
            (Phase::Options, Side::Client) => self.option(input),
            (Phase::Replies(option), Side::Server) => self.option_reply(option, input),
            (Phase::ExportName, Side::Server) => self.export_name_reply(input),
            (Phase::Replies(_) | Phase::ExportName, Side::Client) => self.early(),
            (Phase::ClientFlags | Phase::Options, Side::Server) => self.unsolicited(),
            (Phase::Transmission, Side::Client) => self.request(input),
            (Phase::Transmission, Side::Server) => self.reply(input),
            (Phase::Aborted, _) => self.lose(side, Fault::AfterEnd),
        }
    }

    /// Reports that a side closed its direction: whether it may.
    /// [`next_finding`](Self::next_finding) has the answer.
    pub fn end_of_input(&mut self, side: Side) {
        let peer = *self.direction(side.peer());
        let direction = self.direction(side);
        // After a violation, and after the other side has closed, a side may close.
        let may = peer.faulty || peer.ended || direction.ended;
        let within = direction.partial || direction.payload > 0;
        direction.ended = true;
        let handshake = self.phase != Phase::Transmission;
        let fault = match self.phase {
            // A scan of ports; or what was not seen.
            Phase::Greeting | Phase::Opaque | Phase::Tls | Phase::Aborted => None,
            // It need not be replied to.
            Phase::Replies(OptionType::ABORT) => None,
            _ if within => Some(Fault::Truncated),
            // A server that refuses the export has no other way.
            Phase::ExportName if side == Side::Server => None,
            Phase::Transmission if self.disconnected => {
                let owed = side == Side::Server && !self.slots.is_empty();
                owed.then_some(Fault::Closed { handshake })
            }
            _ => Some(Fault::Closed { handshake }),
        };
        if let Some(fault) = fault.filter(|_| !may) {
            self.find(side, fault);
        }
    }

    /// A finding that is due, of either side. [`receive`](Self::receive)
    /// answers with them too; this is for those of
    /// [`end_of_input`](Self::end_of_input).
    pub fn next_finding(&mut self) -> Option<Finding> {
        let next = self.findings.iter_mut().find(|place| place.is_some())?;
        next.take()
    }

    fn direction(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Notes a violation; it is reported after the message.
    fn find(&mut self, side: Side, fault: Fault) {
        let finding = Finding {
            side,
            fault,
            lost: self.phase == Phase::Opaque,
        };
        self.direction(side).faulty = true;
        if let Some(place) = self.findings.iter_mut().find(|place| place.is_none()) {
            *place = Some(finding);
        }
    }

    /// A violation that loses the place in the stream. It makes the other side opaque
    /// as well, so what the client sent before its turn is checked first, in whatever
    /// pieces it came.
    fn lose<'i>(&mut self, side: Side, fault: Fault) -> Step<'i> {
        let its_turn = matches!(
            self.phase,
            Phase::Transmission | Phase::Aborted | Phase::Tls
        );
        let seen_before = self.client.waits && self.order == Order::Seen;
        if side == Side::Server && its_turn && seen_before {
            return Step::Wait;
        }
        self.phase = Phase::Opaque;
        (self.client.payload, self.server.payload) = (0, 0);
        self.find(side, fault);
        // The finding was just noted.
        self.next_finding().map_or(Step::Wait, Step::Violation)
    }

    /// The client sends before it has the reply that it waits for.
    fn early<'i>(&mut self) -> Step<'i> {
        self.client.early |= self.order == Order::Seen;
        Step::Wait
    }

    /// Whether what the other side has not sent may only not be offered yet.
    fn may_follow(&self, peer: Side) -> bool {
        let peer = match peer {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        peer.waits || (self.order == Order::Unknown && !peer.ended)
    }

    /// The server sends before the client has asked.
    fn unsolicited<'i>(&mut self) -> Step<'i> {
        if self.may_follow(Side::Client) {
            Step::Wait
        } else {
            self.lose(Side::Server, Violation::Unsolicited.into())
        }
    }

    /// After `STARTTLS` both sides begin with a record of TLS.
    fn tls<'i>(&mut self, side: Side, input: &mut &'i [u8]) -> Step<'i> {
        let direction = self.direction(side);
        // A handshake record, or an alert.
        let record = input.first().is_some_and(|byte| matches!(byte, 21 | 22));
        if !direction.opaque && !record {
            return self.lose(side, Violation::PlaintextAfterStartTls.into());
        }
        direction.opaque = true;
        Step::Opaque(core::mem::take(input))
    }

    fn find_error(&mut self, side: Side, error: Error, decoded: impl FnOnce(DecodeError) -> Fault) {
        match error {
            Error::Violation(violation) => self.find(side, violation.into()),
            Error::Decode(error) => self.find(side, decoded(error)),
            _ => {}
        }
    }
}

/// More of this side is needed.
fn read<'i>(n: usize) -> Step<'i> {
    Step::Read(NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN))
}
