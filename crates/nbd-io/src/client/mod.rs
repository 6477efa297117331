//! What the clients of all runtimes have in common: options, errors and values.
//!
//! The clients are [`tokio::Client`](crate::tokio::Client),
//! [`blocking::Client`](crate::blocking::Client) and
//! [`embedded::Client`](crate::embedded::Client). Their methods have the same names.

#[cfg(feature = "blocking")]
pub(crate) mod blocking;
#[cfg(any(feature = "tokio", feature = "blocking"))]
pub(crate) mod core;
#[cfg(feature = "embedded")]
pub(crate) mod embedded;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod error;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod methods;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod options;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod payload;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod status;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod system;
#[cfg(all(feature = "tls", any(feature = "tokio", feature = "blocking")))]
mod tls;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

#[cfg(any(feature = "tokio", feature = "blocking"))]
pub use self::{
    error::{Change, Error},
    options::{Options, Reconnect},
    payload::Payload,
    status::{BlockStatus, Context, ContextStatus},
};
