//! A server: requests in 64 bytes, and a whole handshake in 256, to receive in
//! and to answer from.

use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, MetaContext, Request, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::Sink;
use nbd_codec::wire::flags::{ClientFlags, CommandFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{Greeting, NewstyleGreeting};
use nbd_codec::wire::number::{Command, ContextId, Cookie, OptionReplyType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest};
use nbd_codec::wire::option_reply::OptionReplyHeader;
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use nbd_codec::{Content, Framing, Limits, Negotiated, SelectedContext, StatusWidth, Step};

use crate::{FRAMINGS, HANDSHAKE, PACES, Pace, Receiver, TRANSMISSION};

/// What a request says, in any fragmentation.
#[derive(Debug, Clone, PartialEq)]
enum Asked {
    Payload(u64, u32),
    Data(u64, Vec<u8>),
    Request(Command),
    Status(Vec<u32>),
    Rejected(Command),
    Disconnect,
}

/// Appends data, or joins it to the data before.
fn data(asked: &mut Vec<Asked>, offset: u64, data: &[u8]) {
    match asked.last_mut() {
        Some(Asked::Data(start, before)) if *start + before.len() as u64 == offset => {
            before.extend_from_slice(data);
        }
        _ => asked.push(Asked::Data(offset, data.to_vec())),
    }
}

fn event(event: TransmissionEvent) -> Asked {
    match event {
        TransmissionEvent::WritePayload { offset, length, .. } => Asked::Payload(offset, length),
        TransmissionEvent::Request(Request::BlockStatus64(status)) => {
            Asked::Status(status.contexts().map(|id| id.0).collect())
        }
        TransmissionEvent::Request(request) => Asked::Request(request.command()),
        TransmissionEvent::Answered { command, .. } => Asked::Rejected(command),
        TransmissionEvent::Disconnect => Asked::Disconnect,
        other => panic!("{other:?}"),
    }
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
            let width = StatusWidth::Narrow;
            negotiated
                .contexts
                .push(SelectedContext { id, width })
                .unwrap();
        }
    }
    Transmission::new(negotiated, Limits::for_buffer(64)).unwrap()
}

/// Receives `bytes` in a buffer of 64; payloads go straight into their place if
/// `direct`.
fn receive_all(framing: Framing, bytes: &[u8], pace: Pace, direct: bool) -> Vec<Asked> {
    let mut session = session(framing);
    let mut receiver = Receiver::<TRANSMISSION>::new(pace, bytes.to_vec());
    let mut asked = Vec::new();
    loop {
        match receiver.inbox.receive(&mut session).unwrap() {
            Step::Event(one) => asked.push(event(one)),
            Step::Content(Content::Data {
                offset, data: d, ..
            }) => data(&mut asked, offset, d),
            Step::ReadPayload { offset, length, .. } if direct => {
                let payload = receiver.read_payload(length);
                session.advance(length).unwrap();
                data(&mut asked, offset, &payload);
            }
            Step::Finished => {
                assert!(receiver.is_empty());
                return asked;
            }
            step => {
                let limit = step.read_limit().expect("a step that reads");
                assert!(receiver.read(limit), "the last request is DISC");
            }
        }
    }
}

#[test]
fn sixty_four_bytes_are_enough_for_requests() {
    let data: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for framing in FRAMINGS {
        let write = request(framing, Command::WRITE, 1000, &data);
        let unknown = request(framing, Command(99), 512, &[]);
        let mut bytes = [write, unknown].concat();
        let mut expected = vec![
            Asked::Payload(4096, 1000),
            Asked::Data(4096, data.clone()),
            Asked::Request(Command::WRITE),
            Asked::Rejected(Command(99)),
        ];
        if framing == Framing::Extended {
            // Every context, an unknown context, a payload that READ must not
            // have.
            bytes.extend(status_of(&[5, 4, 3, 2, 1, 0]));
            bytes.extend(status_of(&[7]));
            bytes.extend(request(framing, Command::READ, 512, &data));
            expected.push(Asked::Status(vec![0, 1, 2, 3, 4, 5]));
            expected.push(Asked::Rejected(Command::BLOCK_STATUS));
            expected.push(Asked::Rejected(Command::READ));
        }
        bytes.extend(request(framing, Command::READ, 512, &[]));
        bytes.extend(request(framing, Command::DISC, 0, &[]));
        expected.push(Asked::Request(Command::READ));
        expected.push(Asked::Disconnect);
        for pace in PACES {
            // After read-ahead, payload is in the buffer already.
            for direct in [false, pace == Pace::Exact] {
                let asked = receive_all(framing, &bytes, pace, direct);
                assert_eq!(asked, expected, "{framing}, {pace:?}, direct: {direct}");
            }
        }
    }
}

const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];

fn export() -> Export<'static> {
    let mut export = Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH);
    export.id = 5;
    export.description = "a disk with a short name";
    export.contexts = CONTEXTS;
    export
}

/// C: every option, two of them too long.
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

/// The types of the replies that the server has written.
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
        let config = Config::new().limits(Limits::for_buffer(256));
        let mut handshake = Handshake::new(config).unwrap();
        let mut client = ClientFlags::KNOWN.encode().to_vec();
        client.extend(options().concat());
        let mut receiver = Receiver::<HANDSHAKE>::new(pace, client);
        let mut seen = Vec::new();
        loop {
            // Every reply is made in a buffer of the same size.
            let mut room = [0; HANDSHAKE];
            let mut sink = &mut room[..];
            match receiver.inbox.receive(&mut handshake).unwrap() {
                Step::Event(HandshakeEvent::List) => {
                    handshake.list(&export(), &mut sink).unwrap();
                    handshake.finish_list(&mut sink).unwrap();
                }
                Step::Event(
                    HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query),
                ) => {
                    assert_eq!(query.export(), "disk");
                    handshake.grant(&query, &export(), &mut sink).unwrap();
                }
                Step::Event(HandshakeEvent::Ready { export }) => assert_eq!(export, 5),
                Step::Transmit => {
                    handshake.transmit(&mut sink).unwrap();
                }
                Step::Read(n) => assert!(receiver.read(n), "both sides wait"),
                Step::Finished => break,
                other => panic!("{:?}", other.unexpected()),
            }
            let written = HANDSHAKE - sink.room();
            let mut written = &room[..written];
            if let Ok(Some(greeting)) = Greeting::decode(&mut written) {
                let flags = HandshakeFlags::KNOWN;
                assert_eq!(greeting, Greeting::Newstyle(NewstyleGreeting { flags }));
            }
            seen.extend(replies(written));
        }
        assert!(receiver.is_empty());
        let agreed = handshake.into_negotiated().unwrap();
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
