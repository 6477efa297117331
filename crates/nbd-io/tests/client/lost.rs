//! Servers that end, hang, or come back as another export.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_codec::server::Request;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::ErrorValue;
use nbd_io::client::{Change, Error, Options, Reconnect};
use nbd_test_support::images::{MIB, noise};

use crate::canned::{self, Act, Server};
use crate::disk::Disk;
use crate::kills::{Server as Program, nbdkit};
use crate::{both, image};

both! {
    commands_are_sent_again;
    without_a_policy_calls_fail;
    a_command_that_ends_the_server_is_not_sent_for_ever;
    a_late_server_is_given_up;
    a_server_that_does_not_read_is_given_up;
    a_late_handshake_is_given_up;
    without_a_limit_of_time_it_connects;
    another_size_is_an_error;
    attempts_are_counted_for_each_outage;
    a_strict_flush_reports_an_outage_once;
    a_resize_whose_reply_is_lost_is_done;
    all_connections_follow_a_resize;
    a_server_that_shuts_down_is_left;
}

pub fn patient() -> Options {
    let policy = Reconnect::new().delays(Duration::from_millis(5), Duration::from_millis(50));
    Options::new().reconnect(policy.attempts(200))
}

/// Every other connection is closed at its third request, before or after it is done.
async fn commands_are_sent_again<D: Disk>() -> Result<(), Error> {
    let count = AtomicU64::new(0);
    let server = Server::start(1 << 20, move |connection, _| {
        match (count.fetch_add(1, Ordering::SeqCst) % 3, connection % 2) {
            (2, 0) => Act::Close,
            (2, 1) => Act::DoAndClose,
            _ => Act::Answer,
        }
    });
    let disk = D::open(&server.uri(), patient()).await?;
    for n in 0..60 {
        disk.write_at(n * 1000, &noise(n, 1000)).await?;
        assert!(disk.read_at(n * 1000, 1000).await? == noise(n, 1000));
        disk.flush().await?;
    }
    assert!(server.connections.load(Ordering::SeqCst) > 20);
    Ok(())
}

async fn without_a_policy_calls_fail<D: Disk>() -> Result<(), Error> {
    let server = Server::start(1 << 20, |_, _| Act::Close);
    let disk = D::open(&server.uri(), Options::new()).await?;
    for _ in 0..3 {
        let error = disk.read_at(0, 512).await;
        assert!(
            matches!(error, Err(Error::Session(_) | Error::Io(_))),
            "{error:?}"
        );
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    Ok(())
}

async fn a_command_that_ends_the_server_is_not_sent_for_ever<D: Disk>() -> Result<(), Error> {
    let server = Server::start(1 << 20, |_, request| match request {
        Request::Write(_) => Act::Close,
        _ => Act::Answer,
    });
    let options = patient().reconnect(Reconnect::new().resends(3));
    let disk = D::open(&server.uri(), options).await?;
    assert!(disk.write_at(0, &[1]).await.is_err());
    assert_eq!(server.connections.load(Ordering::SeqCst), 4);
    disk.read_at(0, 1).await?;
    Ok(())
}

/// The late command fails; others go to another connection, if there is a policy.
async fn a_late_server_is_given_up<D: Disk>() -> Result<(), Error> {
    let late = |request: &Request| matches!(request, Request::Flush(_));
    let act = move |_, request: &Request| {
        if late(request) {
            Act::Ignore
        } else {
            Act::Answer
        }
    };
    let server = Server::start(1 << 20, act);
    let timeout = Duration::from_millis(200);
    let start = Instant::now();
    let disk = D::open(&server.uri(), Options::new().timeout(timeout)).await?;
    let error = disk.flush().await;
    assert!(matches!(error, Err(Error::TimedOut)), "{error:?}");
    let error = disk.read_at(0, 1).await;
    assert!(matches!(error, Err(Error::TimedOut)), "{error:?}");
    assert!(start.elapsed() >= timeout);
    assert!(start.elapsed() < Duration::from_secs(20));
    let disk = D::open(&server.uri(), patient().timeout(timeout)).await?;
    for n in 0..3 {
        let error = disk.flush().await;
        assert!(matches!(error, Err(Error::TimedOut)), "{error:?}");
        disk.write_at(n, &[7]).await?;
    }
    assert!(disk.read_at(0, 3).await? == [7, 7, 7][..]);
    Ok(())
}

/// The data of a write does not fit the buffers of the sockets.
async fn a_server_that_does_not_read_is_given_up<D: Disk>() -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let listener = listener
            .into_std()
            .and_then(tokio::net::UnixListener::from_std);
        runtime.block_on(async {
            let (mut stream, _) = listener
                .expect("a socket")
                .accept()
                .await
                .expect("a client");
            canned::handshake_only(&mut stream).await;
            stream
        })
    });
    let uri = format!("nbd+unix:///?socket={}", path.display());
    let options = Options::new().timeout(Duration::from_millis(200));
    let start = Instant::now();
    // The server runs in its own thread.
    let disk = D::open(&uri, options).await?;
    let _open = server.join().expect("a server");
    let error = disk.write_at(0, &vec![1; 1 << 20]).await;
    assert!(matches!(error, Err(Error::TimedOut)), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(20));
    Ok(())
}

async fn a_late_handshake_is_given_up<D: Disk>() -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    // Connections are accepted by the kernel only.
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let uri = format!("nbd+unix:///?socket={}", path.display());
    let options = Options::new().connect_timeout(Duration::from_millis(100));
    let error = D::open(&uri, options).await.err();
    assert!(matches!(error, Some(Error::TimedOut)), "{error:?}");
    Ok(())
}

/// The longest time cannot be added to the clock.
async fn without_a_limit_of_time_it_connects<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let peer = crate::memory("1M", &[]);
    let port = crate::forwarded_port(peer.socket());
    let options = Options::new().connect_timeout(Duration::MAX);
    let options = options.timeout(Duration::MAX);
    let disk = D::open(&format!("nbd://127.0.0.1:{port}"), options).await?;
    assert!(disk.read_at(0, 2).await? == [0, 0][..]);
    Ok(())
}

async fn another_size_is_an_error<D: Disk>() -> Result<(), Error> {
    let server = Server::start(1 << 20, |_, request| match request {
        Request::Flush(_) => Act::Close,
        _ => Act::Answer,
    });
    let policy = Reconnect::new().resends(1);
    let strict = D::open(&server.uri(), Options::new().reconnect(policy)).await?;
    let accepting = Options::new().reconnect(policy.accept_changes(true));
    let accepting = D::open(&server.uri(), accepting).await?;
    server.disk.lock().expect("a disk").resize(1 << 19, 0);
    for _ in 0..2 {
        let size = Change::Size {
            was: 1 << 20,
            is: 1 << 19,
        };
        let error = strict.flush().await;
        assert!(
            matches!(&error, Err(Error::ExportChanged(change)) if *change == size),
            "{error:?}"
        );
    }
    let error = accepting.flush().await;
    assert!(
        matches!(error, Err(Error::Session(_) | Error::Io(_))),
        "{error:?}"
    );
    assert_eq!(accepting.negotiated().size, 1 << 19);
    accepting.read_at((1 << 19) - 1, 1).await?;
    Ok(())
}

async fn attempts_are_counted_for_each_outage<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let (folder, path) = image(MIB);
    let socket = folder.path().join("socket");
    let server = Program::start(&socket, &mut nbdkit(&socket, &path));
    let policy = Reconnect::new().attempts(3);
    let policy = policy.delays(Duration::from_millis(1), Duration::from_millis(1));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let disk = D::open(&uri, Options::new().reconnect(policy)).await?;
    disk.write_at(0, b"before").await?;
    drop(server);
    std::fs::remove_file(&socket).expect("the socket of a server that was killed");
    for _ in 0..3 {
        let error = disk.read_at(0, 6).await;
        assert!(matches!(error, Err(Error::Io(_))), "{error:?}");
    }
    let _server = Program::start(&socket, &mut nbdkit(&socket, &path));
    assert!(disk.read_at(0, 6).await? == b"before"[..]);
    Ok(())
}

async fn a_strict_flush_reports_an_outage_once<D: Disk>() -> Result<(), Error> {
    let server = Server::start(1 << 20, |_, request| match request {
        Request::Read(_) => Act::Close,
        _ => Act::Answer,
    });
    let policy = Reconnect::new().strict_flush(true).resends(1);
    let disk = D::open(&server.uri(), Options::new().reconnect(policy)).await?;
    disk.write_at(0, &[1]).await?;
    disk.flush().await?;
    assert!(disk.read_at(0, 1).await.is_err());
    disk.flush().await?;
    disk.write_at_with(0, vec![1].into(), CommandFlags::FUA)
        .await?;
    assert!(disk.read_at(0, 1).await.is_err());
    disk.flush().await?;
    disk.write_at(0, &[1]).await?;
    assert!(disk.read_at(0, 1).await.is_err());
    let error = disk.flush().await;
    assert!(matches!(error, Err(Error::UnflushedWrites)), "{error:?}");
    disk.flush().await
}

async fn a_resize_whose_reply_is_lost_is_done<D: Disk>() -> Result<(), Error> {
    for lost in [Act::Close, Act::DoAndClose] {
        let server = Server::start(1 << 20, move |connection, request| match request {
            Request::Resize(_) if connection == 0 => lost,
            _ => Act::Answer,
        });
        let disk = D::open(&server.uri(), patient()).await?;
        disk.resize(3 << 20).await?;
        assert_eq!(disk.negotiated().size, 3 << 20);
        disk.write_at(2 << 20, &[5]).await?;
        assert_eq!(server.disk.lock().expect("a disk").len(), 3 << 20);
        assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    }
    Ok(())
}

/// The server closes the connections that were opened with another size.
async fn all_connections_follow_a_resize<D: Disk>() -> Result<(), Error> {
    let server = Server::start(1 << 20, |_, _| Act::Answer);
    let disk = D::open(&server.uri(), patient().connections(3)).await?;
    disk.resize(2 << 20).await?;
    // By several at a time, on the connections that are free.
    let results = tokio::join!(
        disk.write_at(2 * MIB - 3, &[1]),
        disk.write_at(2 * MIB - 2, &[2]),
        disk.write_at(2 * MIB - 1, &[3]),
    );
    for result in <[_; 3]>::from(results) {
        result?;
    }
    assert!(disk.read_at(2 * MIB - 3, 3).await? == [1, 2, 3][..]);
    disk.resize(1 << 20).await?;
    assert!(disk.read_at(1 << 20, 1).await.is_err());
    Ok(())
}

async fn a_server_that_shuts_down_is_left<D: Disk>() -> Result<(), Error> {
    let act = |connection, _: &Request| match connection {
        0 | 1 => Act::Fail(ErrorValue::ESHUTDOWN),
        _ => Act::Answer,
    };
    let server = Server::start(1 << 20, act);
    let disk = D::open(&server.uri(), Options::new()).await?;
    for _ in 0..2 {
        let error = disk.read_at(0, 1).await;
        let shutdown = matches!(
            error,
            Err(Error::Command {
                error: ErrorValue::ESHUTDOWN,
                ..
            })
        );
        assert!(shutdown, "{error:?}");
    }
    let disk = D::open(&server.uri(), patient()).await?;
    disk.write_at(0, &[1]).await?;
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
    Ok(())
}
