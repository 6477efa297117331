//! A client on `io_uring`, with 32 reads in flight. The kernel copies the data of
//! each into the page-aligned buffer of its command, and from there into the file:
//! the program never accesses it.
//!
//! Copies an export to a file:
//!
//! ```text
//! cargo run --release --example uring_client -- 127.0.0.1:10809 EXPORT disk.img
//! ```
//!
//! This is what `Step::ReadPayload` is for. A program that hands a buffer to the
//! kernel cannot use it meanwhile, and has to know in advance how many bytes it will
//! receive. The step tells which command the next bytes belong to, where in it, and
//! how many they are. So the buffer of that command is part of the receive operation,
//! which returns it with the data; and so is the inbox, for the header that follows.

use std::error::Error;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod copy;

/// Elsewhere there is no `io_uring`.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod copy {
    pub fn run(_: &str, _: &str, _: &str) -> Result<(), Box<dyn std::error::Error>> {
        Err("no io_uring: it needs 64-bit Linux".into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, export, path] = args.as_slice() else {
        return Err("usage: uring_client ADDR:PORT EXPORT FILE".into());
    };
    copy::run(address, export, path)
}
