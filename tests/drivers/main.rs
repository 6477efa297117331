//! The examples, as programs: with each other, and with the programs of other
//! projects.
//!
//! Every test names the peers it needs. If one is missing, the test says so
//! and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

mod clients;
mod crate_nbd;
mod peers;
mod place;
