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

pub mod wire;
