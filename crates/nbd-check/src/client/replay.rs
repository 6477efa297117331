//! Sends again what the server of a transcript sent, and compares what the client answers.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use super::stage::Stage;
use crate::connection::{Connection, Shared};
use crate::outcome::End;
use crate::replay::Replay;
use crate::tls::Acceptor;
use crate::transcript::{Entry, Event, write};

/// Plays a transcript of a client case: runs the command as
/// [`Runner`](super::Runner) does, and serves its connections as the transcript says.
/// Bytes that the transcript leaves out are sent as zeroes. `certificates` is the folder of
/// the server's certificate, if the case was within TLS.
///
/// # Errors
///
/// The command cannot be started.
pub fn replay(
    entries: &[Entry],
    command: &[String],
    timeout: Duration,
    certificates: Option<&Path>,
) -> Result<Replay> {
    let stage = Stage::new(command, timeout, certificates)?;
    let most = entries.iter().map(|entry| entry.connection).max();
    let most = most.unwrap_or(0);
    let (output, played) = stage.run(|index, stream, deadline| {
        let number = index + 1;
        let record = Shared::default();
        let mut connection = Connection::accepted(stream, &record, timeout, deadline);
        connection.stop_observing();
        let mut differences = Vec::new();
        if number > most {
            let text = format!("connection {number}; before there were {most}");
            differences.push((entries.len(), text));
        }
        for (index, entry) in entries.iter().enumerate() {
            if entry.connection == number
                && let Some(text) = step(&mut connection, entry, stage.tls.as_ref())
            {
                differences.push((index + 1, text));
            }
        }
        drop(connection);
        let record = Rc::try_unwrap(record).map(std::cell::RefCell::into_inner);
        let mut entries = record.map(|record| record.entries).unwrap_or_default();
        for entry in &mut entries {
            entry.connection = number;
        }
        (entries, differences)
    })?;
    let (mut transcript, mut differences) = (String::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        let first = entries
            .iter()
            .position(|one| one.connection == entry.connection);
        if entry.connection > played.len() && first == Some(index) {
            differences.push((index + 1, "the client does not connect".to_owned()));
        }
    }
    for (entries, found) in played {
        transcript.push_str(&write(&entries));
        differences.extend(found);
    }
    transcript.push_str(&format!("# the client: {}\n", output.ended));
    for line in output.stderr.lines() {
        transcript.push_str(&format!("# {line}\n"));
    }
    Ok(Replay {
        transcript,
        differences,
    })
}

/// Does what the server did, or takes what the client sends; what it does otherwise.
fn step(connection: &mut Connection, entry: &Entry, tls: Option<&Acceptor>) -> Option<String> {
    let before = &entry.meaning;
    match &entry.event {
        Event::Received(bytes, omitted) => {
            let mut bytes = bytes.clone();
            bytes.resize(bytes.len().saturating_add(*omitted), 0);
            connection.send(&bytes, before.as_str());
            None
        }
        Event::Sent(bytes) => match connection.take(bytes.len(), |_| before.clone()) {
            Ok(new) if new == *bytes => None,
            Ok(_) => Some(format!("other bytes; before: {before}")),
            Err(end) => Some(format!("{end}; before: {before}")),
        },
        Event::Ended(End::Client) => match connection.peek(1) {
            Err(End::Client) => None,
            Err(end) => Some(format!("{end}; before: {}", End::Client)),
            Ok(_) => {
                let rest = connection.rest();
                Some(format!("{} bytes; before: {}", rest.len(), End::Client))
            }
        },
        Event::Ended(_) => {
            connection.close();
            None
        }
        Event::Tls => match tls.map(|acceptor| connection.accept_tls(acceptor)) {
            Some(Ok(())) => None,
            Some(Err(error)) => Some(format!("no TLS: {error:#}")),
            None => Some("TLS needs certificates".to_owned()),
        },
        // A scripted server does not do it.
        Event::Shutdown => None,
    }
}
