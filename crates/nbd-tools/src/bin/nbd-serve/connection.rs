//! One connection, from the greeting until it is closed.

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
use crate::server::{Registration, Server};
use crate::socket::{BusyPolling, Socket, Stream, WithDeadline};
use crate::workers::Workers;

pub struct Client {
    pub socket: Arc<Socket>,
    pub name: String,
    /// Removes the client from the list of the server when it is dropped.
    pub registration: Registration,
}

impl Client {
    pub fn serve(mut self) {
        let server = &*Arc::clone(&self.registration.server);
        server.report_verbose(|| format!("{}: connected", self.name));
        let end = self.try_serve(server);
        report_end(server, &self.name, end);
        self.socket.shut_down(Shutdown::Both);
    }

    fn try_serve(&mut self, server: &Server) -> Result<String> {
        self.socket.prepare()?;
        let deadline = Instant::now() + server.handshake_timeout;
        let mut link = WithDeadline::new(Arc::clone(&self.socket), deadline);
        let mut inbox = Inbox::new()?;
        let shutting_down = || server.is_shutting_down();
        let negotiated = handshake::run(&mut link, &mut inbox, &server.export, shutting_down)
            .context("in the handshake")?;
        let Some(negotiated) = negotiated else {
            return Ok("disconnected in the handshake".into());
        };
        self.registration.enter_transmission()?;
        server.report_verbose(|| format!("{}: {}", self.name, describe(&negotiated)));
        self.socket.set_transmission_timeouts()?;
        let (requests, end) = self.transmit(server, negotiated, inbox)?;
        end.with_context(|| format!("after {requests} requests"))?;
        Ok(format!("disconnected after {requests} requests"))
    }

    fn transmit(
        &self,
        server: &Server,
        negotiated: Negotiated,
        inbox: Inbox,
    ) -> Result<(u64, Result<()>)> {
        let end = Stream(Arc::clone(&self.socket));
        let budget = Budget::new(server.export.payload_budget(), &server.memory);
        let block = negotiated.constraints().minimum;
        let reader = Reader::new(
            Box::new(BusyPolling::new(end.clone(), &server.polling)),
            negotiated,
            inbox,
            budget,
        )?;
        let outbox = Outbox::new(Box::new(end));
        let workers = Workers::new(server, &self.socket, block, reader, outbox);
        Ok(workers.run())
    }
}

/// Reports how a connection ended.
fn report_end(server: &Server, name: &str, end: Result<String>) {
    server.report_verbose(|| match end {
        Ok(text) => format!("{name}: {text}"),
        Err(error) if is_abrupt_end(&error) => format!("{name}: disconnected without notice"),
        Err(error) => format!("{name}: {error:#}"),
    });
}

/// The client closed the connection without `NBD_OPT_ABORT` or `NBD_CMD_DISC`,
/// as many clients do.
fn is_abrupt_end(error: &anyhow::Error) -> bool {
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

fn describe(negotiated: &Negotiated) -> String {
    let contexts = match negotiated.contexts.len() {
        0 => "no metadata context",
        _ => "base:allocation",
    };
    format!(
        "{} handshake, {} framing, {contexts}",
        negotiated.style, negotiated.framing
    )
}
