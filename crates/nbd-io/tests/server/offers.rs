//! What a device implements is what is offered, and nothing else.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::Either;
use nbd_codec::Framing;
use nbd_codec::client::{Config as ClientConfig, MetaContextQuery};
use nbd_codec::wire::flags::TransmissionFlags as Flags;
use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_io::server::{Bytes, Device, Extents, ReadReply, not_offered};

use crate::support::{Disk, FACES, Face, MIB, Running, connect, shared};

/// Reads only.
struct ReadOnly;

impl Device for ReadOnly {
    fn size(&self) -> u64 {
        MIB
    }

    async fn read(&self, _: u64, reply: &mut ReadReply) -> io::Result<()> {
        reply.put_hole(reply.remaining());
        Ok(())
    }
}

#[test]
fn a_device_that_only_reads_is_read_only() {
    for face in FACES {
        let running = Running::disk(face, ReadOnly);
        let mut client = running.client("disk");
        let expected = Flags::HAS_FLAGS | Flags::READ_ONLY | Flags::CAN_MULTI_CONN;
        assert_eq!(client.negotiated.flags, expected);
        assert_eq!(client.read(MIB - 5, 5), Ok(vec![0; 5]));
        assert_eq!(client.write(0, b"data"), Err(ErrorValue::EPERM));
        let trim = client.command(Command::TRIM, 0, 512, &[]);
        assert_eq!(trim, Err(ErrorValue::EPERM));
        let flush = client.command(Command::FLUSH, 0, 0, &[]);
        assert_eq!(flush, Err(ErrorValue::EINVAL));
    }
}

#[test]
fn a_device_that_has_everything_offers_everything() {
    for face in FACES {
        // The `Arc` passes on what the disk offers.
        let running = Running::disk(face, shared(MIB));
        let contexts = [MetaContextQuery::narrow("base:allocation")];
        let config = ClientConfig::new("disk").contexts(&contexts);
        let negotiated = connect(&mut running.connect(), config).expect("the export");
        assert_eq!(negotiated.framing, Framing::Extended);
        let never = Flags::READ_ONLY | Flags::ROTATIONAL;
        assert_eq!(negotiated.flags, Flags::KNOWN.difference(never));
    }
}

#[test]
fn describing_an_export_runs_no_method() {
    let disk = shared(MIB);
    let running = Running::disk(Face::Tokio, Arc::clone(&disk));
    running.client("disk");
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 0);
}

#[test]
fn fua_is_a_flush_after_the_write() {
    use nbd_codec::wire::flags::CommandFlags;
    use nbd_codec::wire::number::Cookie;
    use nbd_codec::wire::request::CompactRequest;
    use std::io::Write;

    for face in FACES {
        let disk = shared(MIB);
        let running = Running::disk(face, Arc::clone(&disk));
        let mut client = running.client("disk");
        let request = CompactRequest {
            flags: CommandFlags::FUA,
            command: Command::WRITE,
            cookie: Cookie(7),
            offset: 0,
            length: 4,
        };
        client.stream.write_all(&request.encode()).expect("sent");
        client.stream.write_all(b"data").expect("sent");
        assert_eq!(client.reply(&mut []), (Cookie(7), Ok(())));
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    }
}

/// Passes on what its disk offers, but trims only if it may.
struct Around {
    disk: Disk,
    trims: bool,
}

impl Device for Around {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        self.disk.read(offset, reply).await
    }

    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        self.disk.write(offset, data)
    }

    fn trim(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + Send {
        if self.trims {
            Either::Left(self.disk.trim(offset, length))
        } else {
            Either::Right(not_offered())
        }
    }
}

#[test]
fn a_device_can_decide_what_it_offers() {
    for (face, trims) in [(Face::Tokio, true), (Face::Threads, false)] {
        let disk = Disk::new(MIB);
        let running = Running::disk(face, Around { disk, trims });
        let mut client = running.client("disk");
        assert_eq!(client.negotiated.flags.contains(Flags::SEND_TRIM), trims);
        assert!(!client.negotiated.flags.contains(Flags::READ_ONLY));
        let expected = if trims {
            Ok(())
        } else {
            Err(ErrorValue::EINVAL)
        };
        assert_eq!(client.command(Command::TRIM, 0, 4096, &[]), expected);
    }
}

/// Breaks its promises.
struct Faulty;

impl Device for Faulty {
    fn size(&self) -> u64 {
        MIB
    }

    async fn read(&self, offset: u64, reply: &mut ReadReply) -> io::Result<()> {
        match offset {
            0 => reply.put(b"short"),
            // More than was asked for is left out.
            512 => reply.put(&[1; 8192]),
            _ => return Err(io::Error::from_raw_os_error(28)),
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn block_status(&self, _: &str, _: u64, _: u64, _: &mut Extents) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn errors_of_a_device_are_errors_of_the_request() {
    for face in FACES {
        let running = Running::disk(face, Faulty);
        let mut client = running.client("disk");
        assert_eq!(client.read(0, 512), Err(ErrorValue::EIO));
        assert_eq!(client.read(512, 512), Ok(vec![1; 512]));
        assert_eq!(client.read(4096, 512), Err(ErrorValue::ENOSPC));
        // ENOTSUP is for fast zeroes only.
        let flush = client.command(Command::FLUSH, 0, 0, &[]);
        assert_eq!(flush, Err(ErrorValue::EINVAL));
        assert_eq!(client.read(512, 16), Ok(vec![1; 16]));
    }
}

#[test]
fn requests_follow_the_size() {
    for face in FACES {
        let running = Running::disk(face, Disk::new(MIB));
        let (mut client, mut other) = (running.client("disk"), running.client("disk"));
        assert_eq!(client.read(MIB, 512), Err(ErrorValue::EINVAL));
        assert_eq!(client.command(Command::RESIZE, 2 * MIB, 0, &[]), Ok(()));
        assert_eq!(client.write(MIB, b"more"), Ok(()));
        assert_eq!(client.read(MIB, 4), Ok(b"more".to_vec()));
        assert_eq!(client.command(Command::RESIZE, 4096, 0, &[]), Ok(()));
        assert_eq!(running.client("disk").negotiated.size, 4096);
        // The other connection has the size of its handshake.
        assert_eq!(other.negotiated.size, MIB);
        assert_eq!(other.read(4096, 512), Err(ErrorValue::EINVAL));
        assert_eq!(other.write(4096, b"data"), Err(ErrorValue::ENOSPC));
        assert_eq!(other.write(0, b"data"), Ok(()));
    }
}
