//! How a transmission ends, and what it leaves.

use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::flags::CommandFlags as F;
use nbd_codec::wire::number::{ContextId, ErrorValue};
use nbd_codec::{Error, Framing, Limits, Misuse, Step, Violation};

use super::machines::{Bytes, Client, FRAMINGS, export, with_contexts};
use super::script;
use super::transcript::{Machine, once};

#[test]
fn after_disconnect() {
    for framing in FRAMINGS {
        let mut machine =
            Transmission::new(with_contexts(framing, 1), [Slot::EMPTY; 4], Limits::DEFAULT);
        assert!(machine.submit(Request::flush()).is_ok());
        assert!(machine.disconnect().is_ok());
        let over = Misuse::State("DISC was sent already");
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

/// After DISC the step is `Finished` as soon as nothing is in flight; a reply
/// that comes then is a violation.
#[test]
fn finished_after_disconnect() {
    for (framing, ok) in [
        (Framing::Simple, "simple OK"),
        (Framing::Structured, "simple OK"),
        (Framing::Extended, "last NONE"),
    ] {
        let mut client = Client::new(export(framing));
        once(&mut client, "C: FLUSH\nC: DISC");
        let step = client.receive(&mut &b""[..]);
        assert!(matches!(step, Ok(Step::Read(_))), "{step:?}");
        let reply = script::server(&format!("{ok} #0"), &client);
        once(&mut client, &format!("S: {ok} #0"));
        for _ in 0..2 {
            assert_eq!(client.receive(&mut &b""[..]), Ok(Step::Finished));
        }
        let mut closed = Client::new(export(framing));
        once(&mut closed, &format!("C: FLUSH\nC: DISC\nS: {ok} #0"));
        for _ in 0..3 {
            assert_eq!(closed.end_of_input(), Ok(()));
            assert_eq!(closed.receive(&mut &b""[..]), Ok(Step::Finished));
        }
        assert_eq!(closed.machine.pop_unanswered(), None);
        let unknown = Violation::UnknownCookie(client.sent[0].0);
        assert_eq!(client.receive(&mut &reply[..]), Err(unknown.into()));
    }
}

/// A server that closes the connection while nothing is in flight ends the
/// session: the step is `Finished`, and nothing can be sent.
#[test]
fn after_a_clean_end() {
    for framing in FRAMINGS {
        let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 4], Limits::DEFAULT);
        for _ in 0..3 {
            assert_eq!(machine.end_of_input(), Ok(()));
            assert_eq!(machine.receive(&mut &b""[..]), Ok(Step::Finished));
        }
        let over = Misuse::Failed(Error::Closed);
        assert_eq!(machine.submit(Request::flush()), Err(over));
        assert_eq!(machine.submit(Request::read(0, 512)), Err(over));
        assert_eq!(machine.disconnect(), Err(over));
        assert_eq!(machine.pop_unanswered(), None);
        // With an inbox: a read of zero bytes.
        let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 4], Limits::DEFAULT);
        let mut inbox = Inbox::new([0; 64]);
        assert!(matches!(inbox.receive(&mut machine), Ok(Step::Read(_))));
        assert_eq!(inbox.filled(0), Ok(()));
        for _ in 0..2 {
            assert_eq!(inbox.receive(&mut machine), Ok(Step::Finished));
        }
    }
}

/// After an end while commands are in flight, `pop_unanswered` names each of
/// them once; those that were answered are not among them.
#[test]
fn unanswered_commands() {
    for (framing, ok) in [
        (Framing::Simple, "simple OK"),
        (Framing::Structured, "simple OK"),
        (Framing::Extended, "last NONE"),
    ] {
        let mut client = Client::new(export(framing));
        once(
            &mut client,
            &format!("C: FLUSH\nC: READ 0 512\nC: TRIM 0 512\nS: {ok} #0"),
        );
        // Commands may still be answered before the end.
        assert_eq!(client.machine.pop_unanswered(), None);
        assert_eq!(client.end_of_input(), Err(Error::Closed));
        let mut unanswered: Vec<_> =
            std::iter::from_fn(|| client.machine.pop_unanswered()).collect();
        unanswered.sort();
        let mut due = vec![client.sent[1].0, client.sent[2].0];
        due.sort();
        assert_eq!(unanswered, due);
        assert_eq!(client.machine.in_flight(), 0);
        // The end stays an error.
        assert_eq!(client.end_of_input(), Err(Error::Closed));
        assert_eq!(client.receive(&mut &b""[..]), Err(Error::Closed));
    }
}

/// A resize that succeeds after DISC changes the size, and nothing can be sent.
#[test]
fn resized_after_disconnect() {
    let mut client = Client::new(export(Framing::Simple));
    once(&mut client, "C: RESIZE 2M\nC: DISC\nS: simple OK #0");
    assert_eq!(client.machine.negotiated().size, 2 << 20);
    let over = Misuse::State("DISC was sent already");
    assert_eq!(client.machine.submit(Request::read(0, 512)), Err(over));
}

/// After the session has failed nothing is made, and no payload is counted.
#[test]
fn after_a_failure() {
    let mut machine = Transmission::new(export(Framing::Simple), [Slot::EMPTY; 4], Limits::DEFAULT);
    let made = machine.submit(Request::flush()).unwrap();
    assert_eq!(machine.pop_unanswered(), None);
    let error = machine.receive(&mut &b"junk"[..]).unwrap_err();
    assert!(error.is_fatal());
    for _ in 0..2 {
        assert_eq!(machine.receive(&mut &b""[..]), Err(error));
        assert_eq!(machine.submit(Request::flush()), Err(Misuse::Failed(error)));
        assert_eq!(machine.disconnect(), Err(Misuse::Failed(error)));
        assert_eq!(machine.advance(0), Err(Misuse::Failed(error)));
        assert_eq!(machine.end_of_input(), Err(error));
    }
    assert_eq!(machine.pop_unanswered(), Some(made.cookie()));
    assert_eq!(machine.pop_unanswered(), None);
    assert_eq!(machine.in_flight(), 0);
}

/// Payload can be reported only after its header, and only as much as it has.
#[test]
fn advance_out_of_order() {
    let mut client = Client::new(export(Framing::Structured));
    let none = Err(Misuse::TooMuchPayload { expected: 0 });
    assert_eq!(client.machine.advance(1), none);
    assert_eq!(client.machine.advance(u64::MAX), none);
    assert_eq!(client.machine.advance(0), Ok(()));
    once(&mut client, "C: READ 0 512");
    assert_eq!(client.machine.advance(512), none);
    let chunk = script::server("chunk OFFSET_DATA #0 len=520 0:64", &client);
    let step = client.receive(&mut &chunk[..27]).unwrap();
    assert_eq!(step.read_limit().unwrap().get(), 1);
    assert_eq!(client.machine.advance(1), none);
    let cookie = client.sent[0].0;
    let payload = |offset| Step::ReadPayload {
        cookie,
        offset,
        length: 512 - offset,
    };
    assert_eq!(client.receive(&mut chunk.as_slice()), Ok(payload(0)));
    assert_eq!(client.machine.advance(12), Ok(()));
    assert_eq!(client.receive(&mut &b""[..]), Ok(payload(12)));
    let too_much = Err(Misuse::TooMuchPayload { expected: 500 });
    assert_eq!(client.machine.advance(501), too_much);
    assert_eq!(client.machine.advance(500), Ok(()));
    let step = client.receive(&mut &b""[..]).unwrap();
    assert_eq!(step.read_limit().unwrap().get(), 16);
}

/// Slots that another session left in flight are free in a new one.
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
    assert_eq!(machine.pop_unanswered(), Some(third));
    assert_eq!(machine.pop_unanswered(), None);
}
