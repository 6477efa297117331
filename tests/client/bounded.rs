//! What a peer can make a client do: nothing in proportion to a length field.

use nbd_codec::client::handshake::Event as Hello;
use nbd_codec::client::{Event, Request, Slot, Transmission};
use nbd_codec::wire::number::{ContextId, OptionReplyType};
use nbd_codec::{Error, Framing, Limits, Need, Violation};

use super::machines::{ByHand, Sending, export, tiny, with_contexts};
use super::script::{self, NoCommands};
use super::transcript::Machine;

/// A reply of 4 GiB is passed over byte by byte; nothing of it stays.
#[test]
fn option_reply_of_4_gib() {
    let mut hand = ByHand::new(false, tiny());
    let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 3:16"#, &NoCommands);
    assert!(hand.receive(&mut greeting.as_slice()).unwrap().is_some());
    hand.client("flags 3");
    hand.client("opt LIST");
    let header = script::server("rep LIST SERVER len=0xffffffff", &NoCommands);
    let mut input = header.as_slice();
    assert_eq!(hand.receive(&mut input), Ok(None));
    assert!(input.is_empty());
    for fed in 0..1_000_000 {
        assert_eq!(
            hand.need(),
            Need::Header(usize::try_from(u32::MAX - fed).unwrap())
        );
        let mut input = &b"x"[..];
        assert_eq!(hand.receive(&mut input), Ok(None));
        assert!(input.is_empty());
    }
    // The rest in large pieces: it ends where it said.
    let junk = vec![b'x'; 1 << 24];
    let mut left = usize::try_from(u32::MAX - 1_000_000).unwrap();
    while left > junk.len() {
        let mut input = junk.as_slice();
        assert_eq!(hand.receive(&mut input), Ok(None));
        assert!(input.is_empty());
        left -= junk.len();
    }
    let mut input = &junk[..left];
    let skipped = Hello::Skipped {
        reply: OptionReplyType::SERVER,
        length: u32::MAX,
    };
    assert_eq!(hand.handshake.receive(&mut input), Ok(Some(skipped)));
    assert!(input.is_empty());
}

/// A server that names exports without end: one event each, nothing stays.
#[test]
fn a_list_without_end() {
    let mut hand = ByHand::new(false, tiny());
    let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 3:16"#, &NoCommands);
    assert!(hand.receive(&mut greeting.as_slice()).unwrap().is_some());
    hand.client("flags 3");
    hand.client("opt LIST");
    let one = script::server("rep LIST SERVER 0:32", &NoCommands);
    for _ in 0..100_000 {
        let mut input = one.as_slice();
        assert!(hand.handshake.receive(&mut input).unwrap().is_some());
        assert!(input.is_empty());
    }
    assert_eq!(hand.end_of_input(), Err(Error::Closed));
}

/// A status chunk of a million extents goes through a buffer of 64 bytes.
#[test]
fn a_million_extents_through_64_bytes() {
    const COUNT: u64 = 1 << 20;
    for framing in [Framing::Structured, Framing::Extended] {
        let mut sending = Sending::new(with_contexts(framing, 1), tiny());
        sending.client("STATUS 0 1M");
        let (head, extent) = match framing {
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
        let mut stream = script::server(&head, &sending);
        stream.extend(extent.repeat(usize::try_from(COUNT).unwrap()));
        let (mut buffer, mut at) = (Vec::with_capacity(64), 0);
        let (mut seen, mut done) = (0, false);
        while !done {
            let n = (64 - buffer.len()).min(stream.len() - at);
            assert!(n > 0, "the machine waits for what does not come");
            buffer.extend(&stream[at..at + n]);
            at += n;
            let mut input = buffer.as_slice();
            while let Some(event) = sending.machine.receive(&mut input).unwrap() {
                match event {
                    Event::Extents32 {
                        offset, extents, ..
                    } => {
                        assert_eq!(offset, seen);
                        seen += extents.len() as u64;
                    }
                    Event::Extents64 {
                        offset, extents, ..
                    } => {
                        assert_eq!(offset, seen);
                        seen += extents.len() as u64;
                    }
                    Event::Done { result, .. } => {
                        assert_eq!(result, Ok(()));
                        done = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
            let consumed = buffer.len() - input.len();
            buffer.drain(..consumed);
        }
        assert_eq!((seen, at), (COUNT, stream.len()));
    }
}

/// An error chunk of 32 MiB, the longest that is no attack, byte by byte: the
/// text nobody has room for, and what stands behind it.
#[test]
fn an_error_chunk_of_32_mib() {
    for framing in [Framing::Structured, Framing::Extended] {
        let mut sending = Sending::new(export(framing), tiny());
        sending.client("FLUSH");
        let head = "last ERROR_OFFSET #0 len=32M EIO:32 0xffff:16";
        let mut input = script::server(head, &sending);
        input.extend([b'x'; 0xffff]);
        input.extend([0; 8]);
        let mut buffer = Vec::new();
        let mut events = 0;
        for byte in input {
            buffer.push(byte);
            let mut rest = buffer.as_slice();
            events += usize::from(sending.receive(&mut rest).unwrap().is_some());
            let consumed = buffer.len() - rest.len();
            buffer.drain(..consumed);
            assert!(buffer.len() < 64);
        }
        assert_eq!(events, 1);
        let mut left = (32 << 20) - 14 - 0xffff;
        let junk = [0xff; 4099];
        while left > 0 {
            let n = left.min(junk.len());
            let mut input = &junk[..n];
            let event = sending.machine.receive(&mut input).unwrap();
            assert!(input.is_empty());
            left -= n;
            assert_eq!(event.is_some(), left == 0);
        }
        assert_eq!(sending.machine.in_flight(), 0);
    }
}

/// A reply without end: errors go on for ever, content cannot.
#[test]
fn a_reply_without_end() {
    for framing in [Framing::Structured, Framing::Extended] {
        let mut sending = Sending::new(export(framing), tiny());
        sending.client("READ 0 64K");
        let error = script::server("chunk ERROR #0 EIO:32 0:16", &sending);
        for _ in 0..100_000 {
            let mut input = error.as_slice();
            assert!(sending.machine.receive(&mut input).unwrap().is_some());
            assert!(input.is_empty());
        }
        let mut pieces = 0;
        let end = loop {
            let offset = (pieces * 7919) % 65_536;
            let hole = format!("chunk OFFSET_HOLE #0 {offset}:64 1:32");
            let hole = script::server(&hole, &sending);
            match sending.receive(&mut hole.as_slice()) {
                Ok(_) => pieces += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(pieces, 65_536);
        assert!(matches!(end, Error::Violation(Violation::Overlap(_))));
    }
}

/// 32 MiB of data, byte by byte and in one read: one fragment for each input,
/// nothing kept.
#[test]
fn a_read_of_32_mib() {
    let length = 32 << 20;
    let mut export = export(Framing::Structured);
    export.size = length;
    let mut machine = Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT);
    let cookie = machine.submit(Request::read(0, length)).unwrap().cookie();
    let mut head = 0x668e_33ef_0001_0001_u64.to_be_bytes().to_vec();
    head.extend(cookie.0.to_be_bytes());
    head.extend(u32::try_from(length + 8).unwrap().to_be_bytes());
    head.extend(0u64.to_be_bytes());
    assert_eq!(machine.receive(&mut head.as_slice()), Ok(None));
    for offset in 0..1_000_000 {
        let mut input = &b"x"[..];
        let data = Event::Data {
            cookie,
            offset,
            data: b"x",
        };
        assert_eq!(machine.receive(&mut input), Ok(Some(data)));
        assert_eq!(machine.receive(&mut input), Ok(None));
    }
    let left = length - 1_000_000;
    let need = Need::Payload {
        cookie,
        offset: 1_000_000,
        length: left,
    };
    assert_eq!(machine.need(), need);
    assert_eq!(machine.advance(left), Ok(()));
    let done = Event::Done {
        cookie,
        result: Ok(()),
    };
    assert_eq!(machine.receive(&mut &b""[..]), Ok(Some(done)));
}

/// The longest lengths that header fields can hold, for every chunk type and
/// command: an answer at once, or bytes that are passed over.
#[test]
fn the_longest_lengths() {
    for framing in [Framing::Structured, Framing::Extended] {
        let longest = match framing {
            Framing::Extended => "2^64-1",
            _ => "0xffffffff",
        };
        for kind in [0, 1, 2, 3, 5, 6, 0x7fff, 0x8000, 0x8001, 0x8002, 0xffff] {
            for command in ["READ 0 4K", "WRITE 0 4K", "FLUSH", "STATUS 0 4K"] {
                let mut sending = Sending::new(with_contexts(framing, 1), tiny());
                sending.client(command);
                let line = format!("chunk {kind} #0 len={longest}");
                let chunk = script::server(&line, &sending);
                assert!(sending.receive(&mut chunk.as_slice()).is_err(), "{line}");
            }
        }
    }
    // Within the limits of a caller who sets none.
    let mut limits = tiny();
    limits.payload = u32::MAX;
    limits.extents = u32::MAX;
    for (framing, chunk) in [
        (Framing::Structured, "BLOCK_STATUS #0 len=0xfffffffc 1:32"),
        (
            Framing::Extended,
            "BLOCK_STATUS_EXT #0 len=0xffffffff8 1:32 0xffffffff:32",
        ),
    ] {
        let mut sending = Sending::new(with_contexts(framing, 1), limits);
        sending.client("STATUS 0 4K");
        let chunk = script::server(&format!("chunk {chunk}"), &sending);
        let mut input = chunk.as_slice();
        assert_eq!(sending.receive(&mut input), Ok(None));
        assert!(input.is_empty());
        let mut extents = [0u8; 64];
        extents[if framing == Framing::Extended { 7 } else { 3 }] = 1;
        // The second one is empty.
        assert!(sending.receive(&mut &extents[..]).is_err());
    }
    let id = ContextId(1);
    assert_eq!(
        with_contexts(Framing::Extended, 1).contexts.position(id),
        Some(0)
    );
}
