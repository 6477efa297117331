//! The handshake of the faulty client.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags as Has};
use nbd_codec::wire::greeting::{ExportNameReply, Greeting, RESERVED_ZEROES};
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType as Rep, OptionType as Opt};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest};
use nbd_codec::wire::option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader};

use super::fault::{Fault, Mode};
use super::{Client, Failure, Outcome, violation};

const EXPORT: &str = "disk";

/// What was agreed on.
#[derive(Debug, Clone)]
pub struct Session {
    pub framing: Framing,
    pub context: Option<ContextId>,
    pub size: u64,
    pub flags: Has,
    pub sizes: BlockSizes,
}

/// Replies to an option, with their data.
type Replies = Vec<(Rep, Vec<u8>)>;

impl Client {
    pub fn handshake(&mut self, mode: Mode) -> Outcome<Session> {
        let bytes = self.take(18)?;
        let offered = match Greeting::decode(&mut bytes.as_slice()) {
            Ok(Some(Greeting::Newstyle(greeting))) => greeting.flags,
            _ if self.has(Fault::GreetingUnchecked) => {
                HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES
            }
            _ => return violation("another greeting"),
        };
        if !offered.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            return violation("no fixed newstyle");
        }
        let mut flags = ClientFlags::FIXED_NEWSTYLE;
        let zeroes = offered.contains(HandshakeFlags::NO_ZEROES);
        if zeroes || self.has(Fault::NoZeroesNotOffered) {
            flags |= ClientFlags::NO_ZEROES;
        }
        if self.has(Fault::UnknownClientFlag) {
            flags |= ClientFlags(1 << 7);
        }
        self.put(&flags.encode())?;
        let mut session = Session {
            framing: Framing::Simple,
            context: None,
            size: 1 << 20,
            flags: Has::HAS_FLAGS,
            sizes: BlockSizes::DEFAULT,
        };
        if self.has(Fault::ContextsBeforeFraming) {
            self.select(&mut session)?;
        }
        self.framing(&mut session)?;
        if session.framing != Framing::Simple {
            self.select(&mut session)?;
        }
        if mode == Mode::Map && session.context.is_none() {
            return Err(Failure::Refused("no context".into()));
        }
        if !self.has(Fault::ExportNameWithExtended) && self.go(&mut session)? {
            return Ok(session);
        }
        if self.has(Fault::NoFallback)
            || session.framing == Framing::Extended && !self.has(Fault::ExportNameWithExtended)
        {
            return Err(Failure::Refused("no GO".into()));
        }
        self.send(&OptionRequest::ExportName(EXPORT.into()))?;
        let bytes = self.take(ExportNameReply::SIZE)?;
        let reply = ExportNameReply::decode(&mut bytes.as_slice()).expect("10 bytes");
        if !zeroes {
            self.take(RESERVED_ZEROES)?;
        }
        (session.size, session.flags) = (reply.size, reply.flags);
        Ok(session)
    }

    pub fn abort(&mut self) {
        let _ = self.send(&OptionRequest::Abort);
        let _ = self.take(OptionReplyHeader::SIZE);
    }

    fn send(&mut self, request: &OptionRequest<'_>) -> Outcome {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).expect("a short option");
        self.put(&bytes)
    }

    /// Sends an option, and takes its replies up to the final one.
    fn ask(&mut self, request: &OptionRequest<'_>) -> Outcome<Replies> {
        self.send(request)?;
        self.replies(request.option())
    }

    fn replies(&mut self, option: Opt) -> Outcome<Replies> {
        let mut replies = Vec::new();
        loop {
            let bytes = self.take(OptionReplyHeader::SIZE)?;
            let Ok(Some(header)) = OptionReplyHeader::decode(&mut bytes.as_slice()) else {
                return violation("no reply to an option");
            };
            if header.option != option && !self.has(Fault::OtherOptionAccepted) {
                return violation(format!("a reply to {}", header.option));
            }
            if header.length > 1 << 16 {
                return violation("a long reply");
            }
            let data = self.take(header.length as usize)?;
            let (reply, end) = (
                header.reply,
                header.reply == Rep::ACK || header.reply.is_error(),
            );
            if !end && !matches!(reply, Rep::INFO | Rep::META_CONTEXT) {
                return violation(format!("{reply}"));
            }
            replies.push((reply, data));
            if end {
                return Ok(replies);
            }
        }
    }

    /// Whether an option without data is acknowledged.
    fn is_granted(&mut self, request: &OptionRequest<'_>) -> Outcome<bool> {
        let replies = self.ask(request)?;
        match replies.as_slice() {
            [(Rep::ACK, data)] if data.is_empty() => Ok(true),
            [(error, _)] if error.is_error() => Ok(false),
            _ => violation("another reply to a framing"),
        }
    }

    fn framing(&mut self, session: &mut Session) -> Outcome {
        if self.has(Fault::OptionsPipelined) {
            let mut bytes = Vec::new();
            for option in [
                OptionRequest::ExtendedHeaders,
                OptionRequest::StructuredReply,
            ] {
                option.encode(&mut bytes).expect("a short option");
            }
            self.put(&bytes)?;
            let extended = self.replies(Opt::EXTENDED_HEADERS)?;
            let structured = self.replies(Opt::STRUCTURED_REPLY)?;
            let granted = |replies: &Replies| replies.iter().any(|(reply, _)| *reply == Rep::ACK);
            session.framing = match (granted(&extended), granted(&structured)) {
                (true, _) => Framing::Extended,
                (_, true) => Framing::Structured,
                _ => Framing::Simple,
            };
            return Ok(());
        }
        let option = Opt::STRUCTURED_REPLY;
        let structured = if self.has(Fault::StructuredWithData) {
            OptionRequest::Other { option, data: b"x" }
        } else {
            OptionRequest::StructuredReply
        };
        if self.is_granted(&OptionRequest::ExtendedHeaders)? {
            session.framing = Framing::Extended;
        } else if self.is_granted(&structured)? {
            session.framing = Framing::Structured;
        }
        Ok(())
    }

    fn select(&mut self, session: &mut Session) -> Outcome {
        let query = if self.has(Fault::QueryWithoutNamespace) {
            "allocation"
        } else {
            "base:allocation"
        };
        let queries: &[&str] = &[query];
        let request = OptionRequest::SetMetaContext(MetaContextRequest {
            export: EXPORT.into(),
            queries: queries.into(),
        });
        for (reply, data) in self.ask(&request)? {
            match OptionReply::decode(reply, &data) {
                Ok(OptionReply::MetaContext { id, .. }) if session.context.is_none() => {
                    session.context = Some(id);
                }
                Ok(OptionReply::MetaContext { .. }) => return violation("two contexts"),
                Ok(_) => {}
                Err(error) => return violation(error.to_string()),
            }
        }
        Ok(())
    }

    /// Enters transmission; false if the server has no `GO`.
    fn go(&mut self, session: &mut Session) -> Outcome<bool> {
        let twice = [InfoType::BLOCK_SIZE, InfoType::BLOCK_SIZE];
        let count = if self.has(Fault::InfoTwice) { 2 } else { 1 };
        let request = OptionRequest::Go(InfoRequest {
            export: EXPORT.into(),
            requests: twice[..count].into(),
        });
        let mut known = self.has(Fault::ExportMissingAccepted);
        for (reply, data) in self.ask(&request)? {
            match OptionReply::decode(reply, &data) {
                Ok(OptionReply::Info(Info::Export { size, flags })) => {
                    (session.size, session.flags, known) = (size, flags, true);
                }
                Ok(OptionReply::Info(Info::BlockSize(sizes))) => {
                    if !sizes.is_valid() {
                        return violation("impossible block sizes");
                    }
                    session.sizes = sizes;
                }
                Ok(OptionReply::Error { error, .. }) => {
                    return match error {
                        Rep::ERR_UNSUP => Ok(false),
                        _ => Err(Failure::Refused(error.to_string())),
                    };
                }
                Ok(_) => {}
                Err(error) => return violation(error.to_string()),
            }
        }
        if !known || session.size > 1 << 30 {
            return violation("no size, or an absurd one");
        }
        Ok(true)
    }
}
