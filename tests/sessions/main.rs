//! Sessions recorded with real servers, played again: the client must send the
//! same bytes, and report the same events in every fragmentation.
//!
//! `tests/sessions/record` records them. A file has the configuration, then
//! the bytes of each system call (`C:` sent, `S:` received), then the events
//! (`E:`). With `NBD_CODEC_BLESS=1` the events are written again; check them
//! before they are committed.

mod play;

use std::fs;
use std::path::{Path, PathBuf};

use play::{Cut, Session};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the folder of the sessions")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 16, "sessions are missing: {files:?}");
    files
}

fn sessions() -> impl Iterator<Item = (PathBuf, Session)> {
    files().into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("a session");
        let session = Session::parse(&text);
        (path, session)
    })
}

#[test]
fn the_events_are_the_recorded_ones() {
    for (path, session) in sessions() {
        let events = session.play(Cut::Whole);
        if std::env::var_os("NBD_CODEC_BLESS").is_some() {
            let text = fs::read_to_string(&path).expect("a session");
            let kept: String = text
                .lines()
                .filter(|line| !line.starts_with("E: "))
                .map(|line| format!("{line}\n"))
                .collect();
            let added: String = events.iter().map(|event| format!("E: {event}\n")).collect();
            fs::write(&path, kept + &added).expect("writing a session");
            continue;
        }
        assert!(!session.events.is_empty(), "{}: no events", path.display());
        assert_eq!(events, session.events, "{}", path.display());
    }
}

#[test]
fn byte_by_byte() {
    for (path, session) in sessions() {
        assert_eq!(
            session.play(Cut::Every(1)),
            session.events,
            "{}",
            path.display()
        );
    }
}

#[test]
fn cut_in_two_at_every_position() {
    for (path, session) in sessions() {
        for at in 0..session.received() {
            let events = session.play(Cut::At(at));
            assert_eq!(events, session.events, "{} cut at {at}", path.display());
        }
    }
}

#[test]
fn by_exact_reads() {
    for (path, session) in sessions() {
        assert_eq!(
            session.play(Cut::Exact),
            session.events,
            "{}",
            path.display()
        );
    }
}

/// A connection that is closed at any position: the end is reported, and no
/// event but those of the session.
#[test]
fn closed_at_every_position() {
    for (path, session) in sessions() {
        for at in 0..session.received() {
            let events = session.play(Cut::End(at));
            let (last, before) = events.split_last().expect("the end");
            assert!(
                last.starts_with("end: "),
                "{} at {at}: {last}",
                path.display()
            );
            let whole: Vec<_> = session
                .events
                .iter()
                .map(|e| e.split(" of ").next())
                .collect();
            for (seen, due) in before.iter().zip(&whole) {
                // Data and extents may be truncated.
                let kind = |text: &str| text.split(' ').take(2).collect::<Vec<_>>().join(" ");
                assert_eq!(
                    kind(seen),
                    kind(due.unwrap_or_default()),
                    "{} at {at}",
                    path.display()
                );
            }
        }
    }
}
