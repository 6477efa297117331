//! Scripts of the transmission phase, server side: what the client says, and
//! what the caller does with the requests it is handed.

use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie};
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use nbd_codec::{Framing, Limits};

use crate::delivery::Delivery;
use crate::host::script::Reception;
use crate::script::{Extent, Measure, Setup, Tweak};
use crate::tape::{List, Rest};
use crate::{choices, structures};

/// The longest payload that is really made.
pub const LONGEST: u64 = 3000;

structures! {
    pub struct Service {
        setup: ServiceSetup,
        steps: Rest<ServiceStep>,
    }

    /// What was negotiated, and how the machine is set up. (Of the common part,
    /// slots and leniency are the client's.)
    pub struct ServiceSetup {
        common: Setup,
        /// Of commands without data; zero is no limit.
        longest_effect: u64,
    }

    /// A request of the client, with its payload.
    pub struct Ask {
        command: u8,
        flags: u16,
        offset: u64,
        length: u64,
        fill: u8,
    }
}

choices! {
    pub enum ServiceStep {
        /// The client makes a request of which all lengths are right.
        Request { ask: Ask },
        /// The same with a fault.
        Tweaked { ask: Ask, tweak: Tweak },
        /// The client asks for some contexts only.
        StatusOf { contexts: List<u8>, flags: u16, offset: u64, length: u64 },
        /// The client says anything.
        Raw { bytes: Vec<u8> },
        /// The caller answers a request, whatever it is, without a fault.
        Finish { which: u8, pieces: u8, fail: bool },
        /// The caller makes one call with a request.
        Answer { which: u8, answer: Answer },
        /// The caller reports payload that it has read elsewhere.
        Advance { n: u64 },
        /// The client takes its leave.
        Disconnect {},
        ShutDown {},
        /// The connection ends.
        End {},
    }

    /// What the caller does with a request; places are counted from where it
    /// begins.
    pub enum Answer {
        Succeed {},
        Fail { error: u8, text: u8 },
        FailAt { error: u8, skip: Measure, text: u8 },
        /// From here on piece by piece.
        IntoChunks {},
        Data { skip: Measure, length: Measure, last: bool, fill: u8 },
        Hole { skip: Measure, length: Measure, last: bool },
        ErrorAt { error: u8, skip: Measure, text: u8 },
        Status { context: u8, extents: List<Extent>, cut: bool, room: u64 },
    }

    /// What the server's targets run: a machine, and two ways in which the
    /// bytes arrive.
    pub enum ServerRun {
        Transmission { one: Delivery, other: Delivery, service: Service },
        Handshake { one: Delivery, other: Delivery, reception: Reception },
    }
}

impl ServiceSetup {
    pub fn limits(&self) -> Limits {
        let mut limits = self.common.limits.limits();
        if self.longest_effect > 0 {
            limits.effect = self.longest_effect;
        }
        limits
    }
}

impl Ask {
    /// The bytes of the request, and of its payload.
    pub fn bytes(&self, framing: Framing, cookie: Cookie) -> Vec<u8> {
        let command = Command(match self.command {
            0..=9 => self.command.into(),
            _ => u16::from(self.command) * 257,
        });
        let mut flags = CommandFlags(self.flags);
        if framing == Framing::Extended && command == Command::WRITE {
            // It is there unless the script takes it away.
            flags.0 ^= CommandFlags::PAYLOAD_LEN.0;
        }
        let (mut bytes, payload) =
            header(framing, flags, command, cookie, self.offset, self.length);
        let payload = payload.min(LONGEST) as usize;
        bytes.resize(bytes.len() + payload, self.fill);
        bytes
    }
}

/// The bytes of a header, and how long the payload behind it is.
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

/// The bytes of a block status request that names its contexts.
pub fn status_of(
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
