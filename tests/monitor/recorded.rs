//! The recorded sessions of `tests/sessions`: no server and no client in them
//! broke a rule, whatever is known of the order.

use std::fs;
use std::path::Path;

use nbd_codec::monitor::{Order, Side};

use super::see::{Event, see};

fn sessions() -> Vec<(String, Vec<Event>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions");
    let files = fs::read_dir(folder).expect("the folder of the sessions");
    let paths = files.map(|entry| entry.expect("an entry").path());
    let texts = paths.filter(|path| path.extension().is_some_and(|end| end == "txt"));
    let sessions = texts.map(|path| {
        let text = fs::read_to_string(&path).expect("a session");
        let events = text.lines().filter_map(|line| {
            let (key, digits) = line.split_once(": ")?;
            let side = match key {
                "C" => Side::Client,
                "S" => Side::Server,
                _ => return None,
            };
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
            let bytes = (0..digits.len()).step_by(2).map(byte).collect();
            Some(Event::Bytes(side, bytes))
        });
        (path.display().to_string(), events.collect())
    });
    let sessions: Vec<_> = sessions.collect();
    assert!(sessions.len() >= 16, "sessions are missing");
    sessions
}

#[test]
fn recorded_sessions_break_no_rule() {
    for (path, events) in sessions() {
        let lines = see(&events, Order::Seen);
        assert!(lines.len() > 4, "{path}: {lines:#?}");
        assert!(
            !lines.iter().any(|line| line.starts_with('!')),
            "{path}: {lines:#?}"
        );
    }
}

/// Each side as one whole stream, in both orders: the same messages.
#[test]
fn streams_of_unknown_order_have_the_same_messages() {
    for (path, events) in sessions() {
        let mut expected = see(&events, Order::Seen);
        let stream = |side| {
            let bytes = events.iter().filter_map(|event| match event {
                Event::Bytes(from, bytes) if *from == side => Some(bytes.as_slice()),
                _ => None,
            });
            Event::Bytes(side, bytes.collect::<Vec<_>>().concat())
        };
        expected.sort();
        for first in [Side::Client, Side::Server] {
            let streams = [stream(first), stream(first.peer())];
            let mut lines = see(&streams, Order::Unknown);
            lines.sort();
            assert_eq!(lines, expected, "{path}, {first} first");
        }
    }
}
