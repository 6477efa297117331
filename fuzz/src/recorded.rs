//! Recorded sessions as scripts. A recording has lines of hexadecimal digits,
//! after `C:` for the client's bytes and `S:` for the server's.

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Negotiated, StatusWidth};

use crate::client;
use crate::client::handshake::script::{ConfigSetup, OptionScript};
use crate::client::{handshake as client_handshake, transmission as client_transmission};
use crate::delivery::Delivery;
use crate::format::{List, Rest};
use crate::script::{ContextSetup, LimitsSetup, Setup};
use crate::server::handshake::script::{self as server_handshake, ExportContext, ExportSetup};
use crate::server::transmission::script as server_transmission;

/// The scripts for the client: of the handshake, and of transmission if the
/// session gets there.
pub fn client_scripts(
    text: &str,
) -> (
    client_handshake::script::Script,
    Option<client_transmission::script::Script>,
) {
    use client_handshake::script::Action as HandshakeAction;
    use client_transmission::script::Action;
    let (mut handshake, mut transmission) = (Vec::new(), Vec::new());
    for (is_client, bytes) in lines(text) {
        let is_transmission = is_client && is_request(&bytes) || !transmission.is_empty();
        match (is_client, is_transmission) {
            (true, true) => requests(&bytes, &mut transmission),
            (false, true) => transmission.push(Action::Raw { bytes }),
            (true, false) => handshake.extend(options(&bytes)),
            (false, false) => handshake.push(HandshakeAction::Raw { bytes }),
        }
    }
    let handshake = client_handshake::script::Script {
        tls: 0,
        strict: false,
        go: true,
        limits: LimitsSetup::default_limits(),
        config: ConfigSetup {
            export: 0,
            contexts: List(vec![]),
            framing: 2,
            describe: false,
        },
        actions: Rest(handshake),
    };
    let outcome = client::handshake::run(&handshake, &Delivery::whole()).outcome;
    let transmission = outcome
        .negotiated
        .map(|negotiated| client_transmission::script::Script {
            setup: setup(&negotiated),
            actions: Rest(transmission),
        });
    (handshake, transmission)
}

/// The scripts for the server, with the client's bytes. The server gives its own
/// replies.
pub fn server_scripts(
    text: &str,
) -> (
    server_handshake::Script,
    Option<server_transmission::Script>,
) {
    use server_handshake::Action as HandshakeAction;
    use server_transmission::Action;
    let (_, client) = client_scripts(text);
    let (mut handshake, mut transmission) = (Vec::new(), Vec::new());
    for (_, bytes) in lines(text).filter(|(is_client, _)| *is_client) {
        if client.is_some() && is_request(&bytes) || !transmission.is_empty() {
            transmission.push(Action::Raw { bytes });
            // Up to three requests, as many as one line holds.
            transmission.extend([0, 2, 0].map(|pieces| Action::Finish {
                which: 0,
                pieces,
                fail: false,
            }));
        } else {
            handshake.push(HandshakeAction::Raw { bytes });
            // The export grants any name.
            let (export, space) = (0, 9000);
            handshake.push(HandshakeAction::Grant { export, space });
            handshake.push(HandshakeAction::Serve {});
        }
    }
    let config = server_handshake::ConfigSetup {
        oldstyle: if handshake.is_empty() { 15 } else { 0 },
        fixed: true,
        no_zeroes: true,
        tls: 0,
        framing: 2,
        limits: LimitsSetup::default_limits(),
        strict: false,
    };
    let export = ExportSetup {
        name: 0,
        description: 0,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 0,
        contexts: List(vec![ExportContext {
            name: 2,
            wide: false,
        }]),
        requires: 0,
    };
    let handshake = server_handshake::Script {
        config,
        exports: List(vec![export]),
        writes_immediately: true,
        actions: Rest(handshake),
    };
    let transmission = client.map(|client| server_transmission::Script {
        setup: server_transmission::ServerSetup {
            common: client.setup,
            max_effect: 0,
        },
        actions: Rest(transmission),
    });
    (handshake, transmission)
}

/// The bytes of both sides, as the target `monitor` takes them.
pub fn pieces(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (is_client, bytes) in lines(text) {
        for piece in bytes.chunks(127) {
            out.push((piece.len() as u8) << 1 | u8::from(is_client));
            out.extend(piece);
        }
    }
    out
}

fn is_request(bytes: &[u8]) -> bool {
    let request = [&[0x25, 0x60][..], &[0x21, 0xe4]];
    request.iter().any(|magic| bytes.starts_with(magic))
}

/// The bytes of each line, and whether the client sent them.
fn lines(text: &str) -> impl Iterator<Item = (bool, Vec<u8>)> {
    text.lines().filter_map(|line| {
        let (sender, digits) = line.split_once(": ")?;
        let is_client = match sender {
            "C" => true,
            "S" => false,
            _ => return None,
        };
        let digits: Vec<u8> = digits
            .bytes()
            .filter_map(|byte| char::from(byte).to_digit(16))
            .map(|digit| digit as u8)
            .collect();
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]);
        Some((is_client, bytes.collect()))
    })
}

fn options(mut bytes: &[u8]) -> Vec<client_handshake::script::Action> {
    use client_handshake::script::Action;
    let mut actions = Vec::new();
    if let Some((flags, rest)) = bytes.split_first_chunk::<4>().filter(|_| bytes[0] == 0) {
        let (wanted, space) = (flags[3], 16);
        actions.push(Action::ClientFlags { wanted, space });
        bytes = rest;
    }
    while let Ok(Some(header)) = OptionHeader::decode(&mut bytes) {
        let length = (header.length as usize).min(bytes.len());
        let (data, rest) = bytes.split_at(length);
        bytes = rest;
        let option = OptionScript::Other {
            option: header.option.0.into(),
            data: data.to_vec(),
        };
        let space = 9000;
        actions.push(Action::Send { option, space });
    }
    actions
}

fn requests(mut bytes: &[u8], actions: &mut Vec<client_transmission::script::Action>) {
    use client_transmission::script::Action;
    while !bytes.is_empty() {
        let (command, flags, offset, length, payload) =
            if let Ok(Some(request)) = CompactRequest::decode(&mut bytes) {
                let payload = request.payload_length().into();
                let CompactRequest {
                    command,
                    flags,
                    offset,
                    length,
                    ..
                } = request;
                (command, flags, offset, length.into(), payload)
            } else if let Ok(Some(request)) = ExtendedRequest::decode(&mut bytes) {
                let payload = request.payload_length();
                let ExtendedRequest {
                    command,
                    flags,
                    offset,
                    length,
                    ..
                } = request;
                (command, flags, offset, length, payload)
            } else {
                // The payload of a write has a line of its own.
                return;
            };
        bytes = &bytes[bytes.len().min(payload as usize)..];
        let flags = flags.difference(CommandFlags::PAYLOAD_LEN).0;
        actions.push(match command.0 as u8 {
            2 => Action::Disconnect {},
            command => Action::Submit {
                command,
                flags,
                offset,
                length,
            },
        });
    }
}

fn setup(negotiated: &Negotiated) -> Setup {
    let sizes = negotiated.constraints();
    let contexts = negotiated.contexts.iter().map(|context| ContextSetup {
        id: context.id.0.into(),
        wide: context.width == StatusWidth::Wide,
    });
    Setup {
        framing: match negotiated.framing {
            Framing::Simple => 0,
            Framing::Structured => 1,
            Framing::Extended => 2,
        },
        size: negotiated.size,
        flags: negotiated.flags.0,
        block_sizes: u8::from(negotiated.block_sizes.is_some()),
        minimum: sizes.minimum.into(),
        maximum: sizes.maximum.into(),
        contexts: List(contexts.collect()),
        limits: LimitsSetup::default_limits(),
        slots: 5,
        lenient: false,
        strict: false,
    }
}
