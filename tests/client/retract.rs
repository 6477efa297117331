//! `Transmission::retract`: commands of which no byte was written.

use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::wire::flags::CommandFlags as F;
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Error, Framing, Limits, Misuse, Step, Violation};

use super::machines::{Bytes, Client, FRAMINGS, export, with_contexts};
use super::script;
use super::transcript::{Machine, once};

const NOT_IN_FLIGHT: Result<(), Misuse> = Err(Misuse::State("the command is not in flight"));
const ANSWERED: Result<(), Misuse> = Err(Misuse::State("the command is being answered"));

fn machine(framing: Framing) -> Transmission<[Slot; 2]> {
    Transmission::new(with_contexts(framing, 1), [Slot::EMPTY; 2], Limits::DEFAULT)
}

/// The slot is free again, the command never ends, and its cookie is not used
/// again.
#[test]
fn the_slot_is_free_again() {
    for framing in FRAMINGS {
        let mut machine = machine(framing);
        let other = machine.submit(Request::write(0, 512)).unwrap();
        let mut cookies = vec![other.cookie()];
        for request in [
            Request::read(0, 512),
            Request::write(0, 512),
            Request::flush(),
            Request::trim(0, 512),
        ] {
            let header = machine.submit(request).unwrap();
            assert_eq!(machine.submit(request), Err(Misuse::Full));
            assert_eq!(machine.retract(header), Ok(()));
            assert_eq!(machine.in_flight(), 1);
            assert!(!cookies.contains(&header.cookie()));
            cookies.push(header.cookie());
            assert_eq!(machine.retract(header), NOT_IN_FLIGHT);
        }
        assert_eq!(machine.end_of_input(), Err(Error::Closed));
        assert_eq!(machine.pop_unanswered(), Some(other.cookie()));
        assert_eq!(machine.pop_unanswered(), None);
    }
    let mut machine = machine(Framing::Extended);
    let mut payload = Bytes::default();
    let header = machine
        .block_status_of(&[ContextId(1)], 0, 512, F::NONE, &mut payload)
        .unwrap();
    assert_eq!(machine.retract(header), Ok(()));
    assert_eq!(machine.in_flight(), 0);
    assert_eq!(machine.end_of_input(), Ok(()));
}

/// A reply to a command that was retracted is one to an unknown cookie.
#[test]
fn replies_to_a_retracted_command() {
    for (framing, ok) in [
        (Framing::Simple, "simple OK #0"),
        (Framing::Structured, "last NONE #0"),
        (Framing::Extended, "last NONE #0"),
    ] {
        let mut client = Client::new(export(framing));
        let header = client.machine.submit(Request::flush()).unwrap();
        client.sent.push((header.cookie(), 0));
        assert_eq!(client.machine.retract(header), Ok(()));
        let reply = script::server(ok, &client);
        let unknown = Error::Violation(Violation::UnknownCookie(header.cookie()));
        assert_eq!(client.receive(&mut reply.as_slice()), Err(unknown));
    }
}

/// What was answered, in part or whole, cannot be retracted; nothing has
/// changed then.
#[test]
fn answered_commands() {
    for (command, replies) in [
        ("FLUSH", vec![("last NONE #0", NOT_IN_FLIGHT)]),
        (
            "READ 0 512",
            vec![
                // In the payload, between two chunks, after the last.
                ("chunk OFFSET_DATA #0 len=264 0:64", NOT_IN_FLIGHT),
                ("00*256", ANSWERED),
                ("last OFFSET_HOLE #0 256:64 256:32", NOT_IN_FLIGHT),
            ],
        ),
        (
            "WRITE 0 512",
            vec![
                ("chunk ERROR #0 EIO:32 0:16", ANSWERED),
                ("last NONE #0", NOT_IN_FLIGHT),
            ],
        ),
        (
            "STATUS 0 512",
            vec![
                ("chunk BLOCK_STATUS #0 len=12 1:32", NOT_IN_FLIGHT),
                ("512:32 0:32", ANSWERED),
                ("last NONE #0", NOT_IN_FLIGHT),
            ],
        ),
    ] {
        let mut client = Client::new(with_contexts(Framing::Structured, 1));
        let header = client.machine.submit(super::machines::request(command).0);
        let header = header.unwrap();
        client.sent.push((header.cookie(), 0));
        for (reply, refused) in replies {
            once(&mut client, &format!("S: {reply}"));
            let before = format!("{:?}", client.machine);
            assert_eq!(client.machine.retract(header), refused, "{reply}");
            assert_eq!(format!("{:?}", client.machine), before);
        }
        assert_eq!(client.machine.in_flight(), 0);
    }
}

/// DISC takes no slot, and cannot be retracted.
#[test]
fn disc() {
    for framing in FRAMINGS {
        let mut machine = machine(framing);
        let flush = machine.submit(Request::flush()).unwrap();
        let disc = machine.disconnect().unwrap();
        assert_eq!(machine.retract(disc), NOT_IN_FLIGHT);
        assert_eq!(machine.retract(flush), Ok(()));
        assert_eq!(machine.receive(&mut &b""[..]), Ok(Step::Finished));
    }
}

/// A resize that was retracted changes no size and excludes no command.
#[test]
fn resize() {
    for framing in FRAMINGS {
        let mut machine = machine(framing);
        let size = machine.negotiated().size;
        for new in [0, 2 * size] {
            let header = machine.submit(Request::resize(new)).unwrap();
            let again = machine.submit(Request::resize(new));
            assert_eq!(again, Err(Misuse::Resizing));
            assert_eq!(machine.retract(header), Ok(()));
            assert_eq!(machine.negotiated().size, size);
            let last = machine.submit(Request::read(size - 512, 512)).unwrap();
            assert_eq!(machine.retract(last), Ok(()));
        }
    }
}

/// Retracting brings nothing back after DISC, nor after the session has failed.
#[test]
fn a_resize_that_is_retracted_after_the_end() {
    for framing in FRAMINGS {
        let mut disconnected = machine(framing);
        let header = disconnected.submit(Request::resize(0)).unwrap();
        let _ = disconnected.disconnect().unwrap();
        assert_eq!(disconnected.retract(header), Ok(()));
        let over = Err(Misuse::State("DISC was sent already"));
        assert_eq!(disconnected.submit(Request::read(0, 512)), over);

        let mut failed = machine(framing);
        let header = failed.submit(Request::resize(0)).unwrap();
        let error = failed.receive(&mut &b"junk"[..]).unwrap_err();
        let _ = failed.retract(header);
        let over = Err(Misuse::Failed(error));
        assert_eq!(failed.submit(Request::read(0, 512)), over);
        assert_eq!(failed.submit(Request::flush()), over);
    }
}
