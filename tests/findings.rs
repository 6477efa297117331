//! What the fuzzers have found, one test each, named after what must hold.
//! Each input is the smallest that showed the fault.

use nbd_codec::client::connect::{self, Config, Connect, ConnectError};
use nbd_codec::client::{Event, Handshake, Request, Slot, Transmission};
use nbd_codec::wire::DecodeError;
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::{
    Context, Error, Framing, Limits, Misuse, Need, Negotiated, StatusWidth, Violation,
};

/// An export of 1 MiB with everything.
fn export(framing: Framing) -> Negotiated {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    Negotiated::new(framing, 1 << 20, all)
}

fn session(negotiated: Negotiated) -> Transmission<[Slot; 4]> {
    Transmission::new(negotiated, [Slot::EMPTY; 4], Limits::DEFAULT)
}

/// Fields as they are on the wire, with spaces between them.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// A simple reply behind an error chunk of the same command ended it as a
/// success, and the error was lost.
#[test]
fn a_simple_reply_does_not_end_a_reply_that_began_with_chunks() {
    let mut session = session(export(Framing::Structured));
    let cookie = session.submit(Request::write(0, 1)).unwrap().cookie();
    assert_eq!(cookie, Cookie(1 << 32));
    // S: ERROR without DONE (EIO), then a simple reply without error
    let input = hex(
        "668e33ef 0000 8001 00000001 00000000 00000006  00000005 0000
                     67446698 00000000 00000001 00000000",
    );
    let mut input = &input[..];
    let event = session.receive(&mut input).unwrap().unwrap();
    assert!(matches!(
        event,
        TransmissionEvent::Error {
            error: ErrorValue::EIO,
            ..
        }
    ));
    let violation = Violation::SimpleReply(Command::WRITE);
    assert_eq!(
        session.receive(&mut input),
        Err(Error::Violation(violation))
    );
}

/// A lenient caller can have two in flight; the size became that of the second
/// when the first was done.
#[test]
fn a_resize_sets_the_size_that_it_asked_for() {
    let mut session = session(export(Framing::Simple)).lenient();
    let _first = session.submit(Request::resize(512)).unwrap();
    let _second = session.submit(Request::resize(1024)).unwrap();
    // S: a simple reply without error to the first
    let input = hex("67446698 00000000 00000001 00000000");
    let event = session.receive(&mut &input[..]).unwrap().unwrap();
    assert!(matches!(
        event,
        TransmissionEvent::Done { result: Ok(()), .. }
    ));
    assert_eq!(session.negotiated().size, 512);
}

/// Behind data that was read directly, as much was needed as the header in
/// front of the data had: a driver that reads exactly that waited for ever.
#[test]
fn need_behind_advance_is_the_least_header() {
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
        let _ = session.submit(Request::read(0, 4)).unwrap();
        let input = hex(chunk);
        // The header first, without the offset behind it.
        let (header, _) = input.split_at(input.len() - 8);
        assert_eq!(session.receive(&mut &header[..]), Ok(None));
        assert_eq!(session.need(), Need::Header(input.len()));
        assert_eq!(session.receive(&mut &input[..]), Ok(None));
        session.advance(4).unwrap();
        assert_eq!(session.need(), Need::Header(least), "{framing}");
    }
}

/// Lengths whose sum has no number hid that the second extent begins behind
/// the request, but only if both came at once.
#[test]
fn extents_behind_the_request_are_found_in_any_fragmentation() {
    let mut negotiated = export(Framing::Extended);
    let (id, width) = (ContextId(1), StatusWidth::Wide);
    negotiated
        .contexts
        .push(SelectedContext { id, width })
        .unwrap();
    // S: BLOCK_STATUS_EXT with DONE: two extents, each as long as can be said
    let input = hex(
        "6e8a278c 0001 0006 00000001 00000000 00000000 00000000 00000000 00000028
                     00000001 00000002 ffffffff ffffffff 00000000 00000000
                                       ffffffff ffffffff 00000000 00000000",
    );
    let (first, _) = input.split_at(input.len() - 16);
    for pieces in [&[&input[..]][..], &[first, &input[first.len()..]]] {
        let mut session = session(negotiated);
        let cookie = session
            .submit(Request::block_status(0, 512))
            .unwrap()
            .cookie();
        let results = pieces.iter().map(|piece| session.receive(&mut &piece[..]));
        let violation = Violation::ExtentBeyond(cookie);
        assert_eq!(results.last().unwrap(), Err(Error::Violation(violation)));
    }
}

/// 18 bytes were needed, the size of a newstyle greeting, when they were all
/// there and the greeting was an oldstyle one.
#[test]
fn need_before_an_oldstyle_greeting_is_more_than_is_there() {
    // S: NBDMAGIC, cliserv_magic, size, flags
    let greeting = hex("4e42444d41474943 0000420281861253 0000000000001000 00000001");
    let mut handshake = Handshake::new(false, Limits::DEFAULT);
    for held in 0..greeting.len() {
        let (mut input, _) = greeting.split_at(held);
        assert_eq!(handshake.receive(&mut input), Ok(None));
        let needed = if held < 18 { 18 } else { 28 };
        assert_eq!(handshake.need(), Need::Header(needed), "{held} held");
    }
}

/// An oldstyle server was turned down, because an export was asked for by its
/// name, and could be used all the same.
#[test]
fn a_connect_that_failed_yields_nothing() {
    // S: NBDMAGIC, cliserv_magic, size, flags, 124 reserved bytes
    let mut input = hex("4e42444d41474943 0000420281861253 0000000000001000 00000001");
    input.resize(input.len() + 124, 0);
    let mut input = &input[..];
    let mut connect = Connector::new(Config::new("disk")).unwrap();
    let event = connect.receive(&mut input).unwrap().unwrap();
    let reason = ConnectError::NoExportNames;
    let message = None;
    assert_eq!(event, ConnectEvent::Failed { reason, message });
    assert_eq!(connect.receive(&mut input), Ok(None));
    assert!(connect.into_negotiated().is_err());
}

/// The data of an acknowledgement, which must have none, was waited for before
/// it was a violation.
#[test]
fn an_acknowledgement_with_data_is_judged_by_its_header() {
    let mut handshake = Handshake::new(false, Limits::DEFAULT);
    let mut out = [0; 64];
    let mut out = &mut out[..];
    // S: NBDMAGIC, IHAVEOPT, fixed newstyle
    let greeting = hex("4e42444d41474943 49484156454f5054 0001");
    handshake.receive(&mut &greeting[..]).unwrap();
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

/// Block status is answered in chunks only; a session that somebody set up with
/// contexts and simple replies asked for it all the same.
#[test]
fn block_status_is_not_asked_for_where_there_are_no_chunks() {
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
