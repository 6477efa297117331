//! The client role.
//!
//! | phase | state machine | ends with |
//! |---|---|---|
//! | handshake, automatic | [`Connector`]: from the greeting to transmission, with every fallback | [`Negotiated`](crate::Negotiated) |
//! | handshake, manual | [`Handshake`]: one option at a time, in any order | [`Negotiated`](crate::Negotiated) |
//! | transmission | [`Transmission`]: commands out, replies in | the end of the connection |
//!
//! # Commands in flight
//!
//! Any number of commands can be in flight, and replies come in any order.
//! [`slot_index`] numbers the commands in flight, so that a driver keeps what
//! it knows of each (where its data goes, which task waits for it) in an array.
//!
//! - **A waiter that gives up is not a cancelled command.** NBD has no way to
//!   cancel. The reply still comes, and the slot stays in flight until its
//!   [`Done`](TransmissionEvent::Done): a driver keeps the place of its data,
//!   or discards its content, until then.
//! - **Never stop a message half-written.** The bytes of a header and its
//!   payload go out whole, or the connection is over. A task that can be
//!   cancelled hands them to one that cannot.
//! - **Keep a payload until it is written**, even if its reply came early: a
//!   server may fail a write before it has read its data. Only then reuse what
//!   `slot_index` numbers.
//! - **FLUSH covers the writes that were answered** before it was sent, and no
//!   others.
//!
//! # What a result says
//!
//! [`Done`](TransmissionEvent::Done) with `Ok` for a read means that the reply
//! covered every byte of the request exactly once, and no byte outside of it,
//! as [`Step::Content`](crate::Step::Content) or by
//! [`Step::ReadPayload`](crate::Step::ReadPayload). After an error what arrived
//! has no meaning. Content always is within the request.
//!
//! # The end
//!
//! [`Transmission::disconnect`] sends `DISC`. When nothing is in flight after
//! it, the step is [`Finished`](crate::Step::Finished). A server that closes
//! the connection while nothing is in flight ends the session as well:
//! `end_of_input` returns `Ok`, every time it is asked, and so does the step.

mod config;
mod connect;
pub(crate) mod handshake;
mod request;
pub(crate) mod transmission;

pub use config::{Config, MetaContextQuery, TlsPolicy};
pub use connect::{ConnectError, ConnectEvent, Connector};
pub use handshake::{Handshake, HandshakeEvent};
pub use request::{Request, RequestHeader};
#[cfg(feature = "alloc")]
pub use transmission::OwnedTransmissionEvent;
pub use transmission::{Slot, Split, Transmission, TransmissionEvent, slot_index};
