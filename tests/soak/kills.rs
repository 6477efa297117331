//! Writes that were acknowledged are there after the server was killed and started again:
//! the page cache survives the process.

use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use nbd_test_support::images::sparse;

use crate::raw::{READ, Raw, WRITE, request};
use crate::{Random, connect, deadline, figure, serve};

const BLOCK: usize = 4096;
const BLOCKS: usize = 4096;

/// The most writes at a time, each to another block.
const DEPTH: usize = 16;

/// What a block can hold: the version that was acknowledged last, or one that was sent
/// after it.
#[derive(Clone, Copy, Default)]
struct Block {
    acknowledged: u64,
    sent: u64,
}

#[test]
fn acknowledged_writes_survive_kills() {
    let (mut writes, mut kills) = (0, 0);
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    sparse(&image, (BLOCK * BLOCKS) as u64, &[]);
    let image = image.to_str().expect("UTF-8");
    let mut random = Random::new(7);
    let mut blocks = vec![Block::default(); BLOCKS];
    let end = deadline();
    let mut version = 0;
    // At least two kills, however slow the machine is.
    for round in 0.. {
        let mut server = serve(folder.path(), &[image]);
        let mut client = Raw::ready(connect(folder.path()).expect("a connection"));
        verify(&mut client, &mut blocks);
        if round >= 2 && Instant::now() >= end {
            break;
        }
        let lifetime = Duration::from_millis(100 + random.below(400) as u64);
        let killer = thread::spawn(move || {
            thread::sleep(lifetime);
            server.kill();
        });
        while let Ok(count) = write(&mut client, &mut blocks, &mut version, &mut random) {
            writes += count;
        }
        killer.join().expect("killed");
        kills += 1;
    }
    // The file has the same without a server.
    let disk = fs::read(image).expect("the image");
    for (block, data) in blocks.iter().zip(disk.chunks(BLOCK)) {
        assert_eq!(found(data), block.acknowledged);
    }
    figure("kills of the server", kills);
    figure("acknowledged writes, none lost", writes);
    assert!(kills >= 2 && writes > 100, "{kills} kills, {writes} writes");
}

/// A block of which every word is its version, so that a torn write is seen.
fn data(version: u64) -> Vec<u8> {
    version.to_be_bytes().repeat(BLOCK / 8)
}

#[track_caller]
fn found(data: &[u8]) -> u64 {
    let (first, _) = data.split_at(8);
    let version = u64::from_be_bytes(first.try_into().expect("eight bytes"));
    assert!(
        data.chunks(8).all(|word| word == first),
        "a torn block of version {version}"
    );
    version
}

/// Every block has what was acknowledged, or what was sent after it.
fn verify(client: &mut Raw, blocks: &mut [Block]) {
    let mut piece = vec![0; BLOCK];
    for (number, block) in blocks.iter_mut().enumerate() {
        let read = request(READ, 0, 0, (number * BLOCK) as u64, BLOCK as u32);
        client.stream.write_all(&read).expect("sent");
        assert_eq!(client.reply().expect("a reply"), (0, 0));
        client.stream.read_exact(&mut piece).expect("data");
        let version = found(&piece);
        assert!(
            version == block.acknowledged || version == block.sent,
            "block {number} has version {version}; {} is acknowledged, {} sent",
            block.acknowledged,
            block.sent
        );
        (block.acknowledged, block.sent) = (version, version);
    }
}

/// Writes some blocks; returns how many of them were acknowledged, all of them. An error
/// means that the server has been killed.
fn write(
    client: &mut Raw,
    blocks: &mut [Block],
    version: &mut u64,
    random: &mut Random,
) -> std::io::Result<u64> {
    let first = random.below(BLOCKS);
    let step = 1 + 2 * random.below(BLOCKS / 2);
    // An odd step visits every block once.
    let numbers = (0..DEPTH).map(|n| (first + n * step) % BLOCKS);
    let mut bytes = Vec::new();
    for number in numbers {
        *version += 1;
        blocks[number].sent = *version;
        let offset = (number * BLOCK) as u64;
        bytes.extend(request(WRITE, 0, number as u64, offset, BLOCK as u32));
        bytes.extend(data(*version));
    }
    client.stream.write_all(&bytes)?;
    for _ in 0..DEPTH {
        let (error, cookie) = client.reply()?;
        assert_eq!(error, 0);
        let block = &mut blocks[cookie as usize];
        block.acknowledged = block.sent;
    }
    Ok(DEPTH as u64)
}
