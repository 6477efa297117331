//! The server role.
//!
//! | phase | machine | it ends with |
//! |---|---|---|
//! | handshake | [`Handshake`]: options in, replies out | [`Negotiated`](crate::Negotiated) |
//! | transmission | [`Transmission`]: requests in, as tokens that make their replies | the end of the connection |
//!
//! # The order of calls
//!
//! 1. [`Handshake::new`] takes an [`Config`]: the styles, framings and the mode
//!    of TLS. [`transmit`](Handshake::transmit) writes the greeting, and later
//!    every answer that needs no decision.
//! 2. [`receive`](Handshake::receive) takes events out of what arrived. Two of
//!    them are [inquiries](ExportQuery) about an export, by name:
//!    [`grant`](Handshake::grant) them with an [`Export`] that says what it is,
//!    or [`refuse`](Handshake::refuse). What follows from the description
//!    (information, contexts, requirements, flags that hold) is the machine's
//!    to say.
//! 3. It ends as [`Negotiated`](crate::Negotiated), from which
//!    [`Transmission`] starts. What it advertised is what requests are judged
//!    by.
//! 4. [`Transmission::receive`] hands out [requests](Request), checked. Each is
//!    a token: do it, whenever and wherever, and answer it exactly once by one
//!    of its own methods. They return what is to be written: a [`Reply`], whole;
//!    or a [`ReplyHeader`], behind which the data stands.
//! 5. What is to be read next, [`need`](Transmission::need) says; the data of a
//!    write may be read straight to where it belongs.
//!
//! | request | answers |
//! |---|---|
//! | [`Read`] | [`data`](Read::data), or [`into_chunks`](Read::into_chunks): data, holes, errors at places, in any order |
//! | [`Write`], [`Trim`], [`Cache`], [`WriteZeroes`] | `succeed`, `fail`, `fail_at` |
//! | [`Flush`] | `succeed`, `fail` |
//! | [`BlockStatus32Request`], [`BlockStatus64Request`] | `answer` for each context, `fail`, `fail_at` |
//! | [`Resize`] | [`Transmission::resized`], `fail` |
//!
//! A server in one function, for one export in memory and one client:
//!
//! ```
//! use nbd_codec::server::{Event, Export, Handshake, Config, Request, Transmission, handshake};
//! use nbd_codec::wire::flags::TransmissionFlags;
//! use nbd_codec::wire::number::OptionReplyType;
//! use nbd_codec::{Limits, Need};
//! use std::io::{Read, Write};
//!
//! fn serve(stream: &mut (impl Read + Write), disk: &mut [u8]) -> Result<(), Box<dyn std::error::Error>> {
//!     let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_WRITE_ZEROES;
//!     let export = Export::new("disk", disk.len() as u64, flags);
//!     let mut held = Vec::new(); // what arrived and was not consumed
//!     let mut out = Vec::new(); // what is to be written
//!
//!     let mut handshake = Handshake::new(Config::default())?;
//!     loop {
//!         use handshake::Event as E;
//!         let mut input = &held[..];
//!         match handshake.receive(&mut input)? {
//!             Some(E::List) => {
//!                 handshake.list(&export, &mut out)?;
//!                 handshake.done(&mut out)?;
//!             }
//!             Some(E::Export(query) | E::MetaContexts(query)) => {
//!                 let unknown = OptionReplyType::ERR_UNKNOWN;
//!                 match query.export() {
//!                     "" | "disk" => handshake.grant(&query, &export, &mut out)?,
//!                     _ => handshake.refuse(unknown, "no such export", &mut out)?,
//!                 };
//!             }
//!             Some(E::Aborted) => return Ok(()),
//!             Some(E::Ready) => break,
//!             Some(_) => {} // StartTls: not offered
//!             None => {
//!                 handshake.transmit(&mut out)?;
//!             }
//!         }
//!         let used = held.len() - input.len();
//!         held.drain(..used);
//!         stream.write_all(&out)?;
//!         out.clear();
//!         fill(stream, &mut held, handshake.need())?;
//!     }
//!     let negotiated = handshake.into_negotiated().map_err(|_| "not ready")?;
//!     stream.write_all(&out)?; // empty: Ready comes behind the answer
//!
//!     let mut session = Transmission::new(negotiated, Limits::DEFAULT)?;
//!     let mut payload = Vec::new(); // the data of the write that arrives
//!     loop {
//!         let mut input = &held[..];
//!         let place = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
//!         match session.receive(&mut input)? {
//!             Some(Event::Payload { length, .. }) => payload = Vec::with_capacity(length as usize),
//!             Some(Event::Data { data, .. }) => payload.extend(data),
//!             Some(Event::Request(request)) => {
//!                 let reply = match request {
//!                     Request::Read(read) => {
//!                         let data = &disk[place(read.offset(), read.length().into())];
//!                         stream.write_all(read.data().as_bytes())?; // the head, and
//!                         stream.write_all(data)?; // the data: not copied
//!                         None
//!                     }
//!                     Request::Write(write) => {
//!                         disk[place(write.offset(), write.length())].copy_from_slice(&payload);
//!                         Some(write.succeed())
//!                     }
//!                     Request::WriteZeroes(zeroes) => {
//!                         disk[place(zeroes.offset(), zeroes.length())].fill(0);
//!                         Some(zeroes.succeed())
//!                     }
//!                     Request::Flush(flush) => Some(flush.succeed()),
//!                     // Nothing else was advertised.
//!                     other => Some(other.fail(nbd_codec::wire::number::ErrorValue::EINVAL, "")),
//!                 };
//!                 if let Some(reply) = reply {
//!                     reply.encode(&mut out)?;
//!                 }
//!             }
//!             Some(Event::Rejected { reply, .. }) => drop(reply.encode(&mut out)?),
//!             Some(Event::Disconnect) => return Ok(()),
//!             _ => {}
//!         }
//!         let used = held.len() - input.len();
//!         held.drain(..used);
//!         stream.write_all(&out)?;
//!         out.clear();
//!         if let Need::Payload { length, .. } = session.need() {
//!             // Straight to where it belongs: the crate never sees it.
//!             let at = payload.len();
//!             payload.resize(at + length as usize, 0);
//!             stream.read_exact(&mut payload[at..])?;
//!             session.advance(length)?;
//!         } else {
//!             fill(stream, &mut held, session.need())?;
//!         }
//!     }
//! }
//!
//! /// Reads until as much is held as is needed, or as there is room for: what
//! /// is skipped may be longer, and passes through in pieces.
//! fn fill(stream: &mut impl Read, held: &mut Vec<u8>, need: Need) -> std::io::Result<()> {
//!     if let Need::Header(n) = need {
//!         let at = held.len();
//!         held.resize(n.min(1 << 14).max(at), 0);
//!         stream.read_exact(&mut held[at..])?;
//!     }
//!     Ok(())
//! }
//! # // A client of canned messages, to run the loop.
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
//! # let mut client = Canned(says, Vec::new());
//! # let mut disk = *b"0123456789";
//! # serve(&mut client, &mut disk).unwrap();
//! # assert_eq!(&disk, b"0123new789");
//! # let (_, replies) = client.1.split_at(client.1.len() - 53);
//! # assert_eq!(replies[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
//! # assert_eq!(replies[16 + 16..][..5], *b"3new7");
//! # assert_eq!(replies[37..][..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22]);
//! ```
//!
//! # Many requests at once
//!
//! A [`Request`] borrows nothing and knows everything its reply needs. A
//! server of many tasks sends it to a worker, with the payload if it is a
//! write, and goes on receiving; whoever has done it writes the reply, whole,
//! in any order. Only what is written to one connection must not be mixed
//! within a message. [`Resize`] goes back to its [`Transmission`], whose size
//! follows it.
//!
//! # Buffers
//!
//! The input must hold an option whole, up to
//! [`Limits::option_data`](crate::Limits::option_data) and 16 bytes; in
//! transmission 28 bytes, with extended headers 32, and 168 where a block
//! status request may name its contexts (`BLOCK_STATUS_PAYLOAD`). What is
//! longer, and payloads, pass through any buffer. The output takes each
//! answer as a whole; where it is too small, nothing is written, and the call
//! can be repeated with a larger one.
//!
//! # The end
//!
//! A server that is about to stop calls `shut_down` on its machines: from then
//! on every option and every request is answered with the error that says so.
//! What was handed out before can be done or failed with `ESHUTDOWN`, in the
//! middle of a chunked reply too. A client may go away at any byte;
//! `end_of_input` says whether it said goodbye. Time is the caller's:
//! [`Handshake::is_negotiating`] tells for how long a client has to be
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
