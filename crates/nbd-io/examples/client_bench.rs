//! Measures random reads and writes of 4 KiB with the tokio client:
//!
//! ```text
//! cargo run --release --example client_bench -- URI read|write DEPTH SECONDS
//! ```
//!
//! DEPTH tasks have one command each in flight, on a runtime of one thread, as fio has.
//! It prints commands for each second. With `idle` in the place of `read`, DEPTH clients do
//! one read each; it prints by how many bytes each one has made the process larger.

use std::time::{Duration, Instant};

use nbd_io::client::Error;
use nbd_io::tokio::Client;

const BLOCK: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [uri, kind, depth, seconds] = args.as_slice() else {
        return Err("usage: client_bench URI read|write DEPTH SECONDS".into());
    };
    let (depth, seconds): (u64, f64) = (depth.parse()?, seconds.parse()?);
    let write = kind == "write";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if kind == "idle" {
        return runtime.block_on(idle(uri, depth));
    }
    runtime.block_on(async {
        let client = Client::connect(uri).await?;
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        let tasks: Vec<_> = (1..=depth)
            .map(|seed| tokio::spawn(load(client.clone(), write, seed, deadline)))
            .collect();
        let start = Instant::now();
        let mut commands = 0;
        for task in tasks {
            commands += task.await??;
        }
        println!("{:.0}", commands as f64 / start.elapsed().as_secs_f64());
        client.disconnect().await;
        Ok(())
    })
}

/// Connects clients that have nothing to do.
async fn idle(uri: &str, count: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut clients = Vec::new();
    let mut before = 0;
    for n in 0..=count {
        let client = Client::connect(uri).await?;
        client.read_at(0, BLOCK as usize).await?;
        clients.push(client);
        if n == 0 {
            before = resident()?;
        }
    }
    println!("{}", (resident()? - before) / count);
    Ok(())
}

/// The resident memory of this process in bytes.
fn resident() -> Result<u64, Box<dyn std::error::Error>> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages = pages.split(' ').nth(1).ok_or("no resident pages")?;
    Ok(pages.parse::<u64>()? * 4096)
}

/// Sends one command after another until the deadline; returns how many.
async fn load(client: Client, write: bool, seed: u64, deadline: Instant) -> Result<u64, Error> {
    let blocks = client.size() / BLOCK;
    let data = vec![seed as u8; BLOCK as usize];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut commands = 0;
    while commands % 64 != 0 || Instant::now() < deadline {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let offset = state % blocks * BLOCK;
        if write {
            client.write_at(offset, &data).await?;
        } else {
            client.read_at(offset, BLOCK as usize).await?;
        }
        commands += 1;
    }
    Ok(commands)
}
