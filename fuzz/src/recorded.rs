//! Recorded sessions as scripts: what a client and a server said to each
//! other, in lines of `C:` and `S:` and hexadecimal digits.

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Negotiated, Width};

use crate::delivery::Delivery;
use crate::handshake;
use crate::host::script::{self as server_script, ExportSetup, OfferSetup};
use crate::host::script::{Reception, ReceptionStep};
use crate::script::{ContextSetup, LimitsSetup, Session, Setup, Step};
use crate::server::script::{Service, ServiceSetup, ServiceStep};
use crate::talk::{OptionScript, PlanSetup, Talk, TalkStep};
use crate::tape::{List, Rest};

/// The handshake, and the transmission that it led to, if any.
pub fn scripts(text: &str) -> (Talk, Option<Session>) {
    let mut talk = Vec::new();
    let mut steps = Vec::new();
    for (client, bytes) in lines(text) {
        let transmission = client && is_request(&bytes);
        match (client, transmission || !steps.is_empty()) {
            (true, true) => requests(&bytes, &mut steps),
            (false, true) => steps.push(Step::Raw { bytes }),
            (true, false) => talk.extend(options(&bytes)),
            (false, false) => talk.push(TalkStep::Raw { bytes }),
        }
    }
    let talk = Talk {
        tls: 0,
        limits: no_limits(),
        plan: PlanSetup {
            export: 0,
            contexts: List(vec![]),
            framing: 2,
            describe: false,
        },
        steps: Rest(talk),
    };
    let outcome = handshake::by_hand(&talk, &Delivery::whole()).outcome;
    let session = outcome.negotiated.map(|negotiated| Session {
        setup: setup(&negotiated),
        steps: Rest(steps),
    });
    (talk, session)
}

/// The same for a server: the client says what it said, and the server answers
/// as it does.
pub fn server_scripts(text: &str) -> (Reception, Option<Service>) {
    let (_, session) = scripts(text);
    let mut reception = Vec::new();
    let mut service = Vec::new();
    for (client, bytes) in lines(text) {
        let transmission = session.is_some() && is_request(&bytes);
        match (client, transmission || !service.is_empty()) {
            (true, true) => {
                service.push(ServiceStep::Raw { bytes });
                service.extend(finishes());
            }
            (true, false) => {
                reception.push(ReceptionStep::Raw { bytes });
                // Whatever the export is called.
                let (export, room) = (0, 9000);
                reception.push(ReceptionStep::Grant { export, room });
                reception.push(ReceptionStep::Serve {});
            }
            (false, _) => {}
        }
    }
    let offer = OfferSetup {
        oldstyle: if reception.is_empty() { 15 } else { 0 },
        fixed: true,
        no_zeroes: true,
        tls: 0,
        framing: 2,
        limits: no_limits(),
    };
    let context = server_script::ContextSetup {
        name: 2,
        wide: false,
    };
    let export = ExportSetup {
        name: 0,
        description: 0,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 0,
        contexts: List(vec![context]),
        requires: 0,
    };
    let reception = Reception {
        offer,
        exports: List(vec![export]),
        prompt: true,
        steps: Rest(reception),
    };
    let service = session.map(|session| Service {
        setup: ServiceSetup {
            common: session.setup,
            longest_effect: 0,
        },
        steps: Rest(service),
    });
    (reception, service)
}

/// A line may hold several requests.
fn finishes() -> impl Iterator<Item = ServiceStep> {
    let finish = |pieces| ServiceStep::Finish {
        which: 0,
        pieces,
        fail: false,
    };
    [0, 2, 0].into_iter().map(finish)
}

fn is_request(bytes: &[u8]) -> bool {
    let request = [&[0x25, 0x60][..], &[0x21, 0xe4]];
    request.iter().any(|magic| bytes.starts_with(magic))
}

/// Who says what: true is the client.
fn lines(text: &str) -> impl Iterator<Item = (bool, Vec<u8>)> {
    text.lines().filter_map(|line| {
        let (who, digits) = line.split_once(": ")?;
        let client = match who {
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
        Some((client, bytes.collect()))
    })
}

fn options(mut bytes: &[u8]) -> Vec<TalkStep> {
    let mut steps = Vec::new();
    if let Some((flags, rest)) = bytes.split_first_chunk::<4>().filter(|_| bytes[0] == 0) {
        let (wanted, room) = (flags[3], 16);
        steps.push(TalkStep::ClientFlags { wanted, room });
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
        let room = 9000;
        steps.push(TalkStep::Send { option, room });
    }
    steps
}

fn requests(mut bytes: &[u8], steps: &mut Vec<Step>) {
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
                // The payload of a write, in a line of its own.
                return;
            };
        bytes = &bytes[bytes.len().min(payload as usize)..];
        let flags = flags.difference(CommandFlags::PAYLOAD_LEN).0;
        steps.push(match command.0 as u8 {
            2 => Step::Disconnect {},
            command => Step::Submit {
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
        wide: context.width == Width::Wide,
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
        limits: no_limits(),
        slots: 5,
        lenient: false,
    }
}

/// Those of the crate.
fn no_limits() -> LimitsSetup {
    LimitsSetup {
        own: false,
        option_data: 0,
        error_message: 0,
        payload: 0,
        extents: 0,
    }
}
