//! From a URI to a session: the automatic handshake, with all fallbacks.

use std::io::IoSlice;

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::client::Connect;
use nbd_codec::client::connect::{Event, Failure, Plan, TlsPolicy};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::uri::Uri;
use nbd_codec::wire::number::ContextId;
use nbd_codec::wire::text::Text;
use nbd_codec::{Error, Framing, Negotiated};

use crate::inbox::Inbox;
use crate::session::Session;
use crate::socket::{Settings, Socket};

/// A session, and the metadata contexts that were granted.
pub struct Connection {
    pub session: Session,
    pub contexts: Vec<(ContextId, String)>,
}

/// Parses a URI, and warns of unknown parameters.
pub fn parse_uri(text: &str) -> Result<Uri> {
    let uri = Uri::parse(text).with_context(|| format!("{text:?} is not an NBD URI"))?;
    for (key, _) in uri.unknown_parameters() {
        eprintln!("nbd: warning: unknown parameter {key:?} in the URI is ignored");
    }
    if uri.tls_required() {
        bail!("{uri}: this tool does not support TLS; use nbd:// if plain text is acceptable");
    }
    Ok(uri)
}

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
    pub contexts: Vec<(ContextId, String)>,
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
        .map(|name| ContextQuery::new(name))
        .collect();
    let mut plan = Plan::new(uri.export());
    plan.contexts = &queries;
    plan.tls = TlsPolicy::Never;
    plan.framing = framing;

    let mut link = Link::connect(uri, settings)?;
    let mut machine = Connect::new(plan)?;
    let mut granted = Vec::new();
    loop {
        let mut input = link.inbox.unread();
        let event = machine.receive(&mut input)?;
        let (left, short) = (input.len(), event.is_none());
        let (mut ready, mut failed) = (false, None);
        match event {
            Some(Event::Ready) => ready = true,
            Some(Event::Failed { reason, message }) => {
                failed = Some(refused(reason, message, uri.export()));
            }
            Some(Event::Context { id, name, .. }) => granted.push((id, name.to_string())),
            _ => {}
        }
        link.inbox.keep_last(left);
        if ready {
            break;
        }
        if !short && failed.is_none() {
            continue;
        }
        let mut outgoing = Vec::new();
        while machine.transmit(&mut outgoing)? > 0 {}
        if let Some(error) = failed {
            // NBD_OPT_ABORT, perhaps. The handshake has failed, whether or not
            // the server receives it.
            let _ = link.send(&outgoing);
            return Err(error);
        }
        if outgoing.is_empty() && !link.fill()? {
            machine.end_of_input().map_err(closed)?;
        }
        link.send(&outgoing)?;
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
        other => other.into(),
    }
}

/// The error for a failed handshake, with advice.
pub fn refused(reason: Failure, message: Option<Text<'_>>, export: &str) -> anyhow::Error {
    let advice = match reason {
        Failure::UnknownExport => "; `nbd list` shows the exports of the server",
        Failure::ServerRequiresTls => ", which this tool does not support",
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
