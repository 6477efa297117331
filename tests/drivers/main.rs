//! The examples, as programs: against each other, and
//! against the programs of others.
//!
//! Every test names the peers it needs. Where one is missing, the test says so
//! and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

mod clients;
mod place;
mod server;
mod tls;
