//! The client role.
//!
//! | phase | machine | it ends with |
//! |---|---|---|
//! | handshake, by hand | [`Handshake`]: one option at a time, in any order | [`Negotiated`](crate::Negotiated) |
//! | handshake, by policy | [`Connect`]: from the greeting to transmission, with every fallback | [`Negotiated`](crate::Negotiated) |
//! | transmission | [`Transmission`]: commands out, replies in | the end of the connection |

pub mod connect;
pub mod handshake;
mod request;
mod transmission;

pub use connect::Connect;
pub use handshake::Handshake;
pub use request::{Head, Request};
pub use transmission::{Event, Slot, Transmission, slot_index};
