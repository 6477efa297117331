//! A server's work and memory never depend on a length field alone.

use nbd_codec::server::{HandshakeEvent, TlsMode, Transmission, TransmissionEvent};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, Cookie, ErrorValue, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Content, Error, Framing, Limits, Negotiated, Step};

use crate::drive::read;
use crate::tls::negotiating;

const MIB: u32 = 1 << 20;

fn option(number: u32, length: u32) -> [u8; 16] {
    let option = OptionType(number);
    OptionHeader { option, length }.encode()
}

fn serving(framing: Framing) -> Transmission {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut limits = Limits::default();
    limits.payload = u32::MAX;
    let export = Negotiated::new(framing, u64::from(64 * MIB), all);
    Transmission::new(export, limits).unwrap()
}

fn request(framing: Framing, command: Command, offset: u64, length: u64) -> Vec<u8> {
    let cookie = Cookie(7);
    let flags = match (framing, command) {
        (Framing::Extended, Command::WRITE) => CommandFlags::PAYLOAD_LEN,
        _ => CommandFlags::NONE,
    };
    match framing {
        Framing::Extended => ExtendedRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        }
        .encode()
        .to_vec(),
        _ => CompactRequest {
            flags,
            command,
            cookie,
            offset,
            length: u32::try_from(length).unwrap(),
        }
        .encode()
        .to_vec(),
    }
}

/// The server discards an unknown option of 32 MiB byte by byte, and answers at
/// its end.
#[test]
fn discards_an_option_of_32_mib() {
    let mut handshake = negotiating(TlsMode::None);
    let header = option(99, 32 * MIB);
    let mut input = &header[..];
    // In pieces that fit the receive buffer.
    let piece = Ok(read(Limits::DEFAULT.buffer()));
    assert_eq!(handshake.receive(&mut input), piece);
    assert!(input.is_empty());
    const BYTES: u32 = 100_000;
    for _ in 0..BYTES {
        let mut input = &b"x"[..];
        assert_eq!(handshake.receive(&mut input), piece);
        assert!(input.is_empty());
        assert_eq!(handshake.transmit(&mut Vec::new()), Ok(0));
    }
    // The last piece ends with the option.
    let left = (32 * MIB - BYTES) as usize;
    let remainder = vec![b'x'; left + 1];
    let step = handshake.receive(&mut &remainder[..left - 5]);
    assert_eq!(step, Ok(read(5)));
    let mut input = &remainder[..6];
    assert_eq!(handshake.receive(&mut input), Ok(Step::Transmit));
    assert_eq!(input, b"x", "the byte after the option");
    let mut out = Vec::new();
    assert!(handshake.transmit(&mut out).unwrap() > 0);
    assert_eq!(out[8..16], [0, 0, 0, 99, 0x80, 0, 0, 1]);
}

/// A client that sends options without end gets one answer to each. The server
/// keeps nothing, and a driver with a timeout sees that it still negotiates.
#[test]
fn endless_options_keep_no_state() {
    let mut handshake = negotiating(TlsMode::None);
    let mut out = Vec::new();
    for round in 0..100_000 {
        let header = option([99, 3, 8][round % 3], 0);
        let mut input = &header[..];
        if let Step::Event(event) = handshake.receive(&mut input).unwrap() {
            assert_eq!(event, HandshakeEvent::List);
            handshake.finish_list(&mut out).unwrap();
        }
        assert!(input.is_empty());
        handshake.transmit(&mut out).unwrap();
        assert!((20..64).contains(&out.len()), "not one answer");
        out.clear();
        assert!(handshake.is_negotiating());
    }
    assert_eq!(handshake.end_of_input(), Err(Error::Closed));
}

/// A write of 32 MiB, byte by byte and then in one piece: one `Data` event for
/// each input.
#[test]
fn a_write_of_32_mib() {
    for framing in [Framing::Simple, Framing::Extended] {
        let mut server = serving(framing);
        let length = 32 * MIB;
        let header = request(framing, Command::WRITE, 0, length.into());
        let cookie = Cookie(7);
        let payload = Step::Event(TransmissionEvent::WritePayload {
            cookie,
            offset: 0,
            length,
        });
        assert_eq!(server.receive(&mut &header[..]), Ok(payload));
        const BYTES: u64 = 100_000;
        for offset in 0..BYTES {
            let mut input = &b"x"[..];
            let data = Step::Content(Content::Data {
                cookie,
                offset,
                data: &b"x"[..],
            });
            assert_eq!(server.receive(&mut input), Ok(data));
            let payload = Step::ReadPayload {
                cookie,
                offset: offset + 1,
                length: u64::from(length) - offset - 1,
            };
            assert_eq!(server.receive(&mut input), Ok(payload));
        }
        assert_eq!(server.advance(u64::from(length) - BYTES), Ok(()));
        let step = server.receive(&mut &b""[..]).unwrap();
        let write = matches!(step, Step::Event(TransmissionEvent::Request(_)));
        assert!(write, "{step:?}");
    }
}

/// The server discards 4 GiB of payload of a rejected write, if the caller sets
/// no limit, and finds the next request.
#[test]
fn discards_a_rejected_write_of_4_gib() {
    for framing in [Framing::Simple, Framing::Structured] {
        let mut server = serving(framing);
        let length = u64::from(u32::MAX);
        // Beyond the maximum payload and the end of the export.
        let header = request(framing, Command::WRITE, 0, length);
        let buffer = Limits::DEFAULT.buffer();
        assert_eq!(server.receive(&mut &header[..]), Ok(read(buffer)));
        for _ in 0..100_000 {
            let mut input = &b"x"[..];
            assert_eq!(server.receive(&mut input), Ok(read(buffer)));
            assert!(input.is_empty());
        }
        let junk = vec![b'x'; 1 << 24];
        let mut left = length - 100_000;
        while left > 0 {
            let n = left.min(junk.len() as u64);
            let mut input = &junk[..n as usize];
            let step = server.receive(&mut input).unwrap();
            assert!(input.is_empty());
            left -= n;
            match step {
                Step::Read(n) => assert_eq!(n.get() as u64, left.min(buffer as u64)),
                Step::Event(TransmissionEvent::Answered { result, .. }) => {
                    assert_eq!((left, result), (0, Err(ErrorValue::EINVAL)));
                }
                other => panic!("{other:?}"),
            }
        }
        let flush = request(framing, Command::FLUSH, 0, 0);
        let step = server.receive(&mut &flush[..]).unwrap();
        let request = matches!(step, Step::Event(TransmissionEvent::Request(_)));
        assert!(request, "{step:?}");
    }
}

/// The largest lengths of a request header, for every command: an answer at
/// once, an error, or a payload that is discarded.
#[test]
fn maximum_length_fields() {
    for (framing, longest) in [
        (Framing::Simple, u64::from(u32::MAX)),
        (Framing::Structured, u64::from(u32::MAX)),
        (Framing::Extended, u64::MAX),
    ] {
        for command in (0..=9).chain([u16::MAX]).map(Command) {
            for offset in [0, 1, u64::MAX] {
                let mut server = serving(framing);
                let header = request(framing, command, offset, longest);
                let mut input = &header[..];
                let seen = server.receive(&mut input);
                let place = format!("{framing} {command} {offset:#x}");
                use TransmissionEvent as E;
                match (seen, command) {
                    (Ok(Step::Event(E::Disconnect)), Command::DISC) => {}
                    // A flush has no range; the offset of a resize is the new size.
                    (Ok(Step::Event(E::Request(_))), Command::FLUSH | Command::RESIZE) => {}
                    (Ok(Step::Event(E::Answered { result, .. })), _) => {
                        assert!(result.is_err(), "{place}");
                    }
                    (Ok(Step::Read(n)), Command::WRITE) if framing != Framing::Extended => {
                        assert_eq!(n.get(), Limits::DEFAULT.buffer(), "{place}");
                    }
                    (Err(_), Command::WRITE) => {
                        assert_eq!(framing, Framing::Extended, "{place}");
                        continue;
                    }
                    other => panic!("{place}: {other:?}"),
                }
                assert!(input.is_empty(), "{place}");
            }
        }
    }
}
