//! How a transmission ends, and what is left then.

use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::wire::flags::CommandFlags as F;
use nbd_codec::wire::number::{ContextId, ErrorValue};
use nbd_codec::{Error, Framing, Limits, Misuse, Need, Violation};

use super::machines::{Bytes, Sending, export, with_contexts};
use super::script;
use super::transcript::Machine;

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

#[test]
fn after_disconnect() {
    for framing in FRAMINGS {
        let mut machine =
            Transmission::new(with_contexts(framing, 1), [Slot::EMPTY; 4], Limits::DEFAULT);
        assert!(machine.submit(Request::flush()).is_ok());
        assert!(machine.disconnect().is_ok());
        let over = Misuse::State("the session was ended by disconnect");
        for request in [Request::flush(), Request::read(0, 1), Request::write(0, 1)] {
            assert_eq!(machine.submit(request), Err(over));
        }
        assert_eq!(machine.disconnect(), Err(over));
        let mut payload = Bytes::default();
        let ids = [ContextId(1)];
        let made = machine.block_status_of(&ids, 0, 1, F::NONE, &mut payload);
        assert_eq!(made, Err(over));
        assert!(payload.0.is_empty());
        assert_eq!(machine.in_flight(), 1);
    }
}

/// What is answered behind it brings nothing back.
#[test]
fn resized_after_disconnect() {
    let mut sending = Sending::new(export(Framing::Simple), Limits::DEFAULT);
    sending.client("RESIZE 2M");
    sending.client("DISC");
    let reply = script::server("simple OK #0", &sending);
    assert!(sending.receive(&mut &reply[..]).unwrap().is_some());
    assert_eq!(sending.machine.negotiated().size, 2 << 20);
    let over = Misuse::State("the session was ended by disconnect");
    assert_eq!(sending.machine.submit(Request::read(0, 512)), Err(over));
}

/// Once the session is over nothing is made, and payload is not counted.
#[test]
fn after_the_end() {
    let mut machine = Transmission::new(export(Framing::Simple), [Slot::EMPTY; 4], Limits::DEFAULT);
    let made = machine.submit(Request::flush()).unwrap();
    // Not before the end, for the command may still be answered.
    assert_eq!(machine.abandon(), None);
    assert!(machine.receive(&mut &b"junk"[..]).is_err());
    let error = machine.receive(&mut &b""[..]).unwrap_err();
    for _ in 0..2 {
        assert_eq!(machine.submit(Request::flush()), Err(Misuse::Failed(error)));
        assert_eq!(machine.disconnect(), Err(Misuse::Failed(error)));
        assert_eq!(machine.advance(0), Err(Misuse::Failed(error)));
        assert_eq!(machine.end_of_input(), Err(error));
        assert_eq!(machine.need(), Need::Nothing);
    }
    assert_eq!(machine.abandon(), Some(made.cookie()));
    assert_eq!(machine.abandon(), None);
    assert_eq!(machine.in_flight(), 0);
}

/// Payload that nobody waits for.
#[test]
fn advance_out_of_place() {
    let mut sending = Sending::new(export(Framing::Structured), Limits::DEFAULT);
    let none = Err(Misuse::TooMuchPayload { expected: 0 });
    assert_eq!(sending.machine.advance(1), none);
    assert_eq!(sending.machine.advance(u64::MAX), none);
    assert_eq!(sending.machine.advance(0), Ok(()));
    sending.client("READ 0 512");
    assert_eq!(sending.machine.advance(512), none);
    let chunk = script::server("chunk OFFSET_DATA #0 len=520 0:64", &sending);
    assert_eq!(sending.receive(&mut &chunk[..27]), Ok(None));
    assert_eq!(sending.machine.advance(1), none);
    assert_eq!(sending.receive(&mut chunk.as_slice()), Ok(None));
    let Need::Payload { offset, length, .. } = sending.machine.need() else {
        panic!("{:?}", sending.machine.need());
    };
    assert_eq!((offset, length), (0, 512));
    assert_eq!(sending.machine.advance(12), Ok(()));
    let Need::Payload { offset, length, .. } = sending.machine.need() else {
        panic!("{:?}", sending.machine.need());
    };
    assert_eq!((offset, length), (12, 500));
    let too_much = Err(Misuse::TooMuchPayload { expected: 500 });
    assert_eq!(sending.machine.advance(501), too_much);
    assert_eq!(sending.machine.advance(500), Ok(()));
    assert_eq!(sending.machine.need(), Need::Header(16));
}

/// Slots that were in flight elsewhere are not in flight here.
#[test]
fn slots_from_an_earlier_session() {
    let mut slots = [Slot::EMPTY; 2];
    let mut machine = Transmission::new(export(Framing::Simple), &mut slots[..], Limits::DEFAULT);
    let first = machine.submit(Request::flush()).unwrap().cookie();
    let second = machine.submit(Request::flush()).unwrap().cookie();
    let mut machine = Transmission::new(export(Framing::Simple), &mut slots[..], Limits::DEFAULT);
    assert_eq!(machine.in_flight(), 0);
    let third = machine.submit(Request::flush()).unwrap().cookie();
    assert!(third != first && third != second);
    let mut stale = 0x6744_6698_u32.to_be_bytes().to_vec();
    stale.extend(ErrorValue::NONE.0.to_be_bytes());
    stale.extend(first.0.to_be_bytes());
    let error = Error::Violation(Violation::UnknownCookie(first));
    assert_eq!(machine.receive(&mut stale.as_slice()), Err(error));
    assert_eq!(machine.abandon(), Some(third));
    assert_eq!(machine.abandon(), None);
}
