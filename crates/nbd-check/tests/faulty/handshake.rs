//! The handshake of the faulty server.

use std::io::{Error, Result};

use nbd_codec::Framing;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags as Has};
use nbd_codec::wire::greeting::{ExportNameReply, NewstyleGreeting, RESERVED_ZEROES};
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType as Rep, OptionType as Opt};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionHeader, OptionRequest};
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};

use super::{Fault, SIZE, Server, Wire};

/// The metadata contexts of the server.
pub const CONTEXTS: [&str; 2] = ["base:allocation", "x-test:parity"];

/// What was negotiated.
#[derive(Clone)]
pub struct Session {
    pub framing: Framing,
    /// Indices into [`CONTEXTS`].
    pub contexts: Vec<usize>,
}

/// The longest option that is not refused by its length, in bytes.
const LONGEST: u32 = 1 << 20;

/// Runs the handshake; `None` if it ends without transmission. `ErrorKind::Other` is
/// a client that closed within an option.
pub fn run(wire: &mut Wire, server: &Server) -> Result<Option<Session>> {
    let mut flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    if server.has(Fault::UndefinedHandshakeFlag) {
        flags |= HandshakeFlags(1 << 9);
    }
    wire.put(&NewstyleGreeting { flags }.encode())?;
    let agreed = wire.take(4)?;
    let agreed = ClientFlags::decode(&mut agreed.as_slice()).expect("4 bytes");
    let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    if !known.contains(agreed) && !server.has(Fault::ClientFlagsUnchecked) {
        return Ok(None);
    }
    let mut session = Session {
        framing: Framing::Simple,
        contexts: Vec::new(),
    };
    loop {
        let header = wire.take(OptionHeader::SIZE)?;
        let Ok(Some(header)) = OptionHeader::decode(&mut header.as_slice()) else {
            return Ok(None);
        };
        let option = header.option;
        if header.length > LONGEST {
            return Ok(None);
        }
        let known = matches!(option.0, 1..=3 | 5..=11);
        let undrained = server.has(Fault::OptionDataNotDrained) && !known
            || server.has(Fault::ListDataNotDrained) && option == Opt::LIST;
        let data = if undrained {
            Vec::new()
        } else {
            wire.take(header.length as usize).map_err(Error::other)?
        };
        if !known {
            if server.has(Fault::UnknownOptionCloses) {
                return Ok(None);
            }
            let error = if server.has(Fault::UnknownOptionInvalid) {
                Rep::ERR_INVALID
            } else {
                Rep::ERR_UNSUP
            };
            refuse(wire, option, error)?;
            continue;
        }
        let overrun = match option {
            Opt::INFO | Opt::GO => server.has(Fault::NameLengthUnchecked),
            Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT => {
                server.has(Fault::QueryLengthUnchecked)
            }
            _ => false,
        };
        let list = option == Opt::LIST && server.has(Fault::ListWithData);
        let request = match OptionRequest::decode(option, &data) {
            Ok(request) => request,
            Err(_) if list => OptionRequest::List,
            // Reads on for what the inner length announces.
            Err(_) if overrun => {
                wire.take(64)?;
                continue;
            }
            Err(_) => {
                refuse(wire, option, Rep::ERR_INVALID)?;
                if option == Opt::SET_META_CONTEXT && !server.has(Fault::ContextsNotReplaced) {
                    session.contexts.clear();
                }
                continue;
            }
        };
        match request {
            OptionRequest::ExportName(name) => {
                let unknown = !name.is_empty() && !server.has(Fault::ExportNameAcceptsAll);
                if unknown || session.framing == Framing::Extended {
                    return Ok(None);
                }
                let (size, flags) = (SIZE, flags_of(server, &session));
                wire.put(&ExportNameReply { size, flags }.encode())?;
                if !agreed.contains(ClientFlags::NO_ZEROES) || server.has(Fault::AlwaysZeroes) {
                    wire.put(&[0; RESERVED_ZEROES])?;
                }
                return Ok(Some(session));
            }
            OptionRequest::Abort => {
                if !server.has(Fault::AbortWithoutReply) {
                    reply(wire, option, OptionReply::Ack)?;
                }
                return Ok(None);
            }
            OptionRequest::List => list_exports(wire, server)?,
            OptionRequest::StartTls => {
                if server.has(Fault::PlainTextAfterStartTls) {
                    reply(wire, option, OptionReply::Ack)?;
                    continue;
                }
                let wrong = server.has(Fault::StartTlsRefusedByTlsReqd);
                refuse(
                    wire,
                    option,
                    if wrong {
                        Rep::ERR_TLS_REQD
                    } else {
                        Rep::ERR_POLICY
                    },
                )?;
            }
            OptionRequest::StructuredReply => {
                if session.framing == Framing::Extended {
                    refuse(wire, option, Rep::ERR_EXT_HEADER_REQD)?;
                    continue;
                }
                session.framing = Framing::Structured;
                reply(wire, option, OptionReply::Ack)?;
            }
            OptionRequest::ExtendedHeaders => {
                session.framing = Framing::Extended;
                reply(wire, option, OptionReply::Ack)?;
            }
            OptionRequest::Info(request) | OptionRequest::Go(request) => {
                let known = info(wire, server, &session, option, request)?;
                if known && option == Opt::GO {
                    if server.has(Fault::ZeroesAfterGo) {
                        wire.put(&[0; RESERVED_ZEROES])?;
                    }
                    return Ok(Some(session));
                }
            }
            OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request) => {
                contexts(wire, server, &mut session, option, request)?;
            }
            _ => unreachable!("unknown options are refused above"),
        }
    }
}

fn reply(wire: &mut Wire, option: Opt, reply: OptionReply<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    reply.encode(option, &mut bytes).expect("a short reply");
    wire.put(&bytes)
}

fn refuse(wire: &mut Wire, option: Opt, error: Rep) -> Result<()> {
    let message = "refused".into();
    reply(wire, option, OptionReply::Error { error, message })
}

fn list_exports(wire: &mut Wire, server: &Server) -> Result<()> {
    if server.has(Fault::ListNameTooLong) {
        let header = OptionReplyHeader {
            option: Opt::LIST,
            reply: Rep::SERVER,
            length: 6,
        };
        wire.put(&header.encode())?;
        wire.put(&[0, 0, 0, 3, b'a', b'b'])?;
    } else {
        let name = if server.has(Fault::ListNameWithNul) {
            "\0"
        } else {
            ""
        };
        let (name, description) = (name.into(), "an export".into());
        reply(wire, Opt::LIST, OptionReply::Server { name, description })?;
    }
    reply(wire, Opt::LIST, OptionReply::Ack)
}

/// Answers `INFO` and `GO`; true if the export is known.
fn info(
    wire: &mut Wire,
    server: &Server,
    session: &Session,
    option: Opt,
    request: InfoRequest<'_>,
) -> Result<bool> {
    if !request.export.is_empty() {
        refuse(wire, option, Rep::ERR_UNKNOWN)?;
        return Ok(false);
    }
    let unknown = request.requests.iter().any(|info| !info.is_known());
    if unknown && server.has(Fault::UnknownInfoRefused) {
        refuse(wire, option, Rep::ERR_INVALID)?;
        return Ok(false);
    }
    let mut flags = flags_of(server, session);
    if option == Opt::INFO && server.has(Fault::GoUnlikeInfo) {
        flags |= Has::ROTATIONAL;
    }
    let export = OptionReply::Info(Info::Export { size: SIZE, flags });
    if !server.has(Fault::InfoWithoutExport) {
        reply(wire, option, export)?;
    }
    if server.has(Fault::InfoTwice) {
        reply(wire, option, export)?;
    }
    if request.requests.contains(InfoType::BLOCK_SIZE) {
        let wrong = server.has(Fault::MinimumNotAPowerOfTwo);
        let sizes = BlockSizes {
            minimum: if wrong { 3 } else { 1 },
            preferred: 4096,
            maximum: 1 << 25,
        };
        reply(wire, option, OptionReply::Info(Info::BlockSize(sizes)))?;
    }
    reply(wire, option, OptionReply::Ack)?;
    Ok(true)
}

fn flags_of(server: &Server, session: &Session) -> Has {
    let mut flags = Has::HAS_FLAGS
        | Has::SEND_FLUSH
        | Has::SEND_FUA
        | Has::SEND_TRIM
        | Has::SEND_WRITE_ZEROES
        | Has::SEND_FAST_ZERO
        | Has::CAN_MULTI_CONN
        | Has::SEND_CACHE;
    if session.framing != Framing::Simple || server.has(Fault::DfWithoutStructured) {
        flags |= Has::SEND_DF;
    }
    if session.framing == Framing::Extended && !session.contexts.is_empty() {
        flags |= Has::BLOCK_STATUS_PAYLOAD;
    }
    if server.read_only() {
        flags |= Has::READ_ONLY;
    }
    if server.has(Fault::FlagsWithoutHasFlags) {
        flags.remove(Has::HAS_FLAGS);
    }
    flags
}

/// Answers `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
fn contexts(
    wire: &mut Wire,
    server: &Server,
    session: &mut Session,
    option: Opt,
    request: MetaContextRequest<'_>,
) -> Result<()> {
    let set = option == Opt::SET_META_CONTEXT;
    let simple = session.framing == Framing::Simple;
    if simple && set && !server.has(Fault::ContextsWithoutStructured) {
        return refuse(wire, option, Rep::ERR_INVALID);
    }
    if set {
        session.contexts.clear();
    }
    if !request.export.is_empty() {
        return refuse(wire, option, Rep::ERR_UNKNOWN);
    }
    let mut chosen = Vec::new();
    if request.queries.is_empty() && !set {
        chosen.extend(0..CONTEXTS.len());
    }
    for query in request.queries.iter() {
        let query = query.to_string();
        let foreign = !query.starts_with("base:") && !query.starts_with("x-test:");
        if foreign && server.has(Fault::UnknownNamespaceRefused) {
            return refuse(wire, option, Rep::ERR_INVALID);
        }
        for (index, name) in CONTEXTS.into_iter().enumerate() {
            let wildcard = query.ends_with(':') && name.starts_with(&query);
            let wildcard = wildcard && (!set || server.has(Fault::WildcardSelects));
            if (query == name || wildcard) && !chosen.contains(&index) {
                chosen.push(index);
            }
        }
    }
    for index in &chosen {
        let id = match (set, server.has(Fault::ContextIdsEqual)) {
            (true, true) => 1,
            (true, false) => *index as u32 + 1,
            (false, _) => 0,
        };
        let (id, name) = (ContextId(id), CONTEXTS[*index].into());
        reply(wire, option, OptionReply::MetaContext { id, name })?;
    }
    if set {
        session.contexts = chosen;
    }
    reply(wire, option, OptionReply::Ack)
}
