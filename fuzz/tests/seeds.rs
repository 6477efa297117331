//! The parts that the targets trust: scripts survive their storage, and the
//! reader understands what real servers said.

use std::fs;
use std::path::Path;

use nbd_codec_fuzz::delivery::Delivery;
use nbd_codec_fuzz::reader::Verdict;
use nbd_codec_fuzz::reader::handshake::Sent;
use nbd_codec_fuzz::script::Run;
use nbd_codec_fuzz::{client, compare, handshake, recorded, tape};

fn recordings() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sessions");
    let entries = fs::read_dir(directory).expect("the recorded sessions");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let texts = paths.filter(|path| path.extension().is_some_and(|end| end == "txt"));
    let recordings: Vec<_> = texts
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a session");
            (path.display().to_string(), text)
        })
        .collect();
    assert!(recordings.len() >= 16, "sessions are missing");
    recordings
}

#[test]
fn a_script_is_the_same_behind_its_bytes() {
    for (name, text) in recordings() {
        let (talk, session) = recorded::scripts(&text);
        assert!(!talk.steps.0.is_empty(), "{name}");
        let (one, other) = (Delivery::whole(), Delivery::whole());
        let Some(session) = session else { continue };
        let run = Run::Transmission {
            one,
            other,
            session,
        };
        assert_eq!(tape::read::<Run>(&tape::write(&run)), run, "{name}");
    }
}

#[test]
fn the_reader_finds_nothing_wrong_with_real_servers() {
    let mut transmissions = 0;
    for (name, text) in recordings() {
        let (talk, session) = recorded::scripts(&text);
        let client = handshake::by_hand(&talk, &Delivery::whole());
        let (heard, verdict, _) = compare::read_talk(&client, &talk);
        // A server need not answer ABORT.
        let left = matches!(
            client.sent.last(),
            Some((_, Sent::Option { number: 2, .. }))
        );
        let expected = if left { Verdict::Torn } else { Verdict::Good };
        assert_eq!(verdict, expected, "{name}");
        assert_eq!(heard, client.outcome.heard, "{name}");
        let Some(session) = session else { continue };
        transmissions += 1;
        let client = client::run(&session, &Delivery::whole());
        let (facts, verdict) = compare::read(&client, &session.setup);
        assert_eq!(verdict, Verdict::Good, "{name}");
        assert_eq!(facts, client.outcome.facts, "{name}");
        // Every command of the session is done, none is merely not refused.
        let done = facts.iter().filter(|fact| fact.is_done()).count();
        assert_eq!((done, done > 0), (client.sent.len(), true), "{name}");
    }
    assert!(
        transmissions >= 14,
        "{transmissions} sessions with commands"
    );
}
