//! Hostile connections, and correct clients that verify what they read meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_test_support::images::noise;

use crate::raw::{READ, Raw, WRITE, request};
use crate::{Random, connect, deadline, figure, serve};

const SIZE: usize = 16 << 20;

/// Threads that make one hostile connection after the other, and that verify.
const HOSTILE: u64 = 3;
const VERIFYING: u64 = 2;

/// The most requests of a verifying client at a time.
const DEPTH: usize = 8;

#[test]
fn reads_beside_hostile_connections() {
    let (connections, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let folder = tempfile::tempdir().expect("a folder");
    let disk = noise(1, SIZE);
    let image = folder.path().join("image");
    fs::write(&image, &disk).expect("an image");
    let args = ["--read-only", image.to_str().expect("UTF-8")];
    let _server = serve(folder.path(), &args);
    let end = deadline();
    let failed = AtomicBool::new(false);
    let (folder, disk, failed) = (folder.path(), &disk[..], &failed);
    let go_on = || Instant::now() < end && !failed.load(Ordering::Relaxed);
    thread::scope(|scope| {
        for seed in 0..HOSTILE {
            let (connections, go_on) = (&connections, &go_on);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while go_on() {
                    attack(folder, &mut random);
                    connections.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for seed in 0..VERIFYING {
            let (reads, go_on) = (&reads, &go_on);
            scope.spawn(move || {
                let _ends_the_others = Failed(failed);
                let mut random = Random::new(100 + seed);
                let mut client = Raw::ready(connect(folder).expect("a connection"));
                while go_on() {
                    verify(&mut client, disk, &mut random);
                    reads.fetch_add(DEPTH as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let (connections, reads) = (connections.into_inner(), reads.into_inner());
    figure("hostile connections", connections);
    figure("reads verified beside them", reads);
    assert!(connections > 100 && reads > 100, "{connections}, {reads}");
}

/// Set when a thread panics.
struct Failed<'f>(&'f AtomicBool);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(thread::panicking(), Ordering::Relaxed);
    }
}

fn verify(client: &mut Raw, disk: &[u8], random: &mut Random) {
    let mut ranges = Vec::new();
    let mut requests = Vec::new();
    for cookie in 0..DEPTH as u64 {
        let length = 1 + random.below(64 << 10);
        let offset = random.below(disk.len() - length + 1);
        requests.extend(request(READ, 0, cookie, offset as u64, length as u32));
        ranges.push(offset..offset + length);
    }
    client.stream.write_all(&requests).expect("sent");
    let mut data = Vec::new();
    for _ in 0..DEPTH {
        let (error, cookie) = client.reply().expect("a reply");
        assert_eq!(error, 0);
        let expected = &disk[ranges[cookie as usize].clone()];
        data.resize(expected.len(), 0);
        client.stream.read_exact(&mut data).expect("data");
        assert!(
            data == expected,
            "other data at {:?}",
            ranges[cookie as usize]
        );
    }
}

/// One connection. Its errors are of no interest.
fn attack(folder: &Path, random: &mut Random) {
    let Ok(mut stream) = connect(folder) else {
        return;
    };
    let options = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
    let kind = random.below(7);
    let bytes = match kind {
        0 => {
            let length = random.below(8192);
            random.bytes(length)
        }
        1 => options[..random.below(options.len())].to_vec(),
        // An option of any length, with less data.
        2 => {
            let (option, length) = (random.next() as u32 % 16, random.next() as u32);
            let mut bytes = b"\0\0\0\x03IHAVEOPT".to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(random.bytes(100));
            bytes
        }
        // Options with faults.
        3 => {
            let mut bytes = options.to_vec();
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            bytes
        }
        _ => Vec::new(),
    };
    if kind < 4 {
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 64]);
        return;
    }
    let socket = stream.try_clone().expect("a socket");
    let mut client = Raw::ready(stream);
    // What comes next may have no reply.
    let short = Some(Duration::from_millis(20));
    socket.set_read_timeout(short).expect("a timeout");
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(32) {
        let (offset, length) = (random.below(SIZE) as u64, random.below(1 << 20) as u32);
        match kind {
            // Requests of any kind.
            4 => {
                let (command, flags) = (random.next() as u16 % 12, random.next() as u16 % 64);
                let shift = random.below(64);
                let offset = random.next() >> shift;
                bytes.extend(request(command, flags, random.next(), offset, length));
            }
            // Reads whose replies are not read.
            5 => bytes.extend(request(READ, 0, 0, offset, length)),
            // Writes to a read-only export, with some of their payload.
            _ => {
                bytes.extend(request(WRITE, 0, 0, offset, length));
                bytes.extend(random.bytes(1000));
            }
        }
    }
    if random.below(4) == 0 {
        bytes.truncate(random.below(bytes.len()));
    }
    socket.set_write_timeout(short).expect("a timeout");
    let _ = client.stream.write_all(&bytes);
    if random.below(2) == 0 {
        let _ = client.stream.read(&mut [0; 64]);
    }
}
