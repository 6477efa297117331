//! Scripts: what the peer of the program under test does, step by step.

#![expect(
    missing_docs,
    reason = "the fields of the messages have their names in the protocol"
)]

use arbitrary::{Arbitrary, Result, Unstructured};

use super::format::{self, List, Rest};
use super::messages::{Mutation, OptionScript, RequestScript};
use crate::{enums, structs};

structs! {
    /// What a client does, to attack a server.
    pub struct ServerScript {
        /// The client flags, as changes of what the server offers.
        client_flags: u8,
        /// What is agreed on before transmission: 1 structured replies, 2 extended
        /// headers.
        framing: u8,
        /// Whether `base:allocation` is selected.
        status: bool,
        /// Whether the last option is `EXPORT_NAME`, not `GO`.
        export_name: bool,
        /// How many bytes the server reads at a time, repeated; zero for all.
        pieces: List<u8>,
        /// The first request ends the handshake; later options are not sent.
        actions: Rest<Action>,
    }

    /// What a server does, to attack a client.
    pub struct ClientScript {
        /// The most that the server agrees on: 1 structured replies, 2 extended headers.
        framing: u8,
        /// Whether reads are answered in pieces, where the framing permits it.
        fragments: bool,
        /// What the export is: 1 read-only, 2 without any other flag, otherwise all.
        export: u8,
        /// How many bytes the client reads at a time, repeated; zero for all.
        pieces: List<u8>,
        /// What is done to the messages of the server, one after the other.
        actions: Rest<Reaction>,
    }
}

enums! {
    /// A step of a client.
    pub enum Action {
        /// A valid request for a few blocks at the begin or at the end of the export.
        Valid { command: u8, flags: u8, at: u8, blocks: u8, fill: u8 },
        Option { option: OptionScript },
        /// A request at an edge: 0 the end of the export, 1 2^32, 2 2^63, 3 2^64.
        Edge { command: u8, edge: u8, before: u8, length: u64, fill: u8 },
        /// An option that is known, with any data.
        OptionWithData { option: u8, data: Vec<u8> },
        Request { request: RequestScript },
        /// Anything but the magic number is changed. There is as much data as the header
        /// says.
        MutatedOption { option: OptionScript, mutation: Mutation },
        MutatedRequest { request: RequestScript, mutation: Mutation },
        /// A block status request with a list of contexts (extended headers).
        BlockStatusOf { contexts: List<u8>, flags: u16, offset: u64, length: u64 },
        /// The last action: a part of a request or option, and any bytes.
        Broken { option: OptionScript, after: u8, bytes: Vec<u8> },
    }

    /// A step of a server.
    pub enum Reaction {
        /// The next messages are correct.
        Correct { messages: u8 },
        Mutated { mutation: Mutation },
        /// The request fails.
        Fail { error: u8 },
        /// The connection ends after this many bytes of the next message.
        Cut { after: u8 },
    }
}

/// Every string of bytes is a script, and a small change of it a small change of the
/// script. [`format::write`] makes the bytes of a seed.
macro_rules! arbitrary {
    ($($name:ident)*) => {$(
        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                let length = u.len();
                u.bytes(length).map(format::read)
            }
        }
    )*};
}

arbitrary! { ServerScript ClientScript }
