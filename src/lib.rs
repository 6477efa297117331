//! The NBD protocol, complete, in both roles, without I/O.
//!
//! NBD (Network Block Device) carries block I/O between a client and a server.
//! This crate turns its bytes into values and back, and keeps track of where a
//! session is; sockets, threads, buffers and time stay with the caller.
//!
//! ```text
//!        your runtime                        this crate
//!   ┌───────────────────┐    bytes   ┌──────────────────────────┐
//!   │ socket ─▶ buffer ─┼───────────▶│ receive(&mut input)      │
//!   │                   │◀───────────┼─ events: borrow the input │
//!   │ your data ◀───────┼── need() ──│ read payloads straight   │
//!   │                   │ advance(n) │ into their place         │
//!   │ socket ◀─ [head,  │◀───────────┼─ submit, transmit: heads  │
//!   │            data]  │            │ on the stack             │
//!   └───────────────────┘            └──────────────────────────┘
//! ```
//!
//! # The order of calls
//!
//! 1. [`client::Connect`] takes a [`Plan`](client::connect::Plan) (an export,
//!    the metadata contexts wanted, a TLS policy, the best framing wanted) and
//!    runs the handshake with every fallback the specification names.
//!    [`client::Handshake`] underneath sends one option at a time instead.
//! 2. It ends as [`Negotiated`], from which [`client::Transmission`] starts.
//! 3. [`submit`](client::Transmission::submit) makes a command: write its
//!    head, and the payload behind it. Any number can be in flight.
//! 4. [`receive`](client::Transmission::receive) takes events out of what
//!    arrived, until it returns `None`. Then [`need`](client::Transmission::need)
//!    says what to read next.
//!
//! Nothing here blocks, so the loop is yours. This one is blocking and short:
//!
//! ```
//! use nbd_codec::client::connect::{self, Connect, Plan};
//! use nbd_codec::client::{Event, Request, Slot, Transmission};
//! use nbd_codec::{Limits, Need};
//! use std::io::{Read, Write};
//!
//! /// Reads the first block of the export `disk`.
//! fn first_block(stream: &mut (impl Read + Write)) -> Result<[u8; 512], Box<dyn std::error::Error>> {
//!     let mut held = Vec::new(); // what arrived and was not consumed
//!     let mut connect = Connect::new(Plan::new("disk"))?;
//!     loop {
//!         let mut input = &held[..];
//!         match connect.receive(&mut input)? {
//!             Some(connect::Event::Ready) => break,
//!             Some(connect::Event::Failed { reason, .. }) => return Err(reason.into()),
//!             Some(_) => {}
//!             None => {
//!                 let mut out = Vec::new();
//!                 connect.transmit(&mut out)?;
//!                 stream.write_all(&out)?; // empty while it is the server's turn
//!             }
//!         }
//!         let used = held.len() - input.len();
//!         held.drain(..used);
//!         fill(stream, &mut held, connect.need())?;
//!     }
//!     let negotiated = connect.into_negotiated().map_err(|_| "not ready")?;
//!
//!     let mut session = Transmission::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
//!     let mut block = [0; 512];
//!     let head = session.submit(Request::read(0, 512))?;
//!     stream.write_all(head.as_bytes())?;
//!     held.clear();
//!     loop {
//!         let mut input = &held[..];
//!         match session.receive(&mut input)? {
//!             Some(Event::Done { result, .. }) => {
//!                 stream.write_all(session.disconnect()?.as_bytes())?;
//!                 return result.map(|()| block).map_err(|error| error.to_string().into());
//!             }
//!             Some(Event::Hole { offset, length, .. }) => block[offset as usize..][..length as usize].fill(0),
//!             _ => {}
//!         }
//!         let used = held.len() - input.len();
//!         held.drain(..used);
//!         if let Need::Payload { offset, length, .. } = session.need() {
//!             // Straight to where it belongs: the crate never sees it.
//!             stream.read_exact(&mut block[offset as usize..][..length as usize])?;
//!             session.advance(length)?;
//!         }
//!         fill(stream, &mut held, session.need())?;
//!     }
//! }
//!
//! /// Reads what the machine needs, and not a byte more.
//! fn fill(stream: &mut impl Read, held: &mut Vec<u8>, need: Need) -> std::io::Result<()> {
//!     if let Need::Header(n) = need {
//!         let missing = n.saturating_sub(held.len());
//!         if stream.take(missing as u64).read_to_end(held)? < missing {
//!             return Err(std::io::ErrorKind::UnexpectedEof.into());
//!         }
//!     }
//!     Ok(())
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
//! # refused.encode(OptionType::STRUCTURED_REPLY, &mut bytes)?;
//! # let export = OptionReply::Info(Info::Export { size: 4096, flags: TransmissionFlags::HAS_FLAGS });
//! # export.encode(OptionType::GO, &mut bytes)?;
//! # OptionReply::Ack.encode(OptionType::GO, &mut bytes)?;
//! # bytes.extend(SimpleReply { error: ErrorValue::NONE, cookie: Cookie(1 << 32) }.encode());
//! # bytes.extend([7; 512]);
//! # assert_eq!(first_block(&mut Canned(std::io::Cursor::new(bytes)))?, [7; 512]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! More drivers stand in the repository's `examples`, each one file to copy:
//! blocking, with many reads in flight, with tokio (client and server), with
//! TLS (client and server).
//!
//! The server role mirrors it: [`server::Handshake`] asks by event which exports
//! there are, [`server::Transmission`] hands out each request as a token whose
//! methods are the replies it may have. A whole server stands in
//! [its guide](server).
//!
//! # What the caller can rely on
//!
//! - Machines own no byte buffer. Events borrow the input, never the machine.
//! - Any fragmentation of the input gives the same events, and so does reading
//!   payloads directly.
//! - Nothing a peer sends makes a machine allocate, loop or recurse in
//!   proportion to a length field ([`Limits`]).
//! - Narrow and wide block status are different types from the wire to the
//!   event ([`wire::extent`]).
//! - A refused call ([`Misuse`]) changes nothing. A fatal [`Error`] stays. What
//!   the peer reports is an event.
//! - Every command completes exactly once.
//! - No `unsafe`, no panic.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | (none) | | both layers, in `core` alone: no allocator, no operating system |
//! | `alloc` | through `std` | sinks that grow (`Vec<u8>`, `bytes::BytesMut`), and the module `uri` |
//! | `std` | yes | `std` in the dependencies |
//! | `arbitrary` | no | `arbitrary::Arbitrary` for wire values, for fuzzers and property tests |
#![no_std]
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
pub mod inbox;
mod limits;
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
    Framing, HandshakeStyle, Negotiated, SelectedContexts, SelectedContextsError, StatusWidth,
};
pub use session_error::SessionError;
pub use step::{Content, Receive, Step, UnexpectedStep};

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
