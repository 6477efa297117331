//! A question of the client that waits for its answer. What the machine hands
//! out borrows the bytes; it is made once more from them when it is answered.

use nbd_codec::server::handshake::Event;
use nbd_codec::server::{Handshake, Inquiry, Offer};

use super::Told;

pub(super) struct Question {
    pub(super) told: Told,
    /// The option, header and data.
    bytes: Vec<u8>,
}

impl Question {
    pub(super) fn new(told: Told, consumed: &[u8]) -> Self {
        // The client's flags may stand in front of the first option.
        let front = if consumed.starts_with(b"IHAVEOPT") {
            0
        } else {
            4
        };
        let bytes = consumed.get(front..).unwrap_or_default().to_vec();
        Self { told, bytes }
    }

    /// A question that nobody has asked.
    pub(super) fn none() -> Self {
        Self::new(Told::List, b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0")
    }

    /// Calls with the inquiry.
    pub(super) fn with<T>(&self, call: impl FnOnce(&Inquiry) -> T) -> T {
        let mut offer = Offer::default();
        offer.limits.option_data = u32::MAX;
        let mut machine = Handshake::new(offer).expect("an offer");
        let mut out = Vec::new();
        machine.transmit(&mut out).expect("a greeting");
        let before: &[u8] = match &self.bytes[8..12] {
            // Contexts are selected where there are chunks.
            b"\0\0\0\x0a" => b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0",
            _ => b"\0\0\0\x03",
        };
        assert_eq!(machine.receive(&mut &before[..]), Ok(None));
        machine.transmit(&mut out).expect("an acknowledgement");
        let bytes = match self.told {
            // A list has no inquiry.
            Told::List => &Self::none().bytes[..],
            _ => &self.bytes[..],
        };
        match machine.receive(&mut &*bytes) {
            Ok(Some(Event::Export(inquiry) | Event::MetaContexts(inquiry))) => {
                assert!(matches!(self.told, Told::List) || told(&inquiry) == self.told);
                call(&inquiry)
            }
            other => panic!("asked before, and now {other:?}"),
        }
    }
}

pub(super) fn told(inquiry: &Inquiry) -> Told {
    let queries = inquiry.queries();
    Told::Asked {
        option: inquiry.option().0.into(),
        export: inquiry.export().as_bytes().to_vec(),
        requests: inquiry
            .requests()
            .iter()
            .map(|info| info.0.into())
            .collect(),
        queries: queries
            .iter()
            .map(|query| query.as_bytes().to_vec())
            .collect(),
    }
}
