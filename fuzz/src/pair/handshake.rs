//! The handshake of a script.

use nbd_codec::client::{Config, ConnectEvent, Connector, MetaContextQuery, TlsPolicy};
use nbd_codec::monitor;
use nbd_codec::server::{Export, Handshake, HandshakeEvent, TlsMode};
use nbd_codec::wire::number::{Cookie, OptionReplyType};
use nbd_codec::{Error, Framing, Limits, Negotiated, Step};

use super::script::{HandshakeSetup, Script};
use crate::client::handshake;
use crate::delivery::{Buffer, Delivery, Driver, Incoming, Next};
use crate::monitor::Watcher;
use crate::script::{framing, name};

/// The result on each side.
pub(super) struct Outcome {
    pub(super) client: Negotiated,
    pub(super) server: Negotiated,
    /// It has seen the handshake.
    pub(super) watcher: Watcher,
}

/// What both sides have.
struct Side {
    out: Vec<u8>,
    incoming: Incoming,
    error: Option<Error>,
    ready: bool,
    /// TLS is due.
    start_tls: bool,
    ended: usize,
}

struct Client<'a> {
    machine: Connector<'a>,
    side: Side,
    /// The attempt failed.
    failed: bool,
}

struct Server<'a> {
    machine: Handshake,
    side: Side,
    export: &'a Export<'a>,
}

/// Runs the handshake; `None` if it fails.
pub(super) fn run(script: &Script) -> Option<Outcome> {
    let handshake = &script.handshake;
    let contexts = handshake.export.contexts();
    let export = handshake.export.export(&contexts);
    let queries = queries(handshake);
    let config = config(handshake, &queries);
    let machine = if handshake.server.oldstyle() {
        Handshake::oldstyle(&export).ok()?
    } else {
        let config = handshake.server.config().limits(Limits::DEFAULT);
        Handshake::new(config).ok()?
    };
    let mut client = Client {
        machine: Connector::new(config).ok()?,
        side: Side::new(&script.down),
        failed: false,
    };
    let mut server = Server {
        machine,
        side: Side::new(&script.up),
        export: &export,
    };
    let mut left = match handshake.cut {
        0 => u64::MAX,
        cut => cut,
    };
    let mut watcher = Watcher::start();
    let whole = loop {
        client.resume();
        server.resume();
        let down = server.side.take_output(&mut left);
        let up = client.side.take_output(&mut left);
        watcher.offer(monitor::Side::Client, &up);
        watcher.offer(monitor::Side::Server, &down);
        assert!(watcher.findings.is_empty(), "{:?}", watcher.findings);
        client.deliver(&down);
        server.deliver(&up);
        if client.side.start_tls && server.side.start_tls {
            assert!(client.side.out.is_empty() && server.side.out.is_empty());
            client.side.start_tls = false;
            server.side.start_tls = false;
            assert_eq!(client.machine.tls_established(), Ok(()));
            assert_eq!(server.machine.tls_established(), Ok(()));
            assert_eq!(watcher.monitor.tls_established(), Ok(()));
            continue;
        }
        if left == 0 || client.side.error.is_some() || server.side.error.is_some() {
            break left > 0;
        }
        let idle = client.side.out.is_empty() && server.side.out.is_empty();
        if idle && up.is_empty() && down.is_empty() {
            break true;
        }
    };
    check_errors(client.side.error, server.side.error);
    let ready = client.side.ready && server.side.ready;
    if whole && must_succeed(handshake, &export) {
        assert!(ready, "the handshake fails");
    }
    if !ready {
        end_failed(client, server, whole);
        return None;
    }
    let buffered = (
        client.side.incoming.buffered(),
        server.side.incoming.buffered(),
    );
    assert_eq!(buffered, (0, 0), "unused bytes");
    let client = client.machine.into_negotiated().expect("a client");
    let server = server.machine.into_negotiated().expect("a server");
    compare(&client, &server);
    Some(Outcome {
        client,
        server,
        watcher,
    })
}

/// Contexts that are wide at the server are declared wide, or of unknown width.
fn queries(handshake: &HandshakeSetup) -> Vec<MetaContextQuery<'static>> {
    let mut setup = handshake.config.contexts.0.clone();
    for query in &mut setup {
        if query.name == 3 && query.width % 3 == 0 {
            query.width = 2;
        }
    }
    handshake::queries(&setup)
}

fn config<'a>(handshake: &HandshakeSetup, queries: &'a [MetaContextQuery<'a>]) -> Config<'a> {
    Config::new(name(handshake.config.export))
        .contexts(queries)
        .framing(framing(handshake.config.framing))
        .describe(handshake.config.describe)
        .tls(handshake::tls_policy(handshake.tls))
}

/// Neither side detects a protocol violation. Only `EXPORT_NAME` can end in a
/// server error, as it has no error reply.
fn check_errors(client: Option<Error>, server: Option<Error>) {
    let allowed = [None, Some(Error::TlsUnavailable)];
    assert!(allowed.contains(&client), "the client: {client:?}");
    let allowed = [None, Some(Error::ExportRefused), Some(Error::TlsRequired)];
    assert!(allowed.contains(&server), "the server: {server:?}");
}

/// Whether the handshake must succeed.
fn must_succeed(handshake: &HandshakeSetup, export: &Export) -> bool {
    let (client, server) = (&handshake.config, &handshake.server);
    if server.oldstyle() || !server.fixed || name(client.export) != export.name {
        return false;
    }
    let tls = match (handshake::tls_policy(handshake.tls), server.tls()) {
        (TlsPolicy::Never, TlsMode::Forced) | (TlsPolicy::Require, TlsMode::None) => return false,
        (TlsPolicy::Never, _) | (_, TlsMode::None) => false,
        _ => true,
    };
    let extended = framing(client.framing).min(server.framing()) == Framing::Extended;
    (tls || !export.requires_tls) && (extended || !export.requires_extended)
}

/// Ends both sides of a failed handshake.
fn end_failed(mut client: Client, mut server: Server, whole: bool) {
    let end = client.machine.end_of_input();
    let _ = server.machine.end_of_input();
    if client.failed {
        assert_eq!(end, Ok(()), "the client disconnected");
    }
    if whole && !client.failed && !client.side.ready {
        assert!(end.is_err(), "the client waits for no reply");
    }
    let ready = client.side.ready && end.is_ok();
    assert_eq!(client.machine.into_negotiated().is_ok(), ready);
}

fn compare(client: &Negotiated, server: &Negotiated) {
    assert_eq!(client.framing, server.framing);
    assert_eq!(client.size, server.size);
    assert_eq!(client.flags, server.flags);
    assert_eq!(client.tls, server.tls);
    assert_eq!(client.style, server.style);
    let ids = |negotiated: &Negotiated| -> Vec<_> {
        negotiated
            .contexts
            .iter()
            .map(|context| context.id)
            .collect()
    };
    assert_eq!(ids(client), ids(server));
    if client.block_sizes.is_some() {
        assert_eq!(client.block_sizes, server.block_sizes);
    }
}

impl Side {
    fn new(delivery: &Delivery) -> Self {
        Self {
            out: Vec::new(),
            incoming: Incoming::new(delivery, Limits::DEFAULT.buffer()),
            error: None,
            ready: false,
            start_tls: false,
            ended: 0,
        }
    }

    /// What was written, as far as the link's budget permits.
    fn take_output(&mut self, left: &mut u64) -> Vec<u8> {
        let n = self
            .out
            .len()
            .min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= n as u64;
        self.out.drain(..n).collect()
    }
}

/// The methods that do not depend on the side.
macro_rules! driver {
    () => {
        fn incoming(&mut self) -> &mut Incoming {
            &mut self.side.incoming
        }

        fn least_buffer(&self) -> usize {
            Limits::DEFAULT.buffer()
        }

        fn step(&mut self, buffer: &Buffer) -> Result<Next, Error> {
            let step = buffer.receive(&mut self.machine)?;
            match &step {
                Step::Event(event) => {
                    self.side.ended += 1;
                    self.event(event);
                }
                Step::Transmit => {
                    let written = self.machine.transmit(&mut self.side.out);
                    assert!(written.expect("room") > 0, "nothing to transmit");
                }
                Step::StartTls => self.side.start_tls = true,
                Step::Read(_) | Step::Finished => {}
                Step::Content(_) | Step::ReadPayload { .. } => panic!("payload in a handshake"),
            }
            Ok(Next::after(&step))
        }

        fn read_directly(&mut self, _: Cookie, _: u64, _: &[u8]) {
            panic!("payload in a handshake");
        }

        fn fail(&mut self, error: Error) {
            self.side.error = Some(error);
        }

        fn ended(&self) -> usize {
            self.side.ended
        }
    };
}

impl Driver for Client<'_> {
    driver!();
}

impl Client<'_> {
    fn event(&mut self, event: &ConnectEvent) {
        match event {
            ConnectEvent::Ready => self.side.ready = true,
            ConnectEvent::Failed { .. } => self.failed = true,
            _ => {}
        }
    }
}

impl Driver for Server<'_> {
    driver!();
}

impl Server<'_> {
    fn event(&mut self, event: &HandshakeEvent) {
        let (machine, out) = (&mut self.machine, &mut self.side.out);
        match event {
            HandshakeEvent::List => {
                machine.list(self.export, out).expect("an export");
                machine.finish_list(out).expect("the end of a list");
            }
            HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query) => {
                if query.export() == self.export.name {
                    machine.grant(query, self.export, out).expect("a reply");
                } else {
                    let error = OptionReplyType::ERR_UNKNOWN;
                    let refused = machine.refuse(error, "no such export", out);
                    refused.expect("a reply");
                }
            }
            HandshakeEvent::Ready { export } => {
                assert_eq!(*export, self.export.id);
                self.side.ready = true;
            }
            _ => {}
        }
    }
}
