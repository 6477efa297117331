//! Every call, by both clients.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use nbd_codec::client::ConnectError;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Framing, Misuse, Violation};
use nbd_io::client::{BlockStatus, Error, Options};
use nbd_test_support::images::{MIB, noise};
use nbd_test_support::peer::Peer;

use crate::canned::{Act, Server};
use crate::disk::Disk;
use crate::{both, image, memory};

both! {
    data_is_what_was_written;
    long_calls_are_split;
    parts_of_blocks_are_written;
    neighbours_lose_no_update;
    flags_reach_the_server;
    narrow_and_wide_status;
    contexts_are_filtered;
    several_connections;
    errors_of_the_server;
    a_wrong_reply_costs_one_command;
    what_cannot_be_sent;
    every_transport;
    every_export_is_found_by_name;
}

/// Reads and writes of any length at any place; trim, zeroes, cache.
async fn data_is_what_was_written<D: Disk>() -> Result<(), Error> {
    require!("nbdkit", "qemu-nbd");
    let (_folder, path) = image(2 * MIB);
    for peer in [memory("2M", &[]), Peer::qemu(&["-f", "raw"], &path)] {
        for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
            let disk = D::open(&peer.uri(""), Options::new().framing(framing)).await?;
            let mut expected = vec![0; 2 << 20];
            disk.write_zeroes(0, 2 * MIB).await?;
            for (offset, length) in [(0, 1), (4095, 2), (512, 4096), (70_000, 300_000), (1, 9000)] {
                let data = noise(offset, length);
                disk.write_at(offset, &data).await?;
                expected[offset as usize..][..length].copy_from_slice(&data);
                assert!(disk.read_at(offset, length).await? == data);
            }
            disk.write_zeroes(100_001, 77_777).await?;
            expected[100_001..177_778].fill(0);
            disk.trim(1 << 20, 1 << 19).await?;
            disk.cache(0, 2 * MIB).await?;
            disk.flush().await?;
            assert!(disk.read_at(0, 1 << 20).await? == expected[..1 << 20]);
            let mut block = vec![1; 40_000];
            disk.read_into(60_000, &mut block).await?;
            assert!(block == expected[60_000..100_000]);
            assert_eq!(disk.read_at(2 * MIB, 0).await?, "");
            disk.write_at(5, &[]).await?;
            disk.disconnect().await;
        }
    }
    Ok(())
}

/// 100 MB by a server that takes 32 MiB, and by one that takes 64 KiB.
async fn long_calls_are_split<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let policy = [
        "--filter=blocksize-policy",
        "blocksize-maximum=64K",
        "blocksize-error-policy=error",
    ];
    for filters in [&[][..], &policy[..]] {
        let peer = memory("128M", filters);
        let disk = D::open(&peer.uri(""), Options::new().in_flight(5)).await?;
        let data = noise(9, 100_000_000);
        disk.write_at_with(4321, data.clone().into(), CommandFlags::NONE)
            .await?;
        assert!(disk.read_at(4321, data.len()).await? == data);
        disk.write_at(4321, &data[..70_001]).await?;
        let mut back = vec![0; data.len()];
        disk.read_into(4321, &mut back).await?;
        assert!(back == data);
    }
    Ok(())
}

/// Blocks of 4096 bytes, and ranges that begin and end anywhere.
async fn parts_of_blocks_are_written<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let peer = memory("1M", &POLICY_4096);
    let disk = D::open(&peer.uri(""), Options::new()).await?;
    assert_eq!(disk.negotiated().constraints().minimum, 4096);
    let mut expected = noise(1, 1 << 20);
    disk.write_at(0, &expected).await?;
    for (offset, length) in [
        (1, 1),
        (4095, 2),
        (4096, 4096),
        (4097, 8190),
        (100, 4000),
        (8000, 200_000),
    ] {
        let data = noise(offset, length);
        disk.write_at(offset, &data).await?;
        expected[offset as usize..][..length].copy_from_slice(&data);
        disk.write_zeroes(offset + 300_000, length as u64).await?;
        expected[offset as usize + 300_000..][..length].fill(0);
        // Only whole blocks are discarded, and that server fills them with zeroes.
        disk.trim(offset + 600_000, length as u64).await?;
        let (from, to) = (offset + 600_000, offset + 600_000 + length as u64);
        let (from, to) = (from.next_multiple_of(4096), to / 4096 * 4096);
        if from < to {
            expected[from as usize..to as usize].fill(0);
        }
        disk.cache(offset, length as u64).await?;
        assert!(disk.read_at(offset, length).await? == data);
        let mut back = vec![0; length + 3];
        disk.read_into(offset, &mut back).await?;
        assert!(back == expected[offset as usize..][..length + 3]);
    }
    assert!(disk.read_at(0, 1 << 20).await? == expected);
    Ok(())
}

const POLICY_4096: [&str; 4] = [
    "--filter=blocksize-policy",
    "blocksize-minimum=4096",
    "blocksize-preferred=4096",
    "blocksize-error-policy=error",
];

/// 64 writes of 64 bytes each into one block, at the same time as writes of whole blocks
/// beside it, by tasks or threads.
async fn neighbours_lose_no_update<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let peer = memory("64K", &POLICY_4096);
    let (uri, options) = (peer.uri(""), Options::new());
    let disk = D::open(&uri, options.clone()).await?;
    let client = nbd_io::tokio::Client::connect_with(&uri, options.clone()).await?;
    let threads = nbd_io::blocking::Client::connect_with(&uri, options)?;
    let parts: Vec<_> = (0..64).map(|n| (n * 64, noise(n, 64))).collect();
    // By tasks, on the second block; by threads, on the third.
    let mut tasks = tokio::task::JoinSet::new();
    for (offset, data) in parts.clone() {
        let client = client.clone();
        tasks.spawn(async move { client.write_at(4096 + offset, &data).await });
    }
    std::thread::scope(|scope| {
        for (offset, data) in &parts {
            let threads = &threads;
            scope.spawn(move || threads.write_at(8192 + offset, data).expect("a write"));
        }
    });
    while let Some(result) = tasks.join_next().await {
        result.expect("a task")?;
    }
    let expected: Vec<_> = parts.iter().flat_map(|(_, data)| data.clone()).collect();
    assert!(disk.read_at(4096, 4096).await? == expected);
    assert!(disk.read_at(8192, 4096).await? == expected);
    Ok(())
}

/// The flags that a server without them would refuse.
async fn flags_reach_the_server<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let peer = memory(
        "1M",
        &["--filter=log", &format!("logfile={}", log.display())],
    );
    let disk = D::open(&peer.uri(""), Options::new()).await?;
    let data = Bytes::from_static(b"data");
    let df = disk.negotiated().flags.contains(TransmissionFlags::SEND_DF);
    disk.write_at_with(0, data, CommandFlags::FUA).await?;
    disk.trim_with(0, 512, CommandFlags::FUA).await?;
    let flags = CommandFlags::NO_HOLE | CommandFlags::FUA;
    disk.write_zeroes_with(0, 512, flags).await?;
    disk.write_zeroes_with(0, 512, CommandFlags::FAST_ZERO)
        .await?;
    if df {
        disk.read_at_with(0, 512, CommandFlags::DF).await?;
    }
    disk.disconnect().await;
    let log = std::fs::read_to_string(log).expect("a log");
    for line in [
        "Write id=1 offset=0x0 count=0x4 fua=1",
        "Trim id=2 offset=0x0 count=0x200 fua=1",
        "Zero id=3 offset=0x0 count=0x200 trim=0 fua=1 fast=0",
        "Zero id=4 offset=0x0 count=0x200 trim=1 fua=0 fast=1",
    ] {
        assert!(log.contains(line), "{line} in {log}");
    }
    Ok(())
}

/// A hole between two blocks of data, in the width that was negotiated.
async fn narrow_and_wide_status<D: Disk>() -> Result<(), Error> {
    require!("qemu-nbd");
    let (_folder, path) = image(MIB);
    let peer = Peer::qemu(&["-f", "raw"], &path);
    for framing in [Framing::Structured, Framing::Extended] {
        let options = Options::new().framing(framing).context("base:allocation");
        let disk = D::open(&peer.uri(""), options).await?;
        disk.write_at(0, &[1; 65536]).await?;
        disk.write_at(131_072, &[1; 65536]).await?;
        let mut seen = Vec::new();
        match disk.block_status(1000, 250_000).await? {
            BlockStatus::Narrow(all) => {
                assert_eq!((framing, all.len()), (Framing::Structured, 1));
                assert_eq!(&*all[0].context, "base:allocation");
                let extents = all[0].extents.iter();
                seen.extend(
                    extents.map(|extent| (u64::from(extent.length), u64::from(extent.flags))),
                );
            }
            BlockStatus::Wide(all) => {
                assert_eq!((framing, all.len()), (Framing::Extended, 1));
                assert_eq!(&*all[0].context, "base:allocation");
                seen.extend(
                    all[0]
                        .extents
                        .iter()
                        .map(|extent| (extent.length, extent.flags)),
                );
            }
        }
        assert_eq!(seen[..3], [(64_536, 0), (65_536, 3), (65_536, 0)]);
        let one = disk
            .block_status_with(0, MIB, CommandFlags::REQ_ONE)
            .await?;
        let count = match one {
            BlockStatus::Narrow(all) => all[0].extents.len(),
            BlockStatus::Wide(all) => all[0].extents.len(),
        };
        assert_eq!(count, 1);
        disk.trim(0, MIB).await?;
    }
    let disk = D::open(&peer.uri(""), Options::new()).await?;
    let error = disk.block_status(0, MIB).await;
    assert!(
        matches!(error, Err(Error::Misuse(Misuse::NoContext))),
        "{error:?}"
    );
    Ok(())
}

/// Two contexts, and the status in one of them only.
async fn contexts_are_filtered<D: Disk>() -> Result<(), Error> {
    require!("qemu-nbd");
    let (_folder, path) = image(MIB);
    let peer = Peer::qemu(&["-f", "raw", "--allocation-depth"], &path);
    let options = Options::new()
        .context("base:allocation")
        .context("qemu:allocation-depth");
    let disk = D::open(&peer.uri(""), options).await?;
    let BlockStatus::Wide(all) = disk.block_status(0, MIB).await? else {
        panic!("extended headers are wide");
    };
    assert_eq!(all.len(), 2);
    let flags = disk.negotiated().flags;
    let depth = disk
        .block_status_of(&["qemu:allocation-depth"], 0, MIB, CommandFlags::NONE)
        .await;
    if flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
        let BlockStatus::Wide(all) = depth? else {
            panic!("extended headers are wide");
        };
        let names: Vec<_> = all.iter().map(|status| &*status.context).collect();
        assert_eq!(names, ["qemu:allocation-depth"]);
    } else {
        assert!(
            matches!(depth, Err(Error::Misuse(Misuse::Flag))),
            "{depth:?}"
        );
    }
    let unknown = disk
        .block_status_of(&["x:y"], 0, MIB, CommandFlags::NONE)
        .await;
    assert!(
        matches!(unknown, Err(Error::Misuse(Misuse::NoContext))),
        "{unknown:?}"
    );
    Ok(())
}

/// Four connections if the server shares its cache, else one.
async fn several_connections<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let shared = memory("1M", &[]);
    let disk = D::open(&shared.uri(""), Options::new().connections(4)).await?;
    assert_eq!(disk.connections(), 4);
    for n in 0..20 {
        disk.write_at(n * 512, &noise(n, 512)).await?;
        disk.flush().await?;
        assert!(disk.read_at(n * 512, 512).await? == noise(n, 512));
    }
    let single = memory("1M", &["--filter=multi-conn", "multi-conn-mode=disable"]);
    let disk = D::open(&single.uri(""), Options::new().connections(4)).await?;
    assert_eq!(disk.connections(), 1);
    Ok(())
}

/// An error fails its call only.
async fn errors_of_the_server<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let peer = memory(
        "1M",
        &[
            "--filter=error",
            "error-pwrite=ENOSPC",
            "error-pwrite-rate=100%",
        ],
    );
    let disk = D::open(&peer.uri(""), Options::new()).await?;
    for _ in 0..3 {
        let error = disk.write_at(0, &[1; 512]).await;
        let expected = matches!(
            error,
            Err(Error::Command {
                error: ErrorValue::ENOSPC,
                ..
            })
        );
        assert!(expected, "{error:?}");
        assert!(disk.read_at(0, 512).await? == [0; 512][..]);
    }
    let error = D::open(&format!("{}x", peer.uri("")), Options::new())
        .await
        .err();
    assert!(matches!(error, Some(Error::Io(_))), "{error:?}");
    Ok(())
}

/// Nothing is sent of what the server does not offer.
async fn what_cannot_be_sent<D: Disk>() -> Result<(), Error> {
    require!("nbdkit");
    let peer = memory("1M", &["-r"]);
    let disk = D::open(&peer.uri(""), Options::new()).await?;
    let size = MIB;
    for (result, misuse) in [
        (disk.write_at(0, &[1]).await, Misuse::ReadOnly),
        (
            disk.read_at(MIB, 1).await.map(drop),
            Misuse::OutOfBounds { size },
        ),
        (
            disk.read_at(u64::MAX, 2).await.map(drop),
            Misuse::OutOfBounds { size },
        ),
        (disk.trim(1, MIB).await, Misuse::OutOfBounds { size }),
    ] {
        assert!(
            matches!(&result, Err(Error::Misuse(is)) if *is == misuse),
            "{result:?}"
        );
    }
    let resize = disk.resize(1).await;
    assert!(
        matches!(resize, Err(Error::Misuse(Misuse::NotAdvertised(_)))),
        "{resize:?}"
    );
    disk.disconnect().await;
    let over = disk.read_at(0, 1).await;
    assert!(matches!(over, Err(Error::Disconnected)), "{over:?}");
    Ok(())
}

/// TCP, Unix sockets by path and by name.
async fn every_transport<D: Disk>() -> Result<(), Error> {
    require!("nbdkit", "qemu-nbd");
    let peer = memory("1M", &[]);
    let port = crate::forwarded_port(peer.socket());
    let name = format!("nbd-io-test-{}-{port}", std::process::id());
    crate::forwarded_name(&name, peer.socket());
    for uri in [
        peer.uri(""),
        format!("nbd://localhost:{port}"),
        format!("nbd://127.0.0.1:{port}/"),
        format!("nbd+unix:///?socket=%00{name}"),
    ] {
        let disk = D::open(&uri, Options::new()).await?;
        assert!(disk.read_at(0, 512).await? == [0; 512][..], "{uri}");
    }
    for (uri, text) in [
        ("nbd+ssh://host/", "not supported: the transport of the URI"),
        ("http://host/", "not an NBD URI: "),
    ] {
        let error = D::open(uri, Options::new()).await.err();
        let error = error.map_or(String::new(), |error| error.to_string());
        assert!(error.starts_with(text), "{uri}: {error}");
    }
    Ok(())
}

/// By name, and not by another one.
async fn every_export_is_found_by_name<D: Disk>() -> Result<(), Error> {
    require!("qemu-nbd");
    let (_folder, path) = image(MIB);
    let peer = Peer::qemu(&["-f", "raw", "-x", "a disk"], &path);
    let disk = D::open(&peer.uri("a%20disk"), Options::new()).await?;
    assert_eq!(disk.negotiated().size, MIB);
    match D::open(&peer.uri("other"), Options::new()).await.err() {
        Some(Error::Connect {
            reason: ConnectError::UnknownExport,
            message,
        }) => {
            assert!(message.is_some_and(|text| text.contains("other")));
        }
        error => panic!("{error:?}"),
    }
    Ok(())
}

/// C: READ 0, READ 0; S: a reply for another offset, then a good one.
async fn a_wrong_reply_costs_one_command<D: Disk>() -> Result<(), Error> {
    let count = AtomicUsize::new(0);
    let server = Server::start(4096, move |_, _| {
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Act::OtherOffset,
            _ => Act::Answer,
        }
    });
    let disk = D::open(&server.uri(), Options::new()).await?;
    let error = disk.read_at(0, 512).await;
    let is_right = matches!(
        error,
        Err(Error::Reply(nbd_codec::Error::Violation(
            Violation::OtherOffset { .. }
        )))
    );
    assert!(is_right, "{error:?}");
    assert!(disk.read_at(0, 512).await? == [0; 512][..]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    Ok(())
}

/// Threads that wake each other at any time.
#[test]
fn threads_share_a_connection() {
    let server = Server::start(1 << 20, |_, _| Act::Answer);
    let disk = nbd_io::blocking::Client::connect(&server.uri()).expect("a client");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let disk = &disk;
            scope.spawn(move || {
                for call in 0..2000 {
                    let offset = (n << 16) + call % 16 * 4096;
                    disk.write_at(offset, &call.to_ne_bytes()).expect("a write");
                    let data = disk.read_at(offset, 8).expect("a read");
                    assert!(data == call.to_ne_bytes()[..]);
                }
            });
        }
    });
}
