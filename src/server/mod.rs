//! The server role.
//!
//! | phase | state machine | ends with |
//! |---|---|---|
//! | handshake | [`Handshake`]: options in, replies out | [`Negotiated`](crate::Negotiated) |
//! | transmission | [`Transmission`]: requests in, as values that make their replies | the end of the connection |
//!
//! # The order of calls
//!
//! 1. [`Handshake::new`] takes a [`Config`]: the styles, framings and the mode
//!    of TLS.
//! 2. [`receive`](Handshake::receive) answers with the next
//!    [`Step`](crate::Step). [`Transmit`](crate::Step::Transmit) is the greeting,
//!    or a reply that needs no decision. Two events are
//!    [queries](ExportQuery) about an export, by name:
//!    [`grant`](Handshake::grant) them with an [`Export`] that says what it is,
//!    or [`refuse`](Handshake::refuse). What follows from the description
//!    (information, contexts, requirements, flags in force) the state machine
//!    replies.
//! 3. It ends as [`Negotiated`](crate::Negotiated), from which
//!    [`Transmission`] starts. Requests are checked against what it advertised.
//! 4. [`Transmission::receive`] hands out [requests](Request), checked. Do each,
//!    whenever and wherever, and answer it exactly once by one of its own
//!    methods. They return what is to be written: a [`Reply`], whole; or a
//!    [`ReplyHeader`], followed by the data.
//!
//! | request | answers |
//! |---|---|
//! | [`ReadRequest`] | [`data`](ReadRequest::data), or [`into_chunks`](ReadRequest::into_chunks): data, holes, errors at places, in any order |
//! | [`WriteRequest`], [`TrimRequest`], [`CacheRequest`], [`WriteZeroesRequest`] | `succeed`, `fail`, `fail_at` |
//! | [`FlushRequest`] | `succeed`, `fail` |
//! | [`BlockStatus32Request`], [`BlockStatus64Request`] | `reply` for each context, `fail`, `fail_at` |
//! | [`ResizeRequest`] | [`Transmission::resized`], `fail` |
//!
//! A server in one function, for one export in memory and one client:
//!
//! ```
//! use nbd_codec::inbox::Inbox;
//! use nbd_codec::server::{Config, Export, Handshake, HandshakeEvent};
//! use nbd_codec::server::{Request, Transmission, TransmissionEvent};
//! use nbd_codec::wire::flags::TransmissionFlags;
//! use nbd_codec::wire::number::{ErrorValue, OptionReplyType};
//! use nbd_codec::{Limits, SessionError, Step};
//! use std::io::{Read, Write};
//!
//! fn serve(stream: &mut (impl Read + Write), disk: &mut [u8]) -> std::io::Result<()> {
//!     let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_WRITE_ZEROES;
//!     let export = Export::new("disk", disk.len() as u64, flags);
//!     let mut inbox = Inbox::new(vec![0; Limits::DEFAULT.buffer()]);
//!     let mut out = Vec::new(); // what is to be written
//!
//!     let mut handshake = Handshake::new(Config::new())?;
//!     loop {
//!         match inbox.receive(&mut handshake)? {
//!             Step::Event(HandshakeEvent::List) => {
//!                 handshake.list(&export, &mut out)?;
//!                 handshake.finish_list(&mut out)?;
//!             }
//!             Step::Event(HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query)) => {
//!                 match query.export() {
//!                     "" | "disk" => drop(handshake.grant(&query, &export, &mut out)?),
//!                     _ => drop(handshake.refuse(
//!                         OptionReplyType::ERR_UNKNOWN,
//!                         "no such export",
//!                         &mut out,
//!                     )?),
//!                 }
//!             }
//!             Step::Event(HandshakeEvent::Ready { .. }) => break,
//!             Step::Event(_) => {} // Aborted: Finished follows
//!             Step::Transmit => drop(handshake.transmit(&mut out)?),
//!             Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
//!             Step::Finished => return Ok(()),
//!             other => return Err(other.unexpected().into()),
//!         }
//!         stream.write_all(&out)?;
//!         out.clear();
//!     }
//!     let negotiated = handshake.into_negotiated().map_err(SessionError::from)?;
//!
//!     let mut session = Transmission::new(negotiated, Limits::DEFAULT)?;
//!     let (mut start, mut payload) = (0, Vec::new()); // the data of the write that arrives
//!     loop {
//!         let place = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
//!         match inbox.receive(&mut session)? {
//!             Step::Event(TransmissionEvent::WritePayload { offset, length, .. }) => {
//!                 (start, payload) = (offset, vec![0; length as usize]);
//!             }
//!             Step::Content(data) => assert!(data.copy_to(start, &mut payload)),
//!             // Directly into its place: the crate never sees it.
//!             Step::ReadPayload { offset, length, .. } => {
//!                 stream.read_exact(&mut payload[place(offset - start, length)])?;
//!                 session.advance(length)?;
//!             }
//!             Step::Event(TransmissionEvent::Request(request)) => {
//!                 let reply = match request {
//!                     Request::Read(read) => {
//!                         let data = &disk[place(read.offset(), read.length().into())];
//!                         stream.write_all(read.data().as_bytes())?; // the header, and
//!                         stream.write_all(data)?; // the data: not copied
//!                         continue;
//!                     }
//!                     Request::Write(write) => {
//!                         disk[place(write.offset(), write.length())].copy_from_slice(&payload);
//!                         write.succeed()
//!                     }
//!                     Request::WriteZeroes(zeroes) => {
//!                         disk[place(zeroes.offset(), zeroes.length())].fill(0);
//!                         zeroes.succeed()
//!                     }
//!                     Request::Flush(flush) => flush.succeed(),
//!                     // Nothing else was advertised.
//!                     other => other.fail(ErrorValue::EINVAL, ""),
//!                 };
//!                 reply.encode(&mut out)?;
//!             }
//!             Step::Event(TransmissionEvent::Answered { reply, .. }) => drop(reply.encode(&mut out)?),
//!             Step::Event(_) => {} // Disconnect: Finished follows
//!             Step::Read(n) => drop(inbox.fill(n, |space| stream.read(space))?),
//!             Step::Finished => return Ok(()),
//!             other => return Err(other.unexpected().into()),
//!         }
//!         stream.write_all(&out)?;
//!         out.clear();
//!     }
//! }
//! # // A client of recorded messages, to run the loop.
//! # struct Canned(Vec<u8>, Vec<u8>);
//! # impl Read for Canned {
//! #     fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
//! #         let n = to.len().min(self.0.len());
//! #         to[..n].copy_from_slice(&self.0[..n]);
//! #         self.0.drain(..n);
//! #         Ok(n)
//! #     }
//! # }
//! # impl Write for Canned {
//! #     fn write(&mut self, from: &[u8]) -> std::io::Result<usize> { self.1.write(from) }
//! #     fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
//! # }
//! # let message = |flags: u16, command: u16, offset: u64, length: u32| {
//! #     let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
//! #     bytes.extend(flags.to_be_bytes());
//! #     bytes.extend(command.to_be_bytes());
//! #     bytes.extend([0; 8]);
//! #     bytes.extend(offset.to_be_bytes());
//! #     bytes.extend(length.to_be_bytes());
//! #     bytes
//! # };
//! # let mut says = vec![0, 0, 0, 3];
//! # says.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0");
//! # says.extend(message(0, 1, 4, 3));
//! # says.extend(b"new");
//! # says.extend(message(0, 0, 3, 5));
//! # says.extend(message(0, 4, 3, 5)); // TRIM: not advertised
//! # says.extend(message(0, 2, 0, 0));
//! # let all = says.clone();
//! # let mut client = Canned(says, Vec::new());
//! # let mut disk = *b"0123456789";
//! # serve(&mut client, &mut disk).unwrap();
//! # assert_eq!(&disk, b"0123new789");
//! # let (_, replies) = client.1.split_at(client.1.len() - 53);
//! # assert_eq!(replies[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
//! # assert_eq!(replies[16 + 16..][..5], *b"3new7");
//! # assert_eq!(replies[37..][..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22]);
//! # // A client that closes at any byte, and one with the worst lengths.
//! # for cut in 0..all.len() - 1 {
//! #     let _ = serve(&mut Canned(all[..cut].to_vec(), Vec::new()), &mut disk);
//! # }
//! # for at in 0..all.len() {
//! #     let mut bytes = all.clone();
//! #     bytes[at] ^= 0xff;
//! #     let _ = serve(&mut Canned(bytes, Vec::new()), &mut disk);
//! # }
//! ```
//!
//! # Many requests at once
//!
//! A [`Request`] borrows nothing and knows everything its reply needs. A server
//! of many tasks sends it to a worker, with the payload if it is a write, and
//! goes on receiving; the worker writes the reply, whole, in any order. Only
//! what is written to one connection must not be mixed within a message.
//! [`ResizeRequest`] goes back to its [`Transmission`], whose size follows it.
//!
//! # Buffers
//!
//! [`Limits::buffer`](crate::Limits::buffer) says how large the receive buffer
//! has to be: it must hold an option whole, up to
//! [`Limits::option_data`](crate::Limits::option_data) and 16 bytes; in
//! transmission 28 bytes, with extended headers 32, and 168 where a block
//! status request may name its contexts (`BLOCK_STATUS_PAYLOAD`). What is
//! longer, and payloads, pass through any buffer. The output takes each reply
//! as a whole; where it is too small, nothing is written, and the call can be
//! repeated with a larger one.
//!
//! # The end
//!
//! A server that is about to stop calls `shut_down` on its state machines: from
//! then on every option and every request is answered with the error that says
//! so. What was handed out before can be done or failed with `ESHUTDOWN`, in the
//! middle of a chunked reply too. A client may close the connection at any byte;
//! `end_of_input` says whether it had sent `DISC` or `ABORT`. Time is the
//! caller's: [`Handshake::is_negotiating`] tells for how long a client has to be
//! watched.

mod config;
mod export;
mod handshake;
mod request;
mod transmission;

pub use config::{Config, TlsMode};
pub use export::{Export, MetaContext};
pub use handshake::{ExportQuery, Granted, Handshake, HandshakeEvent};
pub use request::narrow;
pub use request::{
    BlockStatus32Request, BlockStatus64Request, CacheRequest, ChunkedRead, FlushRequest,
    ReadRequest, Rejected, Reply, ReplyHeader, Request, ResizeRequest, TrimRequest, WriteRequest,
    WriteZeroesRequest,
};
pub use transmission::{Transmission, TransmissionEvent};
