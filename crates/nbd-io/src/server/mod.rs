//! Servers.
//!
//! | type | what it is |
//! |---|---|
//! | [`Device`] | what is served: the program implements it |
//! | [`Export`], [`Exports`] | devices by name, and which clients may have them |
//! | [`Config`], [`Server`] | limits, and what all connections share |
//!
//! [`serve`](crate::tokio::serve) and
//! [`listen`](crate::tokio::listen) of the modules `tokio` and `blocking` serve one
//! connection, and all that a listener accepts.
//!
//! A disk in memory:
//!
//! ```
//! use std::{io, sync::Mutex};
//!
//! use nbd_io::server::{Bytes, Config, Device, Export, Exports, ReadReply, Server};
//!
//! struct RamDisk(Mutex<Vec<u8>>);
//!
//! impl Device for RamDisk {
//!     fn size(&self) -> u64 { 64 << 20 }
//!
//!     async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
//!         reply.put(&self.0.lock().unwrap()[offset as usize..][..reply.remaining()]);
//!         Ok(())
//!     }
//!
//!     async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
//!         let mut memory = self.0.lock().unwrap();
//!         Ok(memory[offset as usize..][..data.len()].copy_from_slice(&data))
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> io::Result<()> {
//!     let disk = RamDisk(Mutex::new(vec![0; 64 << 20]));
//!     let server = Server::new(Exports::new().with(Export::new("ram", disk)), Config::new());
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let (address, stop) = (listener.local_addr()?, server.clone());
//! # let client = tokio::spawn(async move {
//! #     use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! #     let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
//! #     stream.read_exact(&mut [0; 18]).await.unwrap();
//! #     // NO_ZEROES, EXPORT_NAME; then a write, a read and DISC.
//! #     stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03ram").await.unwrap();
//! #     for (command, length, data) in [(1, 4, &b"data"[..]), (0, 4, b""), (2, 0, b"")] {
//! #         let mut request = b"\x25\x60\x95\x13\0\0\0".to_vec();
//! #         request.push(command);
//! #         request.extend([0; 16]);
//! #         request.extend([0, 0, 0, length]);
//! #         stream.write_all(&[&request[..], data].concat()).await.unwrap();
//! #     }
//! #     let mut replies = Vec::new();
//! #     stream.read_to_end(&mut replies).await.unwrap();
//! #     assert_eq!(replies.len(), 10 + 16 + 16 + 4);
//! #     assert_eq!(&replies[42..], b"data");
//! # });
//! # tokio::spawn(async move {
//! #     // A client that fails ends the test.
//! #     client.await.unwrap_or_else(|_| std::process::exit(1));
//! #     stop.shut_down();
//! # });
//!     nbd_io::tokio::listen(listener, &server).await
//! }
//! ```
//!
//! # Hostile clients
//!
//! A handshake has a deadline. Requests take their memory from one budget for all
//! connections, which no client can use up ([`Config::memory`]). A client that does
//! not read its replies is not read from, and is disconnected in the end
//! ([`Config::stall_timeout`]). What is left of an idle connection is 3 KiB with tokio
//! (18 MiB for a server with 5,000 of them, `benches/idle`), and two threads and 88 KiB
//! with threads. Clients that may not have an export cannot learn
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
