//! The handshake of a script.

use nbd_codec::client::connect::{self, Connect, Plan, TlsPolicy};
use nbd_codec::client::handshake::ContextQuery;
use nbd_codec::server::handshake::Event;
use nbd_codec::server::{Export, Handshake, TlsMode};
use nbd_codec::wire::number::OptionReplyType;
use nbd_codec::{Error, Framing, Limits, Need, Negotiated};

use super::script::{HandshakeSetup, Script};
use crate::client::handshake;
use crate::delivery::{Driver, Incoming};
use crate::script::framing;
use crate::script::name;

/// The result on each side.
pub(super) struct Outcome {
    pub(super) client: Negotiated,
    pub(super) server: Negotiated,
}

struct Client<'a> {
    machine: Connect<'a>,
    out: Vec<u8>,
    /// The attempt failed.
    failed: bool,
    ready: bool,
    /// TLS is expected.
    tls: bool,
    ended: usize,
}

struct Server<'a> {
    machine: Handshake,
    export: &'a Export<'a>,
    out: Vec<u8>,
    ready: bool,
    tls: bool,
    ended: usize,
}

/// Runs the handshake; `None` if it fails.
pub(super) fn run(script: &Script) -> Option<Outcome> {
    let handshake = &script.handshake;
    let contexts = handshake.export.contexts();
    let export = handshake.export.export(&contexts);
    let queries = queries(handshake);
    let config = config(handshake, &queries);
    let mut server_config = handshake.server.config();
    server_config.limits = Limits::DEFAULT;
    let server = if handshake.server.oldstyle() {
        Handshake::oldstyle(&export).ok()?
    } else {
        Handshake::new(server_config).ok()?
    };
    let mut client = Client {
        machine: Connect::new(config).ok()?,
        out: Vec::new(),
        failed: false,
        ready: false,
        tls: false,
        ended: 0,
    };
    let mut server = Server {
        machine: server,
        export: &export,
        out: Vec::new(),
        ready: false,
        tls: false,
        ended: 0,
    };
    let (mut up, mut down) = (Incoming::new(&script.up), Incoming::new(&script.down));
    let mut left = match handshake.cut {
        0 => u64::MAX,
        cut => cut,
    };
    server.transmit();
    let whole = loop {
        let sent = transfer(&mut server.out, &mut down, &mut client, &mut left);
        client.transmit();
        let replied = transfer(&mut client.out, &mut up, &mut server, &mut left);
        if client.tls && server.tls {
            assert!(client.out.is_empty() && server.out.is_empty());
            client.tls = false;
            server.tls = false;
            assert_eq!(client.machine.tls_established(), Ok(()));
            assert_eq!(server.machine.tls_established(), Ok(()));
            client.transmit();
        }
        down.receive_all(&mut client);
        up.receive_all(&mut server);
        if left == 0 || up.error.is_some() || down.error.is_some() {
            break left > 0;
        }
        let idle = client.out.is_empty() && server.out.is_empty();
        if !sent && !replied && idle {
            break true;
        }
    };
    check_errors(down.error, up.error);
    if whole && must_succeed(&config, handshake, &export) {
        assert!(client.ready && server.ready, "the handshake fails");
    }
    if !(client.ready && server.ready) {
        end_failed(client, server, whole);
        return None;
    }
    assert_eq!((up.buffered(), down.buffered()), (0, 0), "unused bytes");
    let client = client.machine.into_negotiated().expect("a client");
    let server = server.machine.into_negotiated().expect("a server");
    compare(&client, &server);
    Some(Outcome { client, server })
}

/// Contexts that are wide at the server are declared wide, or of unknown width.
fn queries(handshake: &HandshakeSetup) -> Vec<ContextQuery<'static>> {
    let mut setup = handshake.config.contexts.0.clone();
    for query in &mut setup {
        if query.name == 3 && query.width % 3 == 0 {
            query.width = 2;
        }
    }
    handshake::queries(&setup)
}

fn config<'a>(handshake: &HandshakeSetup, queries: &'a [ContextQuery<'a>]) -> Plan<'a> {
    let mut config = Plan::new(name(handshake.config.export));
    config.contexts = queries;
    config.framing = framing(handshake.config.framing);
    config.describe = handshake.config.describe;
    config.tls = match handshake.tls % 3 {
        0 => TlsPolicy::Never,
        1 => TlsPolicy::Prefer,
        _ => TlsPolicy::Require,
    };
    config
}

/// Delivers what was written, as far as the link's budget permits; true if
/// there was anything.
fn transfer(
    out: &mut Vec<u8>,
    incoming: &mut Incoming,
    to: &mut impl Driver,
    left: &mut u64,
) -> bool {
    let n = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= n as u64;
    let bytes: Vec<u8> = out.drain(..n).collect();
    incoming.deliver(to, &bytes);
    n > 0
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
fn must_succeed(config: &Plan, handshake: &HandshakeSetup, export: &Export) -> bool {
    let server = handshake.server.config();
    if handshake.server.oldstyle() || !server.fixed || config.export != export.name {
        return false;
    }
    let tls = match (config.tls, server.tls) {
        (TlsPolicy::Never, TlsMode::Forced) | (TlsPolicy::Require, TlsMode::None) => return false,
        (TlsPolicy::Never, _) | (_, TlsMode::None) => false,
        _ => true,
    };
    let extended = config.framing.min(server.framing) == Framing::Extended;
    (tls || !export.requires_tls) && (extended || !export.requires_extended)
}

/// Ends both sides of a failed handshake.
fn end_failed(mut client: Client, mut server: Server, whole: bool) {
    let end = client.machine.end_of_input();
    let _ = server.machine.end_of_input();
    if client.failed {
        assert_eq!(end, Ok(()), "the client disconnected");
    }
    if whole && !client.failed && !client.ready {
        assert!(end.is_err(), "the client waits for no reply");
    }
    let ready = client.ready && end.is_ok();
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

impl Client<'_> {
    fn transmit(&mut self) {
        while self.machine.transmit(&mut self.out).expect("room") > 0 {}
    }
}

impl Server<'_> {
    fn transmit(&mut self) {
        self.machine.transmit(&mut self.out).expect("room");
    }
}

impl Driver for Client<'_> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let Some(event) = self.machine.receive(input)? else {
            let before = self.out.len();
            self.transmit();
            return Ok(self.out.len() > before);
        };
        match event {
            connect::Event::StartTls => self.tls = true,
            connect::Event::Ready => self.ready = true,
            connect::Event::Failed { .. } => self.failed = true,
            _ => {}
        }
        self.ended += 1;
        Ok(true)
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    fn check_need(&self, need: Need, buffered: usize) {
        match need {
            Need::Header(n) => assert!(n > buffered, "needs {n} bytes, has {buffered}"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            Need::Nothing => assert!(buffered == 0, "unused bytes"),
        }
    }

    fn read_directly(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.ended
    }
}

impl Driver for Server<'_> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let Some(event) = self.machine.receive(input)? else {
            let before = self.out.len();
            self.transmit();
            return Ok(self.out.len() > before);
        };
        match event {
            Event::List => {
                self.machine
                    .list(self.export, &mut self.out)
                    .expect("an export");
                self.machine.done(&mut self.out).expect("the end of a list");
            }
            Event::Export(inquiry) | Event::MetaContexts(inquiry) => {
                let result = if inquiry.export() == self.export.name {
                    self.machine.grant(&inquiry, self.export, &mut self.out)
                } else {
                    let unknown = OptionReplyType::ERR_UNKNOWN;
                    self.machine
                        .refuse(unknown, "no such export", &mut self.out)
                };
                result.expect("an answer");
            }
            Event::StartTls => self.tls = true,
            Event::Ready => self.ready = true,
            _ => {}
        }
        self.ended += 1;
        Ok(true)
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    fn check_need(&self, need: Need, buffered: usize) {
        match need {
            Need::Header(n) => assert!(n > buffered, "needs {n} bytes, has {buffered}"),
            Need::Payload { .. } => panic!("payload in a handshake"),
            Need::Nothing => assert!(buffered == 0, "unused bytes"),
        }
    }

    fn read_directly(&mut self, _: &[u8]) {
        panic!("payload in a handshake");
    }

    fn ended(&self) -> usize {
        self.ended
    }
}
