//! The server role against transcripts, in every fragmentation, and against
//! the client role.

#![cfg(feature = "alloc")]

mod bounded;
mod conformance;
mod drive;
mod end_to_end;
mod hostile;
mod misuse;
mod options;
mod replies;
mod requests;
mod script;
mod tls;
