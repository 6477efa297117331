//! All at once: many idle clients, some of each hostile kind, and correct ones.
//! `benches/attack` measures what this costs the correct ones.

use std::io::Write;
use std::process::Command as Program;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_codec::wire::number::Command;
use nbd_test_support::images::{MIB, noise, sparse};
use nbd_test_support::needs;
use nbd_test_support::program::run;

use crate::hostile::{assert_serves, memory, threads};
use crate::raw::{Raw, handshake, request};
use crate::running::{Disk, Serve};

/// Does `again` to one connection after the other, four at a time, until the end.
fn attack<'s>(
    scope: &'s thread::Scope<'s, '_>,
    serve: &'s Serve,
    end: &'s AtomicBool,
    again: fn(&Serve, &AtomicBool, u64),
) {
    for seed in 0..4 {
        scope.spawn(move || {
            while !end.load(Ordering::Relaxed) {
                again(serve, end, seed);
            }
        });
    }
}

fn wait(end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn five_hundred_idle_and_twenty_hostile_clients() {
    let serve = Disk::File.serve(16, &[]);
    let idle: Vec<_> = (0..500).map(|_| Raw::ready(&serve)).collect();
    // An idle client has one thread and a small inbox.
    assert!(threads(&serve) < 510, "{} threads", threads(&serve));
    let before = memory(&serve);
    assert!(before < 64, "{before} MiB for idle clients");
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let (serve, end) = (&serve, &end);
        // Replies of 4 GiB that it never reads.
        attack(scope, serve, end, |serve, end, _| {
            let mut client = Raw::ready(serve);
            client.send(&[request(Command::READ, 0, 1 << 20); 4096].concat());
            wait(end);
        });
        // A part of a handshake.
        attack(scope, serve, end, |serve, _, seed| {
            let script = handshake();
            let mut client = Raw::connect(serve);
            let _ = client
                .0
                .write_all(&script[..seed as usize * script.len() / 4]);
            thread::sleep(Duration::from_millis(100));
        });
        // Anything.
        attack(scope, serve, end, |serve, _, seed| {
            let mut client = Raw::connect(serve);
            let _ = client.0.write_all(&noise(seed, 4096));
            client.read_to_end();
        });
        // A write, byte by byte.
        attack(scope, serve, end, |serve, end, _| {
            let mut client = Raw::ready(serve);
            client.send(&request(Command::WRITE, 8 * MIB, 256 << 10));
            while !end.load(Ordering::Relaxed) {
                client.send(&[7]);
                thread::sleep(Duration::from_millis(5));
            }
        });
        // 8 MiB that it does not read, again and again.
        attack(scope, serve, end, |serve, _, _| {
            let mut client = Raw::ready(serve);
            client.send(&[request(Command::READ, 0, 1 << 20); 8].concat());
            thread::sleep(Duration::from_millis(100));
        });
        // Also if this fails, the others end.
        let result = scope.spawn(|| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2) {
                assert_serves(serve);
            }
        });
        let result = result.join();
        end.store(true, Ordering::Relaxed);
        result.expect("correct clients are served");
    });
    // What `--help` says without block status: 160 MiB, and 2 MiB for each client.
    let bound = before + 160 + 2 * 21;
    assert!(memory(&serve) < bound, "{} of {bound} MiB", memory(&serve));
    drop(idle);
    assert_serves(&serve);
}

/// QEMU does so. The server once looked for 4,096 extents each time, which took two
/// minutes here.
#[test]
fn a_map_that_asks_for_one_extent_at_a_time() {
    needs!("qemu-img");
    let serve = Disk::File.serve(64, &[]);
    let data: Vec<_> = (0..8192).map(|n| (n * 8192, 4096)).collect();
    sparse(&serve.folder().join("disk"), 64 * MIB, &data);
    let start = Instant::now();
    let mut command = Program::new("qemu-img");
    command.args(["map", "--output=json", "-f", "raw", serve.uri()]);
    let map = run(&mut command).json();
    assert!(start.elapsed() < Duration::from_secs(20));
    let extents = map.as_array().expect("an array");
    assert_eq!(extents.len(), 16384);
    assert_eq!(extents[1]["start"], 4096);
    assert_eq!(extents[1]["zero"], true);
}
