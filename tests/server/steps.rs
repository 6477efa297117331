//! The steps of `receive`: each repeats until the caller has taken it, and no
//! order of calls ends in a busy loop, a read of zero bytes, or lost data.

use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, Request, TlsMode, Transmission, TransmissionEvent,
};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie, OptionReplyType, OptionType};
use nbd_codec::{
    Error, Framing, Limits, Misuse, Negotiated, Receive, SelectedContext, SelectedContexts,
    StatusWidth, Step,
};

use crate::drive::read;
use crate::requests::{WRITABLE, export};
use crate::script::bytes;
use crate::tls::negotiating;

const DISK: Export<'_> = {
    let mut export = Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH);
    export.id = 9;
    export
};

/// Receives an option that the caller answers, and answers it with the export.
fn grant(handshake: &mut Handshake, option: &str, export: &Export<'_>) -> (usize, bool) {
    let option = bytes(option);
    let Ok(Step::Event(HandshakeEvent::Export(query))) = handshake.receive(&mut &option[..]) else {
        panic!("no query");
    };
    for _ in 0..3 {
        let again = handshake.receive(&mut &option[..]);
        assert_eq!(again, Err(Error::Unanswered));
    }
    let mut out = Vec::new();
    let granted = handshake.grant(&query, export, &mut out).unwrap();
    assert_eq!(granted.written, out.len());
    (granted.written, granted.starts_transmission)
}

/// An event that the caller has to answer is `Unanswered` until then, whatever
/// else arrives. The error is not fatal: the answer is accepted afterwards.
#[test]
fn unanswered_repeats() {
    for option in [
        "LIST 4{ }",
        "INFO 4{ 4{ \"disk\" } 0000 }",
        "GO 4{ 4{ \"disk\" } 0000 }",
        "EXPORT_NAME 4{ \"disk\" }",
        "LIST_META 4{ 4{ \"disk\" } 00000000 }",
        "SET_META 4{ 4{ \"disk\" } 00000000 }",
    ] {
        for refuses in [false, true] {
            let mut handshake = negotiating(TlsMode::None);
            let mut out = Vec::new();
            let structured = bytes("IHAVEOPT STRUCTURED_REPLY 4{ }");
            assert_eq!(handshake.receive(&mut &structured[..]), Ok(Step::Transmit));
            handshake.transmit(&mut out).unwrap();
            let option = bytes(&format!("IHAVEOPT {option}"));
            let Ok(Step::Event(event)) = handshake.receive(&mut &option[..]) else {
                panic!("no event");
            };
            for arrived in [&b""[..], &option, &b"junk"[..]] {
                let mut input = arrived;
                assert_eq!(handshake.receive(&mut input), Err(Error::Unanswered));
                assert_eq!(input, arrived, "nothing is consumed");
                assert_eq!(handshake.transmit(&mut out), Ok(0));
            }
            assert!(!Error::Unanswered.is_fatal());
            out.clear();
            match event {
                _ if refuses => {
                    let refused = handshake.refuse(OptionReplyType::ERR_POLICY, "no", &mut out);
                    assert_eq!(refused, Ok(out.len()));
                }
                HandshakeEvent::List => {
                    handshake.list(&DISK, &mut out).unwrap();
                    handshake.finish_list(&mut out).unwrap();
                }
                HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
                    let granted = handshake.grant(&query, &DISK, &mut out).unwrap();
                    assert_eq!(granted.written, out.len());
                }
                other => panic!("{other:?}"),
            }
            let next = handshake.receive(&mut &[][..]);
            match (event, refuses) {
                (HandshakeEvent::Export(query), true)
                    if query.option() == OptionType::EXPORT_NAME =>
                {
                    assert_eq!(next, Err(Error::ExportRefused));
                }
                (HandshakeEvent::Export(query), false) if query.starts_transmission() => {
                    let ready = HandshakeEvent::Ready { export: 9 };
                    assert_eq!(next, Ok(Step::Event(ready)));
                }
                _ => assert_eq!(next, Ok(read(16))),
            }
        }
    }
}

/// After DISC and ABORT, `receive` is `Finished` and the end of the input is no
/// error, as often as the caller asks; what arrives is not consumed.
#[test]
fn finished_repeats() {
    fn check(mut machine: impl Receive) {
        for _ in 0..3 {
            let mut input = &b"more"[..];
            assert!(matches!(machine.receive(&mut input), Ok(Step::Finished)));
            assert_eq!(input, b"more");
            assert_eq!(machine.end_of_input(), Ok(()));
        }
    }
    let mut handshake = negotiating(TlsMode::None);
    let abort = bytes("IHAVEOPT ABORT 4{ }");
    assert_eq!(handshake.receive(&mut &abort[..]), Ok(Step::Transmit));
    handshake.transmit(&mut Vec::new()).unwrap();
    let aborted = handshake.receive(&mut &[][..]);
    assert_eq!(aborted, Ok(Step::Event(HandshakeEvent::Aborted)));
    check(handshake);
    for (framing, disc) in [
        (Framing::Simple, "REQUEST 0000 DISC 00*20"),
        (Framing::Structured, "REQUEST 0000 DISC 00*20"),
        (Framing::Extended, "EXTREQUEST 0000 DISC 00*24"),
    ] {
        let mut server = Transmission::new(export(framing, WRITABLE), Limits::DEFAULT).unwrap();
        let disc = bytes(disc);
        let disconnected = server.receive(&mut &disc[..]);
        let event = Step::Event(TransmissionEvent::Disconnect);
        assert_eq!(disconnected, Ok(event));
        check(server);
    }
}

/// The payload of a rejected write is discarded in pieces that fit the receive
/// buffer, and exactly: the request after it is received.
#[test]
fn rejected_writes_are_discarded_in_pieces() {
    const LENGTH: usize = 32 << 20;
    let header = bytes("REQUEST 0000 WRITE 00*8 0001_0000_0000_0000 0200_0000");
    let flush = bytes("REQUEST 0000 FLUSH 00*20");
    for size in [Limits::LEAST_BUFFER, 1000, u32::MAX] {
        let limits = Limits::for_buffer(size);
        let simple = export(Framing::Simple, WRITABLE);
        let mut server = Transmission::new(simple, limits).unwrap();
        let payload = vec![0xee; limits.buffer()];
        let mut left = LENGTH;
        let mut step = server.receive(&mut &header[..]);
        let reply = loop {
            match step.unwrap() {
                Step::Read(n) => {
                    assert_eq!(n.get(), left.min(limits.buffer()));
                    // Fewer bytes than the step asks for may arrive.
                    let mut input = &payload[..n.get().div_ceil(2)];
                    left -= input.len();
                    step = server.receive(&mut input);
                    assert!(input.is_empty());
                }
                Step::Event(TransmissionEvent::Answered { command, reply, .. }) => {
                    assert_eq!(command, Command::WRITE);
                    break reply;
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(left, 0);
        assert_eq!(reply.size(), 16);
        let step = server.receive(&mut &flush[..]);
        let event = step.unwrap();
        let request = matches!(
            event,
            Step::Event(TransmissionEvent::Request(Request::Flush(_)))
        );
        assert!(request, "{event:?}");
    }
}

/// `Granted` says whether transmission starts, `Ready` with which export.
#[test]
fn granted_and_ready_name_the_export() {
    let info = "IHAVEOPT INFO 4{ 4{ \"disk\" } 0000 }";
    let go = "IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }";
    let mut handshake = negotiating(TlsMode::None);
    let (written, starts) = grant(&mut handshake, info, &DISK);
    assert!(written > 0 && !starts);
    // The export requires what was not negotiated.
    let mut extended = DISK;
    extended.requires_extended = true;
    let (written, starts) = grant(&mut handshake, go, &extended);
    assert!(written > 0 && !starts);
    assert_eq!(handshake.receive(&mut &[][..]), Ok(read(16)));
    let (written, starts) = grant(&mut handshake, go, &DISK);
    assert!(written > 0 && starts);
    let ready = Step::Event(HandshakeEvent::Ready { export: 9 });
    let request = b"requests follow";
    let mut input = &request[..];
    assert_eq!(handshake.receive(&mut input), Ok(ready));
    for _ in 0..3 {
        assert_eq!(handshake.receive(&mut input), Ok(Step::Finished));
    }
    assert_eq!(input, request, "they are left to transmission");

    let oldstyle = Handshake::oldstyle(&DISK);
    let mut handshake = oldstyle.unwrap();
    assert_eq!(handshake.receive(&mut &[][..]), Ok(Step::Transmit));
    handshake.transmit(&mut Vec::new()).unwrap();
    assert_eq!(handshake.receive(&mut &[][..]), Ok(ready));
}

/// Nothing is received before the message that is due was transmitted.
#[test]
fn transmit_repeats() {
    let mut handshake = Handshake::new(Config::new()).unwrap();
    let options = bytes("00000003 IHAVEOPT STRUCTURED_REPLY 4{ } IHAVEOPT ABORT 4{ }");
    let mut input = &options[..];
    let mut written = Vec::new();
    let mut repeat = |handshake: &mut Handshake, input: &mut &[u8]| {
        let before = input.len();
        for _ in 0..3 {
            let consumed = handshake.receive(input);
            assert_eq!(consumed, Ok(Step::Transmit));
        }
        assert!(handshake.transmit(&mut written).unwrap() > 0);
        assert_eq!(handshake.transmit(&mut written), Ok(0));
        before - input.len()
    };
    assert_eq!(repeat(&mut handshake, &mut input), 0);
    assert_eq!(repeat(&mut handshake, &mut input), 4 + 16);
    assert_eq!(repeat(&mut handshake, &mut input), 16);
    let aborted = handshake.receive(&mut input);
    assert_eq!(aborted, Ok(Step::Event(HandshakeEvent::Aborted)));
    assert_eq!(handshake.receive(&mut input), Ok(Step::Finished));
}

/// `Step::Read` counts the bytes that are missing, and repeats.
#[test]
fn read_counts_missing_bytes() {
    let mut handshake = negotiating(TlsMode::None);
    let go = bytes("IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }");
    for held in 0..go.len() {
        let end = if held < 16 { 16 } else { go.len() };
        for _ in 0..2 {
            let mut input = &go[..held];
            assert_eq!(handshake.receive(&mut input), Ok(read(end - held)));
            assert_eq!(input.len(), held);
        }
    }
    for (framing, size) in [
        (Framing::Simple, 28),
        (Framing::Structured, 28),
        (Framing::Extended, 32),
    ] {
        let mut server = Transmission::new(export(framing, WRITABLE), Limits::DEFAULT).unwrap();
        let flush = match framing {
            Framing::Extended => bytes("EXTREQUEST 0000 FLUSH 00*24"),
            _ => bytes("REQUEST 0000 FLUSH 00*20"),
        };
        for held in 0..size {
            let step = server.receive(&mut &flush[..held]);
            assert_eq!(step, Ok(read(size - held)), "{framing}");
        }
    }
}

/// The payload of a write is content of the input, or read past the state
/// machine, in any mixture.
#[test]
fn payloads_are_content_or_read_directly() {
    let header = bytes("REQUEST 0000 WRITE 00*7 07 0000_0000_0000_1000 0000_000a");
    let payload = b"0123456789";
    for mixture in 0..1 << payload.len() {
        let mut server =
            Transmission::new(export(Framing::Simple, WRITABLE), Limits::DEFAULT).unwrap();
        let cookie = Cookie(7);
        let begins = Step::Event(TransmissionEvent::WritePayload {
            cookie,
            offset: 0x1000,
            length: 10,
        });
        assert_eq!(server.receive(&mut &header[..]), Ok(begins));
        let mut block = [0xee; 10];
        for at in 0..payload.len() {
            let next = Step::ReadPayload {
                cookie,
                offset: 0x1000 + at as u64,
                length: 10 - at as u64,
            };
            assert_eq!(server.receive(&mut &[][..]), Ok(next));
            if mixture & 1 << at != 0 {
                block[at] = payload[at];
                server.advance(1).unwrap();
                continue;
            }
            let Ok(Step::Content(content)) = server.receive(&mut &payload[at..=at]) else {
                panic!("no content");
            };
            assert_eq!(content.cookie(), cookie);
            assert!(content.copy_to(0x1000, &mut block));
        }
        let Ok(Step::Event(TransmissionEvent::Request(request))) = server.receive(&mut &[][..])
        else {
            panic!("no request");
        };
        assert!(matches!(request, Request::Write(_)));
        assert_eq!(block, *payload);
    }
}

/// The longest request that does not come in pieces names 32 contexts. A
/// session starts only with a buffer that it fits.
#[test]
fn the_longest_request_fits_the_buffer() {
    for limits in [
        Limits::DEFAULT,
        Limits::for_buffer(168),
        Limits::for_buffer(167),
        Limits::for_buffer(Limits::LEAST_BUFFER),
    ] {
        let mut negotiated = Negotiated::new(Framing::Extended, 1 << 20, WRITABLE);
        for id in (0..).take(SelectedContexts::CAPACITY) {
            let context = SelectedContext {
                id: ContextId(id),
                width: StatusWidth::Narrow,
            };
            negotiated.contexts.push(context).unwrap();
        }
        let needed = 168;
        let mut server = match Transmission::new(negotiated, limits) {
            Ok(server) => server,
            Err(misuse) => {
                assert_eq!(misuse, Misuse::BufferTooSmall { needed });
                assert!(limits.buffer() < needed);
                continue;
            }
        };
        let ids: String = (0..32).map(|id| format!("{id:08x} ")).collect();
        let request = bytes(&format!(
            "EXTREQUEST 0020 BLOCK_STATUS 00*8 00*8 8{{ 0000_0000_0000_1000 {ids} }}"
        ));
        let mut held = 0;
        loop {
            match server.receive(&mut &request[..held]).unwrap() {
                Step::Read(n) => {
                    held += n.get();
                    assert!(held <= limits.buffer(), "{held} bytes of {limits:?}");
                }
                Step::Event(TransmissionEvent::Request(Request::BlockStatus64(status))) => {
                    assert_eq!(status.contexts().count(), 32);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
