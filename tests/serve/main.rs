//! The example `serve` under real clients, under clients of bad intent, and
//! from its start to its end.
//!
//! Every test names the programs it needs. Where one is missing, the test says
//! so and does nothing; with `NBD_CODEC_PEERS=required` in the environment it
//! fails.

// Parts of the example that have tests of their own.
#[path = "../../examples/serve/batch.rs"]
#[expect(dead_code, reason = "what is served at once is not tried here")]
mod batch;
#[path = "../../examples/serve/budget.rs"]
#[expect(dead_code, reason = "nobody waits for room here")]
mod budget;
#[path = "../../examples/serve/buffer.rs"]
mod buffer;
#[path = "../../examples/serve/disk.rs"]
#[expect(dead_code, reason = "what is served at once is not tried here")]
mod disk;
#[path = "../../examples/serve/file.rs"]
mod file;
#[path = "../../examples/serve/job.rs"]
#[expect(dead_code, reason = "what is read from a socket is not counted here")]
mod job;
#[path = "../../examples/serve/log.rs"]
mod log;
#[path = "../../examples/serve/memory.rs"]
mod memory;
#[path = "../../examples/serve/outbox.rs"]
#[expect(dead_code, reason = "what is served at once is not tried here")]
mod outbox;
#[path = "../../examples/serve/socket.rs"]
#[expect(dead_code, reason = "nobody connects here")]
mod socket;

mod bench;
mod disks;
mod driver;
mod end;
mod hostile;
#[path = "../shared/images.rs"]
mod images;
mod jobs;
mod libnbd;
mod options;
mod others;
mod ours;
#[path = "../shared/program.rs"]
mod program;
mod qemu;
mod raw;
mod serve;
