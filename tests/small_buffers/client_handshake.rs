//! A client: a whole handshake in 256 bytes, to receive in and to send from.

use nbd_codec::client::{Config, ConnectEvent, Connector, MetaContextQuery};
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{ContextId, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};
use nbd_codec::{Error, Framing, HandshakeStyle, Limits, Negotiated, Step};

use crate::{HANDSHAKE, PACES, Pace, Receiver};

const CONTEXT: ContextId = ContextId(7);

/// What a server replies to an option.
type Server = fn(OptionType, &mut Vec<u8>);

fn reply(option: OptionType, reply: OptionReply<'_>, out: &mut Vec<u8>) {
    let mut room = [0; 8192];
    let n = reply.encode(option, &mut &mut room[..]).unwrap();
    out.extend_from_slice(&room[..n]);
}

fn refuse(option: OptionType, message: &str, out: &mut Vec<u8>) {
    let error = OptionReply::Error {
        error: OptionReplyType::ERR_UNSUP,
        message: message.into(),
    };
    reply(option, error, out);
}

/// Every reply that the option has, as long as it can be.
fn talkative(option: OptionType, out: &mut Vec<u8>) {
    let long = "x".repeat(4096);
    match option {
        OptionType::EXTENDED_HEADERS => return refuse(option, &long, out),
        OptionType::SET_META_CONTEXT => {
            let id = CONTEXT;
            let name = long.as_str().into();
            reply(option, OptionReply::MetaContext { id, name }, out);
            let (id, name) = (ContextId(8), "base:allocation".into());
            reply(option, OptionReply::MetaContext { id, name }, out);
        }
        OptionType::GO => {
            let fits = "d".repeat(234); // and 2 and 20 bytes: 256
            let sizes = BlockSizes {
                minimum: 512,
                ..BlockSizes::DEFAULT
            };
            let export = Info::Export {
                size: 1 << 20,
                flags: TransmissionFlags::HAS_FLAGS,
            };
            for info in [
                Info::Name(long.as_str().into()),
                export,
                Info::Description(long.as_str().into()),
                Info::Description(fits.as_str().into()),
                Info::BlockSize(sizes),
            ] {
                reply(option, OptionReply::Info(info), out);
            }
        }
        _ => {}
    }
    reply(option, OptionReply::Ack, out);
}

/// As `talkative`, with extended headers.
fn extended(option: OptionType, out: &mut Vec<u8>) {
    match option {
        OptionType::EXTENDED_HEADERS => reply(option, OptionReply::Ack, out),
        _ => talkative(option, out),
    }
}

/// EXPORT_NAME only.
fn old(option: OptionType, out: &mut Vec<u8>) {
    match option {
        OptionType::EXPORT_NAME => {
            let size = 1 << 20;
            let flags = TransmissionFlags::HAS_FLAGS;
            out.extend(ExportNameReply { size, flags }.encode());
            out.extend([0; 124]);
        }
        _ => refuse(option, "no such option", out),
    }
}

/// The option that the client has written.
fn option(mut written: &[u8]) -> OptionType {
    let header = OptionHeader::decode(&mut written).unwrap().unwrap();
    assert_eq!(header.length as usize, written.len());
    header.option
}

const LIMITS: Limits = Limits::for_buffer(256);

/// Runs a handshake with one buffer of `N` bytes, from which messages are also
/// sent; returns what was negotiated, and the description.
fn handshake<const N: usize>(
    greeting: &[u8],
    server: Server,
    pace: Pace,
) -> Result<(Negotiated, String), Error> {
    let contexts = [MetaContextQuery::narrow("base:allocation")];
    let export = match greeting.len() {
        OldstyleGreeting::SIZE => "",
        _ => "disk",
    };
    let config = Config::new(export)
        .contexts(&contexts)
        .describe(true)
        .limits(LIMITS);
    let mut connector = Connector::new(config).unwrap();
    let mut receiver = Receiver::<N>::new(pace, greeting.to_vec());
    let mut description = String::new();
    let mut flags_sent = false;
    loop {
        match receiver.inbox.receive(&mut connector)? {
            Step::Event(ConnectEvent::Ready) => break,
            Step::Event(ConnectEvent::Failed { reason, .. }) => panic!("{reason}"),
            Step::Event(ConnectEvent::Info(Info::Description(text))) => {
                description = text.to_str().unwrap().to_owned();
            }
            Step::Event(_) => {}
            Step::Transmit => {
                let mut space = receiver.inbox.space();
                let n = connector.transmit(&mut space).unwrap();
                let written = &receiver.inbox.space()[..n];
                if flags_sent {
                    server(option(written), &mut receiver.unread);
                } else {
                    assert_eq!(n, ClientFlags::SIZE);
                    flags_sent = true;
                }
            }
            Step::Read(n) => assert!(receiver.read(n), "both sides wait"),
            other => panic!("{:?}", other.unexpected()),
        }
    }
    assert!(receiver.is_empty());
    Ok((connector.into_negotiated().unwrap(), description))
}

fn newstyle(flags: HandshakeFlags) -> Vec<u8> {
    NewstyleGreeting { flags }.encode().to_vec()
}

#[test]
fn two_hundred_and_fifty_six_bytes_are_enough_for_a_handshake() {
    let fixed = newstyle(HandshakeFlags::KNOWN);
    let zeroes = newstyle(HandshakeFlags::FIXED_NEWSTYLE);
    let newstyle = newstyle(HandshakeFlags::NONE);
    let size = 1 << 20;
    let oldstyle = OldstyleGreeting {
        size,
        handshake_flags: HandshakeFlags::NONE,
        flags: TransmissionFlags::HAS_FLAGS,
    }
    .encode()
    .to_vec();
    let cases: [(&[u8], Server, HandshakeStyle, Framing, usize); 5] = [
        (
            &fixed,
            talkative,
            HandshakeStyle::FixedNewstyle,
            Framing::Structured,
            2,
        ),
        (
            &fixed,
            extended,
            HandshakeStyle::FixedNewstyle,
            Framing::Extended,
            2,
        ),
        (
            &zeroes,
            old,
            HandshakeStyle::FixedNewstyle,
            Framing::Simple,
            0,
        ),
        (&newstyle, old, HandshakeStyle::Newstyle, Framing::Simple, 0),
        (&oldstyle, old, HandshakeStyle::Oldstyle, Framing::Simple, 0),
    ];
    for (greeting, server, style, framing, contexts) in cases {
        for pace in PACES {
            let (agreed, description) = handshake::<HANDSHAKE>(greeting, server, pace).unwrap();
            let case = format!("{style}, {framing}, {pace:?}");
            assert_eq!((agreed.style, agreed.framing), (style, framing), "{case}");
            assert_eq!(agreed.size, size, "{case}");
            assert_eq!(agreed.contexts.len(), contexts, "{case}");
            let described = if contexts > 0 {
                "d".repeat(234)
            } else {
                String::new()
            };
            assert_eq!(description, described, "{case}");
        }
    }
}

/// The longest reply that fits 256 bytes does not fit 255.
#[test]
fn limits_say_exactly_what_a_handshake_needs() {
    let greeting = newstyle(HandshakeFlags::KNOWN);
    for pace in PACES {
        let enough = handshake::<256>(&greeting, talkative, pace);
        assert!(enough.is_ok(), "{pace:?}");
        let full = Error::BufferFull { needed: 256 };
        assert_eq!(handshake::<255>(&greeting, talkative, pace), Err(full));
        assert!(!full.is_fatal());
    }
}
