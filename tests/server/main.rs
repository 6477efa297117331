//! The server role against transcripts, in every fragmentation, and against
//! the client role.

#![cfg(feature = "alloc")]

mod bounded;
mod conformance;
mod contexts;
mod drive;
mod end_to_end;
mod greeting;
mod hostile;
mod misuse;
mod options;
mod rejections;
mod replies;
mod requests;
mod script;
mod tls;
