//! The server's state machines with the receive buffers of the crate.

use bytes::BufMut;
use nbd_codec::inbox::{BytesInbox, Inbox, Payloads};
use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, Request, Transmission, TransmissionEvent,
};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Content, Error, Framing, Limits, Step};

use crate::requests::{WRITABLE, export};
use crate::script::bytes;

/// Bytes for the inbox of a handshake, which reads exactly, until `stop`.
fn handshake(inbox: &mut Inbox<&mut [u8]>, limits: Limits, sent: &str) -> Result<Vec<u8>, Error> {
    let sent = bytes(sent);
    let mut incoming = &sent[..];
    let export = Export::new("disk", 1 << 20, TransmissionFlags::NONE);
    let mut handshake = Handshake::new(Config::new().limits(limits)).unwrap();
    let mut out = Vec::new();
    loop {
        match inbox.receive(&mut handshake)? {
            Step::Event(HandshakeEvent::Export(query)) => {
                let granted = handshake.grant(&query, &export, &mut out);
                granted.unwrap();
            }
            Step::Event(_) => {}
            Step::Transmit => drop(handshake.transmit(&mut out).unwrap()),
            Step::Read(n) => {
                let read = |space: &mut [u8]| std::io::Read::read(&mut incoming, space);
                inbox.fill(n, read).unwrap();
            }
            Step::Finished => return Ok(out),
            other => panic!("{other:?}"),
        }
    }
}

/// A buffer of the size that `Limits::buffer` names suffices for everything, as
/// what is longer is refused and discarded.
#[test]
fn a_buffer_of_the_named_size_suffices() {
    let name = "n".repeat(500);
    let session = format!(
        "00000003 IHAVEOPT 00001234 4{{ 00*5000 }} IHAVEOPT GO 4{{ 4{{ \"{name}\" }} 0000 }}
         IHAVEOPT GO 4{{ 4{{ \"disk\" }} 0000 }}"
    );
    for size in [64, 100, 168, 500, 8216] {
        let limits = Limits::for_buffer(size);
        assert!(limits.buffer() <= size as usize);
        let mut buffer = vec![0; limits.buffer()];
        let out = handshake(&mut Inbox::new(&mut buffer), limits, &session).unwrap();
        assert!(out.ends_with(&bytes("REPLY GO ACK 4{ }")), "{size}");
    }
}

/// A smaller buffer is an error of the driver, which repeats. A larger one
/// takes the session on.
#[test]
fn a_full_buffer_is_an_error() {
    let go = bytes("00000003 IHAVEOPT GO 4{ 4{ \"a long name\" } 0000 }");
    let mut handshake = Handshake::new(Config::new()).unwrap();
    handshake.transmit(&mut Vec::new()).unwrap();
    let mut inbox = Inbox::new([0; 24]);
    inbox.space()[..24].copy_from_slice(&go[..24]);
    inbox.filled(24).unwrap();
    // The client flags make room for four more bytes.
    let Ok(Step::Read(n)) = inbox.receive(&mut handshake) else {
        panic!("no read");
    };
    assert_eq!(n.get(), go.len() - 24);
    let space = inbox.space_for(n);
    space.copy_from_slice(&go[24..28]);
    inbox.filled(4).unwrap();
    let full = Error::BufferFull {
        needed: go.len() - 4,
    };
    for _ in 0..3 {
        assert_eq!(inbox.receive(&mut handshake), Err(full));
        assert!(!full.is_fatal() && inbox.space().is_empty());
    }
    let mut large = Inbox::new([0; 64]);
    let held = inbox.held().len();
    large.space()[..held].copy_from_slice(inbox.held());
    large.space()[held..][..go.len() - 28].copy_from_slice(&go[28..]);
    large.filled(go.len() - 4).unwrap();
    let step = large.receive(&mut handshake).unwrap();
    assert!(matches!(step, Step::Event(HandshakeEvent::Export(_))));
}

/// The end of the input is `Finished` after ABORT and DISC, and an error before.
#[test]
fn the_end_of_the_input() {
    let limits = Limits::DEFAULT;
    for (sent, expected) in [
        ("00000003 IHAVEOPT ABORT 4{ }", true),
        ("00000003 IHAVEOPT ABORT", false),
        ("00000003", false),
        ("", false),
    ] {
        let mut buffer = [0; 8216];
        let result = handshake(&mut Inbox::new(&mut buffer), limits, sent);
        if expected {
            assert!(result.is_ok())
        } else {
            assert_eq!(result, Err(Error::Closed), "{sent}")
        }
    }
    for (sent, expected) in [
        ("REQUEST 0000 DISC 00*20", Ok(Step::Finished)),
        ("REQUEST 0000 DISC 00*19", Err(Error::Closed)),
        ("REQUEST 0000 WRITE 00*16 00000002 00", Err(Error::Closed)),
        ("", Err(Error::Closed)),
    ] {
        let sent = bytes(sent);
        let simple = export(Framing::Simple, WRITABLE);
        let mut server = Transmission::new(simple, limits).unwrap();
        let mut inbox = Inbox::new([0; 64]);
        inbox.space()[..sent.len()].copy_from_slice(&sent);
        if !sent.is_empty() {
            inbox.filled(sent.len()).unwrap();
        }
        while let Ok(Step::Event(_) | Step::Content(_)) = inbox.receive(&mut server) {}
        inbox.filled(0).unwrap();
        for _ in 0..3 {
            assert_eq!(inbox.receive(&mut server), expected);
        }
    }
}

/// Payloads of writes as `Bytes`: in fragments, or each in one piece.
#[test]
fn owned_payloads() {
    let write = |at: usize, length: usize| {
        let header = format!("EXTREQUEST 0020 WRITE 00*8 {at:016x} {length:016x}");
        let mut message = bytes(&header);
        message.extend((at..at + length).map(|at| at as u8));
        message
    };
    let sent = [write(0, 1000), write(1000, 1), write(1001, 300)].concat();
    for piece in [1, 7, 100, sent.len()] {
        for payloads in [Payloads::Fragments, Payloads::Whole] {
            let extended = export(Framing::Extended, WRITABLE);
            let mut server = Transmission::new(extended, Limits::DEFAULT).unwrap();
            let mut inbox = BytesInbox::new(payloads);
            let mut incoming = sent.chunks(piece);
            let (mut held, mut contents, mut written) = (Vec::new(), 0, Vec::new());
            loop {
                let memory = inbox.buffer().as_ptr_range();
                match inbox.receive(&mut server).unwrap() {
                    Step::Content(Content::Data { offset, data, .. }) => {
                        assert!(memory.contains(&data.as_ptr()), "a copy");
                        assert_eq!(offset, (written.len() + total(&held)) as u64);
                        assert!(!data.is_empty());
                        contents += 1;
                        held.push(data);
                    }
                    Step::Event(TransmissionEvent::Request(Request::Write(write))) => {
                        assert_eq!(write.length(), total(&held) as u64);
                        written.extend(held.drain(..).flatten());
                    }
                    Step::Event(_) => {}
                    Step::Read(_) | Step::ReadPayload { .. } => match incoming.next() {
                        Some(piece) => inbox.buffer().put_slice(piece),
                        None => break,
                    },
                    other => panic!("{other:?}"),
                }
            }
            assert!(written.iter().copied().eq((0..1301).map(|at| at as u8)));
            if payloads == Payloads::Whole || piece == sent.len() {
                assert_eq!(contents, 3, "{payloads:?}, {piece}");
            }
            inbox.close();
            assert_eq!(inbox.receive(&mut server), Err(Error::Closed));
        }
    }
}

fn total(pieces: &[bytes::Bytes]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}
