//! The parts that the targets trust: scripts survive their storage, and the
//! reader understands what real servers said.

use std::fs;
use std::path::Path;

use nbd_codec_fuzz::delivery::Delivery;
use nbd_codec_fuzz::pair::script::{Pair, PairStep};
use nbd_codec_fuzz::reader::Verdict;
use nbd_codec_fuzz::reader::handshake::Sent;
use nbd_codec_fuzz::reader::requests::Heard;
use nbd_codec_fuzz::script::Run;
use nbd_codec_fuzz::server::script::ServerRun;
use nbd_codec_fuzz::{agree, client, compare, handshake, host, pair, recorded, server, tape};

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

#[test]
fn a_server_script_is_the_same_behind_its_bytes() {
    for (name, text) in recordings() {
        let (reception, service) = recorded::server_scripts(&text);
        let (one, other) = (Delivery::whole(), Delivery::whole());
        let run = ServerRun::Handshake {
            one: one.clone(),
            other: other.clone(),
            reception,
        };
        assert_eq!(tape::read::<ServerRun>(&tape::write(&run)), run, "{name}");
        let Some(service) = service else { continue };
        let run = ServerRun::Transmission {
            one,
            other,
            service,
        };
        assert_eq!(tape::read::<ServerRun>(&tape::write(&run)), run, "{name}");
    }
}

#[test]
fn the_reader_finds_nothing_wrong_with_real_clients() {
    let (mut transmissions, mut entered) = (0, 0);
    for (name, text) in recordings() {
        let (reception, service) = recorded::server_scripts(&text);
        let host = host::run(&reception, &Delivery::whole()).expect("an offer");
        assert_eq!(host.outcome.error, None, "{name}");
        entered += usize::from(host.outcome.negotiated.is_some());
        // Both readers, and the machine, are of one opinion.
        agree::agree_talk(host);
        let Some(service) = service else { continue };
        transmissions += 1;
        let server = server::run(&service, &Delivery::whole()).expect("a setup");
        let (heard, verdict) = agree::read(&server);
        assert_eq!(verdict, Verdict::Good, "{name}");
        agree::agree(&server);
        // The client asked for what the server had.
        let refused = |heard: &&Heard| matches!(heard, Heard::Refused { .. });
        assert_eq!(heard.iter().filter(refused).count(), 0, "{name}");
        let requests = heard
            .iter()
            .filter(|heard| matches!(heard, Heard::Request(_)));
        assert!(requests.count() > 0, "{name}");
    }
    assert!(
        transmissions >= 14 && entered >= 14,
        "{transmissions} {entered}"
    );
}

#[test]
fn a_pair_comes_together_in_every_framing() {
    let all = u64::MAX;
    for framing in 0..3 {
        let mut pair: Pair = tape::read(&[]);
        pair.meeting.offer.fixed = true;
        pair.meeting.offer.framing = framing;
        pair.meeting.plan.framing = framing;
        pair.meeting.export.blocks = 7;
        let (flags, from, blocks, fill) = (0, 1, 3, 9);
        for command in [1, 0] {
            pair.steps.0.push(PairStep::Submit {
                command,
                flags,
                from,
                blocks,
                fill,
            });
            pair.steps.0.push(PairStep::Up { n: all });
        }
        assert!(pair::run(&pair), "framing {framing}");
    }
}
