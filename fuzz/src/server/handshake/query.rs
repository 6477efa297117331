//! A query that waits for the caller's reply. The state machine's query borrows
//! the input; to reply later, it is parsed again.

use nbd_codec::server::{Config, ExportQuery, Handshake, HandshakeEvent};
use nbd_codec::{Limits, Step};

use super::Event;

pub(super) struct PendingQuery {
    pub(super) event: Event,
    /// Header and data of the option.
    bytes: Vec<u8>,
}

impl PendingQuery {
    pub(super) fn new(event: Event, consumed: &[u8]) -> Self {
        // The client's flags may precede the first option.
        let front = if consumed.starts_with(b"IHAVEOPT") {
            0
        } else {
            4
        };
        let bytes = consumed.get(front..).unwrap_or_default().to_vec();
        Self { event, bytes }
    }

    /// A query that the client did not send.
    pub(super) fn none() -> Self {
        Self::new(Event::List, b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0")
    }

    /// Calls `call` with the query.
    pub(super) fn with<T>(&self, call: impl FnOnce(&ExportQuery) -> T) -> T {
        let mut limits = Limits::DEFAULT;
        limits.option_data = u32::MAX;
        let config = Config::new().limits(limits);
        let mut machine = Handshake::new(config).expect("a valid configuration");
        let mut before: &[u8] = match &self.bytes[8..12] {
            // Selecting contexts requires structured replies.
            b"\0\0\0\x0a" => b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0",
            _ => b"\0\0\0\x03",
        };
        loop {
            match machine.receive(&mut before) {
                Ok(Step::Transmit) => machine.transmit(&mut Vec::new()).expect("room"),
                Ok(Step::Read(_)) => break,
                other => panic!("no handshake: {other:?}"),
            };
        }
        let bytes = match self.event {
            // A `LIST` has no query.
            Event::List => &Self::none().bytes[..],
            _ => &self.bytes[..],
        };
        match machine.receive(&mut &*bytes) {
            Ok(Step::Event(
                HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query),
            )) => {
                assert!(matches!(self.event, Event::List) || event(&query) == self.event);
                call(&query)
            }
            other => panic!("the query parses differently: {other:?}"),
        }
    }
}

pub(super) fn event(query: &ExportQuery) -> Event {
    let queries = query.queries();
    Event::Query {
        option: query.option().0.into(),
        export: query.export().as_bytes().to_vec(),
        requests: query.requests().iter().map(|info| info.0.into()).collect(),
        queries: queries
            .iter()
            .map(|query| query.as_bytes().to_vec())
            .collect(),
    }
}
