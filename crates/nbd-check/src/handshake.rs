//! The handshake phase, one option at a time; every reply is checked.

use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{
    ExportNameReply, Greeting, NewstyleGreeting, OldstyleGreeting, RESERVED_ZEROES,
};
use nbd_codec::wire::number::{InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};
use nbd_codec::wire::text::{Text, TextError};
use nbd_codec::wire::{DecodeError, number::ContextId};

use crate::connection::Connection;
use crate::duty::Level;
use crate::outcome::{Checked, End, Finding, found};

/// A connection in the handshake phase.
pub(crate) struct Handshake {
    pub(crate) connection: Connection,
    pub(crate) agreed: ClientFlags,
    /// The duty that the server breaks if it disconnects, or if its next reply is
    /// none to the option that was sent.
    pub(crate) breaks: &'static str,
    /// How binding it is not to disconnect now: a client that broke a rule may be
    /// disconnected.
    pub(crate) closing: Level,
}

/// The replies to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replies {
    /// Those before the last one.
    pub(crate) items: Vec<Item>,
    /// The last one: `ACK` or an error.
    pub(crate) end: OptionReplyType,
}

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    pub(crate) kind: OptionReplyType,
    pub(crate) data: Vec<u8>,
}

/// What an option is answered.
pub(crate) enum Answer {
    Replies(Replies),
    /// The server ended the connection.
    Closed(End),
}

/// What the server says of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) size: u64,
    pub(crate) flags: TransmissionFlags,
    pub(crate) block_sizes: Option<BlockSizes>,
}

/// The longest reply that is read, in bytes.
const LONGEST: u32 = 1 << 20;
/// The most replies to one option.
const MOST: usize = 100_000;

/// Reads a greeting.
pub(crate) fn greeting(connection: &mut Connection) -> Checked<Greeting> {
    let decode = |mut bytes: &[u8]| Greeting::decode(&mut bytes);
    let first = NewstyleGreeting::SIZE;
    let lost = |end| found("B2", format!("no greeting: {end}"));
    let length = match connection.peek(first).map(decode) {
        Ok(Ok(Some(_))) => first,
        Ok(Ok(None)) => OldstyleGreeting::SIZE,
        Ok(Err(error)) => {
            connection.rest();
            return found("B2", format!("no greeting: {error}"));
        }
        Err(end) => return lost(end),
    };
    let meaning = |bytes: &[u8]| match decode(bytes) {
        Ok(Some(Greeting::Newstyle(one))) => format!("newstyle greeting, {}", one.flags),
        Ok(Some(Greeting::Oldstyle(one))) => {
            format!("oldstyle greeting, {} bytes, {}", one.size, one.flags)
        }
        _ => String::new(),
    };
    match connection.take(length, meaning) {
        Ok(bytes) => match decode(&bytes) {
            Ok(Some(greeting)) => Ok(greeting),
            _ => found("B2", "no greeting"),
        },
        Err(end) => lost(end),
    }
}

impl Handshake {
    /// Sends an option.
    pub(crate) fn send(&mut self, option: OptionType, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.send_header(option, length, data);
    }

    /// Sends an option whose header has any length.
    pub(crate) fn send_header(&mut self, option: OptionType, length: u32, data: &[u8]) {
        let mut bytes = OptionHeader { option, length }.encode().to_vec();
        bytes.extend(data);
        let meaning = format!("{option}, {length} bytes{}", shown(option, data));
        self.connection.send(&bytes, meaning);
    }

    /// Sends an option and reads the replies.
    pub(crate) fn ask(&mut self, option: OptionType, data: &[u8]) -> Checked<Replies> {
        self.send(option, data);
        self.replies(option)
    }

    /// The replies to an option; the server must not disconnect.
    pub(crate) fn replies(&mut self, option: OptionType) -> Checked<Replies> {
        match self.answer(option)? {
            Answer::Replies(replies) => Ok(replies),
            Answer::Closed(end) => {
                let actual = format!("the connection was {end} instead of a reply to {option}");
                Err(Finding::new(self.breaks, actual).at(self.closing).into())
            }
        }
    }

    /// The replies to an option, or the end of the connection.
    pub(crate) fn answer(&mut self, option: OptionType) -> Checked<Answer> {
        let mut items = Vec::new();
        loop {
            let item = match self.reply(option)? {
                Ok(item) => item,
                Err(end) if end.is_by_server() => return Ok(Answer::Closed(end)),
                Err(end) => {
                    return found(self.breaks, format!("no reply to {option}: {end}"));
                }
            };
            if item.kind == OptionReplyType::ACK || item.kind.is_error() {
                let end = item.kind;
                return Ok(Answer::Replies(Replies { items, end }));
            }
            items.push(item);
            if items.len() > MOST {
                return found("B2", format!("more than {MOST} replies to {option}"));
            }
        }
    }

    /// One reply.
    fn reply(&mut self, option: OptionType) -> Checked<Result<Item, End>> {
        const SIZE: usize = OptionReplyHeader::SIZE;
        let header = match self.connection.peek(SIZE) {
            Ok(mut bytes) => OptionReplyHeader::decode(&mut bytes),
            Err(end) => return Ok(Err(end)),
        };
        let Ok(Some(header)) = header else {
            self.connection.rest();
            return found(
                self.breaks,
                format!("no reply to {option}, but other bytes"),
            );
        };
        if header.option != option {
            self.connection.rest();
            let other = header.option;
            return found(
                self.breaks,
                format!("a reply to {other} instead of {option}"),
            );
        }
        if header.length > LONGEST {
            let length = header.length;
            return found("B2", format!("a reply of {length} bytes to {option}"));
        }
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let meaning = |bytes: &[u8]| {
            let data = bytes.get(SIZE..).unwrap_or_default();
            match OptionReply::decode(header.reply, data) {
                Ok(reply) => format!("reply to {option}: {}", describe(&reply)),
                Err(error) => format!("reply to {option}: {}, {error}", header.reply),
            }
        };
        let bytes = match self.connection.take(SIZE.saturating_add(length), meaning) {
            Ok(bytes) => bytes,
            Err(end) => return found("B2", format!("a part of a reply, then {end}")),
        };
        let item = Item {
            kind: header.reply,
            data: bytes.get(SIZE..).unwrap_or_default().to_vec(),
        };
        check(&item)?;
        Ok(Ok(item))
    }

    /// Sends `EXPORT_NAME` and reads its reply; `None` if the server ends the session.
    pub(crate) fn export_name(&mut self, name: &[u8]) -> Checked<Result<Export, End>> {
        self.send(OptionType::EXPORT_NAME, name);
        self.export_name_reply()
    }

    /// Reads the reply to `EXPORT_NAME`; `None` if the server ends the session.
    pub(crate) fn export_name_reply(&mut self) -> Checked<Result<Export, End>> {
        let zeroes = !self.agreed.contains(ClientFlags::NO_ZEROES);
        let length = ExportNameReply::SIZE + if zeroes { RESERVED_ZEROES } else { 0 };
        let meaning = |mut bytes: &[u8]| match ExportNameReply::decode(&mut bytes) {
            Some(reply) => format!(
                "reply to NBD_OPT_EXPORT_NAME: {} bytes, {}",
                reply.size, reply.flags
            ),
            None => String::new(),
        };
        let bytes = match self.connection.take(length, meaning) {
            Ok(bytes) => bytes,
            Err(end) => return Ok(Err(end)),
        };
        let reply = ExportNameReply::decode(&mut bytes.as_slice());
        let reply = reply.unwrap_or(ExportNameReply {
            size: 0,
            flags: TransmissionFlags::NONE,
        });
        Ok(Ok(Export {
            size: reply.size,
            flags: reply.flags,
            block_sizes: None,
        }))
    }
}

impl Replies {
    pub(crate) fn is_ack(&self) -> bool {
        self.end == OptionReplyType::ACK
    }

    /// How the option ended, for reports.
    pub(crate) fn describe(&self) -> String {
        match self.items.len() {
            0 => format!("{}", self.end),
            n => format!("{n} replies, then {}", self.end),
        }
    }

    /// Each piece of information.
    pub(crate) fn infos(&self) -> impl Iterator<Item = Info<'_>> {
        let items = self.items.iter();
        items.filter_map(|item| match OptionReply::decode(item.kind, &item.data) {
            Ok(OptionReply::Info(info)) => Some(info),
            _ => None,
        })
    }

    /// The export that the information describes, if there is `NBD_INFO_EXPORT`.
    pub(crate) fn export(&self) -> Option<Export> {
        let (size, flags) = self.infos().find_map(|info| match info {
            Info::Export { size, flags } => Some((size, flags)),
            _ => None,
        })?;
        let block_sizes = self.infos().find_map(|info| match info {
            Info::BlockSize(sizes) => Some(sizes),
            _ => None,
        });
        Some(Export {
            size,
            flags,
            block_sizes,
        })
    }

    /// Each metadata context.
    pub(crate) fn contexts(&self) -> Vec<(ContextId, String)> {
        let items = self.items.iter();
        let contexts = items.filter_map(|item| match OptionReply::decode(item.kind, &item.data) {
            Ok(OptionReply::MetaContext { id, name }) => Some((id, name.to_string())),
            _ => None,
        });
        contexts.collect()
    }
}

/// The option inside option data. A reply to it shows that the server took data for
/// options.
const TRAP: OptionType = OptionType(0x7472_6170);

/// Option data that is itself a list of options, none of which a client sends.
pub(crate) fn trap(length: usize) -> Vec<u8> {
    let header = OptionHeader {
        option: TRAP,
        length: 0,
    };
    let mut bytes = header.encode().repeat(length / OptionHeader::SIZE + 1);
    bytes.truncate(length);
    bytes
}

/// Checks a reply on its own.
fn check(item: &Item) -> Checked {
    let actual = |error: DecodeError| format!("{}: {error}", item.kind);
    let reply = match OptionReply::decode(item.kind, &item.data) {
        Ok(reply) => reply,
        Err(error) => {
            let info = item
                .data
                .first_chunk()
                .map(|bytes| u16::from_be_bytes(*bytes));
            let id = match (item.kind, info.map(InfoType)) {
                (OptionReplyType::SERVER, _) => "O110",
                (OptionReplyType::INFO, Some(InfoType::EXPORT)) => "O116",
                (OptionReplyType::INFO, Some(InfoType::BLOCK_SIZE)) => "O120",
                (OptionReplyType::META_CONTEXT, _) => "O94",
                _ => "B2",
            };
            return found(id, actual(error));
        }
    };
    match reply {
        OptionReply::Server { name, description } => {
            check_text(name, "the name of an export")?;
            check_text(description, "the description of an export")
        }
        OptionReply::Info(Info::Name(text)) => check_text(text, "NBD_INFO_NAME"),
        OptionReply::Info(Info::Description(text)) => check_text(text, "NBD_INFO_DESCRIPTION"),
        OptionReply::Info(Info::Export { flags, .. }) => check_flags(flags),
        OptionReply::Info(Info::BlockSize(sizes)) => check_sizes(sizes),
        OptionReply::MetaContext { name, .. } => match name.to_str() {
            Err(TextError::Utf8) => found("O121", format!("the name {name:?}")),
            Err(_) => check_text(name, "the name of a context"),
            Ok(name) => match name.split_once(':') {
                Some((namespace, _)) if !namespace.is_empty() => Ok(()),
                _ => found("O82", format!("the name {name:?}")),
            },
        },
        OptionReply::Error { message, .. } => check_text(message, "the message of an error"),
        OptionReply::Ack => Ok(()),
        _ => found("B2", format!("an unknown reply type, {}", item.kind)),
    }
}

/// Checks the rules for strings.
pub(crate) fn check_text(text: Text<'_>, what: &str) -> Checked {
    let id = match text.to_str() {
        Ok(_) => return Ok(()),
        Err(TextError::Nul) => "C1",
        Err(TextError::Utf8) => "C3",
        Err(_) => "C2",
    };
    found(id, format!("{what} has {} bytes: {text:.80?}", text.len()))
}

/// Checks transmission flags that contradict each other.
pub(crate) fn check_flags(flags: TransmissionFlags) -> Checked {
    type Flags = TransmissionFlags;
    if !flags.contains(Flags::HAS_FLAGS) {
        return found("O14", format!("the flags are {flags}"));
    }
    if flags.contains(Flags::SEND_FAST_ZERO) && !flags.contains(Flags::SEND_WRITE_ZEROES) {
        return found("O20", format!("the flags are {flags}"));
    }
    Ok(())
}

/// Checks advertised block sizes.
fn check_sizes(sizes: BlockSizes) -> Checked {
    let BlockSizes {
        minimum,
        preferred,
        maximum,
    } = sizes;
    let actual = format!("minimum {minimum}, preferred {preferred}, maximum {maximum}");
    if !minimum.is_power_of_two() || minimum > 1 << 16 {
        return found("S10", actual);
    }
    if !preferred.is_power_of_two() || preferred < minimum || preferred < 512 {
        return found("S13", actual);
    }
    if maximum < preferred {
        return found("S15", actual);
    }
    Ok(())
}

/// The data of an option, for transcripts.
fn shown(option: OptionType, data: &[u8]) -> String {
    use nbd_codec::wire::option::OptionRequest;
    if data.is_empty() {
        return String::new();
    }
    match OptionRequest::decode(option, data) {
        Ok(OptionRequest::ExportName(name)) => format!(": {name:.80?}"),
        Ok(OptionRequest::Info(info) | OptionRequest::Go(info)) => {
            format!(": export {:.80?}, {:.200?}", info.export, info.requests)
        }
        Ok(OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request)) => {
            format!(
                ": export {:.80?}, {:.200?}",
                request.export, request.queries
            )
        }
        Ok(_) => String::new(),
        Err(error) => format!(": {error}"),
    }
}

fn describe(reply: &OptionReply<'_>) -> String {
    match reply {
        OptionReply::Error { error, message } if message.is_empty() => error.to_string(),
        OptionReply::Error { error, message } => format!("{error}, {message:?}"),
        OptionReply::Info(Info::Export { size, flags }) => {
            format!("NBD_INFO_EXPORT, {size} bytes, {flags}")
        }
        OptionReply::Info(Info::BlockSize(sizes)) => format!(
            "NBD_INFO_BLOCK_SIZE, {} {} {}",
            sizes.minimum, sizes.preferred, sizes.maximum
        ),
        OptionReply::Info(info) => format!("{info:.200?}"),
        OptionReply::MetaContext { id, name } => format!("context {id}, {name:?}"),
        OptionReply::Server { name, .. } => format!("export {name:?}"),
        other => other.reply().to_string(),
    }
}
