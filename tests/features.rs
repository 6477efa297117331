//! Features: a part of the protocol that is not compiled is refused where the caller
//! asks for it, and is not negotiated.
//!
//! Each test runs with every set of features, and expects what that set compiles.

use nbd_codec::client::{self, ConnectEvent, Connector, MetaContextQuery, Request, Slot};
use nbd_codec::server::{self, Export, MetaContext};
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::option_reply::OptionReplyHeader;
use nbd_codec::{Error, Framing, Limits, Misuse, Negotiated, Step};

const STRUCTURED: bool = cfg!(feature = "structured");
const EXTENDED: bool = cfg!(feature = "extended");
const OLDSTYLE: bool = cfg!(feature = "oldstyle");
const TLS: bool = cfg!(feature = "tls");
const RESIZE: bool = cfg!(feature = "resize");

/// A call is refused with the name of the feature, unless it is compiled.
#[track_caller]
fn needs<T>(compiled: bool, feature: &'static str, result: Result<T, Misuse>) {
    let refused = Misuse::NotCompiled { feature };
    assert_eq!(result.err(), (!compiled).then_some(refused), "{feature}");
}

#[test]
fn the_most_able_framing_is_one_that_is_compiled() {
    let expected = match (STRUCTURED, EXTENDED) {
        (_, true) => Framing::Extended,
        (true, false) => Framing::Structured,
        (false, false) => Framing::Simple,
    };
    assert_eq!(Framing::MOST_ABLE, expected);
}

#[test]
fn a_client_refuses_what_is_not_compiled() {
    let contexts = [MetaContextQuery::narrow("base:allocation")];
    let config = client::Config::new("disk");
    assert!(Connector::new(config).is_ok());
    let connect = |config| Connector::new(config).map(drop);
    needs(
        STRUCTURED,
        "structured",
        connect(config.framing(Framing::Structured)),
    );
    needs(
        EXTENDED,
        "extended",
        connect(config.framing(Framing::Extended)),
    );
    needs(
        STRUCTURED,
        "structured",
        connect(config.contexts(&contexts)),
    );
    needs(OLDSTYLE, "oldstyle", connect(config.go(false)));
    needs(TLS, "tls", connect(config.tls(client::TlsPolicy::Prefer)));
    needs(TLS, "tls", connect(config.require_tls()));
}

/// A client's handshake after its flags.
fn handshake() -> client::Handshake {
    let mut handshake = client::Handshake::new(&client::Config::new("disk"));
    let greeting = NewstyleGreeting {
        flags: HandshakeFlags::KNOWN,
    };
    let greeting = greeting.encode();
    let mut input = &greeting[..];
    assert!(matches!(handshake.receive(&mut input), Ok(Step::Event(_))));
    let sent = handshake.send_client_flags(ClientFlags::KNOWN, &mut &mut [0; 4][..]);
    assert_eq!(sent, Ok(4));
    handshake
}

#[test]
fn a_client_sends_no_option_that_is_not_compiled() {
    let send = |request| handshake().send(&request, &mut &mut [0; 64][..]);
    needs(true, "", send(OptionRequest::List));
    needs(
        OLDSTYLE,
        "oldstyle",
        send(OptionRequest::ExportName("disk".into())),
    );
    needs(TLS, "tls", send(OptionRequest::StartTls));
    needs(
        STRUCTURED,
        "structured",
        send(OptionRequest::StructuredReply),
    );
    needs(EXTENDED, "extended", send(OptionRequest::ExtendedHeaders));
    let option = OptionType::EXTENDED_HEADERS;
    needs(
        EXTENDED,
        "extended",
        send(OptionRequest::Other { option, data: b"" }),
    );
}

#[test]
fn the_first_option_of_a_client_is_of_its_most_able_framing() -> Result<(), Misuse> {
    let mut connector = Connector::new(client::Config::new("disk"))?;
    let greeting = NewstyleGreeting {
        flags: HandshakeFlags::KNOWN,
    };
    let greeting = greeting.encode();
    let mut input = &greeting[..];
    assert_eq!(connector.receive(&mut input), Ok(Step::Transmit));
    let mut flags = [0; 4];
    connector.transmit(&mut &mut flags[..])?;
    assert_eq!(connector.receive(&mut &[][..]), Ok(Step::Transmit));
    let mut option = [0; 64];
    connector.transmit(&mut &mut option[..])?;
    let first = match Framing::MOST_ABLE {
        Framing::Extended => OptionType::EXTENDED_HEADERS,
        Framing::Structured => OptionType::STRUCTURED_REPLY,
        Framing::Simple => OptionType::GO,
    };
    assert_eq!(option[8..12], first.0.to_be_bytes());
    Ok(())
}

#[test]
fn a_client_ends_the_session_with_a_server_older_than_fixed_newstyle() -> Result<(), Misuse> {
    let newstyle = NewstyleGreeting {
        flags: HandshakeFlags::NO_ZEROES,
    };
    let oldstyle = OldstyleGreeting {
        size: 4096,
        handshake_flags: HandshakeFlags::NONE,
        flags: TransmissionFlags::HAS_FLAGS,
    };
    let (newstyle, oldstyle) = (newstyle.encode(), oldstyle.encode());
    for (greeting, ready) in [
        (&newstyle[..], Step::Transmit),
        (&oldstyle[..], Step::Event(ConnectEvent::Ready)),
    ] {
        let mut connector = Connector::new(client::Config::new(""))?;
        let mut input = greeting;
        let expected = if OLDSTYLE {
            Ok(ready)
        } else {
            Err(Error::NotFixedNewstyle)
        };
        assert_eq!(connector.receive(&mut input), expected);
    }
    Ok(())
}

#[test]
fn a_session_refuses_a_framing_that_is_not_compiled() {
    for (framing, compiled, feature) in [
        (Framing::Simple, true, ""),
        (Framing::Structured, STRUCTURED, "structured"),
        (Framing::Extended, EXTENDED, "extended"),
    ] {
        let negotiated = Negotiated::new(framing, 4096, TransmissionFlags::HAS_FLAGS);
        needs(
            compiled,
            feature,
            server::Transmission::new(negotiated, Limits::DEFAULT).map(drop),
        );
        // A client's session cannot be refused. It has failed from the start.
        let mut session = client::Transmission::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
        let error = Error::Framing(framing);
        let submitted = session.submit(Request::read(0, 512)).map(drop);
        let received = session.receive(&mut &[][..]).map(drop);
        if compiled {
            assert_eq!((submitted, received), (Ok(()), Ok(())));
        } else {
            assert_eq!(submitted, Err(Misuse::Failed(error)));
            assert_eq!(received, Err(error));
        }
    }
}

#[test]
fn resize_is_refused_unless_it_is_compiled() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_RESIZE;
    let negotiated = Negotiated::new(Framing::Simple, 4096, flags);
    let mut session = client::Transmission::new(negotiated, [Slot::EMPTY; 1], Limits::DEFAULT);
    needs(
        RESIZE,
        "resize",
        session.submit(Request::resize(8192)).map(drop),
    );
    needs(RESIZE, "resize", listed(&Export::new("disk", 4096, flags)));
}

#[test]
fn a_server_refuses_what_is_not_compiled() {
    let config = server::Config::new();
    let start = |config| server::Handshake::new(config).map(drop);
    needs(true, "", start(config));
    needs(
        STRUCTURED,
        "structured",
        start(config.framing(Framing::Structured)),
    );
    needs(
        EXTENDED,
        "extended",
        start(config.framing(Framing::Extended)),
    );
    needs(TLS, "tls", start(config.tls(server::TlsMode::Selective)));
    needs(OLDSTYLE, "oldstyle", start(config.fixed_newstyle(false)));

    let export = Export::new("disk", 4096, TransmissionFlags::NONE);
    needs(
        OLDSTYLE,
        "oldstyle",
        server::Handshake::oldstyle(&export).map(drop),
    );
    needs(true, "", listed(&export));
    let contexts = [MetaContext::narrow("base:allocation")];
    let mut with = export;
    with.contexts = &contexts;
    needs(STRUCTURED, "structured", listed(&with));
    let mut with = export;
    with.requires_extended = true;
    needs(EXTENDED, "extended", listed(&with));
    let mut with = export;
    with.requires_tls = true;
    needs(TLS, "tls", listed(&with));
}

/// A server's handshake after the client's flags.
fn negotiating() -> server::Handshake {
    let mut handshake = server::Handshake::new(server::Config::new()).expect("compiled");
    let sent = handshake.transmit(&mut &mut [0; 18][..]);
    assert_eq!(sent, Ok(18));
    let flags = ClientFlags::KNOWN.encode();
    let mut input = &flags[..];
    assert!(matches!(handshake.receive(&mut input), Ok(Step::Read(_))));
    handshake
}

/// Lists an export.
fn listed(export: &Export<'_>) -> Result<(), Misuse> {
    let mut handshake = negotiating();
    let mut list = [0; 16];
    OptionRequest::List
        .encode(&mut &mut list[..])
        .expect("room");
    let event = handshake.receive(&mut &list[..]);
    assert_eq!(event, Ok(Step::Event(server::HandshakeEvent::List)));
    handshake.list(export, &mut &mut [0; 64][..]).map(drop)
}

#[test]
fn a_server_does_not_know_an_option_that_is_not_compiled() {
    for (option, compiled) in [
        (OptionType::STRUCTURED_REPLY, STRUCTURED),
        (OptionType::EXTENDED_HEADERS, EXTENDED),
        (OptionType::STARTTLS, TLS),
        (OptionType::SET_META_CONTEXT, STRUCTURED),
        (OptionType::LIST_META_CONTEXT, STRUCTURED),
    ] {
        let mut handshake = negotiating();
        let mut bytes = [0; 64];
        let request = OptionRequest::Other { option, data: b"" };
        let length = request.encode(&mut &mut bytes[..]).expect("room");
        let step = handshake.receive(&mut &bytes[..length]);
        assert_eq!(step, Ok(Step::Transmit));
        let mut reply = [0; 128];
        handshake.transmit(&mut &mut reply[..]).expect("room");
        let header = OptionReplyHeader::decode(&mut &reply[..]);
        let header = header.ok().flatten().expect("a reply");
        let unknown = header.reply == OptionReplyType::ERR_UNSUP;
        assert_eq!((header.option, unknown), (option, !compiled));
    }
}

#[test]
fn a_server_of_fixed_newstyle_alone_refuses_older_clients() {
    let mut handshake = server::Handshake::new(server::Config::new()).expect("compiled");
    handshake.transmit(&mut &mut [0; 18][..]).expect("room");
    let flags = ClientFlags::NO_ZEROES.encode();
    let received = handshake.receive(&mut &flags[..]);
    if OLDSTYLE {
        assert!(matches!(received, Ok(Step::Read(_))));
    } else {
        assert_eq!(received, Err(Error::NotFixedNewstyle));
    }
}
