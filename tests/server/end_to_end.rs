//! The client role against the server role, in memory, in every framing.

use nbd_codec::client::{self, ConnectEvent, Connector, MetaContextQuery, Slot, TlsPolicy};
use nbd_codec::server::{
    self, Export, Handshake, HandshakeEvent, MetaContext, ReadRequest, Request, TlsMode, narrow,
};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{ContextId, Cookie, ErrorValue};
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Error, Framing, Limits, Misuse, Negotiated, Receive, Step};

const SIZE: usize = 1 << 20;
const EXPORT_ID: usize = 7;
const CONTEXTS: &[MetaContext<'_>] = &[
    MetaContext::narrow("x-a:zero"),
    MetaContext::narrow("base:allocation"),
    MetaContext::wide("x-a:wide"),
];
const WANTED: &[MetaContextQuery<'_>] = &[
    MetaContextQuery::narrow("base:allocation"),
    MetaContextQuery::wide("x-a:wide"),
];

fn export() -> Export<'static> {
    let mut flags = TransmissionFlags::KNOWN;
    flags.0 &= !TransmissionFlags::READ_ONLY.0;
    let mut export = Export::new("disk", SIZE as u64, flags);
    export.id = EXPORT_ID;
    export.description = "in memory";
    export.contexts = CONTEXTS;
    export.block_sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 1 << 18,
    };
    export
}

/// Bytes in transit, delivered in pieces of `step` bytes.
struct Pipe {
    bytes: Vec<u8>,
    held: Vec<u8>,
    step: usize,
}

impl Pipe {
    fn new(step: usize) -> Self {
        let (bytes, held) = (Vec::new(), Vec::new());
        Self { bytes, held, step }
    }

    /// Delivers one piece; false if none is in transit.
    fn deliver(&mut self) -> bool {
        let n = self.step.min(self.bytes.len());
        self.held.extend(self.bytes.drain(..n));
        n > 0
    }

    /// Takes a step with the delivered bytes, and hands it to `act`. The bytes
    /// that it consumed are removed.
    fn step<M: Receive, T>(
        &mut self,
        machine: &mut M,
        act: impl FnOnce(&mut M, Step<M::Event<'_>, &[u8]>) -> T,
    ) -> T {
        let mut input = &self.held[..];
        let step = machine.receive(&mut input).unwrap();
        let result = act(machine, step);
        let used = self.held.len() - input.len();
        self.held.drain(..used);
        result
    }
}

/// Negotiates, and returns the results of client and server.
fn negotiate(
    client: client::Config<'_>,
    server: server::Config,
    step: usize,
) -> (Negotiated, Negotiated) {
    let mut client = Connector::new(client).unwrap();
    let mut server = Handshake::new(server).unwrap();
    let (mut up, mut down) = (Pipe::new(step), Pipe::new(step));
    for _ in 0..100_000 {
        let out = &mut up.bytes;
        while down.step(&mut client, |client, step| client_step(client, step, out)) {}
        let out = &mut down.bytes;
        while up.step(&mut server, |server, step| server_step(server, step, out)) {}
        if !(up.deliver() | down.deliver()) {
            let client = client.into_negotiated().unwrap();
            return (client, server.into_negotiated().unwrap());
        }
    }
    panic!("the handshake does not end");
}

/// Whether there may be another step without input.
fn client_step(
    client: &mut Connector<'_>,
    step: Step<ConnectEvent<'_>, &[u8]>,
    out: &mut Vec<u8>,
) -> bool {
    match step {
        Step::Event(ConnectEvent::Failed { reason, .. }) => panic!("{reason}"),
        Step::Event(_) => {}
        Step::Transmit => drop(client.transmit(out).unwrap()),
        Step::StartTls => client.tls_established().unwrap(),
        Step::Read(_) | Step::Finished => return false,
        other => panic!("{other:?}"),
    }
    true
}

fn server_step(
    server: &mut Handshake,
    step: Step<HandshakeEvent<'_>, &[u8]>,
    out: &mut Vec<u8>,
) -> bool {
    use HandshakeEvent as E;
    match step {
        Step::Event(E::Export(query) | E::MetaContexts(query)) => {
            assert_eq!(query.export(), "disk");
            let unanswered = server.receive(&mut &[][..]);
            assert_eq!(unanswered, Err(Error::Unanswered));
            let granted = server.grant(&query, &export(), out).unwrap();
            assert_eq!(granted.starts_transmission, query.starts_transmission());
        }
        Step::Event(E::Ready { export }) => assert_eq!(export, EXPORT_ID),
        Step::Transmit => drop(server.transmit(out).unwrap()),
        Step::StartTls => server.tls_established().unwrap(),
        Step::Read(_) | Step::Finished => return false,
        other => panic!("{other:?}"),
    }
    true
}

/// A client, a server, and the server's disk.
struct Session {
    client: client::Transmission<Vec<Slot>>,
    server: server::Transmission,
    disk: Vec<u8>,
    up: Pipe,
    down: Pipe,
    /// Offset and payload of the write being received.
    incoming: (u64, Vec<u8>),
    /// Pending requests; the last is answered first.
    waiting: Vec<(Request, Vec<u8>)>,
}

/// The result of a command.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    data: Vec<u8>,
    extents: Vec<(u32, u64, Extent64)>,
    error: Option<ErrorValue>,
}

impl Session {
    fn new(framing: Framing, step: usize) -> Self {
        let config = client::Config::new("disk")
            .framing(framing)
            .contexts(WANTED);
        let (client, server) = negotiate(config, server::Config::new(), step);
        Self {
            client: client::Transmission::new(client, vec![Slot::EMPTY; 8], Limits::DEFAULT),
            server: server::Transmission::new(server, Limits::DEFAULT).unwrap(),
            disk: (0..SIZE).map(|at| (at / 512) as u8).collect(),
            up: Pipe::new(step),
            down: Pipe::new(step),
            incoming: (0, Vec::new()),
            waiting: Vec::new(),
        }
    }

    fn submit(&mut self, request: client::Request, payload: &[u8]) -> Cookie {
        let header = self.client.submit(request).unwrap();
        assert_eq!(header.payload_length() as usize, payload.len());
        self.up.bytes.extend(header.as_bytes());
        self.up.bytes.extend(payload);
        header.cookie()
    }

    fn run(&mut self, request: client::Request, payload: &[u8]) -> Outcome {
        let cookie = self.submit(request, payload);
        self.outcome(cookie)
    }

    /// Runs both sides until a command is complete.
    fn outcome(&mut self, wanted: Cookie) -> Outcome {
        let mut outcome = Outcome::default();
        for _ in 0..10_000_000 {
            self.serve();
            if self.receive_replies(wanted, &mut outcome) {
                return outcome;
            }
            let moved = self.up.deliver() | self.down.deliver();
            assert!(moved || !self.waiting.is_empty(), "deadlock");
            if !moved {
                self.answer_last();
            }
        }
        panic!("the command does not complete");
    }

    /// Receives the replies that were delivered; true if the command is
    /// complete.
    fn receive_replies(&mut self, wanted: Cookie, outcome: &mut Outcome) -> bool {
        use client::TransmissionEvent as E;
        loop {
            let done = self.down.step(&mut self.client, |_, step| {
                match step {
                    Step::Content(content) if content.cookie() == wanted => {
                        outcome.data.resize(SIZE, 0xee);
                        assert!(content.copy_to(0, &mut outcome.data));
                    }
                    Step::Event(E::Extents32 {
                        context, extents, ..
                    }) => outcome
                        .extents
                        .extend(extents.map(|it| (context.0, 32, it.into()))),
                    Step::Event(E::Extents64 {
                        context, extents, ..
                    }) => outcome
                        .extents
                        .extend(extents.map(|it| (context.0, 64, it))),
                    Step::Event(E::Done { cookie, result }) if cookie == wanted => {
                        outcome.error = result.err();
                        return Some(true);
                    }
                    Step::Event(E::Done { .. } | E::Error { .. }) | Step::Content(_) => {}
                    Step::Read(_) | Step::ReadPayload { .. } => return Some(false),
                    other => panic!("{other:?}"),
                }
                None
            });
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// Receives the requests that were delivered.
    fn serve(&mut self) {
        use server::TransmissionEvent as E;
        let (incoming, waiting) = (&mut self.incoming, &mut self.waiting);
        let out = &mut self.down.bytes;
        while self.up.step(&mut self.server, |_, step| {
            match step {
                Step::Event(E::WritePayload { offset, length, .. }) => {
                    *incoming = (offset, vec![0xee; length as usize]);
                }
                Step::Content(content) => {
                    assert!(content.copy_to(incoming.0, &mut incoming.1));
                }
                Step::Event(E::Request(request)) => {
                    let payload = match request {
                        Request::Write(_) => std::mem::take(&mut incoming.1),
                        _ => Vec::new(),
                    };
                    waiting.push((request, payload));
                }
                Step::Event(E::Answered { reply, .. }) => drop(reply.encode(out).unwrap()),
                Step::Event(E::Disconnect) => {}
                Step::Read(_) | Step::ReadPayload { .. } | Step::Finished => return false,
                other => panic!("{other:?}"),
            }
            true
        }) {}
    }

    fn answer_last(&mut self) {
        let (request, payload) = self.waiting.pop().unwrap();
        let range = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
        let (disk, out) = (&mut self.disk, &mut self.down.bytes);
        let reply = match request {
            Request::Read(read) => return answer_read(read, disk, out),
            Request::Write(it) => {
                disk[range(it.offset(), it.length())].copy_from_slice(&payload);
                it.succeed()
            }
            Request::WriteZeroes(it) if it.fast_zero() => {
                it.fail(ErrorValue::ENOTSUP, "not faster")
            }
            Request::WriteZeroes(it) => {
                disk[range(it.offset(), it.length())].fill(0);
                it.succeed()
            }
            Request::Trim(it) => it.succeed(),
            Request::Cache(it) => it.succeed(),
            Request::Flush(it) => it.succeed(),
            Request::Resize(it) if it.size() > SIZE as u64 => it.fail(ErrorValue::ENOSPC, "full"),
            Request::Resize(it) => self.server.resized(it),
            Request::BlockStatus32(mut it) => loop {
                let id = it.contexts().next().unwrap();
                let map = map(disk, it.offset(), id).into_iter();
                let map = map.flat_map(|extent| narrow::split(extent).unwrap());
                match it.reply_truncated(id, map, out).unwrap() {
                    Some(more) => it = more,
                    None => return,
                }
            },
            Request::BlockStatus64(mut it) => loop {
                let id = it.contexts().next().unwrap();
                let map = map(disk, it.offset(), id).into_iter();
                match it.reply_truncated(id, map, out).unwrap() {
                    Some(more) => it = more,
                    None => return,
                }
            },
            other => panic!("{other:?}"),
        };
        reply.encode(out).unwrap();
    }
}

/// Replies in chunks of 4 KiB if the framing has them, zeroes as holes.
fn answer_read(read: ReadRequest, disk: &[u8], out: &mut Vec<u8>) {
    let (from, length) = (read.offset() as usize, read.length() as usize);
    let piece = if read.dont_fragment() { length } else { 4096 };
    match read.into_chunks() {
        Err(read) => {
            out.extend(read.data().as_bytes());
            out.extend(&disk[from..from + length]);
        }
        Ok(mut chunks) => {
            // Last chunk first: content may come in any order.
            let pieces: Vec<_> = (from..from + length).step_by(piece).collect();
            for at in pieces.into_iter().rev() {
                let data = &disk[at..(at + piece).min(from + length)];
                let (offset, n) = (at as u64, data.len() as u32);
                if data.iter().all(|byte| *byte == 0) {
                    chunks.hole(offset, n).unwrap().encode(out).unwrap();
                } else {
                    out.extend(chunks.data(offset, n).unwrap().as_bytes());
                    out.extend(data);
                }
            }
            chunks.finish().unwrap().encode(out).unwrap();
        }
    }
}

/// The extents of one context from an offset on, in blocks of 512 bytes.
fn map(disk: &[u8], offset: u64, context: ContextId) -> Vec<Extent64> {
    let flags = |block: &[u8]| match (context.0, block.iter().all(|byte| *byte == 0)) {
        (1, zero) => u64::from(zero) * 3,
        (2, _) => 1 << 40 | u64::from(block[0]),
        other => panic!("{other:?}"),
    };
    let mut map: Vec<Extent64> = Vec::new();
    for block in disk[offset as usize..].chunks(512) {
        let flags = flags(block);
        let length = block.len() as u64;
        match map.last_mut().filter(|last| last.flags == flags) {
            Some(last) => last.length += length,
            None => map.push(Extent64 { length, flags }),
        }
    }
    map
}

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];
/// Bytes in a delivered piece.
const STEPS: [usize; 4] = [1, 7, 1000, usize::MAX];

#[test]
fn both_roles_negotiate_the_same() {
    for offered in FRAMINGS {
        for wanted in FRAMINGS {
            for step in STEPS {
                let config = client::Config::new("disk")
                    .framing(wanted)
                    .contexts(WANTED)
                    .describe(true);
                let offer = server::Config::new().framing(offered);
                let (client, server) = negotiate(config, offer, step);
                assert_eq!(client.framing, offered.min(wanted));
                assert_eq!(client, server);
                let contexts = match client.framing {
                    Framing::Simple => 0,
                    Framing::Structured => 1,
                    Framing::Extended => 2,
                };
                assert_eq!(client.contexts.len(), contexts);
            }
        }
    }
}

#[test]
fn both_roles_negotiate_the_same_over_tls_and_in_newstyle() {
    let config = client::Config::new("disk")
        .tls(TlsPolicy::Require)
        .contexts(WANTED);
    let offer = server::Config::new().tls(TlsMode::Forced);
    let (client, server) = negotiate(config, offer, usize::MAX);
    assert!(client.tls && client.contexts.len() == 2);
    assert_eq!(client, server);

    for no_zeroes in [false, true] {
        let offer = server::Config::new()
            .fixed_newstyle(false)
            .no_zeroes(no_zeroes);
        let (client, mut server) = negotiate(client::Config::new("disk"), offer, 1);
        // EXPORT_NAME does not report the block sizes; the server enforces them.
        assert_eq!(server.block_sizes.take(), Some(export().block_sizes));
        assert_eq!(client, server);
    }
}

#[test]
fn every_command_in_every_framing() {
    for framing in FRAMINGS {
        for step in STEPS {
            every_command(&mut Session::new(framing, step), framing);
        }
    }
}

fn every_command(session: &mut Session, framing: Framing) {
    use client::Request as R;
    let ok = Outcome::default();
    let failed = |error| Outcome {
        error: Some(error),
        ..Outcome::default()
    };
    let fresh = session.disk.clone();
    let seen = session.run(R::read(1024, 8192), &[]);
    assert_eq!(seen.error, None);
    assert_eq!(seen.data[1024..9216], fresh[1024..9216]);
    // Data and holes.
    assert_eq!(session.run(R::write_zeroes(4096, 8192), &[]), ok);
    assert_eq!(session.run(R::write(4096, 512), &[9; 512]), ok);
    let fua = R::write(8192, 512).with_flags(CommandFlags::FUA);
    assert_eq!(session.run(fua, &[8; 512]), ok);
    let seen = session.run(R::read(0, 16384), &[]);
    assert_eq!(seen.data[..16384], session.disk[..16384]);
    assert_eq!(seen.data[4096..4608], [9; 512]);
    assert_eq!(seen.data[4608..8192], [0; 3584]);
    let fast = R::write_zeroes(0, 512).with_flags(CommandFlags::FAST_ZERO);
    assert_eq!(session.run(fast, &[]), failed(ErrorValue::ENOTSUP));
    assert_eq!(session.run(R::flush(), &[]), ok);
    assert_eq!(session.run(R::trim(0, 512), &[]), ok);
    assert_eq!(session.run(R::cache(0, SIZE as u64), &[]), ok);
    let refused = R::resize(SIZE as u64 * 2);
    assert_eq!(session.run(refused, &[]), failed(ErrorValue::ENOSPC));
    if framing != Framing::Simple {
        let whole = R::read(0, 65536).with_flags(CommandFlags::DF);
        let seen = session.run(whole, &[]);
        assert_eq!(seen.data[..65536], session.disk[..65536]);
        status(session, framing);
    }
    assert_eq!(session.run(R::resize(SIZE as u64 / 2), &[]), ok);
    assert_eq!(session.client.negotiated().size, SIZE as u64 / 2);
    assert_eq!(session.server.negotiated().size, SIZE as u64 / 2);
    let beyond = Misuse::OutOfBounds {
        size: SIZE as u64 / 2,
    };
    assert_eq!(
        session.client.submit(R::read(SIZE as u64 / 2, 512)),
        Err(beyond)
    );
    out_of_order(session);
    let header = session.client.disconnect().unwrap();
    session.up.bytes.extend(header.as_bytes());
    while session.up.deliver() {
        session.serve();
    }
    for _ in 0..3 {
        assert_eq!(session.server.end_of_input(), Ok(()));
    }
}

/// Block status arrives as it was answered, in the width of the framing.
fn status(session: &mut Session, framing: Framing) {
    use client::Request as R;
    let seen = session.run(R::block_status(4096, 8192), &[]);
    let of = |context, bits, length, flags| (context, bits, Extent64 { length, flags });
    let bits = if framing == Framing::Extended { 64 } else { 32 };
    let mut expected = vec![
        of(1, bits, 512, 0),
        of(1, bits, 3584, 3),
        of(1, bits, 512, 0),
        of(1, bits, 3584, 3),
    ];
    if framing == Framing::Extended {
        expected.extend([
            of(2, 64, 512, 1 << 40 | 9),
            of(2, 64, 3584, 1 << 40),
            of(2, 64, 512, 1 << 40 | 8),
            of(2, 64, 3584, 1 << 40),
        ]);
    }
    assert_eq!(seen.extents, expected);
    let one = R::block_status(4608, 512).with_flags(CommandFlags::REQ_ONE);
    let seen = session.run(one, &[]);
    assert_eq!(seen.extents[0], of(1, bits, 512, 3));
    if framing == Framing::Extended {
        let mut payload = Vec::new();
        let some = [ContextId(2)];
        let none = CommandFlags::NONE;
        let header = session
            .client
            .block_status_of(&some, 4096, 512, none, &mut payload)
            .unwrap();
        session.up.bytes.extend(header.as_bytes());
        session.up.bytes.extend(payload);
        let seen = session.outcome(header.cookie());
        assert_eq!(seen.extents, [of(2, 64, 512, 1 << 40 | 9)]);
    }
}

/// Several writes in flight; the last is answered first.
fn out_of_order(session: &mut Session) {
    use client::Request as R;
    let writes: Vec<_> = (0..4u8)
        .map(|at| {
            let request = R::write(u64::from(at) * 512, 512);
            session.submit(request, &[at + 100; 512])
        })
        .collect();
    for cookie in writes.into_iter().take(1) {
        let seen = session.outcome(cookie);
        assert_eq!(seen.error, None);
    }
    assert_eq!(session.client.in_flight(), 0);
    for at in 0..4u8 {
        assert_eq!(session.disk[usize::from(at) * 512], at + 100);
    }
}
