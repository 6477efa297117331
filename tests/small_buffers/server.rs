//! A server: requests in 64 bytes, and a whole handshake in 256, to receive in
//! and to answer from.

use nbd_codec::server::handshake::{self, Handshake};
use nbd_codec::server::{Event, Export, MetaContext, Offer, Request, Transmission};
use nbd_codec::wire::Sink;
use nbd_codec::wire::flags::{ClientFlags, CommandFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{Greeting, NewstyleGreeting};
use nbd_codec::wire::number::{Command, ContextId, Cookie, OptionReplyType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest};
use nbd_codec::wire::option_reply::OptionReplyHeader;
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use nbd_codec::{Context, Framing, Limits, Need, Negotiated, Width};

use crate::{FRAMINGS, HANDSHAKE, PACES, Pace, Receiver, TRANSMISSION};

/// What a request says, however it was cut.
#[derive(Debug, Clone, PartialEq)]
enum Asked {
    Payload(u64, u32),
    Data(u64, Vec<u8>),
    Request(Command),
    Status(Vec<u32>),
    Rejected(Command),
    Disconnect,
}

/// Takes the event out, and joins it to the one before if it carries that on.
fn ask(asked: &mut Vec<Asked>, event: Event<'_>) {
    let one = match event {
        Event::Payload { offset, length, .. } => Asked::Payload(offset, length),
        Event::Data { offset, data, .. } => {
            if let Some(Asked::Data(start, before)) = asked.last_mut()
                && *start + before.len() as u64 == offset
            {
                return before.extend_from_slice(data);
            }
            Asked::Data(offset, data.to_vec())
        }
        Event::Request(Request::BlockStatus64(status)) => {
            Asked::Status(status.contexts().map(|id| id.0).collect())
        }
        Event::Request(request) => Asked::Request(request.command()),
        Event::Rejected { command, .. } => Asked::Rejected(command),
        Event::Disconnect => Asked::Disconnect,
        other => panic!("{other:?}"),
    };
    asked.push(one);
}

/// C: a request, and its payload.
fn request(framing: Framing, command: Command, length: u32, payload: &[u8]) -> Vec<u8> {
    let (cookie, offset) = (Cookie(5), 4096);
    let mut bytes = match framing {
        Framing::Extended => ExtendedRequest {
            flags: match payload {
                [] => CommandFlags::NONE,
                _ => CommandFlags::PAYLOAD_LEN,
            },
            command,
            cookie,
            offset,
            length: match payload {
                [] => length.into(),
                _ => payload.len() as u64,
            },
        }
        .encode()
        .to_vec(),
        _ => CompactRequest {
            flags: CommandFlags::NONE,
            command,
            cookie,
            offset,
            length,
        }
        .encode()
        .to_vec(),
    };
    bytes.extend(payload);
    bytes
}

/// C: block status for some contexts: with six of them, 64 bytes.
fn status_of(ids: &[u32]) -> Vec<u8> {
    let ids: Vec<_> = ids.iter().copied().map(ContextId).collect();
    let mut room = [0; 256];
    let payload = BlockStatusPayload {
        effect_length: 8192,
        contexts: ids.as_slice().into(),
    };
    let n = payload.encode(&mut &mut room[..]).unwrap();
    request(Framing::Extended, Command::BLOCK_STATUS, 0, &room[..n])
}

fn session(framing: Framing) -> Transmission {
    let flags = TransmissionFlags::KNOWN.difference(TransmissionFlags::READ_ONLY);
    let mut negotiated = Negotiated::new(framing, 1 << 20, flags);
    if framing == Framing::Extended {
        for id in (0..6).map(ContextId) {
            let width = Width::Narrow;
            negotiated.contexts.push(Context { id, width }).unwrap();
        }
    }
    Transmission::new(negotiated, Limits::default()).unwrap()
}

/// Receives all of `line` in 64 bytes; payloads go straight into their place
/// if `direct`.
fn receive_all(framing: Framing, line: &[u8], pace: Pace, direct: bool) -> Vec<Asked> {
    let mut session = session(framing);
    let mut receiver = Receiver::<TRANSMISSION>::new(pace, line.to_vec());
    let mut asked = Vec::new();
    loop {
        let mut input = receiver.held();
        while let Some(event) = session.receive(&mut input).unwrap() {
            ask(&mut asked, event);
        }
        let left = input.len();
        receiver.keep(left);
        let need = session.need();
        if let (
            true,
            Need::Payload {
                cookie,
                offset,
                length,
            },
        ) = (direct, need)
        {
            let n = usize::try_from(length).unwrap();
            let data: Vec<u8> = receiver.line.drain(..n).collect();
            session.advance(length).unwrap();
            let data = &data[..];
            let event = Event::Data {
                cookie,
                offset,
                data,
            };
            ask(&mut asked, event);
        } else if !receiver.read(need).unwrap() {
            assert_eq!(receiver.held, 0, "left over");
            return asked;
        }
    }
}

#[test]
fn sixty_four_bytes_are_enough_for_requests() {
    let data: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for framing in FRAMINGS {
        let write = request(framing, Command::WRITE, 1000, &data);
        let unknown = request(framing, Command(99), 512, &[]);
        let mut line = [write, unknown].concat();
        let mut expected = vec![
            Asked::Payload(4096, 1000),
            Asked::Data(4096, data.clone()),
            Asked::Request(Command::WRITE),
            Asked::Rejected(Command(99)),
        ];
        if framing == Framing::Extended {
            // All contexts there are, one that is not there, a payload where
            // none belongs.
            line.extend(status_of(&[5, 4, 3, 2, 1, 0]));
            line.extend(status_of(&[7]));
            line.extend(request(framing, Command::READ, 512, &data));
            expected.push(Asked::Status(vec![0, 1, 2, 3, 4, 5]));
            expected.push(Asked::Rejected(Command::BLOCK_STATUS));
            expected.push(Asked::Rejected(Command::READ));
        }
        line.extend(request(framing, Command::READ, 512, &[]));
        line.extend(request(framing, Command::DISC, 0, &[]));
        expected.push(Asked::Request(Command::READ));
        expected.push(Asked::Disconnect);
        for pace in PACES {
            // What is read beyond a header is not read directly.
            for direct in [false, matches!(pace, Pace::Needed)] {
                let asked = receive_all(framing, &line, pace, direct);
                assert_eq!(asked, expected, "{framing}, {pace:?}, direct: {direct}");
            }
        }
    }
}

const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];

fn export() -> Export<'static> {
    let mut export = Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH);
    export.description = "a disk with a short name";
    export.contexts = CONTEXTS;
    export
}

/// C: every option, some of them far too long.
fn options() -> Vec<Vec<u8>> {
    use nbd_codec::wire::number::InfoType as I;
    let all = [I::EXPORT, I::NAME, I::DESCRIPTION, I::BLOCK_SIZE];
    let info = InfoRequest {
        export: "disk".into(),
        requests: all.as_slice().into(),
    };
    let contexts = |queries| MetaContextRequest {
        export: "disk".into(),
        queries,
    };
    let long = "base:".to_owned() + &"x".repeat(4000);
    let too_long = [long.as_str()];
    let unknown = OptionRequest::Other {
        option: OptionType(77),
        data: &[7; 4096],
    };
    [
        OptionRequest::List,
        unknown,
        OptionRequest::StructuredReply,
        OptionRequest::ExtendedHeaders,
        OptionRequest::ListMetaContext(contexts(["base:"].as_slice().into())),
        OptionRequest::SetMetaContext(contexts(too_long.as_slice().into())),
        OptionRequest::SetMetaContext(contexts(["base:allocation"].as_slice().into())),
        OptionRequest::Info(info),
        OptionRequest::Go(info),
    ]
    .map(|option| {
        let mut room = [0; 8192];
        let n = option.encode(&mut &mut room[..]).unwrap();
        room[..n].to_vec()
    })
    .to_vec()
}

/// The types of the replies in what the server has written.
fn replies(mut written: &[u8]) -> Vec<OptionReplyType> {
    let mut types = Vec::new();
    while !written.is_empty() {
        let header = OptionReplyHeader::decode(&mut written).unwrap().unwrap();
        written = &written[header.length as usize..];
        types.push(header.reply);
    }
    types
}

#[test]
fn two_hundred_and_fifty_six_bytes_are_enough_to_answer_every_option() {
    use OptionReplyType as R;
    for pace in PACES {
        let mut limits = Limits::default();
        limits.option_data = 236; // and 20 bytes: 256
        let mut offer = Offer::default();
        offer.limits = limits;
        let mut handshake = Handshake::new(offer).unwrap();
        let mut line = ClientFlags::KNOWN.encode().to_vec();
        line.extend(options().concat());
        let mut receiver = Receiver::<HANDSHAKE>::new(pace, line);
        let mut seen = Vec::new();
        let agreed = loop {
            // Everything is answered from a buffer of the same size.
            let mut room = [0; HANDSHAKE];
            let mut sink = &mut room[..];
            handshake.transmit(&mut sink).unwrap();
            let mut ready = false;
            let mut input = receiver.held();
            let event = handshake.receive(&mut input).unwrap();
            let waits = event.is_none();
            match event {
                Some(handshake::Event::List) => {
                    handshake.list(&export(), &mut sink).unwrap();
                    handshake.done(&mut sink).unwrap();
                }
                Some(
                    handshake::Event::Export(inquiry) | handshake::Event::MetaContexts(inquiry),
                ) => {
                    assert_eq!(inquiry.export(), "disk");
                    handshake.grant(&inquiry, &export(), &mut sink).unwrap();
                }
                Some(handshake::Event::Ready) => ready = true,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            let left = input.len();
            receiver.keep(left);
            let written = HANDSHAKE - sink.room();
            let mut written = &room[..written];
            if let Ok(Some(greeting)) = Greeting::decode(&mut written) {
                let flags = HandshakeFlags::KNOWN;
                assert_eq!(greeting, Greeting::Newstyle(NewstyleGreeting { flags }));
            }
            seen.extend(replies(written));
            if ready {
                assert_eq!((receiver.held, receiver.line.len()), (0, 0), "left over");
                break handshake.into_negotiated().unwrap();
            }
            if waits && handshake.need() != Need::Nothing {
                assert!(receiver.read(handshake.need()).unwrap(), "both sides wait");
            }
        };
        let info = [R::INFO, R::INFO, R::INFO, R::INFO, R::ACK];
        let expected = [
            &[R::SERVER, R::ACK][..],   // LIST
            &[R::ERR_UNSUP],            // an unknown option
            &[R::ACK],                  // STRUCTURED_REPLY
            &[R::ACK],                  // EXTENDED_HEADERS
            &[R::META_CONTEXT, R::ACK], // LIST_META_CONTEXT
            &[R::ERR_TOO_BIG],          // SET_META_CONTEXT, too long
            &[R::META_CONTEXT, R::ACK], // SET_META_CONTEXT
            &info,                      // INFO
            &info,                      // GO
        ]
        .concat();
        assert_eq!(seen, expected, "{pace:?}");
        assert_eq!(agreed.framing, Framing::Extended, "{pace:?}");
        assert_eq!(agreed.contexts.len(), 1, "{pace:?}");
    }
}
