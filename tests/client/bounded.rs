//! No server makes a client read or keep bytes in proportion to a length field.

use nbd_codec::client::{Config, HandshakeEvent, Request, Slot, Transmission, TransmissionEvent};
use nbd_codec::wire::number::{ContextId, OptionReplyType};
use nbd_codec::{Content, Error, Framing, Limits, Step, Violation};

use super::machines::{
    CHUNKED, Client, FIXED_NEWSTYLE, LIMITS, Manual, export, fixed_newstyle, with_contexts,
};
use super::script::{self, NoCommands};
use super::seen::Seen;
use super::transcript::{Machine, Taken, once};

/// After the option LIST.
fn listing() -> Manual {
    let mut manual = Manual::greeted(Config::new(""));
    once(&mut manual, "C: opt LIST");
    manual
}

/// Receives all of `input`: the steps, down to the one that asks for more.
fn receive_all(machine: &mut impl Machine, mut input: &[u8]) -> (Vec<Seen>, Taken) {
    let mut seen = Vec::new();
    loop {
        match machine.receive(&mut input) {
            Ok(Step::Event(event)) => seen.push(event),
            last => {
                assert!(input.is_empty() || last.is_err());
                return (seen, last);
            }
        }
    }
}

/// How many bytes a step asks for.
fn read_limit(step: &Taken) -> usize {
    let limit = step.as_ref().unwrap().read_limit();
    limit.expect("a step that reads").get()
}

/// The longest reply that is discarded, of 8196 bytes: no step asks for more than
/// the buffer holds, whatever length the server claims.
#[test]
fn the_longest_option_reply() {
    let mut manual = listing();
    let header = script::server("rep LIST SERVER len=8196", &NoCommands);
    let (seen, mut step) = receive_all(&mut manual, &header);
    assert!(seen.is_empty());
    let mut left = 8196;
    for _ in 0..1000 {
        assert_eq!(read_limit(&step), 64);
        (_, step) = receive_all(&mut manual, b"x");
        left -= 1;
    }
    // A driver that reads ahead takes the other bytes in large pieces, down to the
    // last byte.
    for piece in [5000, left - 5063, 62] {
        (_, step) = receive_all(&mut manual, &vec![b'x'; piece]);
        left -= piece;
        assert_eq!(read_limit(&step), left.min(64));
    }
    assert_eq!(left, 1);
    let discarded = HandshakeEvent::Discarded {
        reply: OptionReplyType::SERVER,
        length: 8196,
    };
    let mut input = &b"x"[..];
    let step = manual.handshake.receive(&mut input);
    assert_eq!(step, Ok(Step::Event(discarded)));
    assert!(input.is_empty());
}

/// No reply that the specification defines is longer than 8196 bytes. A longer one
/// ends the session at its header, unless the caller's limit is higher.
#[test]
fn an_option_reply_that_no_server_may_send() {
    for (option, reply, name) in [
        ("LIST", "SERVER", "NBD_REP_SERVER"),
        ("LIST", "ERR_POLICY", "NBD_REP_ERR_POLICY"),
        ("GO 0:32 0:16", "INFO", "NBD_REP_INFO"),
        ("99", "77", "OptionReplyType(0x4d)"),
    ] {
        let number = option.split(' ').next().unwrap();
        for length in [8197, u32::MAX] {
            fixed_newstyle(&format!(
                "C: opt {option}
                S: rep {number} {reply} len={length}
                ! Violation(OptionReplyTooLong {{ reply: {name}, length: {length} }})"
            ));
        }
    }
    let mut limits = LIMITS;
    limits.option_data = 10_000;
    let mut manual = Manual::with_limits(Config::new(""), limits);
    once(&mut manual, FIXED_NEWSTYLE);
    once(&mut manual, "C: opt LIST\nS: rep LIST ERR_POLICY 78*10000");
    once(&mut manual, "C: opt LIST");
    let header = script::server("rep LIST ERR_POLICY len=10001", &NoCommands);
    let error = receive_all(&mut manual, &header).1.unwrap_err();
    let reply = OptionReplyType::ERR_POLICY;
    let length = 10_001;
    assert_eq!(
        error,
        Violation::OptionReplyTooLong { reply, length }.into()
    );
}

/// A server that lists exports without end: one event for each, nothing is
/// kept.
#[test]
fn an_endless_list() {
    let mut manual = listing();
    let one = script::server("rep LIST SERVER 0:32", &NoCommands);
    for _ in 0..100_000 {
        let (seen, step) = receive_all(&mut manual, &one);
        assert_eq!((seen.len(), read_limit(&step)), (1, 20));
    }
    let list = nbd_codec::wire::number::OptionType::LIST;
    assert_eq!(manual.end_of_input(), Err(Error::ClosedDuring(list)));
}

/// A status chunk of a million extents goes through a buffer of 64 bytes.
#[test]
fn a_million_extents_through_64_bytes() {
    const COUNT: u64 = 1 << 20;
    for framing in CHUNKED {
        let mut client = Client::new(with_contexts(framing, 1));
        once(&mut client, "C: STATUS 0 1M");
        let (header, extent) = match framing {
            Framing::Extended => (
                format!(
                    "last BLOCK_STATUS_EXT #0 len={} 1:32 {COUNT}:32",
                    8 + 16 * COUNT
                ),
                script::server("1:64 3:64", &NoCommands),
            ),
            _ => (
                format!("last BLOCK_STATUS #0 len={} 1:32", 4 + 8 * COUNT),
                script::server("1:32 3:32", &NoCommands),
            ),
        };
        let mut stream = script::server(&header, &client);
        stream.extend(extent.repeat(usize::try_from(COUNT).unwrap()));
        let (mut buffer, mut at) = (Vec::with_capacity(64), 0);
        let (mut seen, mut done) = (0, false);
        while !done {
            let mut input = buffer.as_slice();
            let limit = loop {
                let (offset, count) = match client.machine.receive(&mut input).unwrap() {
                    Step::Event(TransmissionEvent::Extents32 {
                        offset, extents, ..
                    }) => (offset, extents.len() as u64),
                    Step::Event(TransmissionEvent::Extents64 {
                        offset, extents, ..
                    }) => (offset, extents.len() as u64),
                    Step::Event(TransmissionEvent::Done { result, .. }) => {
                        assert_eq!(result, Ok(()));
                        done = true;
                        continue;
                    }
                    Step::Read(n) => break n.get(),
                    other => panic!("{other:?}"),
                };
                assert_eq!(offset, seen);
                seen += count;
            };
            let consumed = buffer.len() - input.len();
            buffer.drain(..consumed);
            assert!(buffer.len() + limit <= 64);
            let n = limit.min(stream.len() - at);
            buffer.extend(&stream[at..at + n]);
            at += n;
        }
        assert_eq!((seen, at), (COUNT, stream.len()));
    }
}

/// An error chunk of 32 MiB, the longest that the limits allow: its message and
/// what follows it are discarded in pieces.
#[test]
fn an_error_chunk_of_32_mib() {
    for framing in CHUNKED {
        let mut client = Client::new(export(framing));
        once(&mut client, "C: FLUSH");
        let header = "last ERROR_OFFSET #0 len=32M EIO:32 0xffff:16";
        let header = script::server(header, &client);
        let (_, mut step) = receive_all(&mut client, &header);
        let mut message = 0xffff;
        while message > 0 {
            let n = read_limit(&step);
            assert!(n <= message.min(64));
            (_, step) = receive_all(&mut client, &[b'x'; 64][..n]);
            message -= n;
        }
        assert_eq!(read_limit(&step), 8);
        let (seen, mut step) = receive_all(&mut client, &[0; 8]);
        assert_eq!(seen.len(), 1);
        let mut left = (32 << 20) - 14 - 0xffff;
        let junk = [0xff; 64];
        while left > 64 {
            assert_eq!(read_limit(&step), 64);
            (_, step) = receive_all(&mut client, &junk);
            left -= junk.len();
        }
        assert_eq!(read_limit(&step), left);
        let (seen, _) = receive_all(&mut client, &junk[..left]);
        assert_eq!(seen.len(), 1);
        assert_eq!(client.machine.in_flight(), 0);
    }
}

/// A reply without end: error chunks may be repeated for ever, content cannot.
#[test]
fn an_endless_reply() {
    for framing in CHUNKED {
        let mut client = Client::strict(export(framing));
        once(&mut client, "C: READ 0 64K");
        let error = script::server("chunk ERROR #0 EIO:32 0:16", &client);
        for _ in 0..100_000 {
            assert_eq!(receive_all(&mut client, &error).0.len(), 1);
        }
        let mut pieces = 0;
        let end = loop {
            let offset = (pieces * 7919) % 65_536;
            let hole = format!("chunk OFFSET_HOLE #0 {offset}:64 1:32");
            let hole = script::server(&hole, &client);
            match receive_all(&mut client, &hole).1 {
                Ok(_) => pieces += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(pieces, 65_536);
        assert!(matches!(end, Error::Violation(Violation::Overlap(_))));
    }
}

/// 32 MiB of data, byte by byte and read directly: one piece of content for
/// each input, nothing is kept.
#[test]
fn a_read_of_32_mib() {
    let length = 32 << 20;
    let mut export = export(Framing::Structured);
    export.size = length;
    let mut machine = Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT);
    let cookie = machine.submit(Request::read(0, length)).unwrap().cookie();
    let mut header = 0x668e_33ef_0001_0001_u64.to_be_bytes().to_vec();
    header.extend(cookie.0.to_be_bytes());
    header.extend(u32::try_from(length + 8).unwrap().to_be_bytes());
    header.extend(0u64.to_be_bytes());
    let payload = |offset| Step::ReadPayload {
        cookie,
        offset,
        length: length - offset,
    };
    let mut input = header.as_slice();
    for offset in 0..1_000_000 {
        assert_eq!(machine.receive(&mut input), Ok(payload(offset)));
        input = b"x";
        let data = Content::Data {
            cookie,
            offset,
            data: &b"x"[..],
        };
        assert_eq!(machine.receive(&mut input), Ok(Step::Content(data)));
    }
    assert_eq!(machine.receive(&mut input), Ok(payload(1_000_000)));
    assert_eq!(machine.advance(length - 1_000_000), Ok(()));
    let done = TransmissionEvent::Done {
        cookie,
        result: Ok(()),
    };
    assert_eq!(machine.receive(&mut &b""[..]), Ok(Step::Event(done)));
}

/// The longest lengths that header fields can hold, for every chunk type and
/// command: a violation at once.
#[test]
fn the_longest_lengths() {
    for framing in CHUNKED {
        let longest = match framing {
            Framing::Extended => "2^64-1",
            _ => "0xffffffff",
        };
        for kind in [0, 1, 2, 3, 5, 6, 0x7fff, 0x8000, 0x8001, 0x8002, 0xffff] {
            for command in ["READ 0 4K", "WRITE 0 4K", "FLUSH", "STATUS 0 4K"] {
                let mut client = Client::new(with_contexts(framing, 1));
                once(&mut client, &format!("C: {command}"));
                let line = format!("chunk {kind} #0 len={longest}");
                let chunk = script::server(&line, &client);
                assert!(receive_all(&mut client, &chunk).1.is_err(), "{line}");
            }
        }
    }
}

/// The longest lengths of a status chunk where the caller sets no limit: the
/// extents are asked for in pieces.
#[test]
fn the_longest_status_chunks() {
    let mut limits = LIMITS;
    limits.payload = u32::MAX;
    limits.extents = u32::MAX;
    for (framing, chunk) in [
        (Framing::Structured, "BLOCK_STATUS #0 len=0xfffffffc 1:32"),
        (
            Framing::Extended,
            "BLOCK_STATUS_EXT #0 len=0xffffffff8 1:32 0xffffffff:32",
        ),
    ] {
        let mut client = Client::with_limits(with_contexts(framing, 1), limits);
        once(&mut client, "C: STATUS 0 4K");
        let chunk = script::server(&format!("chunk {chunk}"), &client);
        let (seen, step) = receive_all(&mut client, &chunk);
        assert!(seen.is_empty());
        assert_eq!(read_limit(&step), 64);
        let mut extents = [0u8; 64];
        extents[if framing == Framing::Extended { 7 } else { 3 }] = 1;
        // The second one is empty.
        let (seen, step) = receive_all(&mut client, &extents);
        let status: Vec<_> = seen.iter().map(ToString::to_string).collect();
        let width = if framing == Framing::Extended {
            "wide"
        } else {
            "narrow"
        };
        assert_eq!(status, [format!("#0 {width} 1 @0 1/0x0")]);
        // The others are discarded in pieces.
        assert_eq!(read_limit(&step), 64);
    }
    let id = ContextId(1);
    assert_eq!(
        with_contexts(Framing::Extended, 1).contexts.position(id),
        Some(0)
    );
}
