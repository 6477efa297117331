//! The parts that the targets rely on: scripts survive encoding, and the
//! reference parsers accept sessions of real clients and servers.

use std::fs;
use std::path::Path;

use nbd_codec_fuzz::delivery::Delivery;
use nbd_codec_fuzz::pair::script::{Action, Script};
use nbd_codec_fuzz::reference::Validity;
use nbd_codec_fuzz::reference::option_replies::Sent;
use nbd_codec_fuzz::reference::requests::Event;
use nbd_codec_fuzz::{client, compare, format, pair, recorded, server};

fn recordings() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sessions");
    let entries = fs::read_dir(directory).expect("the recorded sessions");
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
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
fn scripts_survive_encoding() {
    let (first, second) = (Delivery::whole(), Delivery::whole());
    for (name, text) in recordings() {
        let (handshake, transmission) = recorded::client_scripts(&text);
        assert!(!handshake.actions.0.is_empty(), "{name}");
        if let Some(script) = transmission {
            let run = client::Run::Transmission {
                first: first.clone(),
                second: second.clone(),
                script,
            };
            assert_eq!(format::read::<client::Run>(&format::write(&run)), run);
        }
        let (script, transmission) = recorded::server_scripts(&text);
        let run = server::Run::Handshake {
            first: first.clone(),
            second: second.clone(),
            script,
        };
        assert_eq!(format::read::<server::Run>(&format::write(&run)), run);
        if let Some(script) = transmission {
            let run = server::Run::Transmission {
                first: first.clone(),
                second: second.clone(),
                script,
            };
            assert_eq!(format::read::<server::Run>(&format::write(&run)), run);
        }
    }
}

#[test]
fn real_servers_are_valid() {
    let mut transmissions = 0;
    for (name, text) in recordings() {
        let (handshake, transmission) = recorded::client_scripts(&text);
        let client = client::handshake::run(&handshake, &Delivery::whole());
        let (events, validity, _) = compare::client::parse_handshake(&client, &handshake);
        // The server need not reply to ABORT.
        let expected = match client.sent.last() {
            Some((_, Sent::Option { number: 2, .. })) => Validity::Incomplete,
            _ => Validity::Valid,
        };
        assert_eq!(validity, expected, "{name}");
        assert_eq!(events, client.outcome.events, "{name}");
        let Some(script) = transmission else { continue };
        transmissions += 1;
        let client = client::transmission::run(&script, &Delivery::whole());
        let (events, validity) = compare::client::parse_transmission(&client, &script.setup);
        assert_eq!(validity, Validity::Valid, "{name}");
        assert_eq!(events, client.outcome.events, "{name}");
        // Every command completes.
        let done = events.iter().filter(|event| event.is_done()).count();
        assert_eq!((done, done > 0), (client.sent.len(), true), "{name}");
    }
    assert!(transmissions >= 14, "{transmissions} transmissions");
}

#[test]
fn real_clients_are_valid() {
    let (mut transmissions, mut negotiated) = (0, 0);
    for (name, text) in recordings() {
        let (handshake, transmission) = recorded::server_scripts(&text);
        let server = server::handshake::run(&handshake, &Delivery::whole());
        let server = server.expect("a valid configuration");
        assert_eq!(server.outcome.error, None, "{name}");
        negotiated += usize::from(server.outcome.negotiated.is_some());
        compare::server::handshake(server);
        let Some(script) = transmission else { continue };
        transmissions += 1;
        let server = server::transmission::run(&script, &Delivery::whole());
        let server = server.expect("a valid setup");
        let (events, validity) = compare::server::parse_transmission(&server);
        assert_eq!(validity, Validity::Valid, "{name}");
        compare::server::transmission(&server);
        let is_answered = |event: &Event| matches!(event, Event::Answered { .. });
        assert!(!events.iter().any(is_answered), "{name}");
        let is_request = |event: &Event| matches!(event, Event::Request(_));
        assert!(events.iter().any(is_request), "{name}");
    }
    let counts = (transmissions, negotiated);
    assert!(transmissions >= 14 && negotiated >= 14, "{counts:?}");
}

#[test]
fn pairs_connect_in_all_framings() {
    let all = u64::MAX;
    for framing in 0..3 {
        let mut script: Script = format::read(&[]);
        script.handshake.server.fixed = true;
        script.handshake.server.framing = framing;
        script.handshake.config.framing = framing;
        script.handshake.export.blocks = 7;
        for command in [1, 0] {
            script.actions.0.push(Action::Submit {
                command,
                flags: 0,
                from: 1,
                blocks: 3,
                fill: 9,
            });
            script.actions.0.push(Action::Up { n: all });
        }
        assert!(pair::run(&script), "framing {framing}");
    }
}
