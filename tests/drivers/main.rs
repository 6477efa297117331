//! The teaching drivers and the tour, as programs: against each other, and
//! against the programs of others.
//!
//! Every test names the peers it needs. Where one is missing, the test says so
//! and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

#[expect(dead_code, reason = "some of it is for other tests")]
#[path = "../shared/images.rs"]
mod images;
#[expect(dead_code, reason = "some of it is for other tests")]
#[path = "../peers/peer.rs"]
mod peer;
#[expect(dead_code, reason = "some of it is for other tests")]
#[path = "../shared/program.rs"]
mod program;

mod certificates;
mod clients;
mod place;
mod server;
mod tls;
mod tour;
