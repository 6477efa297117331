//! What scripts send: options, requests, and changes that make them invalid.

#![expect(missing_docs, reason = "fields have their names in the protocol")]

use nbd_codec::Framing;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, ContextId, Cookie, InfoType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest};
use nbd_codec::wire::request::{BlockStatusPayload, CompactRequest, ExtendedRequest};
use nbd_codec::wire::text::Text;

use super::format::List;
use super::lengths;
use crate::{enums, structs};

/// The longest payload to send.
pub const MAX_PAYLOAD: u64 = 3000;

structs! {
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
    /// An option of the client. Names are indices for [`name`].
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

    /// A change that makes a valid message invalid.
    pub enum Mutation {
        Set { at: u8, value: u8 },
        Flip { at: u8, bit: u8 },
        Truncate { at: u8 },
        Insert { at: u8, bytes: Vec<u8> },
        /// A length field with one of the worst values.
        Length { field: u8, value: u8 },
    }
}

impl OptionScript {
    /// The bytes of the option; empty if it cannot be encoded.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.with(|option| option.encode(&mut bytes));
        bytes
    }

    /// Calls `call` with the option, which borrows from this function.
    pub fn with<T>(&self, call: impl FnOnce(&OptionRequest) -> T) -> T {
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

impl Mutation {
    /// Changes a message.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Set { at, value } => {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte = *value;
                }
            }
            Self::Flip { at, bit } => {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte ^= 1 << (bit & 7);
                }
            }
            Self::Truncate { at } => bytes.truncate(usize::from(*at)),
            Self::Insert {
                at,
                bytes: inserted,
            } => {
                let at = usize::from(*at).min(bytes.len());
                bytes.splice(at..at, inserted.iter().copied());
            }
            Self::Length { field, value } => lengths::replace(bytes, *field, *value),
        }
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
            length: u32::try_from(length).unwrap_or(u32::MAX),
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

/// Names of exports and contexts, and error messages: valid and invalid.
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
