//! The client without an allocator, over a socket.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use embedded_io_adapters::tokio_1::FromTokio;
use nbd_codec::client::{Config, MetaContextQuery};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::{Framing, Misuse, SessionError};
use nbd_io::embedded::{Client, Error, Extents};
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::peer::Peer;
use tokio::net::UnixStream;

use crate::{image, memory};

type Result<T> = std::result::Result<T, Error<std::io::Error>>;

async fn link(peer: &Peer) -> FromTokio<UnixStream> {
    FromTokio::new(UnixStream::connect(peer.socket()).await.expect("a socket"))
}

/// Every call, in 256 bytes of buffer.
#[tokio::test]
async fn every_call() -> Result<()> {
    require!("qemu-nbd");
    let (_folder, path) = image(MIB);
    let peer = Peer::qemu(&["-f", "raw"], &path);
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let mut buffer = [0; 256];
        let contexts = [MetaContextQuery::narrow("base:allocation")];
        let config = Config::new("").framing(framing).contexts(&contexts);
        let mut disk = Client::connect(link(&peer).await, config, &mut buffer).await?;
        assert_eq!(disk.size(), MIB);
        let data = noise(framing as u64, 100_000);
        disk.write_at(1000, &data).await?;
        disk.write_at_with(7, &data[..100], CommandFlags::FUA)
            .await?;
        disk.flush().await?;
        let mut back = vec![0; data.len()];
        disk.read_into(1000, &mut back).await?;
        assert!(back == data);
        disk.write_zeroes(2000, 50_000).await?;
        disk.read_into(1999, &mut back[..3]).await?;
        assert!(back[..3] == [data[999], 0, 0]);
        disk.trim(0, 512).await?;
        if disk
            .negotiated()
            .flags
            .contains(TransmissionFlags::SEND_CACHE)
        {
            disk.cache(0, MIB).await?;
        }
        let mut covered = 0;
        let mut take = |extents: Extents<'_>| match extents {
            Extents::Narrow { extents, .. } => {
                covered += extents.map(|e| u64::from(e.length)).sum::<u64>()
            }
            Extents::Wide { extents, .. } => covered += extents.map(|e| e.length).sum::<u64>(),
            _ => {}
        };
        let status = disk.block_status(0, MIB, &mut take).await;
        if framing == Framing::Simple {
            assert_eq!(
                status.err().map(|e| e.to_string()),
                Some(Misuse::NoContext.to_string())
            );
        } else {
            status?;
            assert_eq!(covered, MIB);
            let id = disk
                .negotiated()
                .contexts
                .iter()
                .next()
                .map(|context| context.id);
            assert_eq!(id.and_then(|id| disk.context(id)), Some(0));
        }
        let beyond = disk.read_into(MIB, &mut back[..1]).await;
        assert!(
            matches!(beyond, Err(Error::Session(SessionError::Misuse(_)))),
            "{beyond:?}"
        );
        disk.disconnect().await?;
    }
    Ok(())
}

/// Writes of parts of blocks need memory for a block; reads do not.
#[tokio::test]
async fn parts_of_blocks() -> Result<()> {
    require!("nbdkit");
    let policy = [
        "--filter=blocksize-policy",
        "blocksize-minimum=512",
        "blocksize-preferred=512",
        "blocksize-maximum=4096",
        "blocksize-error-policy=error",
    ];
    let peer = memory("64K", &policy);
    let (mut buffer, mut block) = ([0; 512], [0; 512]);
    let disk = Client::connect(link(&peer).await, Config::new(""), &mut buffer).await?;
    let mut disk = disk;
    let refused = disk.write_at(1, &[1]).await;
    let expected = Misuse::Misaligned { minimum: 512 };
    assert_eq!(
        refused.err().map(|e| e.to_string()),
        Some(expected.to_string())
    );
    let mut disk = disk.block_buffer(&mut block);
    let mut expected = vec![0; 65536];
    for (offset, length) in [(0, 512), (1, 1), (511, 2), (513, 3000), (100, 20_000)] {
        let data = noise(offset, length);
        disk.write_at(offset, &data).await?;
        expected[offset as usize..][..length].copy_from_slice(&data);
        let mut back = vec![0; length + 1];
        disk.read_into(offset, &mut back).await?;
        assert!(back == expected[offset as usize..][..length + 1]);
    }
    Ok(())
}

/// A call that is dropped when it waits for its reply has no effect on the next one.
#[tokio::test]
async fn dropped_calls() -> Result<()> {
    require!("nbdkit");
    let peer = memory("1M", &["--filter=delay", "rdelay=5ms"]);
    let mut buffer = [0; 512];
    let mut disk = Client::connect(link(&peer).await, Config::new(""), &mut buffer).await?;
    let data = noise(1, 100_000);
    disk.write_at(0, &data).await?;
    for n in 0..20 {
        let mut unused = vec![0; 50_000];
        {
            let mut read = pin!(disk.read_into(n, &mut unused));
            let polled = Polled(read.as_mut()).await;
            assert!(polled.is_none());
        }
        let mut back = [0; 100];
        disk.read_into(n * 100, &mut back).await?;
        assert!(back == data[n as usize * 100..][..100]);
    }
    disk.disconnect().await
}

/// A write that is dropped when a part of its data was sent makes the connection useless.
#[tokio::test]
async fn a_write_that_is_dropped_in_its_data() -> Result<()> {
    let (near, mut far) = tokio::io::duplex(300);
    let server = tokio::spawn(async move {
        crate::canned::handshake_only(&mut far).await;
        far
    });
    let mut buffer = [0; 512];
    let mut disk = Client::connect(FromTokio::new(near), Config::new(""), &mut buffer).await?;
    let far = server.await.expect("a server");
    {
        let data = [1; 1000];
        let mut write = pin!(disk.write_at(0, &data));
        assert!(Polled(write.as_mut()).await.is_none());
    }
    for _ in 0..2 {
        let error = disk.flush().await;
        assert!(matches!(error, Err(Error::Interrupted)), "{error:?}");
    }
    drop(far);
    Ok(())
}

/// Polls a future once.
struct Polled<'f, F>(Pin<&'f mut F>);

impl<F: Future> Future for Polled<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        }
    }
}
