//! Servers that are neither a simple disk nor what a test made: our own in every framing,
//! and those that close the connection in the handshake.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use nbd_io::client::{Error, Options};
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::peer::Peer;
use nbd_test_support::program::tool;
use nbd_test_support::server::Server;

use crate::disk::Disk;
use crate::{both, image, memory};

both! {
    nbd_serve_in_every_framing;
    peers_that_offer_less;
    reads_that_fail;
    a_server_that_closes_in_the_handshake;
}

/// Data at both ends and across blocks, and the whole.
async fn exercise<D: Disk>(uri: &str) -> Result<(), Error> {
    let disk = D::open(uri, Options::new()).await?;
    let size = disk.negotiated().size;
    let mut expected = vec![0; size as usize];
    for (offset, length) in [(0, 3 * MIB + 4096), (size - 5000, 5000), (70_001, 200_000)] {
        let data = noise(offset, length as usize);
        disk.write_at(offset, &data).await?;
        expected[offset as usize..][..data.len()].copy_from_slice(&data);
    }
    disk.flush().await?;
    assert!(disk.read_at(0, size as usize).await? == expected, "{uri}");
    disk.disconnect().await;
    Ok(())
}

async fn nbd_serve_in_every_framing<D: Disk>() -> Result<(), Error> {
    let (folder, path) = image(8 * MIB);
    let path = path.to_str().expect("UTF-8");
    for args in [
        &["--memory=8M", "--framing=simple"][..],
        &["--memory=8M", "--framing=structured"],
        &["--memory=8M", "--framing=extended"],
        &["--memory=8M", "--oldstyle"],
        // Block sizes that are neither the smallest nor the default.
        &["--block-size=512:4096:128K", path],
    ] {
        let socket = format!("--unix={}", folder.path().join("socket").display());
        let server = Server::start(tool("nbd-serve").args(args).arg(socket));
        exercise::<D>(&server.uri).await?;
    }
    Ok(())
}

/// Without structured replies, and without all that is newer than `NBD_OPT_GO`.
async fn peers_that_offer_less<D: Disk>() -> Result<(), Error> {
    require!("nbdkit", "nbd-server");
    exercise::<D>(&memory("8M", &["--no-sr"]).uri("")).await?;
    let (_folder, path) = image(8 * MIB);
    exercise::<D>(&Peer::nbd_server(&path).uri("disk")).await
}

async fn reads_that_fail<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let error = ["--filter=error", "error-pread-rate=100%", "error=EIO"];
    let peer = memory("1M", &error);
    let disk = D::open(&peer.uri(""), Options::new()).await?;
    let error = disk.read_at(0, 512).await;
    assert!(error.is_err_and(|error| error.to_string().contains("EIO")));
    disk.write_at(0, &[1; 512]).await
}

/// Before the greeting, within it, after it, and at the first option.
async fn a_server_that_closes_in_the_handshake<D: Disk>() -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let greeting = b"NBDMAGICIHAVEOPT\0\x03";
    // The thread ends with the process.
    thread::spawn(move || {
        for (number, mut stream) in listener.incoming().flatten().enumerate() {
            let sent = [0, 9, greeting.len(), greeting.len()][number % 4];
            let _ = stream.write_all(&greeting[..sent]);
            if number % 4 == 3 {
                let _ = stream.read_exact(&mut [0; 4 + 16]);
            }
        }
    });
    let uri = format!("nbd+unix:///?socket={}", path.display());
    for _ in 0..4 {
        let error = D::open(&uri, Options::new()).await.err();
        let closed = matches!(error, Some(Error::Session(_) | Error::Io(_)));
        assert!(closed, "{error:?}");
    }
    Ok(())
}
