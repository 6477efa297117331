//! Sends again what the client sent, and compares what the server answers.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::connection::{Connection, Shared};
use crate::outcome::End;
use crate::stream::Address;
use crate::tls;
use crate::transcript::{Entry, Event, write};

/// What a replay shows.
#[derive(Debug)]
pub struct Replay {
    /// The new transcript.
    pub transcript: String,
    /// What the server did otherwise: the number of the entry, and what it was.
    pub differences: Vec<(usize, String)>,
}

/// Plays a transcript.
///
/// # Errors
///
/// The server cannot be reached.
pub fn replay(
    entries: &[Entry],
    address: &Address,
    timeout: Duration,
    tls: &tls::Config,
) -> Result<Replay> {
    let record = Shared::default();
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut connections: HashMap<usize, Connection> = HashMap::new();
    let mut differences = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let number = index + 1;
        let connection = match connections.entry(entry.connection) {
            std::collections::hash_map::Entry::Occupied(one) => one.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Connection::open(address, &record, timeout, deadline)?)
            }
        };
        match &entry.event {
            Event::Sent(bytes) => connection.send(bytes, entry.meaning.as_str()),
            Event::Shutdown => connection.shutdown(),
            Event::Tls => connection.start_tls(tls, "localhost").context("TLS")?,
            Event::Ended(End::Client) => connection.close(),
            Event::Ended(end) => match (connection.expect_end(), end) {
                (Ok(_), end) if end.is_by_server() => {}
                (Ok(other), end) => differences.push((number, format!("{other}; before: {end}"))),
                (Err(bytes), End::Silent) if bytes.is_empty() => {}
                (Err(bytes), end) => {
                    let text = format!("{} bytes; before: {end}", bytes.len());
                    differences.push((number, text));
                }
            },
            Event::Received(bytes, omitted) => {
                let length = bytes.len().saturating_add(*omitted);
                match connection.take(length, |_| entry.meaning.clone()) {
                    Ok(new) if new.starts_with(bytes) => {}
                    Ok(_) => {
                        let text = format!("other bytes; before: {}", entry.meaning);
                        differences.push((number, text));
                    }
                    Err(end) => {
                        let text = format!("{end}; before: {}", entry.meaning);
                        differences.push((number, text));
                    }
                }
            }
        }
    }
    drop(connections);
    let record = Rc::try_unwrap(record).map(std::cell::RefCell::into_inner);
    let entries = record.map(|record| record.entries).unwrap_or_default();
    Ok(Replay {
        transcript: write(&entries),
        differences,
    })
}
