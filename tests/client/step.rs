//! Steps and errors that repeat until the caller has done what they ask for.

use std::fmt::Debug;
use std::num::NonZeroUsize;

use nbd_codec::client::{Config, Connector, Handshake, TlsPolicy};
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::number::{Cookie, OptionType};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::{Content, Error, Misuse, Receive, Step, UnexpectedStep};

use super::connect::{GREETED, connect};
use super::machines::{Bytes, FIXED_NEWSTYLE, Manual};
use super::script::{self, NoCommands};
use super::transcript::{Machine, once};

/// The answer to no input, the same three times.
fn repeated<M: Receive>(machine: &mut M) -> Result<Step<(), ()>, Error>
where
    for<'i> M::Event<'i>: Debug,
{
    let mut answers = (0..3).map(|_| {
        Ok(match machine.receive(&mut &b""[..])? {
            Step::Transmit => Step::Transmit,
            Step::Read(n) => Step::Read(n),
            Step::StartTls => Step::StartTls,
            Step::Finished => Step::Finished,
            step => panic!("{step:?} repeats"),
        })
    });
    let first = answers.next().unwrap();
    assert!(answers.all(|answer| answer == first), "{first:?} first");
    first
}

/// Where the server closes the connection instead of replying, the error names
/// the option: before the reply, within it, and after some replies of several.
#[test]
fn closed_during_an_option() {
    let meta = r#"0:32 1:32 2:32 "x:""#;
    for (option, data, replies) in [
        ("EXPORT_NAME", "", &["00*9"][..]),
        (
            "LIST",
            "",
            &["rep LIST SERVER 0:32", "rep LIST SERVER len=5000 00*3000"],
        ),
        ("STARTTLS", "", &[]),
        ("INFO", "0:32 0:16", &["rep INFO INFO EXPORT:16 1M:64 1:16"]),
        ("GO", "0:32 0:16", &["rep GO INFO EXPORT:16 1M:64 1:16"]),
        ("STRUCTURED_REPLY", "", &[]),
        (
            "LIST_META_CONTEXT",
            meta,
            &["rep LIST_META_CONTEXT META_CONTEXT 0:32 \"x:\""],
        ),
        (
            "SET_META_CONTEXT",
            meta,
            &["rep SET_META_CONTEXT META_CONTEXT len=8K 1:32 00*99"],
        ),
        ("EXTENDED_HEADERS", "", &[]),
        ("4711", "", &["rep 4711 0x7777"]),
    ] {
        let number = u32::try_from(script::number(option)).unwrap();
        let during = Error::ClosedDuring(OptionType(number));
        let replies: Vec<u8> = replies
            .iter()
            .flat_map(|line| script::server(line, &NoCommands))
            .collect();
        for end in 0..=replies.len() {
            let config = Config::new("").lenient(true);
            let mut manual = Manual::greeted(config);
            if option == "SET_META_CONTEXT" {
                once(
                    &mut manual,
                    "C: opt STRUCTURED_REPLY\nS: rep STRUCTURED_REPLY ACK",
                );
            }
            once(&mut manual, &format!("C: opt {option} {data}"));
            let mut input = &replies[..end];
            while let Ok(Step::Event(_)) = manual.receive(&mut input) {}
            for _ in 0..3 {
                assert_eq!(manual.handshake.end_of_input(), Err(during), "{option}");
                assert_eq!(repeated(&mut manual.handshake), Err(during));
            }
            assert!(during.is_fatal());
            let name = OptionType(number).to_string();
            assert!(during.to_string().contains(&name), "{during}");
        }
    }
}

/// Wherever the client has to send, the error is returned again and is not
/// fatal: what the client then sends is accepted.
#[test]
fn unanswered_until_the_client_sends() {
    let unanswered = |manual: &mut Manual| {
        assert_eq!(repeated(&mut manual.handshake), Err(Error::Unanswered));
        assert!(!Error::Unanswered.is_fatal());
    };
    let greeting = FIXED_NEWSTYLE.lines().nth(1).unwrap();
    let mut manual = Manual::new(Config::new(""));
    once(&mut manual, greeting);
    unanswered(&mut manual);
    // An option is not what is due.
    let early = manual
        .handshake
        .send(&OptionRequest::List, &mut Bytes::default());
    assert!(matches!(early, Err(Misuse::State(_))));
    unanswered(&mut manual);
    for exchange in [
        "C: flags 3",
        "C: opt LIST\nS: rep LIST ERR_POLICY",
        "C: opt STARTTLS\nS: rep STARTTLS ACK\nC: tls established",
        "C: opt STRUCTURED_REPLY\nS: rep STRUCTURED_REPLY ACK",
    ] {
        once(&mut manual, exchange);
        unanswered(&mut manual);
    }
    let again = manual
        .handshake
        .send_client_flags(ClientFlags(3), &mut Bytes::default());
    assert!(matches!(again, Err(Misuse::State(_))));
    unanswered(&mut manual);
}

/// The step repeats until the caller states the outcome; nothing is sent before.
#[test]
fn start_tls_repeats_until_the_outcome() {
    let accepted = "C: opt STARTTLS\nS: rep STARTTLS ACK\n";
    for established in [true, false] {
        let mut manual = Manual::greeted(Config::new("").require_tls());
        once(&mut manual, accepted);
        let handshake: &mut Handshake = &mut manual.handshake;
        assert_eq!(repeated(handshake), Ok(Step::StartTls));
        let list = handshake.send(&OptionRequest::List, &mut Bytes::default());
        assert!(matches!(list, Err(Misuse::State(_) | Misuse::TlsRequired)));
        assert_eq!(repeated(handshake), Ok(Step::StartTls));
        let config = Config::new("").tls(TlsPolicy::Prefer);
        let mut connector: Connector<'_> = connect(config, &format!("{GREETED}{accepted}"));
        assert_eq!(repeated(&mut connector), Ok(Step::StartTls));
        assert_eq!(connector.transmit(&mut Bytes::default()), Ok(0));
        assert_eq!(repeated(&mut connector), Ok(Step::StartTls));
        if established {
            assert_eq!(handshake.tls_established(), Ok(()));
            assert_eq!(repeated(handshake), Err(Error::Unanswered));
            assert_eq!(connector.tls_established(), Ok(()));
            assert_eq!(repeated(&mut connector), Ok(Step::Transmit));
            // The outcome is stated once.
            assert!(handshake.tls_established().is_err());
            assert!(connector.tls_established().is_err());
        } else {
            handshake.tls_failed();
            assert_eq!(repeated(handshake), Err(Error::TlsFailed));
            connector.tls_failed();
            assert_eq!(repeated(&mut connector), Err(Error::TlsFailed));
        }
    }
}

/// The step repeats until the message is written, each message once.
#[test]
fn transmit_repeats_until_the_message_is_written() {
    let mut connector = Connector::new(Config::new("disk")).unwrap();
    let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 3:16"#, &NoCommands);
    assert_eq!(connector.transmit(&mut Bytes::default()), Ok(0));
    let step = connector.receive(&mut greeting.as_slice());
    assert_eq!(step, Ok(Step::Transmit));
    for message in ["3:32", r#""IHAVEOPT" EXTENDED_HEADERS:32 0:32"#] {
        let message = script::server(message, &NoCommands);
        assert_eq!(repeated(&mut connector), Ok(Step::Transmit));
        let mut short = vec![0; message.len() - 1];
        let refused = connector.transmit(&mut short.as_mut_slice());
        assert!(matches!(refused, Err(Misuse::Encode(_))));
        assert_eq!(repeated(&mut connector), Ok(Step::Transmit));
        let mut sent = Bytes::default();
        assert_eq!(connector.transmit(&mut sent), Ok(message.len()));
        assert_eq!(sent.0, message);
    }
    assert!(matches!(repeated(&mut connector), Ok(Step::Read(_))));
    assert_eq!(connector.transmit(&mut Bytes::default()), Ok(0));
}

/// Each step that a driver does not handle has an error of its own, and those
/// that read say how much.
#[test]
fn steps_that_a_driver_does_not_handle() {
    let cookie = Cookie(1);
    let content = Content::Hole {
        cookie,
        offset: 0,
        length: 1,
    };
    let payload = |length| Step::ReadPayload {
        cookie,
        offset: 0,
        length,
    };
    let n = NonZeroUsize::new(20);
    let steps: [(Step<(), &[u8]>, _, _); 8] = [
        (Step::Event(()), UnexpectedStep::Event, None),
        (Step::Content(content), UnexpectedStep::Content, None),
        (Step::Transmit, UnexpectedStep::Transmit, None),
        (Step::Read(n.unwrap()), UnexpectedStep::Read, n),
        (payload(20), UnexpectedStep::ReadPayload, n),
        (
            payload(u64::MAX),
            UnexpectedStep::ReadPayload,
            Some(NonZeroUsize::MAX),
        ),
        (Step::StartTls, UnexpectedStep::StartTls, None),
        (Step::Finished, UnexpectedStep::Finished, None),
    ];
    for (step, unexpected, limit) in steps {
        assert_eq!(step.unexpected(), unexpected);
        assert_eq!(step.read_limit(), limit);
    }
}
