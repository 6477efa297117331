//! The client role, checked by transcripts: each one whole, byte by byte, at
//! every split, by exact reads, through a small buffer, and cut off at every
//! byte.

mod bounded;
mod command_misuse;
mod commands;
mod conformance;
mod connect;
mod content;
mod coverage;
mod errors;
mod faults;
mod framing;
mod greetings;
mod handshake_misuse;
mod inbox;
mod invariants;
mod invariants_both;
mod long_replies;
mod machines;
mod options;
mod property;
mod reads;
mod retract;
mod script;
mod seen;
mod sessions;
mod splitting;
mod status;
mod step;
mod tls;
mod transcript;
