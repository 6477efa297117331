//! The program `nbd` and the client's state machines against real servers, and
//! compared with other clients.
//!
//! Every test names the programs it needs. If one is missing, the test says so
//! and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

mod addresses;
mod beyond;
mod blocks;
mod capture;
mod closing;
mod commands;
mod connections;
mod copy;
mod describe;
mod driver;
mod endless;
mod errors;
mod fake;
mod faults;
mod large;
mod map;
mod names;
#[path = "../common/nbd.rs"]
mod nbd;
mod old;
mod options;
mod plugins;
mod sizes;
mod stderr;
mod streams;
mod tap;
mod timeout;
mod tour;
mod transcripts;
