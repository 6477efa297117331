//! Clients that mean harm, or are broken.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie};
use nbd_codec::wire::request::CompactRequest;
use nbd_io::server::{Config, Device, Export, Exports, Peer, ReadReply, Server};
use nbd_test_support::peer::poll_for;

use crate::support::{Client, Disk, FACES, MIB, Running, runtime, shared};

#[test]
fn a_handshake_has_a_deadline_that_bytes_do_not_extend() {
    for face in FACES {
        let config = Config::new().handshake_timeout(Duration::from_millis(300));
        let exports = Exports::new().with(Export::new("disk", Disk::new(MIB)));
        let running = Running::start(face, exports, config);
        let mut stream = running.connect();
        let began = Instant::now();
        // The flags, then an option, byte by byte.
        let option = *b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\xff\xff";
        let mut sent = option.into_iter().cycle();
        while stream
            .write_all(&[sent.next().expect("it is endless")])
            .is_ok()
        {
            assert!(began.elapsed() < Duration::from_secs(20), "{face:?}");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(began.elapsed() >= Duration::from_millis(300));
        running
            .client("disk")
            .read(0, 512)
            .expect("others are served");
    }
}

/// Counts the memory of replies that exist.
#[derive(Clone, Default)]
pub struct Counted {
    pub live: Arc<AtomicUsize>,
    pub most: Arc<AtomicUsize>,
}

struct Data(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
    }
}

impl Device for Counted {
    fn size(&self) -> u64 {
        64 * MIB
    }

    async fn read(&self, _: u64, reply: &mut ReadReply) -> io::Result<()> {
        let n = reply.remaining();
        let live = self.live.fetch_add(n, Ordering::SeqCst) + n;
        self.most.fetch_max(live, Ordering::SeqCst);
        let data = Data(vec![1; n], Arc::clone(&self.live));
        reply.put_bytes(nbd_io::server::Bytes::from_owner(data));
        Ok(())
    }
}

#[test]
fn clients_that_do_not_read_share_a_bounded_memory_and_are_disconnected() {
    for face in FACES {
        let device = Counted::default();
        let Counted { live, most } = device.clone();
        let config = Config::new()
            .memory(16 << 20)
            .stall_timeout(Duration::from_secs(2));
        let exports = Exports::new().with(Export::new("disk", device));
        let running = Running::start(face, exports, config);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = running.client("disk");
                for n in 0..64 {
                    client.send(Command::READ, n << 20, 1 << 20, &[]);
                }
                client
            })
            .collect();
        // Nevertheless another one is served, while they hold what they can get.
        poll_for("memory in use", || {
            (live.load(Ordering::SeqCst) >= 4 << 20).then_some(())
        });
        let mut honest = running.client("disk");
        for n in 0..64 {
            assert_eq!(honest.read(n << 16, 1 << 16), Ok(vec![1; 1 << 16]));
        }
        assert!(most.load(Ordering::SeqCst) <= 16 << 20);
        let cpu = running.processor_time();
        poll_for("all memory is given back", || {
            (live.load(Ordering::SeqCst) == 0).then_some(())
        });
        assert!(
            running.processor_time() - cpu < Duration::from_millis(500),
            "they cost time"
        );
        drop(clients);
    }
}

#[test]
fn a_flood_of_invalid_requests_is_answered_within_bounds() {
    for face in FACES {
        let running = Running::disk(face, Disk::new(MIB));
        let mut client = running.client("disk");
        client
            .stream
            .set_write_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout");
        let request = CompactRequest {
            flags: CommandFlags::NONE,
            command: Command(77),
            cookie: Cookie(1),
            offset: 0,
            length: 0,
        };
        let flood = request.encode().repeat(1000);
        let mut sent = 0_u64;
        // The server stops receiving once its replies are not read.
        while client.stream.write_all(&flood).is_ok() {
            sent += flood.len() as u64;
            assert!(sent < 64 << 20, "{face:?}");
        }
        running
            .client("disk")
            .read(0, 512)
            .expect("others are served");
    }
}

#[test]
fn clients_that_stall_or_end_in_the_handshake_affect_no_other() {
    for face in FACES {
        let running = Running::disk(face, Disk::new(MIB));
        let mut stalled = Vec::new();
        for junk in [
            &b""[..],
            b"\0\0\0\x03",
            b"\0\0\0\x03IHAVEOPT\0\0",
            b"GET / HTTP/1.0\r\n\r\n",
        ] {
            for stays in [true, false] {
                let mut stream = running.connect();
                stream.write_all(junk).expect("sent");
                stalled.extend(stays.then_some(stream));
            }
        }
        let data = running.client("disk").read(0, 1 << 20);
        assert!(data == Ok(vec![0; 1 << 20]), "{face:?}");
    }
}

#[test]
fn a_client_that_breaks_the_protocol_is_disconnected_after_its_replies() {
    for face in FACES {
        let running = Running::disk(face, Disk::new(MIB));
        let mut client = running.client("disk");
        let sent = client.send(Command::READ, 0, 16, &[]);
        client
            .stream
            .write_all(b"not a request, but text of 28 bytes")
            .expect("sent");
        let mut data = [1; 16];
        assert_eq!(client.reply(&mut data), (sent, Ok(())));
        client.closed();
    }
}

#[test]
fn a_client_that_sends_nothing_more_gets_its_replies() {
    for face in FACES {
        let running = Running::disk(face, shared(MIB));
        let mut client = running.client("disk");
        for n in 0..200 {
            client.send(Command::WRITE, n * 4096, 4, b"data");
        }
        client.stream.shutdown(Shutdown::Write).expect("shut down");
        let mut seen: Vec<_> = (0..200).map(|_| client.reply(&mut [])).collect();
        seen.sort();
        let expected: Vec<_> = (1..=200).map(|n| (Cookie(n), Ok(()))).collect();
        assert_eq!(seen, expected);
        client.closed();
    }
}

#[test]
fn a_device_that_panics_ends_the_connection_only() {
    struct Panics;

    impl Device for Panics {
        fn size(&self) -> u64 {
            MIB
        }

        async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
            assert!(offset == 0, "the device panics, as it should in this test");
            reply.put_hole(reply.remaining());
            Ok(())
        }
    }

    for face in FACES {
        let running = Running::disk(face, Panics);
        let mut client = running.client("disk");
        client.send(Command::READ, 512, 512, &[]);
        client.closed();
        running
            .client("disk")
            .read(0, 512)
            .expect("others are served");
    }
}

/// Has no file descriptors for some time.
struct Exhausted {
    listener: tokio::net::UnixListener,
    failures: AtomicUsize,
}

impl nbd_io::tokio::Listener for Exhausted {
    type Stream = tokio::net::UnixStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, Peer)>> {
        if self.failures.load(Ordering::SeqCst) < 3 {
            self.failures.fetch_add(1, Ordering::SeqCst);
            return Poll::Ready(Err(io::Error::from_raw_os_error(24)));
        }
        let (stream, _) = ready!(self.listener.poll_accept(cx))?;
        Poll::Ready(Ok((stream, Peer::Unix)))
    }
}

#[test]
fn accepting_goes_on_after_it_failed_and_does_not_spin() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let exports = Exports::new().with(Export::new("disk", Disk::new(MIB)));
    let server = Server::new(exports, Config::new());
    let runtime = runtime("accepts");
    let listener = {
        let _runtime = runtime.enter();
        tokio::net::UnixListener::bind(&path).expect("a socket")
    };
    let own = server.clone();
    let began = Instant::now();
    runtime.spawn(async move {
        let failures = AtomicUsize::new(0);
        let listener = Exhausted { listener, failures };
        nbd_io::tokio::listen(listener, &own)
            .await
            .expect("it listens");
    });
    let stream = std::os::unix::net::UnixStream::connect(&path).expect("a connection");
    let mut client = Client::start(stream, "disk").expect("the export");
    assert_eq!(client.read(0, 4), Ok(vec![0; 4]));
    assert!(began.elapsed() >= Duration::from_millis(300));
    server.shut_down();
}

#[test]
fn most_connections_are_bounded() {
    for face in FACES {
        let exports = Exports::new().with(Export::new("disk", Disk::new(MIB)));
        let running = Running::start(face, exports, Config::new().connections(2));
        let first = running.client("disk");
        let _second = running.client("disk");
        let mut third = running.connect();
        third
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a timeout");
        let mut greeting = [0; 18];
        third.read_exact(&mut greeting).expect_err("it waits");
        drop(first);
        third
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        third.read_exact(&mut greeting).expect("it is served");
    }
}
