//! One client, from its greeting to its end.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use nbd_codec::Negotiated;

use crate::budget::Budget;
use crate::handshake;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::reader::Reader;
use crate::server::Server;
use crate::socket::{End, Hurried, Socket, Watched};
use crate::team::Team;

pub struct Client {
    pub socket: Arc<Socket>,
    pub name: String,
}

impl Client {
    pub fn serve(&self, server: &Server) {
        server.note(|| format!("{}: connected", self.name));
        farewell(server, &self.name, self.try_serve(server));
        self.socket.shut_down(Shutdown::Both);
    }

    fn try_serve(&self, server: &Server) -> Result<String> {
        self.socket.prepare()?;
        let deadline = Instant::now() + server.handshake_timeout;
        let mut link = Hurried::new(Arc::clone(&self.socket), deadline);
        let mut inbox = Inbox::new();
        let shutting_down = || server.is_shutting_down();
        let negotiated = handshake::run(&mut link, &mut inbox, &server.export, shutting_down)
            .context("in the handshake")?;
        let Some(negotiated) = negotiated else {
            return Ok("left in the handshake".into());
        };
        server.note(|| format!("{}: {}", self.name, describe(&negotiated)));
        self.socket.set_patient()?;
        let (requests, end) = self.transmit(server, negotiated, inbox)?;
        end.with_context(|| format!("after {requests} requests"))?;
        Ok(format!("left after {requests} requests"))
    }

    fn transmit(
        &self,
        server: &Server,
        negotiated: Negotiated,
        inbox: Inbox,
    ) -> Result<(u64, Result<()>)> {
        let end = End(Arc::clone(&self.socket));
        let budget = Budget::new(server.export.payload_budget());
        let block = negotiated.constraints().minimum;
        let reader = Reader::new(
            Box::new(Watched::new(end.clone(), &server.crowd)),
            negotiated,
            inbox,
            budget,
        )?;
        let outbox = Outbox::new(Box::new(end));
        let team = Team::new(server, &self.socket, block, reader, outbox);
        Ok(team.run())
    }
}

/// Says how it ended with a client.
pub fn farewell(server: &Server, name: &str, end: Result<String>) {
    server.note(|| match end {
        Ok(text) => format!("{name}: {text}"),
        Err(error) if is_goodbye(&error) => format!("{name}: left without a word"),
        Err(error) => format!("{name}: {error:#}"),
    });
}

/// The client has gone, as clients do.
fn is_goodbye(error: &anyhow::Error) -> bool {
    let closed = matches!(
        error.downcast_ref::<nbd_codec::Error>(),
        Some(nbd_codec::Error::Closed)
    );
    let reset = error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        )
    });
    closed || reset
}

pub fn describe(negotiated: &Negotiated) -> String {
    let contexts = match negotiated.contexts.len() {
        0 => "no metadata context",
        _ => "base:allocation",
    };
    format!(
        "{} handshake, {} framing, {contexts}",
        negotiated.style, negotiated.framing
    )
}
