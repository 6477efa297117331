//! Clients.
//!
//! | type | for | |
//! |---|---|---|
//! | [`tokio::Client`] | tasks | any number of calls at a time |
//! | [`blocking::Client`] | threads | any number of calls at a time |
//! | `embedded::Client` | embedded-io-async, no allocator | one call at a time |
//!
//! Their methods have the same names. The first two have [`Options`], connections that are
//! made again if they are lost ([`Reconnect`]), and [`Error`].
//!
//! ```
//! use nbd_io::{client::Error, tokio::Client};
//!
//! async fn example(uri: &str) -> Result<(), Error> {
//!     let disk = Client::connect(uri).await?; // nbd://host/export
//!     let text = b"any length, at any offset";
//!     disk.write_at(1001, text).await?;
//!     let data = disk.read_at(1001, text.len()).await?;
//!     assert_eq!(data, text[..]);
//!     disk.disconnect().await;
//!     Ok(())
//! }
//! # use std::{io, sync::Mutex};
//! # use nbd_io::server::{Bytes, Config, Device, Export, Exports, ReadReply, Server};
//! # struct RamDisk(Mutex<Vec<u8>>);
//! # impl Device for RamDisk {
//! #     fn size(&self) -> u64 { 64 << 20 }
//! #     async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
//! #         reply.put(&self.0.lock().unwrap()[offset as usize..][..reply.remaining()]);
//! #         Ok(())
//! #     }
//! #     async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
//! #         self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(&data);
//! #         Ok(())
//! #     }
//! # }
//! # #[tokio::main]
//! # async fn main() -> io::Result<()> {
//! #     let disk = RamDisk(Mutex::new(vec![0; 64 << 20]));
//! #     let server = Server::new(Exports::new().with(Export::new("ram", disk)), Config::new());
//! #     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! #     let uri = format!("nbd://{}/ram", listener.local_addr()?);
//! #     let stop = server.clone();
//! #     let serving = tokio::spawn(async move { nbd_io::tokio::listen(listener, &server).await });
//! #     example(&uri).await?;
//! #     stop.shut_down();
//! #     serving.await?
//! # }
//! ```
//!
//! # What stays in memory
//!
//! An idle connection has a receive buffer of 64 KiB, and 64 bytes for each command that can
//! be in flight ([`Options::in_flight`]).

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
