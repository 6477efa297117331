//! The handshake of the scripted server.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags as Has};
use nbd_codec::wire::greeting::{
    ExportNameReply, NewstyleGreeting, OldstyleGreeting, RESERVED_ZEROES,
};
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType as Rep, OptionType as Opt};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionHeader, OptionRequest};
use nbd_codec::wire::option_reply::{Info, OptionReply};
use nbd_codec::wire::text::Text;

use super::message::Message;
use super::script::{Asked, EXPORT, SIZE, Style};
use super::server::{Gone, Left, Server};

/// What was agreed on.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) framing: Framing,
    /// The context was selected, for this export.
    pub(crate) context: bool,
    pub(crate) flags: Has,
    /// The server kept to the rules: what it said can be relied on.
    pub(crate) trusted: bool,
}

/// The id of the context: clients make nothing of it.
pub(crate) const CONTEXT: ContextId = ContextId(0x7a11_0c8e);
const ALLOCATION: &str = "base:allocation";

/// Option data longer than this is nonsense: the longest has names of 4096 bytes.
const LONGEST: u32 = 1 << 20;

/// The options of a client, while they are checked.
#[derive(Default)]
struct Haggling {
    agreed: ClientFlags,
    tls: bool,
    structured: bool,
    extended: bool,
    context: bool,
}

impl Server<'_> {
    /// What was agreed on; `None` if the client left.
    pub(super) fn handshake(&mut self) -> Result<Option<Session>, Gone> {
        let dialect = &self.script.dialect;
        let (size, flags) = (SIZE, dialect.flags);
        if dialect.style == Style::Oldstyle {
            let handshake_flags = HandshakeFlags::NONE;
            let greeting = OldstyleGreeting {
                size,
                handshake_flags,
                flags,
            };
            let greeting = Message::bytes(greeting.encode(), "oldstyle greeting");
            self.answer(Asked::Connection, vec![greeting])?;
            return Ok(Some(self.session(&Haggling::default())));
        }
        let offered = dialect.handshake_flags;
        let greeting = NewstyleGreeting { flags: offered }.encode();
        let greeting = Message::Bytes(greeting.to_vec(), format!("greeting {offered}"));
        self.answer(Asked::Connection, vec![greeting])?;
        let mut state = Haggling {
            agreed: self.client_flags()?,
            ..Haggling::default()
        };
        loop {
            let (option, data) = self.option()?;
            self.served.options.push(option);
            let request = OptionRequest::decode(option, &data);
            match request {
                Ok(OptionRequest::ExportName(name)) => {
                    return self.export_name(&state, name).map(Some);
                }
                Ok(OptionRequest::Abort) => {
                    self.served.left = Left::Abort;
                    self.answer(Asked::Option(option), vec![Message::ack(option)])?;
                    let _ = self.connection.expect_end();
                    return Ok(None);
                }
                Ok(request) => {
                    let mut messages = self.reply(&mut state, &request);
                    let entered = option == Opt::GO && is_ack(&messages);
                    // The twist may refuse what the server granted.
                    self.twist(Asked::Option(option), &mut messages);
                    let still = is_ack(&messages);
                    self.send_all(messages)?;
                    if entered && still {
                        return Ok(Some(self.session(&state)));
                    }
                    if let (Opt::STARTTLS, true, Some(acceptor)) = (option, still, self.tls) {
                        self.connection.accept_tls(acceptor).map_err(|_| Gone)?;
                        // What was agreed on before is forgotten.
                        state = Haggling {
                            agreed: state.agreed,
                            tls: true,
                            ..Haggling::default()
                        };
                    }
                }
                Err(_) => {
                    let refusal = Message::refusal(option, Rep::ERR_INVALID);
                    self.answer(Asked::Option(option), vec![refusal])?;
                }
            }
        }
    }

    /// An option of a client that has noticed a fault.
    pub(super) fn aborts(&mut self) -> Result<(), Gone> {
        let (option, _) = self.option()?;
        if option == Opt::ABORT {
            self.served.left = Left::Abort;
        }
        Ok(())
    }

    fn session(&self, state: &Haggling) -> Session {
        let framing = match (state.extended, state.structured) {
            (true, _) => Framing::Extended,
            (false, true) => Framing::Structured,
            _ => Framing::Simple,
        };
        Session {
            framing,
            context: state.context,
            flags: self.flags(framing),
            trusted: !self.served.twisted,
        }
    }

    /// `SEND_DF` is for chunks only.
    fn flags(&self, framing: Framing) -> Has {
        let flags = self.script.dialect.flags;
        if framing == Framing::Simple {
            flags.difference(Has::SEND_DF)
        } else {
            flags
        }
    }

    fn client_flags(&mut self) -> Result<ClientFlags, Gone> {
        let bytes = self.take(4, |bytes| {
            let flags = ClientFlags::decode(&mut &*bytes).unwrap_or_default();
            format!("client flags {flags}")
        })?;
        let agreed = ClientFlags::decode(&mut bytes.as_slice()).unwrap_or_default();
        let offered = self.script.dialect.handshake_flags;
        if offered.contains(HandshakeFlags::FIXED_NEWSTYLE)
            && !agreed.contains(ClientFlags::FIXED_NEWSTYLE)
        {
            self.found("H8", format!("the client flags are {agreed}"));
        }
        Ok(agreed)
    }

    /// The next option and its data.
    fn option(&mut self) -> Result<(Opt, Vec<u8>), Gone> {
        let bytes = self.take(OptionHeader::SIZE, |bytes| {
            match OptionHeader::decode(&mut &*bytes) {
                Ok(Some(header)) => format!("{}, {} bytes", header.option, header.length),
                _ => "no option".into(),
            }
        })?;
        let Ok(Some(header)) = OptionHeader::decode(&mut bytes.as_slice()) else {
            return Err(Gone);
        };
        if header.length > LONGEST {
            let actual = format!("{} with {} bytes", header.option, header.length);
            self.found("C2", actual);
            return Err(Gone);
        }
        let length = usize::try_from(header.length).map_err(|_| Gone)?;
        let data = self.take(length, |_| format!("data of {}", header.option))?;
        Ok((header.option, data))
    }

    fn export_name(&mut self, state: &Haggling, name: Text<'_>) -> Result<Session, Gone> {
        let refused = self.tls.is_some() && !state.tls;
        let other = name.as_bytes() != EXPORT.as_bytes();
        if refused || self.script.dialect.style == Style::Fixed && other {
            return Err(Gone);
        }
        let session = self.session(state);
        let (size, flags) = (SIZE, session.flags);
        let mut bytes = ExportNameReply { size, flags }.encode().to_vec();
        let offered = self.script.dialect.handshake_flags;
        let both = state.agreed.contains(ClientFlags::NO_ZEROES)
            && offered.contains(HandshakeFlags::NO_ZEROES);
        if !both {
            bytes.extend([0; RESERVED_ZEROES]);
        }
        let meaning = format!("reply to EXPORT_NAME: {size} bytes, {flags}");
        let messages = vec![Message::Bytes(bytes, meaning)];
        self.answer(Asked::Option(Opt::EXPORT_NAME), messages)?;
        Ok(session)
    }

    /// The reply to an option, as it should be.
    fn reply(&self, state: &mut Haggling, request: &OptionRequest<'_>) -> Vec<Message> {
        let option = request.option();
        let dialect = &self.script.dialect;
        let refuse = |error| vec![Message::refusal(option, error)];
        if dialect.style == Style::Newstyle {
            return refuse(Rep::ERR_UNSUP);
        }
        match request {
            OptionRequest::StartTls if self.tls.is_some() && !state.tls => {
                vec![Message::ack(option)]
            }
            OptionRequest::StartTls if state.tls => refuse(Rep::ERR_INVALID),
            OptionRequest::StartTls => refuse(Rep::ERR_POLICY),
            _ if self.tls.is_some() && !state.tls => refuse(Rep::ERR_TLS_REQD),
            OptionRequest::List if dialect.list => {
                let name = EXPORT.into();
                let description = "".into();
                let server = OptionReply::Server { name, description };
                vec![Message::option(option, &server), Message::ack(option)]
            }
            OptionRequest::StructuredReply if dialect.framing != Framing::Simple => {
                state.structured = true;
                vec![Message::ack(option)]
            }
            OptionRequest::ExtendedHeaders if dialect.framing == Framing::Extended => {
                state.extended = true;
                vec![Message::ack(option)]
            }
            OptionRequest::Info(request) | OptionRequest::Go(request) if dialect.go => {
                self.info(state, option, *request)
            }
            OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request)
                if dialect.framing != Framing::Simple =>
            {
                self.contexts(state, option, *request)
            }
            _ => refuse(Rep::ERR_UNSUP),
        }
    }

    fn info(&self, state: &mut Haggling, option: Opt, request: InfoRequest<'_>) -> Vec<Message> {
        if request.export.as_bytes() != EXPORT.as_bytes() {
            return vec![Message::refusal(option, Rep::ERR_UNKNOWN)];
        }
        let dialect = &self.script.dialect;
        let flags = self.session(state).flags;
        let mut infos = vec![Info::Export { size: SIZE, flags }];
        if dialect.more_info {
            infos.push(Info::Name(EXPORT.into()));
            infos.push(Info::Description("a disk of nbd-check".into()));
            let info = InfoType(0x6000);
            infos.push(Info::Other { info, data: b"?" });
        }
        let asked = request.requests.contains(InfoType::BLOCK_SIZE);
        if let (Some(sizes), true) = (dialect.sizes, asked) {
            // The order is free.
            infos.insert(0, Info::BlockSize(sizes));
        }
        let mut messages: Vec<_> = infos
            .into_iter()
            .map(|info| Message::option(option, &OptionReply::Info(info)))
            .collect();
        messages.push(Message::ack(option));
        messages
    }

    fn contexts(
        &self,
        state: &mut Haggling,
        option: Opt,
        request: MetaContextRequest<'_>,
    ) -> Vec<Message> {
        let set = option == Opt::SET_META_CONTEXT;
        if set {
            state.context = false;
        }
        if request.export.as_bytes() != EXPORT.as_bytes() {
            return vec![Message::refusal(option, Rep::ERR_UNKNOWN)];
        }
        let matches = |query: Text<'_>| {
            let query = query.as_bytes();
            query == ALLOCATION.as_bytes() || !set && query == b"base:"
        };
        let all = request.queries.is_empty() && !set;
        let found = self.script.dialect.contexts && (all || request.queries.iter().any(matches));
        let mut messages = Vec::new();
        if found {
            let id = if set { CONTEXT } else { ContextId(0) };
            let name = ALLOCATION.into();
            let context = OptionReply::MetaContext { id, name };
            messages.push(Message::option(option, &context));
            state.context |= set;
        }
        messages.push(Message::ack(option));
        messages
    }
}

/// Whether the final reply is an acknowledgement.
fn is_ack(messages: &[Message]) -> bool {
    let reply = messages.iter().rev().find_map(|message| match message {
        Message::Option { reply, .. } => Some(*reply),
        _ => None,
    });
    reply == Some(Rep::ACK)
}
