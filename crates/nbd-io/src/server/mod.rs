//! Servers.
//!
//! | type | what it is |
//! |---|---|
//! | [`Device`] | what is served: the program implements it |
//! | [`Export`], [`Exports`] | devices by name, and which clients may have them |
//! | [`Config`], [`Server`] | limits, and what all connections share |
//!
//! [`tokio::serve`](crate::tokio::serve) and
//! [`blocking::serve`](crate::blocking::serve) serve one connection,
//! `tokio::listen` and `blocking::listen` accept them.
//!
//! # Hostile clients
//!
//! A handshake has a deadline. Requests take their memory from one budget for all
//! connections, which no client can use up ([`Config::memory`]). A client that does
//! not read its replies is not read from, and is disconnected in the end
//! ([`Config::stall_timeout`]). Clients that may not have an export cannot learn
//! whether it exists.

mod budget;
mod chunks;
mod config;
mod device;
mod execute;
mod export;
mod extents;
mod handshake;
mod outbox;
mod read;
mod receive;

#[cfg(feature = "blocking")]
pub(crate) mod blocking;
#[cfg(all(feature = "blocking", feature = "tls"))]
mod blocking_tls;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

pub use bytes::Bytes;
pub use nbd_codec::server::{MetaContext, TlsMode};
pub use nbd_codec::wire::option_reply::BlockSizes;

pub use self::chunks::chunks;
pub use self::config::{Config, Server};
pub use self::device::{Device, NotOffered, not_offered};
pub use self::export::{Client, Export, Exports, Peer};
pub use self::extents::Extents;
pub use self::read::ReadReply;
