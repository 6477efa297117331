//! The handshake of a client that follows a script.

use std::rc::Rc;

use nbd_codec::Framing;
use nbd_codec::wire::flags::ClientFlags;
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionHeader, OptionRequest};
use nbd_codec::wire::text::Text;

use super::attack::Phase;
use super::requests::Transmission;
use super::script::ServerScript;
use crate::connection::{Connection, Shared};
use crate::duty::Level;
use crate::handshake::{self, Export, Handshake, Replies};
use crate::outcome::{Checked, Finding, Stop, found};
use crate::reply::Rules;
use crate::session::Session;
use crate::trial::data_of;

/// The handshake.
pub(super) struct Options {
    pub(super) handshake: Handshake,
    pub(super) sent: Option<SentOption>,
    framing: Framing,
    contexts: Vec<(ContextId, String)>,
    /// How much of the end of the handshake was sent.
    pub(super) closing: u8,
    /// The last option of the handshake is the next one.
    fallback: bool,
}

pub(super) struct SentOption {
    option: OptionType,
    data: Vec<u8>,
    /// It is sent to enter transmission, so that it must succeed.
    own: bool,
}

/// A client flag that no server has.
const UNKNOWN: ClientFlags = ClientFlags(1 << 20);
/// The most data of an option, in bytes.
const MAX_DATA: usize = 16 << 10;

/// Reads the greeting and sends the client flags.
pub(super) fn greet(mut connection: Connection, change: u8) -> Checked<Phase> {
    let Greeting::Newstyle(greeting) = handshake::greeting(&mut connection)? else {
        return Err(Stop::Unimplemented("the server is oldstyle".into()));
    };
    // Without FIXED_NEWSTYLE there is EXPORT_NAME only; a server may refuse it.
    let mut agreed = ClientFlags(u32::from(greeting.flags.0));
    if change % 4 == 1 {
        agreed.remove(ClientFlags::NO_ZEROES);
    }
    let unknown = change % 16 == 15;
    if unknown {
        agreed |= UNKNOWN;
    }
    connection.send(&agreed.encode(), format!("client flags {agreed}"));
    let handshake = Handshake {
        connection,
        agreed,
        breaks: "H17",
        closing: if unknown {
            Level::Undefined
        } else {
            Level::Must
        },
    };
    Ok(Phase::Options(Box::new(Options {
        handshake,
        sent: None,
        framing: Framing::Simple,
        contexts: Vec::new(),
        closing: 0,
        fallback: false,
    })))
}

impl Options {
    /// Sends an option with as much data as its header says; true if nothing can
    /// follow.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let Ok(Some(header)) = OptionHeader::decode(&mut rest) else {
            self.handshake.connection.send(bytes, "a part of an option");
            return true;
        };
        let OptionHeader { option, length } = header;
        let count = usize::try_from(length).unwrap_or(usize::MAX);
        if count > MAX_DATA {
            self.handshake.send_header(option, length, rest);
            return true;
        }
        let mut data = rest.to_vec();
        data.resize(count, 0);
        let without_data = [
            OptionType::ABORT,
            OptionType::LIST,
            OptionType::STARTTLS,
            OptionType::STRUCTURED_REPLY,
            OptionType::EXTENDED_HEADERS,
        ];
        if without_data.contains(&option) {
            data = handshake::trap(count);
        }
        self.put(option, data, false);
        false
    }

    fn put(&mut self, option: OptionType, data: Vec<u8>, own: bool) {
        if !is_valid(option, &data) {
            self.handshake.closing = Level::Undefined;
        }
        self.handshake.send(option, &data);
        self.sent = Some(SentOption { option, data, own });
    }

    /// Sends the next option that leads to transmission.
    pub(super) fn conclude(&mut self, script: &ServerScript, export: &str) -> bool {
        let name = Text::from(export);
        loop {
            self.closing += 1;
            let option = match (self.closing, script.framing % 3) {
                (1, 1) => OptionRequest::StructuredReply,
                (1, 2) => OptionRequest::ExtendedHeaders,
                (2, _) if script.status && self.framing != Framing::Simple => {
                    OptionRequest::SetMetaContext(MetaContextRequest {
                        export: name,
                        queries: ["base:allocation"][..].into(),
                    })
                }
                // Contexts that the script has selected are not followed.
                (2, _) if !self.contexts.is_empty() => {
                    OptionRequest::SetMetaContext(MetaContextRequest {
                        export: name,
                        queries: (&[] as &[&str]).into(),
                    })
                }
                (3, _) if !script.export_name => OptionRequest::Go(InfoRequest {
                    export: name,
                    requests: [InfoType::BLOCK_SIZE][..].into(),
                }),
                (3, _) if self.framing == Framing::Extended => return true,
                (3, _) => OptionRequest::ExportName(name),
                (4.., _) if self.fallback => OptionRequest::ExportName(name),
                (4.., _) => return true,
                _ => continue,
            };
            let kind = option.option();
            self.put(kind, data_of(option), true);
            return false;
        }
    }

    pub(super) fn settle(mut self: Box<Self>, sent: SentOption, record: &Shared) -> Checked<Phase> {
        let SentOption { option, data, own } = sent;
        let handshake = &mut self.handshake;
        if option == OptionType::EXPORT_NAME {
            return match handshake.export_name_reply()? {
                Ok(export) => {
                    handshake::check_flags(export.flags)?;
                    Ok(self.enter(export, record))
                }
                Err(end) if end.is_by_server() && !own => Ok(Phase::Over),
                Err(end) => {
                    let finding = Finding::new(handshake.breaks, format!("EXPORT_NAME: {end}"));
                    Err(finding.at(handshake.closing).into())
                }
            };
        }
        let replies = match handshake.answer(option)? {
            handshake::Answer::Replies(replies) => replies,
            handshake::Answer::Closed(_) if option == OptionType::STARTTLS => {
                return Ok(Phase::Over);
            }
            handshake::Answer::Closed(end) => {
                let actual = format!("the connection was {end} instead of a reply to {option}");
                let finding = Finding::new(handshake.breaks, actual);
                return Err(finding.at(handshake.closing).into());
            }
        };
        if handshake.agreed.contains(UNKNOWN) {
            return found("O11", format!("a reply to {option}"));
        }
        if !replies.is_ack() {
            handshake.breaks = "B5";
        }
        check_replies(option, &data, &replies)?;
        let advice = advice(option, &data, &replies);
        record.borrow_mut().findings.extend(advice);
        match option {
            OptionType::ABORT => return Ok(Phase::Over),
            OptionType::STARTTLS if replies.is_ack() => return Ok(Phase::Over),
            OptionType::STRUCTURED_REPLY if replies.is_ack() && self.framing == Framing::Simple => {
                self.framing = Framing::Structured;
            }
            OptionType::EXTENDED_HEADERS if replies.is_ack() => self.framing = Framing::Extended,
            OptionType::SET_META_CONTEXT => self.contexts = replies.contexts(),
            OptionType::GO if replies.is_ack() => {
                let Some(export) = replies.export() else {
                    return found("O48", format!("GO: {}", replies.describe()));
                };
                handshake::check_flags(export.flags)?;
                return Ok(self.enter(export, record));
            }
            OptionType::GO if own => {
                self.fallback = replies.end == OptionReplyType::ERR_UNSUP;
                if !self.fallback {
                    let end = replies.end;
                    let text = format!("GO for the export that is attacked: {end}");
                    return Err(Stop::Unimplemented(text));
                }
            }
            _ => {}
        }
        Ok(Phase::Options(self))
    }

    fn enter(self, export: Export, record: &Shared) -> Phase {
        let rules = Rules::new(&export, self.framing, self.contexts);
        let connection = self.handshake.connection;
        let closing = self.handshake.closing;
        let mut session = Session::new(connection, export, rules, Vec::new(), Rc::clone(record));
        session.closing = closing;
        Phase::Transmission(Box::new(Transmission::new(session)))
    }
}

/// Whether a client may send this.
fn is_valid(option: OptionType, data: &[u8]) -> bool {
    let text = |text: Text<'_>| text.to_str().is_ok();
    match OptionRequest::decode(option, data) {
        Ok(OptionRequest::ExportName(name)) => text(name),
        Ok(OptionRequest::Info(info) | OptionRequest::Go(info)) => text(info.export),
        Ok(OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request)) => {
            text(request.export) && request.queries.iter().all(text)
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Whether the last reply to an option is one that it may have.
fn check_replies(option: OptionType, data: &[u8], replies: &Replies) -> Checked {
    let unknown = matches!(
        OptionRequest::decode(option, data),
        Ok(OptionRequest::Other { .. })
    );
    let permitted = [
        OptionReplyType::ERR_UNSUP,
        OptionReplyType::ERR_TLS_REQD,
        OptionReplyType::ERR_TOO_BIG,
    ];
    if unknown && !permitted.contains(&replies.end) {
        return found("B4", format!("{option}: {}", replies.describe()));
    }
    Ok(())
}

/// What is advised about the replies to an option that is invalid.
fn advice(option: OptionType, data: &[u8], replies: &Replies) -> Option<Finding> {
    let id = match option {
        OptionType::LIST => "O36",
        OptionType::STRUCTURED_REPLY => "O63",
        OptionType::EXTENDED_HEADERS => "O98",
        OptionType::LIST_META_CONTEXT => "O74",
        _ => return None,
    };
    let accepted = replies.is_ack() && !is_valid(option, data);
    let actual = format!("{option} that is invalid: {}", replies.describe());
    accepted.then(|| Finding::new(id, actual).advised())
}
