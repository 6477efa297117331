//! One run of one case: its connections, and what it finds.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nbd_codec::Framing;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::{ErrorValue, InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest};
use nbd_codec::wire::text::Text;

use crate::connection::{Connection, Record, Shared};
use crate::duty::Level;
use crate::handshake::{Export, Handshake, check_flags, greeting};
use crate::outcome::{Checked, Finding, Stop, found};
use crate::profile::Profile;
use crate::reply::{Reply, Rules};
use crate::session::{Answer, Session};
use crate::stream::Address;
use crate::tls;

/// How a server is reached.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) address: Address,
    pub(crate) export: String,
    pub(crate) timeout: Duration,
    pub(crate) tls: tls::Config,
}

/// One run of one case.
pub(crate) struct Trial<'a> {
    pub(crate) access: &'a Access,
    pub(crate) profile: &'a Profile,
    pub(crate) record: Shared,
    deadline: Instant,
}

/// How long a case may take, if the server never stays silent for longer than the
/// limit of a single wait.
const LONGEST: Duration = Duration::from_secs(60);

impl<'a> Trial<'a> {
    pub(crate) fn new(access: &'a Access, profile: &'a Profile) -> Self {
        Self {
            access,
            profile,
            record: Rc::new(RefCell::new(Record::default())),
            deadline: Instant::now() + access.timeout.max(LONGEST),
        }
    }

    /// Adds a finding; the case continues.
    pub(crate) fn note(&self, finding: Finding) {
        self.record.borrow_mut().findings.push(finding);
    }

    /// Connects, and nothing else.
    pub(crate) fn connect(&self) -> Checked<Connection> {
        let Access {
            address, timeout, ..
        } = self.access;
        Connection::open(address, &self.record, *timeout, self.deadline)
            .map_err(|error| Finding::new("T38", format!("{error:#}")).into())
    }

    /// Connects and reads the greeting of a newstyle server.
    pub(crate) fn greeted(&self) -> Checked<(Connection, HandshakeFlags)> {
        let mut connection = self.connect()?;
        match greeting(&mut connection)? {
            Greeting::Newstyle(greeting) => Ok((connection, greeting.flags)),
            Greeting::Oldstyle(_) => Err(Stop::Unimplemented("the server is oldstyle".into())),
        }
    }

    /// The handshake with any client flags, without TLS.
    pub(crate) fn plain_handshake(&self, flags: ClientFlags) -> Checked<Handshake> {
        let (mut connection, _) = self.greeted()?;
        connection.send(&flags.encode(), format!("client flags {flags}"));
        Ok(Handshake {
            connection,
            agreed: flags,
            breaks: "H17",
            closing: Level::Must,
        })
    }

    /// The client flags for what the server offers.
    pub(crate) fn client_flags(&self) -> ClientFlags {
        let offered = self.profile.handshake_flags;
        let mut flags = ClientFlags::NONE;
        if offered.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            flags |= ClientFlags::FIXED_NEWSTYLE;
        }
        if offered.contains(HandshakeFlags::NO_ZEROES) {
            flags |= ClientFlags::NO_ZEROES;
        }
        flags
    }

    /// The handshake until options can be sent.
    pub(crate) fn handshake(&self) -> Checked<Handshake> {
        let mut handshake = self.plain_handshake(self.client_flags())?;
        if self.profile.uses_tls {
            self.start_tls(&mut handshake)?;
        }
        Ok(handshake)
    }

    /// Starts TLS.
    pub(crate) fn start_tls(&self, handshake: &mut Handshake) -> Checked {
        let replies = handshake.ask(OptionType::STARTTLS, &[])?;
        if !replies.is_ack() {
            return found("L8", format!("STARTTLS: {}", replies.describe()));
        }
        let host = match &self.access.address {
            Address::Tcp(host, _) => host.as_str(),
            Address::Unix(_) => "localhost",
        };
        let started = handshake.connection.start_tls(&self.access.tls, host);
        started.map_err(|error| Stop::Skipped(format!("TLS failed: {error:#}")))
    }

    /// The data of `INFO` and `GO` for the export.
    pub(crate) fn info_data(&self, export: &[u8], infos: &[InfoType]) -> Vec<u8> {
        data_of(OptionRequest::Info(InfoRequest {
            export: Text::new(export),
            requests: infos.into(),
        }))
    }

    /// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
    pub(crate) fn context_data(&self, export: &str, queries: &[&str]) -> Vec<u8> {
        data_of(OptionRequest::SetMetaContext(MetaContextRequest {
            export: export.into(),
            queries: queries.into(),
        }))
    }

    /// The name of the export, in bytes.
    pub(crate) fn name(&self) -> &[u8] {
        self.access.export.as_bytes()
    }

    /// Agrees on a framing.
    pub(crate) fn agree(&self, handshake: &mut Handshake, framing: Framing) -> Checked {
        let option = match framing {
            Framing::Structured => OptionType::STRUCTURED_REPLY,
            Framing::Extended => OptionType::EXTENDED_HEADERS,
            _ => return Ok(()),
        };
        let replies = handshake.ask(option, &[])?;
        if replies.is_ack() {
            return Ok(());
        }
        Err(Stop::Unimplemented(format!("{option}: {}", replies.end)))
    }

    /// Selects every context of the export.
    pub(crate) fn select(
        &self,
        handshake: &mut Handshake,
        queries: &[&str],
    ) -> Checked<Vec<(nbd_codec::wire::number::ContextId, String)>> {
        let data = self.context_data(&self.access.export, queries);
        let replies = handshake.ask(OptionType::SET_META_CONTEXT, &data)?;
        if !replies.is_ack() {
            let end = replies.end;
            return Err(Stop::Unimplemented(format!("SET_META_CONTEXT: {end}")));
        }
        Ok(replies.contexts())
    }

    /// Enters transmission.
    pub(crate) fn enter(&self, handshake: Handshake, framing: Framing) -> Checked<Session> {
        self.enter_with(handshake, framing, Vec::new())
    }

    /// Enters transmission with contexts that were selected.
    pub(crate) fn enter_with(
        &self,
        mut handshake: Handshake,
        framing: Framing,
        contexts: Vec<(nbd_codec::wire::number::ContextId, String)>,
    ) -> Checked<Session> {
        let export = if self.profile.go {
            self.go(&mut handshake)?
        } else {
            match handshake.export_name(self.name())? {
                Ok(export) => export,
                Err(end) => {
                    return found(handshake.breaks, format!("EXPORT_NAME: {end}"));
                }
            }
        };
        check_flags(export.flags)?;
        Ok(self.session_of(handshake.connection, framing, export, contexts))
    }

    /// The session of a connection that entered transmission.
    pub(crate) fn session_of(
        &self,
        connection: Connection,
        framing: Framing,
        export: Export,
        contexts: Vec<(nbd_codec::wire::number::ContextId, String)>,
    ) -> Session {
        let rules = Rules::new(&export, framing, contexts);
        let record = Rc::clone(&self.record);
        let first_block = self.profile.first_block.clone();
        Session::new(connection, export, rules, first_block, record)
    }

    /// Sends `GO` with a request for the block sizes.
    pub(crate) fn go(&self, handshake: &mut Handshake) -> Checked<Export> {
        let data = self.info_data(self.name(), &[InfoType::BLOCK_SIZE]);
        let replies = handshake.ask(OptionType::GO, &data)?;
        match (replies.is_ack(), replies.export()) {
            (true, Some(export)) => Ok(export),
            (true, None) => found("O48", format!("GO: {}", replies.describe())),
            (false, _) if replies.end == OptionReplyType::ERR_UNSUP => {
                Err(Stop::Unimplemented("NBD_OPT_GO".into()))
            }
            (false, _) => found(handshake.breaks, format!("GO: {}", replies.describe())),
        }
    }

    /// A session of this framing.
    pub(crate) fn session(&self, framing: Framing) -> Checked<Session> {
        let mut handshake = self.handshake()?;
        self.agree(&mut handshake, framing)?;
        self.enter(handshake, framing)
    }

    /// A session of this framing with every context selected.
    pub(crate) fn status_session(&self, framing: Framing) -> Checked<Session> {
        let mut handshake = self.handshake()?;
        self.agree(&mut handshake, framing)?;
        let names: Vec<&str> = self.profile.contexts.iter().map(String::as_str).collect();
        let contexts = self.select(&mut handshake, &names)?;
        self.enter_with(handshake, framing, contexts)
    }

    /// After an option was answered: the same connection still reaches transmission,
    /// and reads.
    pub(crate) fn goes_on(&self, handshake: Handshake) -> Checked {
        self.goes_on_in(handshake, Framing::Simple)
    }

    /// The same in another framing.
    pub(crate) fn goes_on_in(&self, mut handshake: Handshake, framing: Framing) -> Checked {
        handshake.breaks = "B5";
        let mut session = self.enter(handshake, framing)?;
        session.still_good()?;
        session.disconnect()
    }

    /// After an option was refused that broke a rule: as [`goes_on`](Self::goes_on),
    /// but the server may disconnect.
    pub(crate) fn goes_on_after_refusal(&self, mut handshake: Handshake) -> Checked {
        handshake.closing = Level::Should;
        self.goes_on(handshake)
    }

    /// Sends a request that the server should refuse with one of `errors`. After it
    /// a good command is still answered.
    pub(crate) fn refuses(
        &self,
        session: &mut Session,
        request: crate::request::Request,
        id: &str,
        errors: &[ErrorValue],
    ) -> Checked {
        let text = request.describe();
        let payload = !request.payload.is_empty();
        match session.answer(request)? {
            Answer::Reply(reply) => {
                self.expect_error(&reply, id, errors);
                if payload {
                    let extended = session.rules.framing == Framing::Extended;
                    session.breaks = Some(if extended { "T14" } else { "T10" });
                }
                session.closing = Level::Should;
                session.still_good()?;
                session.breaks = None;
                session.disconnect()
            }
            // A client that breaks a MUST may be disconnected.
            Answer::Closed(end) => {
                let finding = Finding::new(id, format!("the connection was {end} after {text}"));
                self.note(finding.advised());
                Ok(())
            }
        }
    }

    /// Notes if the reply is none of these errors.
    pub(crate) fn expect_error(&self, reply: &Reply, id: &str, errors: &[ErrorValue]) {
        match reply.error() {
            Some(error) if errors.contains(&error) => {}
            _ => self.note(Finding::new(id, reply.describe())),
        }
    }

    /// Fails if the reply is an error.
    pub(crate) fn expect_success(&self, reply: &Reply, id: &str) -> Checked {
        if reply.is_success() {
            return Ok(());
        }
        found(id, reply.describe())
    }
}

/// The data of an option without its header.
pub(crate) fn data_of(option: OptionRequest<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = option.encode(&mut bytes);
    debug_assert!(written.is_ok(), "short enough");
    bytes.split_off(nbd_codec::wire::option::OptionHeader::SIZE.min(bytes.len()))
}
