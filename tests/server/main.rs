//! The server role: transcripts in every fragmentation, misuse, hostile clients,
//! and sessions with the client role.

#![cfg(feature = "alloc")]

mod bounded;
mod conformance;
mod contexts;
mod drive;
mod end_to_end;
mod faults;
mod greeting;
mod hostile;
mod inbox;
mod misuse;
mod options;
mod property;
mod rejections;
mod replies;
mod requests;
mod script;
mod steps;
mod tls;
