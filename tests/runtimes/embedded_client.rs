//! A client in 512 bytes of buffer.

use embedded_io_adapters::futures_03::FromFutures;
use nbd_codec::client::Request;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Misuse, SessionError};
use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use smol::net::unix::UnixStream;

use self::example::Client;

#[path = "../../examples/embedded_client.rs"]
#[allow(dead_code)]
mod example;

async fn connect(
    peer: &Peer,
    export: &str,
) -> Result<Client<FromFutures<UnixStream>>, SessionError> {
    let stream = UnixStream::connect(peer.socket()).await.expect("a socket");
    Client::connect(FromFutures::new(stream), export).await
}

fn writes_and_reads(args: &[&str]) {
    let peer = Peer::nbdkit(args);
    let disk = noise(12, 1 << 20);
    smol::block_on(async {
        let mut client = connect(&peer, "").await.expect("connected");
        for (block, start) in disk.chunks(5000).zip((0..).step_by(5000)) {
            let write = Request::write(start, block.len() as u64);
            client.run(write, block, &mut []).await.expect("a write");
        }
        let mut image = vec![1; 1 << 20];
        for (block, start) in image.chunks_mut(70_000).zip((0..).step_by(70_000)) {
            let read = Request::read(start, block.len() as u64);
            client.run(read, &[], block).await.expect("a read");
        }
        assert!(image == disk);
        let zeroes = Request::write_zeroes(4096, 8192);
        client.run(zeroes, &[], &mut []).await.expect("zeroes");
        let mut block = [1; 8192];
        let read = Request::read(4096, 8192);
        client.run(read, &[], &mut block).await.expect("a read");
        assert_eq!(block, [0; 8192]);
    });
}

#[test]
fn embedded_client_writes_and_reads() {
    needs!("nbdkit");
    writes_and_reads(&["memory", "1M"]);
}

#[test]
fn embedded_client_without_structured_replies() {
    needs!("nbdkit");
    writes_and_reads(&["--no-sr", "memory", "1M"]);
}

/// A failed read leaves the connection usable.
#[test]
fn a_server_that_fails_reads() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["--filter=error", "memory", "1M", "error-pread-rate=100%"]);
    smol::block_on(async {
        let mut client = connect(&peer, "").await.expect("connected");
        for _ in 0..3 {
            let result = client.run(Request::read(0, 512), &[], &mut [0; 512]).await;
            assert_eq!(result, Err(SessionError::Command(ErrorValue::EIO)));
        }
    });
}

#[test]
fn an_export_name_that_is_longer_than_the_buffer() {
    needs!("nbdkit");
    let peer = Peer::nbdkit(&["memory", "1M"]);
    smol::block_on(async {
        let result = connect(&peer, &"x".repeat(200)).await;
        assert!(matches!(
            result,
            Err(SessionError::Misuse(Misuse::Encode(_)))
        ));
    });
}
