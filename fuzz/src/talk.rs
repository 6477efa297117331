//! Scripts of the handshake phase, client side: what the caller does, and what
//! the server says meanwhile.

use nbd_codec::wire::flags::{HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply};
use nbd_codec::wire::text::Text;

use crate::script::{LimitsSetup, Tweak};
use crate::tape::{List, Rest};
use crate::{choices, structures};

structures! {
    pub struct Talk {
        tls: u8,
        limits: LimitsSetup,
        /// For `Connect` only.
        plan: PlanSetup,
        steps: Rest<TalkStep>,
    }

    pub struct PlanSetup {
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

choices! {
    pub enum TalkStep {
        /// The server greets.
        Greeting { kind: u8, flags: u16, size: u64 },
        /// The caller answers the greeting.
        ClientFlags { wanted: u8, room: u8 },
        /// The caller sends an option; the policy sends what is due, if there
        /// is room.
        Send { option: OptionScript, room: u64 },
        /// The server answers what was sent last without a fault.
        Finish { how: u8, size: u64, flags: u16 },
        /// The server says something of which all lengths are right.
        Reply { option: u8, reply: TalkReply },
        /// The same with a fault.
        Tweaked { option: u8, reply: TalkReply, tweak: Tweak },
        /// The server answers `EXPORT_NAME`, with so many zeroes.
        ExportName { size: u64, flags: u16, zeroes: u8 },
        /// The server says anything.
        Raw { bytes: Vec<u8> },
        /// The caller selects contexts whose width it knows.
        Select { export: u8, queries: List<QuerySetup>, room: u64 },
        TlsEstablished {},
        TlsFailed {},
        /// The connection ends.
        End {},
    }

    pub enum OptionScript {
        ExtendedHeaders {},
        StructuredReply {},
        SetMetaContext { export: u8, queries: List<u8> },
        Go { export: u8, requests: List<u8> },
        StartTls {},
        ExportName { export: u8 },
        Info { export: u8, requests: List<u8> },
        List {},
        ListMetaContext { export: u8, queries: List<u8> },
        Abort {},
        Other { option: u64, data: Vec<u8> },
    }

    pub enum TalkReply {
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

/// Export names, context names, messages: some that break the rules.
pub fn name(index: u8) -> &'static str {
    const LONG: &str = match str::from_utf8(&[b'l'; 4097]) {
        Ok(text) => text,
        Err(_) => "",
    };
    match index {
        1 => "disk",
        2 => "base:allocation",
        3 => "x-wide:map",
        4 => "qemu:allocation-depth",
        5 => "b\u{e4}r",
        250 => LONG.split_at(255).0,
        251 => LONG.split_at(4096).0,
        252 => LONG,
        253 => "nul\0",
        _ => "",
    }
}

impl OptionScript {
    /// The bytes of the option; none for what has no encoding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.with(|option| option.encode(&mut bytes));
        bytes
    }

    /// Calls with the option, which may borrow what is made here.
    pub fn with<T>(&self, call: impl FnOnce(&OptionRequest) -> T) -> T {
        use nbd_codec::wire::option::{InfoRequest, MetaContextRequest};
        let infos = |requests: &List<u8>| -> Vec<InfoType> {
            let requests = requests.0.iter();
            requests.map(|info| InfoType((*info).into())).collect()
        };
        let names = |queries: &List<u8>| -> Vec<&'static str> {
            queries.0.iter().map(|query| name(*query)).collect()
        };
        let text = |index: &u8| Text::from(name(*index));
        match self {
            Self::ExtendedHeaders {} => call(&OptionRequest::ExtendedHeaders),
            Self::StructuredReply {} => call(&OptionRequest::StructuredReply),
            Self::StartTls {} => call(&OptionRequest::StartTls),
            Self::List {} => call(&OptionRequest::List),
            Self::Abort {} => call(&OptionRequest::Abort),
            Self::ExportName { export } => call(&OptionRequest::ExportName(text(export))),
            Self::Go { export, requests } => call(&OptionRequest::Go(InfoRequest {
                export: text(export),
                requests: infos(requests)[..].into(),
            })),
            Self::Info { export, requests } => call(&OptionRequest::Info(InfoRequest {
                export: text(export),
                requests: infos(requests)[..].into(),
            })),
            Self::SetMetaContext { export, queries } => {
                call(&OptionRequest::SetMetaContext(MetaContextRequest {
                    export: text(export),
                    queries: names(queries)[..].into(),
                }))
            }
            Self::ListMetaContext { export, queries } => {
                call(&OptionRequest::ListMetaContext(MetaContextRequest {
                    export: text(export),
                    queries: names(queries)[..].into(),
                }))
            }
            Self::Other { option, data } => call(&OptionRequest::Other {
                option: OptionType(*option as u32),
                data,
            }),
        }
    }
}

impl TalkReply {
    /// The bytes of a reply to an option.
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
        // What has no encoding is not said.
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

/// The bytes of the answer to `EXPORT_NAME`.
pub fn export_name(size: u64, flags: u16, zeroes: usize) -> Vec<u8> {
    let flags = TransmissionFlags(flags);
    let mut bytes = ExportNameReply { size, flags }.encode().to_vec();
    bytes.resize(bytes.len() + zeroes, 0);
    bytes
}

/// The bytes of a whole answer without a fault. `how`: which error, if any;
/// how many contexts are granted otherwise.
pub fn finish(option: OptionType, how: u8, size: u64, flags: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut say = |reply: TalkReply| bytes.extend(reply.bytes(option));
    if let 1..=12 = how {
        let message = 1;
        say(TalkReply::Error {
            error: how,
            message,
        });
        return bytes;
    }
    match option {
        OptionType::LIST => {
            let (name, description) = (1, how);
            say(TalkReply::Server { name, description });
        }
        OptionType::INFO | OptionType::GO => {
            say(TalkReply::BlockSize {
                minimum: 1 << (how % 17),
                preferred: 1 << 16,
                maximum: 1 << 25,
            });
            say(TalkReply::Export { size, flags });
        }
        OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => {
            for id in 0..(how % 5).into() {
                let name = id as u8 + 2;
                say(TalkReply::MetaContext { id, name });
            }
        }
        _ => {}
    }
    say(TalkReply::Ack {});
    bytes
}
