//! Concurrency, and requests of all sizes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_io::server::{Config, Device, Export, Exports, ReadReply};
use nbd_test_support::images::noise;

use crate::support::{Disk, FACES, Face, MIB, Running};

/// Takes a while, and counts how many reads do so at a time.
struct Slow {
    face: Face,
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Device for Slow {
    fn size(&self) -> u64 {
        MIB
    }

    async fn read(&self, _: u64, reply: &mut ReadReply) -> io::Result<()> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let time = Duration::from_millis(20);
        match self.face {
            Face::Tokio => tokio::time::sleep(time).await,
            Face::Threads => thread::sleep(time),
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        reply.put_hole(reply.remaining());
        Ok(())
    }
}

#[test]
fn as_many_requests_run_as_may_and_no_more() {
    for (face, limit, expected) in [
        (Face::Tokio, 5, 5),
        (Face::Threads, 5, 5),
        (Face::Threads, 64, 16),
    ] {
        let most = Arc::<AtomicUsize>::default();
        let device = Slow {
            face,
            now: AtomicUsize::new(0),
            most: Arc::clone(&most),
        };
        let exports = Exports::new().with(Export::new("disk", device));
        let running = Running::start(face, exports, Config::new().in_flight(limit));
        let mut client = running.client("disk");
        for n in 0..40 {
            client.send(Command::READ, n * 512, 512, &[]);
        }
        let mut seen: Vec<_> = (0..40).map(|_| client.reply(&mut [0; 512])).collect();
        seen.sort();
        assert!(seen.iter().all(|(_, result)| result.is_ok()));
        seen.dedup();
        assert_eq!(seen.len(), 40);
        assert_eq!(most.load(Ordering::SeqCst), expected, "{face:?}");
    }
}

/// The read at offset 0 waits until the test ends it.
struct Long(Face, Arc<AtomicBool>);

impl Device for Long {
    fn size(&self) -> u64 {
        MIB
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        while offset == 0 && !self.1.load(Ordering::SeqCst) {
            let time = Duration::from_millis(1);
            match self.0 {
                Face::Tokio => tokio::time::sleep(time).await,
                Face::Threads => thread::sleep(time),
            }
        }
        reply.put_hole(reply.remaining());
        Ok(())
    }
}

#[test]
fn a_long_request_does_not_delay_later_ones() {
    for face in FACES {
        let over = Arc::new(AtomicBool::new(false));
        let running = Running::disk(face, Long(face, Arc::clone(&over)));
        let mut client = running.client("disk");
        let long = client.send(Command::READ, 0, 512, &[]);
        assert_eq!(client.read(512, 512), Ok(vec![0; 512]), "{face:?}");
        over.store(true, Ordering::SeqCst);
        assert_eq!(client.reply(&mut [0; 512]), (long, Ok(())), "{face:?}");
    }
}

#[test]
fn payloads_of_all_sizes_arrive() {
    for face in FACES {
        let running = Running::disk(face, Disk::new(128 * MIB));
        let mut client = running.client("disk");
        for length in [
            1,
            511,
            4096,
            32 << 10,
            65_535,
            65_536,
            65_537,
            300_001,
            32 << 20,
        ] {
            let data = noise(length, length as usize);
            client.write(7, &data).expect("written");
            assert!(client.read(7, length as u32) == Ok(data), "{length} bytes");
        }
        let mut sent = Vec::new();
        for n in 0..200_u64 {
            let data = noise(n, 10_000);
            sent.push((
                client.send(Command::WRITE, n * 10_000, 10_000, &data),
                Ok(()),
            ));
        }
        let mut seen: Vec<_> = (0..200).map(|_| client.reply(&mut [])).collect();
        seen.sort();
        assert_eq!(seen, sent);
        for n in 0..200_u64 {
            assert!(client.read(n * 10_000, 10_000) == Ok(noise(n, 10_000)));
        }
    }
}

#[test]
fn the_memory_bounds_the_maximum_payload() {
    for face in FACES {
        let exports = Exports::new().with(Export::new("disk", Disk::new(64 * MIB)));
        let running = Running::start(face, exports, Config::new().memory(1 << 20));
        let mut client = running.client("disk");
        let maximum = client.negotiated.constraints().maximum;
        assert_eq!(maximum, 256 << 10);
        // As many as may be in flight: they wait for memory.
        for n in 0..64 {
            client.send(Command::READ, n * u64::from(maximum), maximum, &[]);
        }
        let mut data = vec![0; maximum as usize];
        for _ in 0..64 {
            let (_, result) = client.reply(&mut data);
            result.expect("read");
        }
        assert_eq!(client.read(0, maximum + 1), Err(ErrorValue::EINVAL));
    }
}
