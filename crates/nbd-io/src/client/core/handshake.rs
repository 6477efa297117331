//! Connecting: the automatic handshake over any stream.

use std::sync::Arc;

use nbd_codec::client::{Config, ConnectEvent, Connector, MetaContextQuery, TlsPolicy};
use nbd_codec::inbox::Inbox;
use nbd_codec::{Negotiated, SessionError, Step};

use super::reader::BUFFER;
use crate::client::{Context, Error, Options};
use crate::duplex::Duplex;

/// A handshake, which TLS interrupts.
pub(crate) struct Handshake<'a> {
    pub(crate) connector: Connector<'a>,
    inbox: Inbox<Vec<u8>>,
    contexts: Vec<Context>,
}

/// What a handshake yields.
pub(crate) struct Opened {
    pub(crate) negotiated: Negotiated,
    pub(crate) contexts: Vec<Context>,
    /// What has arrived after the handshake.
    pub(crate) inbox: Inbox<Vec<u8>>,
}

/// The queries for the contexts of some options.
pub(crate) fn queries(options: &Options) -> Vec<MetaContextQuery<'_>> {
    let names = options.contexts.iter();
    names.map(|name| MetaContextQuery::new(name)).collect()
}

impl<'a> Handshake<'a> {
    pub(crate) fn new(
        export: &'a str,
        contexts: &'a [MetaContextQuery<'a>],
        options: &Options,
        tls: bool,
    ) -> Result<Self, Error> {
        let config = Config::new(export)
            .contexts(contexts)
            .framing(options.framing)
            .tls(if tls {
                TlsPolicy::Require
            } else {
                TlsPolicy::Never
            });
        Ok(Self {
            connector: Connector::new(config)?,
            inbox: Inbox::new(vec![0; BUFFER]),
            contexts: Vec::new(),
        })
    }

    /// Continues in plain text until TLS is to be started, or to the end. If TLS is required,
    /// the first ends with `StartTls` or an error.
    pub(crate) async fn run(&mut self, stream: &mut impl Duplex) -> Result<(), Error> {
        let mut out = Vec::new();
        let mut failed = None;
        loop {
            let space = match self.inbox.receive(&mut self.connector)? {
                Step::Event(ConnectEvent::Ready) => return Ok(()),
                Step::Event(ConnectEvent::Failed { reason, message }) => {
                    let message = message.map(|text| Arc::from(text.to_string()));
                    failed = Some(Error::Connect { reason, message });
                    continue;
                }
                Step::Event(ConnectEvent::Context { id, name, .. }) => {
                    let name = name.to_string().into();
                    self.contexts.push(Context { name, id });
                    continue;
                }
                Step::Event(_) => continue,
                Step::Transmit => {
                    // All that is due with one write.
                    while self.connector.transmit(&mut out)? > 0 {}
                    let sent = stream.write_all(&out).await;
                    out.clear();
                    match failed {
                        // That was ABORT. The server need not have received it.
                        Some(error) => return Err(error),
                        None => sent?,
                    }
                    continue;
                }
                Step::StartTls => return Ok(()),
                Step::Read(n) => self.inbox.space_for(n),
                Step::Finished => {
                    return Err(failed.unwrap_or_else(|| nbd_codec::Error::Closed.into()));
                }
                other => return Err(SessionError::from(other.unexpected()).into()),
            };
            let n = stream.read(space).await?;
            self.inbox.filled(n)?;
        }
    }

    pub(crate) fn finish(self) -> Result<Opened, Error> {
        let negotiated = self.connector.into_negotiated();
        Ok(Opened {
            negotiated: negotiated.map_err(|_| SessionError::NotReady)?,
            contexts: self.contexts,
            inbox: self.inbox,
        })
    }
}
