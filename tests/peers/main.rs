//! The example `nbd` and the client machines against real servers, and beside
//! the tools of others.
//!
//! Every test names the programs it needs. Where one is missing, the test says
//! so and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

// Parts of the example that have tests of their own: cargo does not run those
// of examples.
#[path = "../../examples/nbd/align.rs"]
mod align;
#[path = "../../examples/nbd/copy/plan.rs"]
mod plan;
#[path = "../../examples/shared/size.rs"]
mod size;

mod commands;
mod connections;
mod copy;
mod describe;
mod driver;
mod errors;
#[path = "../shared/images.rs"]
mod images;
mod map;
mod old;
mod peer;
#[path = "../shared/program.rs"]
mod program;
