//! Scripts for the client's `Handshake` and `Connector`: the caller's calls, and
//! the server's messages between them.

pub use nbd_check::fuzz::messages::OptionScript;
use nbd_codec::wire::flags::{HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};
use nbd_codec::wire::text::Text;

use crate::format::{List, Rest};
use crate::script::{LimitsSetup, Mutation, name};
use crate::{enums, structs};

structs! {
    pub struct Script {
        tls: u8,
        strict: bool,
        /// For `Connector` only.
        go: bool,
        limits: LimitsSetup,
        /// For `Connector` only.
        config: ConfigSetup,
        actions: Rest<Action>,
    }

    pub struct ConfigSetup {
        export: u8,
        contexts: List<QuerySetup>,
        framing: u8,
        describe: bool,
    }

    pub struct QuerySetup {
        name: u8,
        width: u8,
    }
}

enums! {
    pub enum Action {
        /// The server sends a greeting.
        Greeting { kind: u8, flags: u16, size: u64 },
        /// The caller sends its client flags.
        ClientFlags { wanted: u8, space: u8 },
        /// The caller sends an option; with `Connector`, the option that is due.
        /// Buffers have `space` bytes.
        Send { option: OptionScript, space: u64 },
        /// The server sends the whole, valid reply to the last option.
        Finish { how: u8, size: u64, flags: u16 },
        /// The server sends a message whose length fields are consistent.
        Reply { option: u8, reply: Reply },
        /// The server sends a mutated message.
        Mutated { option: u8, reply: Reply, mutation: Mutation },
        /// The server replies to `EXPORT_NAME`, with any number of zeroes.
        ExportName { size: u64, flags: u16, zeroes: u8 },
        /// The server sends arbitrary bytes.
        Raw { bytes: Vec<u8> },
        /// The caller selects contexts and states their widths.
        Select { export: u8, queries: List<QuerySetup>, space: u64 },
        TlsEstablished {},
        TlsFailed {},
        /// The connection ends.
        End {},
    }

    pub enum Reply {
        Ack {},
        Export { size: u64, flags: u16 },
        BlockSize { minimum: u64, preferred: u64, maximum: u64 },
        MetaContext { id: u64, name: u8 },
        Server { name: u8, description: u8 },
        Name { name: u8 },
        Information { kind: u16, data: Vec<u8> },
        Error { error: u8, message: u8 },
        Other { reply: u64, data: Vec<u8> },
    }
}

impl Reply {
    /// The bytes of a reply to `option`; empty if it cannot be encoded.
    pub fn bytes(&self, option: OptionType) -> Vec<u8> {
        let text = |index: &u8| Text::from(name(*index));
        let reply = match self {
            Self::Ack {} => OptionReply::Ack,
            Self::Export { size, flags } => OptionReply::Info(Info::Export {
                size: *size,
                flags: TransmissionFlags(*flags),
            }),
            Self::BlockSize {
                minimum,
                preferred,
                maximum,
            } => OptionReply::Info(Info::BlockSize(BlockSizes {
                minimum: *minimum as u32,
                preferred: *preferred as u32,
                maximum: *maximum as u32,
            })),
            Self::MetaContext { id, name } => OptionReply::MetaContext {
                id: ContextId(*id as u32),
                name: text(name),
            },
            Self::Server { name, description } => OptionReply::Server {
                name: text(name),
                description: text(description),
            },
            Self::Name { name } => OptionReply::Info(Info::Name(text(name))),
            Self::Information { kind, data } => OptionReply::Info(Info::Other {
                info: InfoType(*kind),
                data,
            }),
            Self::Error { error, message } => OptionReply::Error {
                error: OptionReplyType(1 << 31 | u32::from(*error)),
                message: text(message),
            },
            Self::Other { reply, data } => OptionReply::Other {
                reply: OptionReplyType(*reply as u32),
                data,
            },
        };
        let mut bytes = Vec::new();
        let _ = reply.encode(option, &mut bytes);
        bytes
    }
}

/// The bytes of a greeting.
pub fn greeting(kind: u8, flags: u16, size: u64) -> Vec<u8> {
    match kind % 4 {
        0 => OldstyleGreeting {
            size,
            handshake_flags: HandshakeFlags(kind.into()),
            flags: TransmissionFlags(flags),
        }
        .encode()
        .to_vec(),
        1 => NewstyleGreeting {
            flags: HandshakeFlags(flags),
        }
        .encode()
        .to_vec(),
        _ => NewstyleGreeting {
            flags: HandshakeFlags::KNOWN,
        }
        .encode()
        .to_vec(),
    }
}

/// The bytes of the reply to `EXPORT_NAME`.
pub fn export_name(size: u64, flags: u16, zeroes: usize) -> Vec<u8> {
    let flags = TransmissionFlags(flags);
    let mut bytes = ExportNameReply { size, flags }.encode().to_vec();
    bytes.resize(bytes.len() + zeroes, 0);
    bytes
}

/// The bytes of all valid replies to an option: error number `how` if there is
/// one, otherwise success, with a number of contexts that depends on `how`.
pub fn finish(option: OptionType, how: u8, size: u64, flags: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |reply: Reply| bytes.extend(reply.bytes(option));
    if let 1..=12 = how {
        let message = 1;
        add(Reply::Error {
            error: how,
            message,
        });
        return bytes;
    }
    match option {
        OptionType::LIST => {
            let (name, description) = (1, how);
            add(Reply::Server { name, description });
        }
        OptionType::INFO | OptionType::GO => {
            add(Reply::BlockSize {
                minimum: 1 << (how % 17),
                preferred: 1 << 16,
                maximum: 1 << 25,
            });
            add(Reply::Export { size, flags });
        }
        OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => {
            for id in 0..(how % 5).into() {
                let name = id as u8 + 2;
                add(Reply::MetaContext { id, name });
            }
        }
        _ => {}
    }
    add(Reply::Ack {});
    bytes
}
