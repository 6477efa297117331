//! The NBD protocol, complete, in both roles, without I/O.
//!
//! NBD (Network Block Device) carries block I/O between a client and a server.
//! This crate turns its bytes into values and back, and tracks where a session
//! is; sockets, threads, buffers and time stay with the caller.
//!
//! ```text
//!        your runtime                         this crate
//!   ┌────────────────────┐   bytes   ┌───────────────────────────┐
//!   │ socket ──▶ buffer ─┼──────────▶│ receive(&mut input)       │
//!   │                    │◀──────────┼─ the next step: an event, │
//!   │ your data ◀────────┼───────────┼─ a payload and its place, │
//!   │                    │           │  or what to read          │
//!   │ socket ◀─ [header, │◀──────────┼─ submit, transmit         │
//!   │            data]   │           │                           │
//!   └────────────────────┘           └───────────────────────────┘
//! ```
//!
//! # The order of calls
//!
//! 1. [`client::Connector`] takes a [`Config`](client::Config) (an export, the
//!    metadata contexts wanted, a TLS policy, the most able framing wanted) and
//!    runs the handshake with every fallback of the specification. Below it,
//!    [`client::Handshake`] sends one option at a time.
//! 2. It ends as [`Negotiated`], from which [`client::Transmission`] starts.
//! 3. [`submit`](client::Transmission::submit) makes a command: write its
//!    header, followed by the payload. Any number can be in flight.
//! 4. [`receive`](client::Transmission::receive) answers with the next
//!    [`Step`]: an event, content and its place, or what to read.
//!
//! This loop is blocking and short:
//!
//! ```
//! use nbd_codec::client::{Config, ConnectEvent, Connector};
//! use nbd_codec::client::{Request, Slot, Transmission, TransmissionEvent};
//! use nbd_codec::inbox::Inbox;
//! use nbd_codec::{Limits, SessionError, Step};
//! use std::io::{Read, Write};
//!
//! /// Reads the first block of the export `disk`.
//! fn first_block(stream: &mut (impl Read + Write)) -> std::io::Result<[u8; 512]> {
//!     let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
//!     let mut connector = Connector::new(Config::new("disk"))?;
//!     loop {
//!         match inbox.receive(&mut connector)? {
//!             Step::Event(ConnectEvent::Ready) => break,
//!             Step::Event(ConnectEvent::Failed { reason, .. }) => return Err(reason.into()),
//!             Step::Event(_) => {}
//!             Step::Transmit => {
//!                 let mut out = Vec::new();
//!                 connector.transmit(&mut out)?;
//!                 stream.write_all(&out)?;
//!             }
//!             Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
//!             other => return Err(other.unexpected().into()),
//!         }
//!     }
//!     let negotiated = connector.into_negotiated().map_err(SessionError::from)?;
//!
//!     let mut session = Transmission::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
//!     let mut block = [0; 512];
//!     stream.write_all(session.submit(Request::read(0, 512))?.as_bytes())?;
//!     loop {
//!         match inbox.receive(&mut session)? {
//!             Step::Event(TransmissionEvent::Done { result, .. }) => {
//!                 stream.write_all(session.disconnect()?.as_bytes())?;
//!                 return result.map(|()| block).map_err(|error| SessionError::from(error).into());
//!             }
//!             Step::Event(_) => {}
//!             // Data, or a hole: within the request, so within the block.
//!             Step::Content(content) => assert!(content.copy_to(0, &mut block)),
//!             Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
//!             // Directly into its place: the crate never sees it.
//!             Step::ReadPayload { offset, length, .. } => {
//!                 stream.read_exact(&mut block[offset as usize..][..length as usize])?;
//!                 session.advance(length)?;
//!             }
//!             other => return Err(other.unexpected().into()),
//!         }
//!     }
//! }
//! # // A canned server, to run the loop.
//! # use nbd_codec::wire::{flags::*, greeting::*, number::*, option_reply::*, reply::*};
//! # struct Canned(std::io::Cursor<Vec<u8>>);
//! # impl Read for Canned { fn read(&mut self, b: &mut [u8]) -> std::io::Result<usize> { self.0.read(b) } }
//! # impl Write for Canned {
//! #     fn write(&mut self, b: &[u8]) -> std::io::Result<usize> { Ok(b.len()) }
//! #     fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
//! # }
//! # let mut bytes = NewstyleGreeting { flags: HandshakeFlags::KNOWN }.encode().to_vec();
//! # let refused = OptionReply::Error { error: OptionReplyType::ERR_UNSUP, message: "".into() };
//! # refused.encode(OptionType::EXTENDED_HEADERS, &mut bytes)?;
//! # let structured = |bytes: &mut Vec<u8>| OptionReply::Ack.encode(OptionType::STRUCTURED_REPLY, bytes);
//! # structured(&mut bytes)?;
//! # let export = OptionReply::Info(Info::Export { size: 4096, flags: TransmissionFlags::HAS_FLAGS });
//! # export.encode(OptionType::GO, &mut bytes)?;
//! # OptionReply::Ack.encode(OptionType::GO, &mut bytes)?;
//! # let handshake = bytes.clone();
//! # // The first half is a hole, the second half is data.
//! # let cookie = Cookie(1 << 32);
//! # let hole = StructuredHeader { flags: ReplyFlags::NONE, chunk: ChunkType::OFFSET_HOLE, cookie, length: 12 };
//! # bytes.extend(hole.encode());
//! # bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
//! # let data = StructuredHeader { flags: ReplyFlags::DONE, chunk: ChunkType::OFFSET_DATA, cookie, length: 264 };
//! # bytes.extend(data.encode());
//! # bytes.extend([0, 0, 0, 0, 0, 0, 1, 0]);
//! # bytes.extend([7; 256]);
//! # let block = first_block(&mut Canned(std::io::Cursor::new(bytes.clone())))?;
//! # assert_eq!(block[..256], [0; 256]);
//! # assert_eq!(block[256..], [7; 256]);
//! # // A server that closes at any byte, and one with the worst lengths.
//! # for cut in 0..bytes.len() {
//! #     assert!(first_block(&mut Canned(std::io::Cursor::new(bytes[..cut].to_vec()))).is_err());
//! # }
//! # for at in 0..bytes.len() - 256 {
//! #     let mut bytes = bytes.clone();
//! #     bytes[at] ^= 0xff;
//! #     let _ = first_block(&mut Canned(std::io::Cursor::new(bytes)));
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The server role mirrors it: [`server::Handshake`] asks by event which exports
//! there are, [`server::Transmission`] hands out each request as a value whose
//! methods are the replies it may have. A whole server is in [the documentation
//! of the role](server). The [guide] has a page for each kind of user.
//!
//! # What the caller can rely on
//!
//! - State machines own no byte buffer. Events borrow the input, never the
//!   state machine.
//! - Any fragmentation of the input gives the same events and the same content,
//!   and so does reading payloads directly.
//! - No order of calls, and no event ignored, ends in a busy loop, in a read of
//!   zero bytes, or in data that is silently missing: content is a [`Step`] of
//!   its own, and a step that waits for the caller says so every time.
//! - Nothing a peer sends makes a state machine allocate, loop, recurse, or ask
//!   for bytes in proportion to a length field ([`Limits`]).
//! - Narrow and wide block status are different types from the wire to the
//!   event ([`wire::extent`]).
//! - A refused call ([`Misuse`]) changes nothing. A fatal [`Error`] stays. What
//!   the peer reports is an event.
//! - Every command completes exactly once.
//! - No `unsafe`, no panic.
//!
//! # Features
//!
//! Without features the crate is the specification's *Baseline* in both roles: the
//! fixed newstyle handshake with `LIST`, `INFO`, `GO` and `ABORT`, and simple replies;
//! in `core` alone, without an allocator. Each feature of the first table adds a part of
//! the protocol. But for the module `monitor` the interface is the same with and
//! without them: what is not compiled is not negotiated, and a caller that asks for it
//! gets [`Misuse::NotCompiled`]. The features of the second table add items and
//! implementations.
//!
//! The last column is what a part adds to the images of `tests/firmware` for a
//! Cortex-M3, client and server, in bytes of flash.
//!
//! | feature | default | what it adds | flash |
//! |---|---|---|---|
//! | `structured` | yes | structured replies, metadata contexts and block status | 7910, 3030 |
//! | `extended` | yes | `structured`, and extended headers: lengths and status of 64 bits | 8310, 4440 |
//! | `oldstyle` | yes | oldstyle, newstyle that is not fixed, `EXPORT_NAME` | 280, 660 |
//! | `tls` | yes | `STARTTLS` | 80, 260 |
//! | `resize` | yes | `RESIZE` of the resize extension | 240, 40 |
//! | `full` | yes | all of them, and the module `monitor` | 9730, 6920 |
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `alloc` | through `std` | sinks that grow (`Vec<u8>`, `bytes::BytesMut`), owned events ([`inbox`]), and the module `uri` |
//! | `std` | yes | conversions into `std::io::Error`, `std` in the dependencies |
//! | `arbitrary` | no | `arbitrary::Arbitrary` for wire values, for fuzzers and property tests |
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(
    missing_docs,
    unreachable_pub,
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

#[cfg(feature = "arbitrary")]
mod arbitrary;
pub mod client;
mod coverage;
mod error;
mod features;
pub mod guide;
pub mod inbox;
mod limits;
#[cfg(feature = "full")]
pub mod monitor;
mod name;
mod negotiated;
pub mod server;
mod session_error;
mod step;
#[cfg(feature = "alloc")]
pub mod uri;
pub mod wire;

pub use error::{Error, Misuse, Violation};
pub use limits::Limits;
pub use negotiated::{
    Framing, HandshakeStyle, Negotiated, SelectedContext, SelectedContexts, SelectedContextsError,
    StatusWidth,
};
pub use session_error::SessionError;
pub use step::{Content, Receive, Step, UnexpectedStep};

/// The examples of the README run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
