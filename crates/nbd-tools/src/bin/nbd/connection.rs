//! From a URI to a session: the automatic handshake, with all fallbacks.

use std::fmt;
use std::io::IoSlice;

use anyhow::{Result, anyhow};
use nbd_codec::client::{Config, ConnectError, ConnectEvent, Connector, MetaContextQuery};
use nbd_codec::uri::Uri;
use nbd_codec::wire::number::{ContextId, OptionType};
use nbd_codec::wire::text::Text;
use nbd_codec::{Error, Framing, Negotiated, Step};

use crate::inbox::Inbox;
use crate::name::Name;
use crate::session::Session;
use crate::socket::{Settings, Socket};

/// A session, and the metadata contexts that were granted.
pub struct Connection {
    pub session: Session,
    pub contexts: Vec<(ContextId, Name)>,
}

impl Connection {
    /// The number of the context `base:allocation`, if it was granted.
    pub fn allocation(&self) -> Option<ContextId> {
        let mut contexts = self.contexts.iter();
        let found = contexts.find(|(_, name)| name.as_bytes() == ALLOCATION.as_bytes());
        found.map(|(id, _)| *id)
    }
}

/// The context that says where holes and zeroes are.
pub const ALLOCATION: &str = "base:allocation";

/// Opens the export of `uri`.
pub fn open(
    uri: &Uri,
    framing: Framing,
    contexts: &[&str],
    settings: &Settings,
) -> Result<Connection> {
    let Opened {
        link,
        negotiated,
        contexts,
    } = negotiate(uri, framing, contexts, settings)?;
    Ok(Connection {
        session: Session::new(link.socket, link.inbox, negotiated),
        contexts,
    })
}

/// The result of a handshake, before transmission.
pub struct Opened {
    pub link: Link,
    pub negotiated: Negotiated,
    pub contexts: Vec<(ContextId, Name)>,
}

/// Connects and negotiates.
pub fn negotiate(
    uri: &Uri,
    framing: Framing,
    contexts: &[&str],
    settings: &Settings,
) -> Result<Opened> {
    let queries: Vec<_> = contexts
        .iter()
        .map(|name| MetaContextQuery::new(name))
        .collect();
    let go = !settings.export_name;
    let config = Config::new(uri.export())
        .contexts(&queries)
        .framing(framing)
        .go(go);
    match negotiate_as(uri, config, settings) {
        // There is nothing else to leave out.
        Err(error) if go && framing == Framing::Simple && HungUp::at(&error, OptionType::GO) => {
            negotiate_as(uri, config.go(false), settings)
        }
        result => result,
    }
}

/// Connects and negotiates by a configuration.
fn negotiate_as(uri: &Uri, config: Config<'_>, settings: &Settings) -> Result<Opened> {
    let mut link = Link::connect(uri, settings)?;
    let mut machine = Connector::new(config)?;
    let mut granted = Vec::new();
    loop {
        let mut input = link.inbox.unread();
        let step = machine.receive(&mut input)?;
        let left = input.len();
        match step {
            Step::Event(ConnectEvent::Ready) => {
                link.inbox.keep_last(left);
                break;
            }
            Step::Event(ConnectEvent::Failed { reason, message }) => {
                let error = refused(reason, message, uri.export().into());
                // NBD_OPT_ABORT, perhaps. The handshake has failed, whether or not
                // the server receives it.
                let mut abort = Vec::new();
                machine.transmit(&mut abort)?;
                let _ = link.send(&abort);
                return Err(error);
            }
            Step::Event(ConnectEvent::Context { id, name, .. }) => {
                granted.push((id, name.into()));
                link.inbox.keep_last(left);
            }
            Step::Event(_) => link.inbox.keep_last(left),
            Step::Transmit => {
                link.inbox.keep_last(left);
                // All messages that are due with one system call.
                let mut outgoing = Vec::new();
                while machine.transmit(&mut outgoing)? > 0 {}
                link.send(&outgoing)?;
            }
            Step::Read(_) => {
                link.inbox.keep_last(left);
                if !link.fill()? {
                    machine.end_of_input().map_err(closed)?;
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let negotiated = machine
        .into_negotiated()
        .map_err(|_| anyhow!("the handshake has not ended"))?;
    Ok(Opened {
        link,
        negotiated,
        contexts: granted,
    })
}

/// The error for an end of input during the handshake.
pub fn closed(error: Error) -> anyhow::Error {
    match error {
        Error::Closed => {
            anyhow!("the server closed the connection during the handshake; its log may say why")
        }
        Error::ClosedDuring(option) => HungUp(option).into(),
        other => other.into(),
    }
}

/// The server closed the connection instead of replying to an option. Some do so at
/// options that they do not know.
#[derive(Debug)]
pub struct HungUp(OptionType);

impl HungUp {
    /// Whether an error is this one, at `option`.
    pub fn at(error: &anyhow::Error, option: OptionType) -> bool {
        let hung_up = error.downcast_ref::<Self>();
        hung_up.is_some_and(|hung_up| hung_up.0 == option)
    }
}

impl fmt::Display for HungUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = self.0;
        let advice = match option {
            OptionType::EXTENDED_HEADERS => {
                "it may not know this option, try --framing structured or --framing simple"
            }
            OptionType::STRUCTURED_REPLY
            | OptionType::SET_META_CONTEXT
            | OptionType::LIST_META_CONTEXT => "it may not know this option, try --framing simple",
            OptionType::GO => "it may not know this option, try --no-go",
            OptionType::LIST => "it may not know this option; `nbd info` describes one export",
            OptionType::EXPORT_NAME => "it may have no such export",
            _ => "its log may say why",
        };
        write!(
            f,
            "the server closed the connection instead of replying to {option}; {advice}"
        )
    }
}

impl std::error::Error for HungUp {}

/// The error for a failed handshake, with advice.
pub fn refused(reason: ConnectError, message: Option<Text<'_>>, export: Text<'_>) -> anyhow::Error {
    let advice = match reason {
        ConnectError::UnknownExport => "; `nbd list` shows the exports of the server",
        ConnectError::ServerRequiresTls => ", which this tool does not support",
        _ => "",
    };
    let text = match message {
        Some(text) if !text.is_empty() => format!(" (server: {text})"),
        _ => String::new(),
    };
    anyhow!("export {export:?}: {reason}{advice}{text}")
}

/// A socket and its unread input.
pub struct Link {
    pub socket: Socket,
    pub inbox: Inbox,
}

impl Link {
    pub fn connect(uri: &Uri, settings: &Settings) -> Result<Self> {
        Ok(Self {
            socket: Socket::connect(uri, settings)?,
            inbox: Inbox::new(),
        })
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.socket.write(&[IoSlice::new(bytes)])? {
                Some(n) => bytes = &bytes[n..],
                None => drop(self.socket.wait(false)?),
            }
        }
        Ok(())
    }

    /// Waits for more input; returns false at its end.
    pub fn fill(&mut self) -> Result<bool> {
        let received = self.inbox.receive(&mut self.socket, &mut [], usize::MAX)?;
        Ok(!received.end)
    }
}
