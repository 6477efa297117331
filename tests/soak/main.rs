//! The state machines and `nbd-serve` for as long as there is time: hostile connections
//! beside reads that are verified, writes that are acknowledged before the server is
//! killed, and recorded sessions that are mutated. `tests/soak/run SECONDS` runs it for
//! longer, and prints the figures.

#[path = "../sessions/play.rs"]
#[expect(dead_code, reason = "the other tests need it")]
mod play;

mod connections;
mod kills;
mod raw;
mod replays;

use std::env;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_test_support::program::tool;
use nbd_test_support::server::Server;

/// When a test that begins now ends.
fn deadline() -> Instant {
    let seconds = env::var("NBD_CODEC_SOAK_SECONDS").map(|text| text.parse().expect("seconds"));
    let seconds: f64 = seconds.unwrap_or(4.0);
    Instant::now() + Duration::from_secs_f64(seconds)
}

/// A line of the table, which `run` prints.
fn figure(what: &str, count: u64) {
    println!("| {what} | {count} |");
}

/// Starts `nbd-serve` on a socket in a folder.
fn serve(folder: &Path, args: &[&str]) -> Server {
    let socket = format!("--unix={}", folder.join("socket").display());
    Server::start(tool("nbd-serve").arg(&socket).args(args))
}

/// A connection to the server of a folder.
fn connect(folder: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(folder.join("socket"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// Numbers that look random, the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}
