//! One connection, many tasks, and reads that are dropped at any await.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;

use nbd_codec::client::Request;
use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use smol::net::unix::UnixStream;

use self::example::{Client, connect};
use crate::Random;

#[path = "../../examples/futures_client.rs"]
#[allow(dead_code)]
mod example;

const SIZE: usize = 4 << 20;

async fn open(peer: &Peer) -> io::Result<(Client, impl Future<Output = io::Result<()>> + use<>)> {
    let stream = UnixStream::connect(peer.socket()).await?;
    connect(stream.clone(), stream, String::new()).await
}

/// Polls `future` at most `polls` times, then drops it.
async fn polled<F: Future>(future: F, mut polls: u64) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// What a task sees: `true` if its read was dropped.
async fn task(client: Client, disk: &'static [u8], seed: u64) -> bool {
    let mut random = Random(seed);
    let mut dropped = false;
    for _ in 0..20 {
        let offset = random.below(disk.len() as u64 - 1);
        let most = (disk.len() as u64 - offset).min(200 << 10);
        let length = 1 + random.below(most);
        let read = client.command(Request::read(offset, length), Vec::new());
        let data = if random.below(3) == 0 {
            let data = polled(read, random.below(4)).await;
            dropped |= data.is_none();
            data
        } else {
            Some(read.await)
        };
        if let Some(data) = data {
            let expected = &disk[offset as usize..][..length as usize];
            assert!(data.expect("a read") == expected, "{length} at {offset}");
        }
    }
    dropped
}

fn dropped_reads(args: &[&str]) {
    let peer = Peer::nbdkit(&[args, &["memory", "4M", "delay-read=1ms"]].concat());
    let disk: &'static [u8] = noise(11, SIZE).leak();
    smol::block_on(async {
        let (client, connection) = open(&peer).await.expect("connected");
        let connection = smol::spawn(connection);
        for (part, offset) in disk.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
            let request = Request::write(offset, part.len() as u64);
            let written = client.command(request, part.to_vec()).await;
            written.expect("a write");
        }
        let tasks: Vec<_> = (1..=100)
            .map(|seed| smol::spawn(task(client.clone(), disk, seed * 0x9e37_79b9)))
            .collect();
        let mut dropped = 0;
        for task in tasks {
            dropped += usize::from(task.await);
        }
        assert!(dropped > 90, "{dropped} of 100 tasks dropped a read");
        // `DISC` is sent after the replies that no task waits for.
        drop(client);
        connection.await.expect("the connection ends as it should");
    });
}

#[test]
fn reads_are_dropped_at_any_await() {
    needs!("nbdkit");
    dropped_reads(&["--filter=delay"]);
}

#[test]
fn reads_are_dropped_at_any_await_without_structured_replies() {
    needs!("nbdkit");
    dropped_reads(&["--no-sr", "--filter=delay"]);
}

#[test]
fn dropped_writes_are_written_whole_or_not_at_all() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["memory", "4M"]);
    smol::block_on(async {
        let (client, connection) = open(&peer).await.expect("connected");
        let connection = smol::spawn(connection);
        let length = 1 << 20;
        let mut random = Random(5);
        for byte in 1..=100 {
            let write = client.command(Request::write(0, length), vec![byte; length as usize]);
            polled(write, random.below(3)).await;
        }
        // Writes of 4 KiB at another place wait for none of them.
        let written = client
            .command(Request::write(length, 4096), vec![7; 4096])
            .await;
        written.expect("a write");
        let read = client
            .command(Request::read(length, 4096), Vec::new())
            .await;
        assert_eq!(read.expect("a read"), [7; 4096]);
        drop(client);
        connection.await.expect("the connection ends as it should");

        let (client, connection) = open(&peer).await.expect("connected");
        let connection = smol::spawn(connection);
        let data = client.command(Request::read(0, length), Vec::new()).await;
        let data = data.expect("a read");
        assert!(data.iter().all(|byte| *byte != 0));
        drop(client);
        connection.await.expect("the connection ends as it should");
    });
}

#[test]
fn a_payload_of_another_length_is_refused() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["memory", "1M"]);
    smol::block_on(async {
        let (client, connection) = open(&peer).await.expect("connected");
        let connection = smol::spawn(connection);
        // More often than there are slots: none of them leaks.
        for _ in 0..40 {
            let result = client.command(Request::write(0, 512), vec![1; 511]).await;
            assert_eq!(
                result.expect_err("refused").kind(),
                io::ErrorKind::InvalidInput
            );
        }
        let data = client.command(Request::read(0, 512), Vec::new()).await;
        assert_eq!(data.expect("a read"), [0; 512]);
        drop(client);
        connection.await.expect("the connection ends as it should");
    });
}

/// More tasks than slots wait when the server ends, or the connection is
/// dropped: all of them get an error.
#[test]
fn tasks_are_woken_when_the_connection_ends() {
    needs!("nbdkit");
    for ends in [true, false] {
        let mut peer = Peer::nbdkit(&["--filter=delay", "memory", "1M", "delay-read=60"]);
        smol::block_on(async {
            let (client, connection) = open(&peer).await.expect("connected");
            let connection = smol::spawn(connection);
            let tasks: Vec<_> = (0..100)
                .map(|_| {
                    let client = client.clone();
                    smol::spawn(
                        async move { client.command(Request::read(0, 512), Vec::new()).await },
                    )
                })
                .collect();
            smol::Timer::after(std::time::Duration::from_millis(50)).await;
            if ends {
                peer.kill();
                connection.await.expect_err("the connection was lost");
            } else {
                connection.cancel().await;
            }
            for task in tasks {
                let error = task.await.expect_err("no reply");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            }
        });
    }
}
