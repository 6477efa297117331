//! `Framed` in both roles, with live peers and with each other.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use bytes::BytesMut;
use futures_util::StreamExt;
use nbd_codec::client::{OwnedTransmissionEvent, Request, Slot, Transmission};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::wire::reply::SimpleReply;
use nbd_codec::{Content, Framing, Limits, Negotiated, Step};
use nbd_test_support::images::noise;
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;
use nbd_test_support::program::run;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::codec::Decoder;

use self::example::{Client, Codec, connect, copy, serve};

#[path = "../../examples/framed.rs"]
#[allow(dead_code)]
mod example;

/// A TCP connection that leads to a peer.
async fn bridge(peer: &Peer) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (mut tcp, _) = listener.accept().await.expect("a connection");
    let mut unix = UnixStream::connect(peer.socket()).await.expect("a socket");
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut tcp, &mut unix).await });
    stream
}

/// Serves on a port of its own.
async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn write(client: &mut Client, offset: u64, data: &[u8]) {
    let request = Request::write(offset, data.len() as u64);
    let header = client.codec_mut().0.submit(request).expect("a write");
    let message = [header.as_bytes(), data].concat();
    client.get_mut().write_all(&message).await.expect("sent");
    let step = client.next().await.expect("a reply").expect("a reply");
    let Step::Event(OwnedTransmissionEvent::Done { result, .. }) = step else {
        panic!("{step:?}")
    };
    assert_eq!(result, Ok(()));
}

async fn read(mut client: Client) -> Vec<u8> {
    copy(&mut client).await.expect("copied")
}

async fn with_nbdkit(args: &[&str]) {
    let peer = Peer::nbdkit(args);
    let mut client = connect(bridge(&peer).await).await.expect("connected");
    let data = noise(13, 5 << 20);
    for (part, offset) in data.chunks(700_000).zip((0..).step_by(700_000)) {
        write(&mut client, offset, part).await;
    }
    assert!(read(client).await == data);
}

#[tokio::test]
async fn framed_client_with_nbdkit() {
    needs!("nbdkit");
    with_nbdkit(&["memory", "5M"]).await;
    with_nbdkit(&["--no-sr", "memory", "5M"]).await;
}

/// One test, as all servers of a process have the same disk.
#[tokio::test(flavor = "multi_thread")]
async fn framed_server_with_other_clients_and_with_its_own() {
    needs!("nbdinfo", "nbdcopy", "qemu-img");
    let address = start().await;
    let uri = format!("nbd://{address}");
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let data = noise(14, 16 << 20);
    fs::write(&input, &data).expect("input");

    let programs = tokio::task::spawn_blocking(move || {
        let info = run(Command::new("nbdinfo").args(["--json", &uri])).json();
        assert_eq!(info["exports"][0]["export-size"], 16 << 20);
        run(Command::new("nbdinfo").args(["--list", &uri])).ok();
        run(Command::new("nbdcopy").arg(&input).arg(&uri)).ok();
        run(Command::new("nbdcopy").arg(&uri).arg(&output)).ok();
        assert!(fs::read(&output).expect("output") == noise(14, 16 << 20));
        let mut compare = Command::new("qemu-img");
        compare
            .args(["compare", "-f", "raw", "-F", "raw"])
            .arg(&input);
        run(compare.arg(&uri)).ok();
    });
    programs.await.expect("the programs succeed");

    let stream = TcpStream::connect(address).await.expect("a connection");
    let mut client = connect(stream).await.expect("connected");
    write(&mut client, 12345, b"written by our own client").await;
    let mut expected = data;
    expected[12345..][..25].copy_from_slice(b"written by our own client");
    assert!(read(client).await == expected);
}

/// The server closes the connection within a reply.
#[tokio::test]
async fn framed_client_with_a_server_that_closes() {
    needs!("nbdkit");
    let mut peer = Peer::nbdkit(&["--filter=delay", "memory", "1M", "delay-read=60"]);
    let mut client = connect(bridge(&peer).await).await.expect("connected");
    let killed = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        peer.kill();
    };
    let (copied, ()) = tokio::join!(copy(&mut client), killed);
    let error = copied.expect_err("the server closed the connection");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

/// A payload is a part of the memory it was received in.
#[test]
fn payloads_are_not_copied() {
    let negotiated = Negotiated::new(Framing::Simple, 4096, TransmissionFlags::HAS_FLAGS);
    let session = Transmission::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
    let mut codec = Codec(session);
    let cookie = codec
        .0
        .submit(Request::read(0, 4096))
        .expect("a read")
        .cookie();
    let error = ErrorValue::NONE;
    let mut buffer = BytesMut::from(&SimpleReply { error, cookie }.encode()[..]);
    buffer.extend_from_slice(&[7; 4096]);
    let received = buffer.as_ptr_range();
    let step = codec.decode(&mut buffer).expect("a reply").expect("whole");
    let Step::Content(Content::Data { data, .. }) = step else {
        panic!("{step:?}")
    };
    assert_eq!(data, [7; 4096][..]);
    assert_eq!(data.as_ptr_range().end, received.end);
}
