//! What was sent and received: decoded, and as bytes.
//!
//! ```text
//! # any comment
//! --- connection 1
//! S: 4e42444d414749434948415645 ...  greeting FIXED_NEWSTYLE | NO_ZEROES
//! C: 00000003  client flags FIXED_NEWSTYLE | NO_ZEROES
//! C: shutdown
//! S: closed by the server
//! ```
//!
//! Two spaces separate the bytes from their meaning. `nbd-check replay` sends what
//! the client sent, and compares what the server answers.

use crate::hex;
use crate::outcome::End;

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The client sent bytes.
    Sent(Vec<u8>),
    /// The server sent bytes, and this many more that are not kept.
    Received(Vec<u8>, usize),
    /// The client will send nothing more, but reads.
    Shutdown,
    /// TLS was started.
    Tls,
    /// The connection ended.
    Ended(End),
}

/// An event, its connection and its meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of the connection, from 1.
    pub connection: usize,
    /// What happened.
    pub event: Event,
    /// The decoded message.
    pub meaning: String,
}

/// Bytes that a server sent beyond these are counted, not written.
const MOST_RECEIVED: usize = 4096;

/// A transcript as text.
#[must_use]
pub fn write(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut connection = 0;
    for entry in entries {
        if entry.connection != connection {
            connection = entry.connection;
            text.push_str(&format!("--- connection {connection}\n"));
        }
        let line = match &entry.event {
            Event::Sent(bytes) => format!("C: {}", hex::encode(bytes)),
            Event::Received(bytes, omitted) => {
                let kept = bytes.get(..MOST_RECEIVED).unwrap_or(bytes);
                match omitted + (bytes.len() - kept.len()) {
                    0 => format!("S: {}", hex::encode(kept)),
                    omitted => format!("S: {} ...{omitted}", hex::encode(kept)),
                }
            }
            Event::Shutdown => "C: shutdown".to_owned(),
            Event::Tls => "C: TLS".to_owned(),
            Event::Ended(End::Client) => "C: close".to_owned(),
            Event::Ended(end) => format!("S: {end}"),
        };
        text.push_str(&line);
        if !entry.meaning.is_empty() {
            text.push_str("  ");
            text.push_str(&entry.meaning);
        }
        text.push('\n');
    }
    text
}

/// Reads what [`write()`] wrote.
///
/// # Errors
///
/// The number of the first line that is none of a transcript.
pub fn parse(text: &str) -> Result<Vec<Entry>, usize> {
    let mut entries = Vec::new();
    let mut connection = 1;
    for (index, line) in text.lines().enumerate() {
        let bad = index + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(number) = line.strip_prefix("--- connection ") {
            connection = number.parse().map_err(|_| bad)?;
            continue;
        }
        let (side, rest) = line.split_at_checked(3).ok_or(bad)?;
        let (bytes, meaning) = rest.split_once("  ").unwrap_or((rest, ""));
        let (bytes, omitted) = match bytes.split_once(" ...") {
            Some((bytes, omitted)) => (bytes, omitted.parse().map_err(|_| bad)?),
            None => (bytes, 0),
        };
        let event = match (side, rest) {
            ("C: ", "shutdown") => Event::Shutdown,
            ("C: ", "TLS") => Event::Tls,
            ("C: ", "close") => Event::Ended(End::Client),
            ("C: ", _) => Event::Sent(hex::decode(bytes).ok_or(bad)?),
            ("S: ", _) => match ENDS.into_iter().find(|end| end.as_str() == rest) {
                Some(end) => Event::Ended(end),
                None => Event::Received(hex::decode(bytes).ok_or(bad)?, omitted),
            },
            _ => return Err(bad),
        };
        entries.push(Entry {
            connection,
            event,
            meaning: meaning.to_owned(),
        });
    }
    Ok(entries)
}

const ENDS: [End; 3] = [End::Closed, End::Reset, End::Silent];

#[cfg(test)]
mod tests {
    use super::{Entry, Event, MOST_RECEIVED, parse, write};
    use crate::outcome::End;

    #[test]
    fn what_is_written_is_parsed() {
        let entry = |connection, event, meaning: &str| Entry {
            connection,
            event,
            meaning: meaning.to_owned(),
        };
        let entries = vec![
            entry(1, Event::Received(b"NBDMAGIC".to_vec(), 0), "a greeting"),
            entry(1, Event::Received(vec![7; MOST_RECEIVED], 3), "much"),
            entry(1, Event::Sent(vec![0; 100]), "zeroes"),
            entry(2, Event::Sent(vec![1]), ""),
            entry(1, Event::Shutdown, ""),
            entry(1, Event::Ended(End::Silent), ""),
            entry(2, Event::Ended(End::Client), ""),
            entry(2, Event::Tls, ""),
        ];
        let text = format!("# a comment\n\n{}", write(&entries));
        assert_eq!(parse(&text), Ok(entries));
        for (text, line) in [("X: 00", 1), ("C: 00\nC: 0", 2), ("--- connection x", 1)] {
            assert_eq!(parse(text), Err(line), "{text}");
        }
    }
}
