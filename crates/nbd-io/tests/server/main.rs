//! The server, with tokio and with threads.
#![cfg(unix)]

mod exports;
mod hostile;
mod limits;
mod offers;
mod peers;
mod programs;
mod shutdown;
mod stalls;
mod support;

#[cfg(feature = "tls")]
mod object_store;
#[cfg(feature = "tls")]
mod tls;
