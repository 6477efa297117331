//! Faults that fuzzers found, one test each, named after what must hold. Each
//! input is the smallest that showed the fault.

use nbd_codec::client::{
    Config, ConnectError, ConnectEvent, Connector, Handshake, Request, Slot, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::DecodeError;
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::{
    Error, Framing, Limits, Misuse, Negotiated, SelectedContext, StatusWidth, Step, Violation,
};

/// An export of 1 MiB with everything.
fn export(framing: Framing) -> Negotiated {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    Negotiated::new(framing, 1 << 20, all)
}

fn session(negotiated: Negotiated) -> Transmission<[Slot; 4]> {
    Transmission::new(negotiated, [Slot::EMPTY; 4], Limits::DEFAULT)
}

/// How many bytes a step asks for.
fn read_limit<E>(step: Result<Step<E, &[u8]>, Error>) -> usize {
    let limit = step.unwrap().read_limit();
    limit.expect("a step that reads").get()
}

/// Hexadecimal digits; spaces separate the fields.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// A simple reply after an error chunk of the same command ended the command as a
/// success, and the error was lost.
#[test]
fn a_simple_reply_does_not_end_a_reply_that_began_with_chunks() {
    let mut session = session(export(Framing::Structured)).strict();
    let cookie = session.submit(Request::write(0, 1)).unwrap().cookie();
    assert_eq!(cookie, Cookie(1 << 32));
    // S: ERROR without DONE (EIO), then a simple reply without error
    let input = hex(
        "668e33ef 0000 8001 00000001 00000000 00000006  00000005 0000
                     67446698 00000000 00000001 00000000",
    );
    let mut input = &input[..];
    let step = session.receive(&mut input).unwrap();
    assert!(matches!(
        step,
        Step::Event(TransmissionEvent::Error {
            error: ErrorValue::EIO,
            ..
        })
    ));
    let violation = Violation::SimpleReply(Command::WRITE);
    assert_eq!(
        session.receive(&mut input),
        Err(Error::Violation(violation))
    );
}

/// A lenient client can have two resizes in flight: when the first was done, the
/// size became that of the second.
#[test]
fn a_resize_sets_the_size_that_it_asked_for() {
    let mut session = session(export(Framing::Simple)).lenient();
    let cookie = session.submit(Request::resize(512)).unwrap().cookie();
    let _second = session.submit(Request::resize(1024)).unwrap();
    // S: a simple reply without error to the first
    let input = hex("67446698 00000000 00000001 00000000");
    let result = Ok(());
    let done = Step::Event(TransmissionEvent::Done { cookie, result });
    assert_eq!(session.receive(&mut &input[..]), Ok(done));
    assert_eq!(session.negotiated().size, 512);
}

/// After data that was read directly, as many bytes were asked for as the header
/// before the data had: a driver that reads exactly that waited for ever.
#[test]
fn after_advance_the_least_header_is_read() {
    for (framing, chunk, least) in [
        // S: OFFSET_DATA without DONE, offset 0, length 8 + 4
        (
            Framing::Structured,
            "668e33ef 0000 0001 00000001 00000000 0000000c 00000000 00000000",
            16,
        ),
        (
            Framing::Extended,
            "6e8a278c 0000 0001 00000001 00000000 00000000 00000000 00000000 0000000c
             00000000 00000000",
            32,
        ),
    ] {
        let mut session = session(export(framing));
        let cookie = session.submit(Request::read(0, 4)).unwrap().cookie();
        let input = hex(chunk);
        // The header first, without the offset that follows it.
        let (header, _) = input.split_at(input.len() - 8);
        assert_eq!(read_limit(session.receive(&mut &header[..])), 8);
        let payload = Step::ReadPayload {
            cookie,
            offset: 0,
            length: 4,
        };
        assert_eq!(session.receive(&mut &input[..]), Ok(payload));
        session.advance(4).unwrap();
        let step = session.receive(&mut &b""[..]);
        assert_eq!(read_limit(step), least, "{framing}");
    }
}

/// Lengths whose sum exceeds 64 bits hid that the second extent begins past the
/// end of the request, but only if both arrived at once.
#[test]
fn extents_past_the_request_are_found_in_any_fragmentation() {
    let mut negotiated = export(Framing::Extended);
    let (id, width) = (ContextId(1), StatusWidth::Wide);
    negotiated
        .contexts
        .push(SelectedContext { id, width })
        .unwrap();
    // S: BLOCK_STATUS_EXT with DONE: two extents, each of the longest length
    let input = hex(
        "6e8a278c 0001 0006 00000001 00000000 00000000 00000000 00000000 00000028
                     00000001 00000002 ffffffff ffffffff 00000000 00000000
                                       ffffffff ffffffff 00000000 00000000",
    );
    let (first, _) = input.split_at(input.len() - 16);
    for pieces in [&[&input[..]][..], &[first, &input[first.len()..]]] {
        let mut session = session(negotiated).strict();
        let cookie = session
            .submit(Request::block_status(0, 512))
            .unwrap()
            .cookie();
        let mut delivered = 0;
        let error = pieces.iter().find_map(|piece| {
            let mut input = &piece[..];
            loop {
                match session.receive(&mut input) {
                    Ok(Step::Event(TransmissionEvent::Extents64 { extents, .. })) => {
                        delivered += extents.len();
                    }
                    Ok(Step::Read(_)) => return None,
                    Err(error) => return Some(error),
                    other => panic!("{other:?}"),
                }
            }
        });
        // The first extent is delivered, and the second one ends the session.
        let violation = Violation::ExtentBeyond(cookie);
        assert_eq!((delivered, error), (1, Some(Error::Violation(violation))));
    }
}

/// 18 bytes were asked for, the size of a newstyle greeting, when they had all
/// arrived and the greeting was an oldstyle one.
#[test]
fn an_oldstyle_greeting_is_read_whole() {
    // S: NBDMAGIC, cliserv_magic, size, flags
    let greeting = hex("4e42444d41474943 0000420281861253 0000000000001000 00000001");
    let mut handshake = Handshake::new(&Config::new(""));
    for held in 0..greeting.len() {
        let (mut input, _) = greeting.split_at(held);
        let size = if held < 18 { 18 } else { 28 };
        let limit = read_limit(handshake.receive(&mut input));
        assert_eq!(limit, size - held, "{held} held");
    }
}

/// An oldstyle server was refused, because the configuration named an export,
/// and transmission could begin all the same.
#[test]
fn a_connector_that_failed_has_no_negotiated() {
    // S: NBDMAGIC, cliserv_magic, size, flags, 124 reserved bytes
    let mut input = hex("4e42444d41474943 0000420281861253 0000000000001000 00000001");
    input.resize(input.len() + 124, 0);
    let mut input = &input[..];
    let mut connector = Connector::new(Config::new("disk")).unwrap();
    let failed = ConnectEvent::Failed {
        reason: ConnectError::NoExportNames,
        message: None,
    };
    assert_eq!(connector.receive(&mut input), Ok(Step::Event(failed)));
    assert_eq!(connector.receive(&mut input), Ok(Step::Finished));
    assert!(connector.into_negotiated().is_err());
}

/// An ACK with data, which it must not have, was a violation only after the data
/// had arrived.
#[test]
fn an_acknowledgement_with_data_is_refused_by_its_header() {
    let mut handshake = Handshake::new(&Config::new(""));
    let mut out = [0; 64];
    let mut out = &mut out[..];
    // S: NBDMAGIC, IHAVEOPT, fixed newstyle
    let greeting = hex("4e42444d41474943 49484156454f5054 0001");
    let step = handshake.receive(&mut &greeting[..]);
    assert!(matches!(step, Ok(Step::Event(_))));
    handshake
        .send_client_flags(ClientFlags::KNOWN, &mut out)
        .unwrap();
    handshake.send(&OptionRequest::List, &mut out).unwrap();
    // S: ACK to LIST, with 512 bytes to come
    let header = hex("0003e889045565a9 00000003 00000001 00000200");
    let message = "NBD_REP_ACK";
    let trailing = Err(Error::Decode(DecodeError::Trailing { message }));
    assert_eq!(handshake.receive(&mut &header[..]), trailing);
}

/// Block status needs a framing with chunks; a session with contexts and simple
/// replies asked for it all the same.
#[test]
fn block_status_is_refused_with_simple_framing() {
    let mut negotiated = export(Framing::Simple);
    let (id, width) = (ContextId(1), StatusWidth::Narrow);
    negotiated
        .contexts
        .push(SelectedContext { id, width })
        .unwrap();
    let mut session = session(negotiated);
    let result = session.submit(Request::block_status(0, 512));
    assert_eq!(result, Err(Misuse::NoContext));
    assert_eq!(session.in_flight(), 0);
}
