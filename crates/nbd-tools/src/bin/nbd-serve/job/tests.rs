//! What a request does to the disk, and its reply.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_codec::server::{Transmission, TransmissionEvent};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::wire::reply::SimpleReply;
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits, Negotiated, SelectedContext, StatusWidth, Step};

use crate::budget::{Budget, Memory};
use crate::buffer::Buffer;
use crate::disk::{Disk, Extent, Zero};
use crate::job::Job;
use crate::outbox::{Content, Message, Outbox};

/// Writes down what is done to it; one of its calls may fail.
struct RecordingDisk {
    calls: Mutex<Vec<String>>,
    fails: Option<(&'static str, i32)>,
}

impl RecordingDisk {
    fn record(&self, call: &str, range: String) -> io::Result<()> {
        self.calls
            .lock()
            .expect("a list")
            .push(call.to_owned() + &range);
        match self.fails {
            Some((name, errno)) if name == call => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

impl Disk for RecordingDisk {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.record("read", format!(" {offset} {}", data.len()))
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }

    fn is_data(&self, _: u64, _: u64) -> bool {
        false
    }

    fn try_write(&self, _: u64, _: &[u8]) -> bool {
        false
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record("write", format!(" {offset} {}", data.len()))
    }

    fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()> {
        let hole = if how.hole { " hole" } else { "" };
        let fast = if how.fast { " fast" } else { "" };
        self.record("zero", format!(" {offset} {length}{hole}{fast}"))
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.record("trim", format!(" {offset} {length}"))
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.record("cache", format!(" {offset} {length}"))
    }

    fn flush(&self) -> io::Result<()> {
        self.record("flush", String::new())
    }

    fn extent(&self, _: u64, length: u64) -> io::Result<Extent> {
        let hole = false;
        Ok(Extent { length, hole })
    }
}

/// Executes a request for 512 bytes at 4096. Returns the calls, and the error of
/// the reply.
fn run(
    command: Command,
    flags: CommandFlags,
    fails: Option<(&'static str, i32)>,
) -> (String, ErrorValue) {
    let disk = RecordingDisk {
        calls: Mutex::default(),
        fails,
    };
    let capable = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let negotiated = Negotiated::new(Framing::Simple, disk.size(), capable);
    let mut machine = Transmission::new(negotiated, Limits::DEFAULT).expect("a machine");
    let request = CompactRequest {
        flags,
        command,
        cookie: Cookie(1),
        offset: if command == Command::FLUSH { 0 } else { 4096 },
        length: if command == Command::FLUSH { 0 } else { 512 },
    };
    let bytes = [&request.encode()[..], &[7; 512]].concat();
    let mut input = &bytes[..];
    let request = loop {
        match machine.receive(&mut input).expect("an event") {
            Step::Event(TransmissionEvent::Request(request)) => break request,
            Step::Event(TransmissionEvent::WritePayload { .. }) | Step::Content(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let budget = Budget::new(1024, &Memory::new(1 << 20));
    let mut replies = Vec::new();
    let job = Job::Execute {
        request,
        data: (command == Command::WRITE).then(|| Buffer::new(512).expect("memory")),
        permit: budget.try_admit(1024).expect("admitted"),
    };
    job.run(&disk, 1, &mut replies);
    assert!(
        budget.try_admit(1).is_none(),
        "admitted before the reply is sent"
    );
    let (written, mut sent) = (shared::Bytes::default(), Vec::new());
    let outbox = Outbox::new(Box::new(written.clone()));
    outbox.send(replies.drain(..)).expect("sent");
    written.take_into(&mut sent);
    assert!(
        budget.try_admit(1024).is_some(),
        "not admitted after it is sent"
    );
    let reply = SimpleReply::decode(&mut &sent[..])
        .expect("a reply")
        .expect("all of it");
    let calls = disk.calls.into_inner().expect("a list");
    (calls.join(", "), reply.error)
}

/// An output whose content the test can read.
mod shared {
    use std::io::{self, IoSlice, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    pub struct Bytes(Arc<Mutex<Vec<u8>>>);

    impl crate::socket::Output for Bytes {
        fn write_soon(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
            self.write_vectored(bytes)
        }

        fn splice_soon(&mut self, _: &mut crate::pipe::Pipe) -> io::Result<()> {
            unreachable!("there is no file")
        }

        fn wait(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Bytes {
        pub fn take_into(&self, out: &mut Vec<u8>) {
            out.append(&mut self.0.lock().expect("bytes"));
        }
    }

    impl Write for Bytes {
        /// Accepts a few bytes at a time, as sockets may.
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(7);
            self.0.lock().expect("bytes").extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[test]
fn each_command_calls_the_disk_and_fua_flushes() {
    let fua = CommandFlags::FUA;
    let none = CommandFlags::NONE;
    let no_hole = CommandFlags::NO_HOLE;
    let fast = CommandFlags::FAST_ZERO;
    for (command, flags, calls) in [
        (Command::READ, none, "read 4096 512"),
        (Command::READ, fua, "read 4096 512"),
        (Command::WRITE, none, "write 4096 512"),
        (Command::WRITE, fua, "write 4096 512, flush"),
        (Command::FLUSH, none, "flush"),
        (Command::TRIM, none, "trim 4096 512"),
        (Command::TRIM, fua, "trim 4096 512, flush"),
        (Command::CACHE, none, "cache 4096 512"),
        (Command::WRITE_ZEROES, none, "zero 4096 512 hole"),
        (Command::WRITE_ZEROES, fua, "zero 4096 512 hole, flush"),
        (Command::WRITE_ZEROES, no_hole, "zero 4096 512"),
        (Command::WRITE_ZEROES, fast, "zero 4096 512 hole fast"),
        (
            Command::WRITE_ZEROES,
            fast | no_hole | fua,
            "zero 4096 512 fast, flush",
        ),
    ] {
        let (seen, error) = run(command, flags, None);
        assert_eq!(
            (seen.as_str(), error),
            (calls, ErrorValue::NONE),
            "{command} {flags}"
        );
    }
}

#[test]
fn a_failure_is_an_error_reply_and_ends_the_request() {
    let fua = CommandFlags::FUA;
    let (enospc, eio, eacces, edquot, eloop) = (28, 5, 13, 122, 40);
    for (command, fails, calls, error) in [
        (
            Command::READ,
            ("read", eio),
            "read 4096 512",
            ErrorValue::EIO,
        ),
        (
            Command::WRITE,
            ("write", enospc),
            "write 4096 512",
            ErrorValue::ENOSPC,
        ),
        (
            Command::WRITE,
            ("write", edquot),
            "write 4096 512",
            ErrorValue::ENOSPC,
        ),
        (
            Command::WRITE,
            ("write", eacces),
            "write 4096 512",
            ErrorValue::EPERM,
        ),
        (
            Command::WRITE,
            ("write", eloop),
            "write 4096 512",
            ErrorValue::EIO,
        ),
        (
            Command::WRITE,
            ("flush", eio),
            "write 4096 512, flush",
            ErrorValue::EIO,
        ),
        (
            Command::TRIM,
            ("flush", eio),
            "trim 4096 512, flush",
            ErrorValue::EIO,
        ),
        (
            Command::FLUSH,
            ("flush", enospc),
            "flush",
            ErrorValue::ENOSPC,
        ),
        (
            Command::WRITE_ZEROES,
            ("zero", enospc),
            "zero 4096 512 hole",
            ErrorValue::ENOSPC,
        ),
    ] {
        let (seen, seen_error) = run(command, fua, Some(fails));
        assert_eq!(
            (seen.as_str(), seen_error),
            (calls, error),
            "{command} {fails:?}"
        );
    }
}

/// A disk of data and holes in turn, 4096 bytes each. Counts how often it is asked
/// for an extent.
struct StripedDisk(AtomicUsize);

impl Disk for StripedDisk {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn extent(&self, offset: u64, length: u64) -> io::Result<Extent> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let length = length.min(4096 - offset % 4096);
        let hole = offset / 4096 % 2 == 1;
        Ok(Extent { length, hole })
    }

    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }

    fn is_data(&self, _: u64, _: u64) -> bool {
        false
    }

    fn try_write(&self, _: u64, _: &[u8]) -> bool {
        false
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: Zero) -> io::Result<()> {
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Block status of all of a disk; returns how many bytes the reply has, and how
/// many extents were looked for.
fn status(framing: Framing, flags: CommandFlags, maximum: u32, block: u32) -> (usize, usize) {
    let disk = StripedDisk(AtomicUsize::new(0));
    let length = 1 << 29;
    let mut negotiated = Negotiated::new(framing, disk.size(), TransmissionFlags::KNOWN);
    negotiated.block_sizes = Some(BlockSizes {
        minimum: block,
        preferred: 4096,
        maximum,
    });
    let context = SelectedContext {
        id: ContextId(0),
        width: StatusWidth::Narrow,
    };
    negotiated.contexts.push(context).expect("a context");
    let mut machine = Transmission::new(negotiated, Limits::DEFAULT).expect("a machine");
    let (command, cookie, offset) = (Command::BLOCK_STATUS, Cookie(1), 0);
    let bytes = match framing {
        Framing::Extended => ExtendedRequest {
            flags,
            command,
            cookie,
            offset,
            length: length.into(),
        }
        .encode()
        .to_vec(),
        _ => CompactRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        }
        .encode()
        .to_vec(),
    };
    let request = match machine.receive(&mut &bytes[..]).expect("an event") {
        Step::Event(TransmissionEvent::Request(request)) => request,
        other => panic!("{other:?}"),
    };
    let mut replies = Vec::new();
    super::run(request, None, &disk, block, &mut replies);
    let [
        Message {
            content: Content::Bytes(bytes),
            ..
        },
    ] = &replies[..]
    else {
        panic!("not one reply");
    };
    (bytes.len(), disk.0.into_inner())
}

/// An extent that the reply does not hold is not looked for, but one: it may belong
/// to the last extent.
#[test]
fn block_status_looks_for_no_more_extents_than_the_reply_holds() {
    let (one, all) = (CommandFlags::REQ_ONE, CommandFlags::NONE);
    for (framing, header, each) in [(Framing::Structured, 24, 8), (Framing::Extended, 40, 16)] {
        for (flags, maximum, block, extents, most) in [
            (one, 32 << 20, 1, 1, 1),
            (one, 32 << 20, 4096, 1, 2),
            (all, 32 << 20, 1, 4096, 4096),
            (all, 32 << 20, 4096, 4096, 4097),
            (all, 4096, 1, 4096 / each, 4096 / each),
        ] {
            let (size, found) = status(framing, flags, maximum, block);
            assert_eq!(size, header + extents * each, "{framing} {flags}");
            assert!(
                found <= most,
                "{found} extents for {extents}, {framing} {flags}"
            );
        }
    }
}
