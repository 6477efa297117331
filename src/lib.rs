//! nbd-codec
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::unwrap_used
)]

#[cfg(all(feature = "alloc", not(feature = "std")))]
extern crate no_std_compat as std;
#[cfg(feature = "std")]
extern crate std;

pub mod client;
mod error;
mod limits;
mod need;
mod negotiated;
#[cfg(feature = "alloc")]
pub mod uri;
pub mod wire;

pub use error::{Error, Misuse, Violation};
pub use limits::Limits;
pub use need::Need;
pub use negotiated::{Context, Contexts, ContextsError, Framing, Negotiated, Style, Width};
