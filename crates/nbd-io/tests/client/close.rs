//! The end of a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nbd_codec::wire::number::Command;
use nbd_io::client::Options;
use nbd_io::tokio::Client;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::time::{Sleep, sleep};

use crate::canned;

/// A stream that accepts bytes at once, and sends them when it is flushed: under TLS these
/// are records, for which the socket has no room for a while.
struct Holding {
    stream: DuplexStream,
    held: Vec<u8>,
    time: Duration,
    /// Until the socket has room.
    full: Option<Pin<Box<Sleep>>>,
    flushes: Arc<AtomicUsize>,
}

impl AsyncRead for Holding {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, space)
    }
}

impl AsyncWrite for Holding {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let holding = self.get_mut();
        holding.flushes.fetch_add(1, Ordering::SeqCst);
        if holding.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let time = holding.time;
        let full = holding.full.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(full.as_mut().poll(cx));
        holding.full = None;
        let n = ready!(Pin::new(&mut holding.stream).poll_write(cx, &holding.held))?;
        assert_eq!(n, holding.held.len(), "there is room");
        holding.held.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// It is the last message of a client, which then closes the connection.
#[tokio::test]
async fn disc_is_sent_before_the_connection_is_closed() {
    let (ours, mut server) = duplex(1 << 16);
    let serving = tokio::spawn(async move {
        canned::handshake_only(&mut server).await;
        let mut requests = Vec::new();
        server.read_to_end(&mut requests).await.expect("the end");
        requests
    });
    let flushes = Arc::<AtomicUsize>::default();
    let stream = Holding {
        stream: ours,
        held: Vec::new(),
        time: Duration::from_millis(50),
        full: None,
        flushes: flushes.clone(),
    };
    let client = Client::from_stream(stream, "", Options::new()).await;
    let client = client.expect("a connection");
    let before = flushes.load(Ordering::SeqCst);
    client.disconnect().await;
    drop(client);
    let requests = serving.await.expect("a server");
    let Command(disc) = Command::DISC;
    assert_eq!(
        requests.get(6..8),
        Some(&disc.to_be_bytes()[..]),
        "{requests:?}"
    );
    // The client sleeps while the socket is full.
    let flushes = flushes.load(Ordering::SeqCst) - before;
    assert!(flushes < 10, "{flushes} attempts");
}
