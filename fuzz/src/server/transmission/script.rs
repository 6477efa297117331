//! Scripts for the server's `Transmission`: the client's messages, and the
//! caller's replies between them.

use nbd_codec::server::Transmission;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie};
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits, Misuse};

use crate::format::{List, Rest};
use crate::script::{Extent, Length, Mutation, Setup};
use crate::{enums, structs};

/// The longest payload to send.
pub const MAX_PAYLOAD: u64 = 3000;

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

    /// A request of the client, with its payload.
    pub struct RequestScript {
        command: u8,
        flags: u16,
        offset: u64,
        length: u64,
        fill: u8,
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

impl RequestScript {
    /// The bytes of the request and of its payload.
    pub fn bytes(&self, framing: Framing, cookie: Cookie) -> Vec<u8> {
        let command = Command(match self.command {
            0..=9 => self.command.into(),
            _ => u16::from(self.command) * 257,
        });
        let mut flags = CommandFlags(self.flags);
        if framing == Framing::Extended && command == Command::WRITE {
            // The flag is set unless the script clears it.
            flags.0 ^= CommandFlags::PAYLOAD_LEN.0;
        }
        let (mut bytes, payload) =
            header(framing, flags, command, cookie, self.offset, self.length);
        let payload = payload.min(MAX_PAYLOAD) as usize;
        bytes.resize(bytes.len() + payload, self.fill);
        bytes
    }
}

/// The bytes of a header, and the length of its payload.
pub fn header(
    framing: Framing,
    flags: CommandFlags,
    command: Command,
    cookie: Cookie,
    offset: u64,
    length: u64,
) -> (Vec<u8>, u64) {
    if framing == Framing::Extended {
        let request = ExtendedRequest {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        (request.encode().to_vec(), request.payload_length())
    } else {
        let request = CompactRequest {
            flags,
            command,
            cookie,
            offset,
            length: length as u32,
        };
        (request.encode().to_vec(), request.payload_length().into())
    }
}

/// The bytes of a block status request with a list of contexts.
pub fn block_status_of(
    ids: &[ContextId],
    flags: CommandFlags,
    cookie: Cookie,
    offset: u64,
    effect_length: u64,
) -> Vec<u8> {
    let mut payload = Vec::new();
    BlockStatusPayload {
        effect_length,
        contexts: ids.into(),
    }
    .encode(&mut payload)
    .expect("a vector has room");
    let flags = flags | CommandFlags::PAYLOAD_LEN;
    let (command, length) = (Command::BLOCK_STATUS, payload.len() as u64);
    let (mut bytes, _) = header(Framing::Extended, flags, command, cookie, offset, length);
    bytes.extend(payload);
    bytes
}
