//! Calls that are dropped.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use nbd_codec::server::Request;
use nbd_io::client::{Error, Options};
use nbd_io::tokio::Client;
use nbd_test_support::images::noise;
use nbd_test_support::peer::Peer;

use crate::canned::{Act, Server};
use crate::memory;

/// Bytes of the range that one call of a task writes.
const PART: usize = 1024;
const TASKS: usize = 40;
const CALLS: usize = 250;

/// 10,000 calls, of which a third are dropped at any await, with blocks of 1 and of 4096
/// bytes. Four tasks share each block of 4096.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_calls_affect_no_other() -> Result<(), Error> {
    require!("nbdkit");
    let policy = [
        "--filter=blocksize-policy",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-error-policy=error",
    ];
    for filters in [&[][..], &policy[..]] {
        let peer: Peer = memory("64M", filters);
        let client = Client::connect_with(&peer.uri(""), Options::new().in_flight(16)).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..TASKS {
            let client = client.clone();
            tasks.spawn(async move { Task { number, client }.run().await });
        }
        let mut dropped = 0;
        let mut parts = Vec::new();
        while let Some(task) = tasks.join_next().await {
            let (n, own) = task.expect("a task")?;
            dropped += n;
            parts.extend(own);
        }
        let part_of_all = dropped as f64 / (TASKS * CALLS) as f64;
        assert!(
            (0.2..0.5).contains(&part_of_all),
            "{dropped} calls were dropped"
        );
        // A slot of each was freed: as many as there are at the same time.
        let all = (0..64).map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.read_at(n * 4096, 4096).await })
        });
        for read in all.collect::<Vec<_>>() {
            read.await.expect("a task")?;
        }
        // What was answered is there; what was dropped is there, or what was before.
        for (offset, possible) in parts {
            let data = client.read_at(offset, PART).await?;
            let known = possible.iter().any(|content| data == content[..]);
            assert!(known, "the part at {offset}: {} possible", possible.len());
        }
        client.disconnect().await;
    }
    Ok(())
}

/// A part of the export, and what can be in it.
type Part = (u64, Vec<Vec<u8>>);

struct Task {
    number: usize,
    client: Client,
}

impl Task {
    /// Returns how many calls were dropped, and the parts that were written.
    async fn run(&self) -> Result<(usize, Vec<Part>), Error> {
        let mut parts: Vec<Part> = Vec::new();
        let mut dropped = 0;
        let mut state = noise(self.number as u64 + 1, 8 * CALLS * 4);
        let mut random = move |below: u64| {
            let word = state.split_off(state.len() - 8);
            u64::from_le_bytes(word.try_into().expect("8 bytes")) % below
        };
        for call in 0..CALLS {
            // Tasks with numbers that differ by less than four share a block.
            let at = |call: usize| {
                let block = call * TASKS / 4 + self.number / 4;
                (block * 4096 + self.number % 4 * PART) as u64
            };
            // One poll begins a call: it is dropped at its first await, or at a later one.
            let polls = if random(3) == 0 {
                1 + random(3) as usize
            } else {
                usize::MAX
            };
            if call > 0 && random(3) == 0 {
                let (offset, possible) = &parts[random(parts.len() as u64) as usize];
                match DropAfter(polls, pin!(self.client.read_at(*offset, PART))).await {
                    Some(data) => {
                        let data = data?;
                        assert!(possible.iter().any(|content| data == content[..]));
                    }
                    None => dropped += 1,
                }
                continue;
            }
            let offset = at(call);
            let data = noise(offset + 1, PART);
            match DropAfter(polls, pin!(self.client.write_at(offset, data.clone()))).await {
                Some(result) => {
                    result?;
                    parts.push((offset, vec![data]));
                }
                // It may happen later, so this part is not written again.
                None => {
                    dropped += 1;
                    parts.push((offset, vec![vec![0; PART], data]));
                }
            }
        }
        Ok((dropped, parts))
    }
}

/// A future that is dropped after `n` polls.
struct DropAfter<'f, F>(usize, Pin<&'f mut F>);

impl<F: Future> Future for DropAfter<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.1.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                self.0 = self.0.saturating_sub(1);
                match self.0 {
                    0 => Poll::Ready(None),
                    _ => Poll::Pending,
                }
            }
        }
    }
}

/// The server does the write of a block after the call was dropped. It has the whole block,
/// as it was before: no other write to the block may come in between.
#[tokio::test]
async fn a_dropped_part_of_a_block_excludes_others_until_it_is_done() -> Result<(), Error> {
    for (offset, length) in [(100, 1), (0, 4096)] {
        let count = AtomicUsize::new(0);
        let server = Server::with_blocks(4096, 1 << 16, move |_, request| match request {
            Request::Write(_) if count.fetch_add(1, Ordering::SeqCst) == 0 => Act::Delay,
            _ => Act::Answer,
        });
        let client = Client::connect(&server.uri()).await?;
        // The second await is that of the write.
        let first = client.write_at(0, b"dropped");
        assert!(DropAfter(2, Box::pin(first).as_mut()).await.is_none());
        let data = vec![7; length];
        client.write_at(offset, &data).await?;
        let back = client.read_at(offset, length).await?;
        assert!(back == data, "{length} bytes at {offset}");
        tokio::time::sleep(Duration::from_millis(700)).await;
        let back = client.read_at(offset, length).await?;
        assert!(back == data, "{length} bytes at {offset}, later");
    }
    Ok(())
}

/// A call that is kept and not polled does not stop others.
#[tokio::test]
async fn a_call_that_is_not_polled_stops_no_other() -> Result<(), Error> {
    require!("nbdkit");
    let peer = memory("1M", &[]);
    let client = Client::connect(&peer.uri("")).await?;
    let kept = client.read_at(0, 4096);
    let mut kept = pin!(kept);
    let begun = std::future::poll_fn(|cx| Poll::Ready(kept.as_mut().poll(cx).is_pending()));
    assert!(begun.await);
    for _ in 0..10 {
        let write = client.write_at(8192, &[1; 4096]);
        let write = tokio::time::timeout(Duration::from_secs(20), write);
        write.await.expect("it does not wait for the other call")?;
    }
    kept.await?;
    Ok(())
}
