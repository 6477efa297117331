//! Scripts for the server's `Transmission`: the client's messages, and the
//! caller's replies between them.

pub use nbd_check::fuzz::messages::{MAX_PAYLOAD, RequestScript, block_status_of, header};
use nbd_codec::server::Transmission;
use nbd_codec::{Limits, Misuse};

use crate::format::{List, Rest};
use crate::script::{Extent, Length, Mutation, Setup};
use crate::{enums, structs};

structs! {
    pub struct Script {
        setup: ServerSetup,
        actions: Rest<Action>,
    }

    /// The result of the handshake, and the settings. (`slots` and `lenient` do
    /// not apply.)
    pub struct ServerSetup {
        common: Setup,
        /// The limit for commands without data; zero for none.
        max_effect: u64,
    }
}

enums! {
    pub enum Action {
        /// The client sends a request whose length fields are consistent.
        Request { request: RequestScript },
        /// The client sends a mutated request.
        Mutated { request: RequestScript, mutation: Mutation },
        /// The client asks for the block status of some contexts.
        BlockStatusOf { contexts: List<u8>, flags: u16, offset: u64, length: u64 },
        /// The client sends arbitrary bytes.
        Raw { bytes: Vec<u8> },
        /// The caller sends the whole, valid reply to a request.
        Finish { which: u8, pieces: u8, fail: bool },
        /// The caller makes one call with a request.
        Answer { which: u8, answer: Answer },
        /// The caller reports `n` bytes of payload as read directly.
        Advance { n: u64 },
        /// The client sends DISC.
        Disconnect {},
        ShutDown {},
        /// The connection ends.
        End {},
    }

    /// One call with a request. Offsets are relative to the request's.
    pub enum Answer {
        Succeed {},
        Fail { error: u8, text: u8 },
        FailAt { error: u8, skip: Length, text: u8 },
        /// Reply in chunks from now on.
        IntoChunks {},
        Data { skip: Length, length: Length, last: bool, fill: u8 },
        Hole { skip: Length, length: Length, last: bool },
        ErrorAt { error: u8, skip: Length, text: u8 },
        Status { context: u8, extents: List<Extent>, truncate: bool, space: u64 },
    }
}

impl ServerSetup {
    /// The documented size of the receive buffer.
    pub fn least_buffer(&self) -> usize {
        self.limits().buffer()
    }

    pub fn machine(&self) -> Result<Transmission, Misuse> {
        let machine = Transmission::new(self.common.negotiated(), self.limits())?;
        Ok(if self.common.strict {
            machine.strict()
        } else {
            machine
        })
    }

    pub fn limits(&self) -> Limits {
        let mut limits = self.common.limits.limits();
        if self.max_effect > 0 {
            limits.max_effect_length = self.max_effect;
        }
        limits
    }
}
