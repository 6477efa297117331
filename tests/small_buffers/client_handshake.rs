//! A client: a whole handshake in 256 bytes, to receive in and to send from.

use nbd_codec::client::connect::{self, Connect, Plan};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{ContextId, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};
use nbd_codec::{Framing, Limits, Negotiated, Style};

use crate::{HANDSHAKE, PACES, Pace, Receiver, Stalled};

const CONTEXT: ContextId = ContextId(7);

/// What a server answers to an option.
type Server = fn(OptionType, &mut Vec<u8>);

fn reply(option: OptionType, reply: OptionReply<'_>, line: &mut Vec<u8>) {
    let mut room = [0; 8192];
    let n = reply.encode(option, &mut &mut room[..]).unwrap();
    line.extend_from_slice(&room[..n]);
}

fn refuse(option: OptionType, message: &str, line: &mut Vec<u8>) {
    let error = OptionReply::Error {
        error: OptionReplyType::ERR_UNSUP,
        message: message.into(),
    };
    reply(option, error, line);
}

/// Everything it can say, in the longest words it can find.
fn talkative(option: OptionType, line: &mut Vec<u8>) {
    let long = "x".repeat(4096);
    match option {
        OptionType::EXTENDED_HEADERS => return refuse(option, &long, line),
        OptionType::SET_META_CONTEXT => {
            let id = CONTEXT;
            let name = long.as_str().into();
            reply(option, OptionReply::MetaContext { id, name }, line);
            let (id, name) = (ContextId(8), "base:allocation".into());
            reply(option, OptionReply::MetaContext { id, name }, line);
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
                reply(option, OptionReply::Info(info), line);
            }
        }
        _ => {}
    }
    reply(option, OptionReply::Ack, line);
}

/// As `talkative`, with a server that has everything.
fn able(option: OptionType, line: &mut Vec<u8>) {
    match option {
        OptionType::EXTENDED_HEADERS => reply(option, OptionReply::Ack, line),
        _ => talkative(option, line),
    }
}

/// Only what there was before options had replies to speak of.
fn old(option: OptionType, line: &mut Vec<u8>) {
    match option {
        OptionType::EXPORT_NAME => {
            let size = 1 << 20;
            let flags = TransmissionFlags::HAS_FLAGS;
            line.extend(ExportNameReply { size, flags }.encode());
            line.extend([0; 124]);
        }
        _ => refuse(option, "no such option", line),
    }
}

/// The option in what the client has written.
fn option(mut written: &[u8]) -> OptionType {
    let header = OptionHeader::decode(&mut written).unwrap().unwrap();
    assert_eq!(header.length as usize, written.len());
    header.option
}

/// Runs a handshake with one buffer of `N` bytes, which also holds what is to
/// be sent; returns what was agreed on, and the description.
fn handshake<const N: usize>(
    greeting: &[u8],
    server: Server,
    pace: Pace,
    limits: Limits,
) -> Result<(Negotiated, String), Stalled> {
    let contexts = [ContextQuery::narrow("base:allocation")];
    let mut plan = Plan::new(match greeting.len() {
        OldstyleGreeting::SIZE => "",
        _ => "disk",
    });
    plan.contexts = &contexts;
    plan.describe = true;
    plan.limits = limits;
    let mut connect = Connect::new(plan).unwrap();
    let mut receiver = Receiver::<N>::new(pace, greeting.to_vec());
    let mut answered = false;
    let mut description = String::new();
    loop {
        let mut input = receiver.held();
        let mut ready = false;
        while let Some(event) = connect.receive(&mut input).unwrap() {
            match event {
                connect::Event::Ready => ready = true,
                connect::Event::Failed { reason, .. } => panic!("{reason}"),
                connect::Event::Info(Info::Description(text)) => {
                    description = text.to_str().unwrap().to_owned();
                }
                _ => {}
            }
        }
        let left = input.len();
        receiver.keep(left);
        if ready {
            assert_eq!((receiver.held, receiver.line.len()), (0, 0), "left over");
            return Ok((connect.into_negotiated().unwrap(), description));
        }
        let mut room = &mut receiver.buffer[receiver.held..];
        let n = connect.transmit(&mut room).unwrap();
        let written = receiver.buffer[receiver.held..][..n].to_vec();
        match n {
            0 => {}
            ClientFlags::SIZE if !answered => answered = true,
            _ => server(option(&written), &mut receiver.line),
        }
        // After the client's flags it is the client's turn again.
        if n != ClientFlags::SIZE {
            let more = receiver.read(connect.need())?;
            assert!(more, "both sides wait");
        }
    }
}

fn small() -> Limits {
    let mut limits = Limits::default();
    limits.option_data = 236; // and 20 bytes: 256
    limits
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
    let cases: [(&[u8], Server, Style, Framing, usize); 5] = [
        (
            &fixed,
            talkative,
            Style::FixedNewstyle,
            Framing::Structured,
            2,
        ),
        (&fixed, able, Style::FixedNewstyle, Framing::Extended, 2),
        (&zeroes, old, Style::FixedNewstyle, Framing::Simple, 0),
        (&newstyle, old, Style::Newstyle, Framing::Simple, 0),
        (&oldstyle, old, Style::Oldstyle, Framing::Simple, 0),
    ];
    for (greeting, server, style, framing, contexts) in cases {
        for pace in PACES {
            let (agreed, description) =
                handshake::<HANDSHAKE>(greeting, server, pace, small()).unwrap();
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

/// The reply that just fits is the one that stops a buffer of one byte less.
#[test]
fn limits_say_exactly_what_a_handshake_needs() {
    let greeting = newstyle(HandshakeFlags::KNOWN);
    for pace in PACES {
        let enough = handshake::<256>(&greeting, talkative, pace, small());
        assert!(enough.is_ok(), "{pace:?}");
        let less = handshake::<255>(&greeting, talkative, pace, small());
        assert_eq!(less, Err(Stalled), "{pace:?}");
    }
}
