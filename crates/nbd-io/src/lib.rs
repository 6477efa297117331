//! NBD clients and servers to import, on [`nbd_codec`].
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs, clippy::expect_used, clippy::unwrap_used)]

pub mod client;
#[cfg(any(feature = "tokio", feature = "blocking"))]
mod duplex;
pub mod kernel;
#[cfg(any(feature = "tokio", feature = "blocking"))]
pub mod server;
#[cfg(feature = "blocking")]
mod threads;

/// Locks a mutex whose data is valid after a panic, too.
#[cfg(any(feature = "tokio", feature = "blocking"))]
pub(crate) fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Clients and servers for tokio.
#[cfg(feature = "tokio")]
pub mod tokio {
    #[doc(inline)]
    pub use crate::client::tokio::Client;
    pub use crate::server::tokio::{Listener, listen, serve};
}

/// Clients and servers with threads.
#[cfg(feature = "blocking")]
pub mod blocking {
    #[doc(inline)]
    pub use crate::client::blocking::Client;
    pub use crate::server::blocking::{Listener, listen, serve};
    #[doc(inline)]
    pub use crate::threads::Stream;
}

/// A client over embedded-io-async, without an allocator.
#[cfg(feature = "embedded")]
pub mod embedded {
    #[doc(inline)]
    pub use crate::client::embedded::{Client, Error, Extents, MINIMUM_BUFFER};
}
