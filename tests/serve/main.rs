//! The example `serve` under real clients, under clients of bad intent, and
//! from its start to its end.
//!
//! Every test names the programs it needs. Where one is missing, the test says
//! so and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

// Parts of the example that have tests of their own.
#[path = "../../examples/serve/disk.rs"]
mod disk;
#[path = "../../examples/serve/file.rs"]
mod file;
#[path = "../../examples/serve/memory.rs"]
mod memory;

mod disks;
mod end;
mod hostile;
#[path = "../shared/images.rs"]
mod images;
mod libnbd;
mod options;
mod others;
mod ours;
#[path = "../shared/program.rs"]
mod program;
mod qemu;
mod raw;
mod serve;
