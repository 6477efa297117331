//! The server's part of a command, and a handshake of both roles.

use super::Case;
use nbd_codec::client::{self, ConnectEvent, Connector};
use nbd_codec::server::{
    self, Export, Handshake, HandshakeEvent, Request, Transmission, TransmissionEvent,
};
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, Cookie};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits, Negotiated, Step};
use std::hint::black_box;

/// Receives a read of 4 KiB and makes the header of its reply.
fn reads(framing: Framing, n: u64) {
    let flags = TransmissionFlags::HAS_FLAGS;
    let negotiated = Negotiated::new(framing, 1 << 40, flags);
    let mut server = Transmission::new(negotiated, Limits::DEFAULT).expect("a server");
    let (flags, command, cookie) = (CommandFlags::NONE, Command::READ, Cookie(7));
    let compact = CompactRequest {
        flags,
        command,
        cookie,
        offset: 1 << 20,
        length: 4096,
    };
    let extended = ExtendedRequest {
        flags,
        command,
        cookie,
        offset: 1 << 20,
        length: 4096,
    };
    let (compact, extended) = (compact.encode(), extended.encode());
    let request = match framing {
        Framing::Extended => &extended[..],
        _ => &compact[..],
    };
    for _ in 0..n {
        let mut input = black_box(request);
        match server.receive(&mut input) {
            Ok(Step::Event(TransmissionEvent::Request(Request::Read(read)))) => {
                black_box(read.data().as_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// From the greeting to transmission, both roles, each message in one piece.
fn handshakes(n: u64) {
    let export = Export::new("disk", 1 << 30, TransmissionFlags::HAS_FLAGS);
    for _ in 0..n {
        let mut client = Connector::new(black_box(client::Config::new("disk"))).expect("a config");
        let mut server = Handshake::new(server::Config::new()).expect("a config");
        let (mut up, mut down) = ([0; 512], [0; 512]);
        let (mut ready_client, mut ready_server) = (false, false);
        let mut sent = server.transmit(&mut &mut down[..]).expect("room");
        while !(ready_client && ready_server) {
            let mut input = &down[..sent];
            while let Step::Event(event) = client.receive(&mut input).expect("a legal reply") {
                ready_client |= event == ConnectEvent::Ready;
            }
            let asked = client.transmit(&mut &mut up[..]).expect("room");
            let mut out = &mut down[..];
            let mut input = &up[..asked];
            loop {
                match server.receive(&mut input).expect("a legal option") {
                    Step::Event(HandshakeEvent::Export(query)) => {
                        server.grant(&query, &export, &mut out).expect("room");
                    }
                    Step::Event(HandshakeEvent::Ready { .. }) => ready_server = true,
                    Step::Transmit => drop(server.transmit(&mut out).expect("room")),
                    Step::Read(_) | Step::Finished => break,
                    other => panic!("{other:?}"),
                }
            }
            sent = 512 - out.len();
        }
        black_box((client.agreed(), server.agreed()));
    }
}

const fn case(name: &'static str, run: fn(u64), count: u64) -> Case {
    Case {
        name,
        run,
        count,
        limit: None,
        other: None,
    }
}

pub const SIMPLE: Case = case(
    "server: read 4 KiB, simple",
    |n| reads(Framing::Simple, n),
    10_000,
);
pub const STRUCTURED: Case = case(
    "server: read 4 KiB, structured",
    |n| reads(Framing::Structured, n),
    10_000,
);
pub const EXTENDED: Case = case(
    "server: read 4 KiB, extended",
    |n| reads(Framing::Extended, n),
    10_000,
);
pub const HANDSHAKE: Case = case("handshake, both roles", handshakes, 1_000);
