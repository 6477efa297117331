//! The program `nbd-serve` with real clients, with malicious clients, and from
//! its start to its end.
//!
//! Every test names the programs it needs. If one is missing, the test says so
//! and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

mod attack;
mod bench;
mod end;
mod hostile;
mod large_reads;
mod libnbd;
#[path = "../common/nbd.rs"]
mod nbd;
mod options;
mod others;
mod ours;
mod qemu;
mod raw;
mod running;
