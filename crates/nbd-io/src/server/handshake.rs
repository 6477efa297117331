//! The handshake of a connection, over any stream.

use std::io;
use std::sync::Arc;

use nbd_codec::inbox::Inbox;
use nbd_codec::server::{ExportQuery, Handshake, HandshakeEvent};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Limits, Negotiated, Step};

use super::export::AnyDevice;
use super::{Client, Export, Server};
use crate::duplex::Duplex;

/// How far a handshake has come.
pub(super) enum Progress {
    /// Run TLS on the stream, then go on.
    StartTls,
    /// The client has chosen an export.
    Ready(Box<Chosen>),
    /// The client has aborted the handshake.
    Ended,
}

/// What a handshake results in.
pub(super) struct Chosen {
    pub(super) negotiated: Negotiated,
    pub(super) device: Arc<dyn AnyDevice>,
    /// What was received after the handshake.
    pub(super) received: Vec<u8>,
}

/// The handshake of one connection.
pub(super) struct Negotiation {
    server: Server,
    pub(super) client: Client,
    machine: Handshake,
    inbox: Inbox<Vec<u8>>,
    /// The export that the client asked for last, by the name it has for it.
    export: Option<(String, Export)>,
}

impl Negotiation {
    pub(super) fn new(server: &Server, client: Client) -> io::Result<Self> {
        Ok(Self {
            machine: server.handshake()?,
            server: server.clone(),
            client,
            inbox: Inbox::new(vec![0; Limits::DEFAULT.buffer()]),
            export: None,
        })
    }

    /// The outcome of TLS: false if it failed.
    #[cfg(feature = "tls")]
    pub(super) fn tls(&mut self, established: bool) -> io::Result<()> {
        if !established {
            self.machine.tls_failed();
            return Ok(());
        }
        self.client.tls = true;
        self.export = None;
        Ok(self.machine.tls_established()?)
    }

    /// Continues on `link`.
    pub(super) async fn run(&mut self, link: &mut impl Duplex) -> io::Result<Progress> {
        let mut out = Vec::new();
        loop {
            if self.server.is_shutting_down() {
                self.machine.shut_down();
            }
            match self.inbox.receive(&mut self.machine)? {
                Step::Event(HandshakeEvent::List) => {
                    let maximum = self.server.payload();
                    for export in self.server.exports().listed(&self.client) {
                        export.describe(maximum, |export| self.machine.list(export, &mut out))?;
                    }
                    self.machine.finish_list(&mut out)?;
                }
                Step::Event(
                    HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query),
                ) => {
                    let client = &self.client;
                    find(&self.server, client, &query, &mut self.export).await;
                    let export = self.export.as_ref().map(|(_, export)| export);
                    answer(&self.server, &mut self.machine, &query, export, &mut out)?;
                }
                Step::Event(HandshakeEvent::Ready { .. }) => {
                    let Some((_, export)) = &self.export else {
                        return Err(io::ErrorKind::NotFound.into());
                    };
                    return Ok(Progress::Ready(Box::new(Chosen {
                        negotiated: *self.machine.agreed(),
                        device: export.device(),
                        received: self.inbox.held().to_vec(),
                    })));
                }
                Step::Event(_) => {} // Aborted: `Finished` follows.
                Step::Transmit => drop(self.machine.transmit(&mut out)?),
                Step::Read(_) => {
                    let space = self.inbox.space();
                    let n = link.read(space).await?;
                    self.inbox.filled(n)?;
                }
                Step::StartTls => return Ok(Progress::StartTls),
                Step::Finished => return Ok(Progress::Ended),
                other => return Err(other.unexpected().into()),
            }
            if !out.is_empty() {
                link.write_all(&out).await?;
                out.clear();
            }
        }
    }
}

/// Finds the export of a query, unless it was found for the query before.
async fn find(
    server: &Server,
    client: &Client,
    query: &ExportQuery<'_>,
    export: &mut Option<(String, Export)>,
) {
    let name = query.export();
    if export.as_ref().is_none_or(|(known, _)| known != name) {
        let found = server.exports().find(name, client).await;
        *export = found.map(|export| (name.to_owned(), export));
    }
}

fn answer(
    server: &Server,
    machine: &mut Handshake,
    query: &ExportQuery<'_>,
    export: Option<&Export>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    match export {
        Some(export) => {
            export.describe(server.payload(), |export| machine.grant(query, export, out))?;
        }
        None => {
            machine.refuse(OptionReplyType::ERR_UNKNOWN, "no such export", out)?;
        }
    }
    Ok(())
}
