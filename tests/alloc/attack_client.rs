//! Attacks on the state machines of the client.

use std::collections::BTreeSet;

use nbd_codec::client::{
    Config, Connector, Handshake, MetaContextQuery, Request, Slot, TlsPolicy, Transmission,
};
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::number::{ChunkType, Command, ContextId, Cookie, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest, Queries};
use nbd_codec::wire::reply::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use nbd_codec::{Error, Framing, Negotiated, SelectedContext, StatusWidth, Step};

use super::attack::{
    LIMITS, Next, Target, assert_states, attack, lengths, on_a_small_stack, wide_lengths,
};

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// A greeting of fixed newstyle.
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

const OLDSTYLE: &[u8] = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53";

/// The header of a reply to an option.
fn reply(option: OptionType, kind: u32, length: u32) -> Vec<u8> {
    let mut header = REPLY_MAGIC.to_be_bytes().to_vec();
    header.extend(option.0.to_be_bytes());
    header.extend(kind.to_be_bytes());
    header.extend(length.to_be_bytes());
    header
}

/// Every reply type, and unknown ones.
fn reply_types() -> impl Iterator<Item = u32> {
    (0..=5).chain([99, 0x8000_0000, 0x8000_0001, 0x8000_0007, u32::MAX])
}

/// The replies that grant an export: its size, and `ACK`.
fn granted() -> Vec<u8> {
    let go = OptionType::GO;
    [reply(go, 3, 12), vec![0; 12], reply(go, 1, 0)].concat()
}

// -------------------------------------------------------- manual handshake

impl Target for Handshake {
    fn receive(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        match self.receive(input) {
            // The caller sends nothing more.
            Err(Error::Unanswered) => Ok(Next::Stop),
            step => Ok(Next::of(&step?)),
        }
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.end_of_input()
    }
}

const CONFIG: Config<'static> = Config::new("disk").limits(LIMITS);

fn greeted(wanted: ClientFlags) -> Handshake {
    let mut machine = Handshake::new(&CONFIG);
    let mut input = GREETING;
    assert!(matches!(machine.receive(&mut input), Ok(Step::Event(_))));
    let mut out = [0; 4];
    let written = machine.send_client_flags(wanted, &mut out.as_mut_slice());
    assert_eq!(written, Ok(4));
    machine
}

/// Sends an option, after `STRUCTURED_REPLY` if it needs that.
fn asked(request: &OptionRequest<'_>, wanted: ClientFlags) -> Handshake {
    let mut machine = greeted(wanted);
    let mut out = [0; 128];
    let needs_chunks = [OptionType::LIST_META_CONTEXT, OptionType::SET_META_CONTEXT];
    if needs_chunks.contains(&request.option()) {
        let option = OptionRequest::StructuredReply;
        machine.send(&option, &mut out.as_mut_slice()).unwrap();
        let ack = reply(OptionType::STRUCTURED_REPLY, 1, 0);
        let step = machine.receive(&mut &ack[..]);
        assert!(matches!(step, Ok(Step::Event(_))));
    }
    machine.send(request, &mut out.as_mut_slice()).unwrap();
    machine
}

fn options() -> [OptionRequest<'static>; 10] {
    let info = InfoRequest {
        export: "disk".into(),
        requests: [].as_slice().into(),
    };
    let contexts = MetaContextRequest {
        export: "disk".into(),
        queries: Queries::NONE,
    };
    [
        OptionRequest::Abort,
        OptionRequest::List,
        OptionRequest::StartTls,
        OptionRequest::Info(info),
        OptionRequest::Go(info),
        OptionRequest::StructuredReply,
        OptionRequest::ListMetaContext(contexts),
        OptionRequest::SetMetaContext(contexts),
        OptionRequest::ExtendedHeaders,
        OptionRequest::Other {
            option: OptionType(99),
            data: b"disk",
        },
    ]
}

fn handshakes(states: &mut BTreeSet<String>) {
    let new = || Handshake::new(&CONFIG);
    for header in [
        &b""[..],
        b"NBDMAGIC",
        b"NBDMAGICIHAVEOPT",
        GREETING,
        OLDSTYLE,
    ] {
        attack(new, header, states);
    }
    // The server must not send anything now.
    attack(|| greeted(ClientFlags::KNOWN), b"", states);
    let export_name = OptionRequest::ExportName("disk".into());
    for wanted in [ClientFlags::KNOWN, ClientFlags::FIXED_NEWSTYLE] {
        attack(|| asked(&export_name, wanted), b"", states);
    }
    for request in options() {
        for kind in reply_types() {
            for length in lengths() {
                let header = reply(request.option(), kind, length);
                attack(|| asked(&request, ClientFlags::KNOWN), &header, states);
            }
        }
        let other = reply(OptionType(12), 1, 0);
        attack(|| asked(&request, ClientFlags::KNOWN), &other, states);
    }
    let go = options()[4];
    attack(|| asked(&go, ClientFlags::KNOWN), &granted(), states);
}

#[test]
fn handshake() {
    on_a_small_stack(|| {
        let mut states = BTreeSet::new();
        handshakes(&mut states);
        assert_states(
            &states,
            &[
                "Greeting",
                "ClientFlags",
                "Idle",
                "Replies",
                "ExportName",
                "Zeroes",
                "Discard",
                "Tls",
                "Ready",
                "Ready, reported",
                "Aborted",
            ],
        );
    });
}

// ----------------------------------------------------- automatic handshake

/// A connector whose TLS always succeeds.
#[derive(Debug)]
struct Automatic(Connector<'static>);

impl Target for Automatic {
    fn receive(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        match self.0.receive(input)? {
            Step::StartTls => self.0.tls_established().unwrap(),
            Step::Transmit => {
                let mut out = [0; 128];
                let written = self.0.transmit(&mut out.as_mut_slice());
                assert!(written.unwrap() > 0);
            }
            step => return Ok(Next::of(&step)),
        }
        Ok(Next::Step)
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.0.end_of_input()
    }
}

const WANTED: &[MetaContextQuery<'static>] = &[MetaContextQuery::narrow("base:allocation")];

/// A connector that has received `replies`.
fn after(replies: &[u8]) -> Automatic {
    let config = CONFIG
        .tls(TlsPolicy::Prefer)
        .contexts(WANTED)
        .describe(true);
    let mut connector = Automatic(Connector::new(config).unwrap());
    // One by one: a server only replies to options.
    let mut rest = replies;
    while !rest.is_empty() {
        let at = if rest.starts_with(b"NBDMAGIC") {
            GREETING.len()
        } else {
            20 + usize::from(rest[19])
        };
        let (reply, unsent) = rest.split_at(at);
        let mut input = reply;
        while connector.receive(&mut input).unwrap() == Next::Step {}
        assert!(input.is_empty());
        rest = unsent;
    }
    connector
}

/// Every reply to an option, after earlier replies.
fn replies(earlier: &[u8], option: OptionType, states: &mut BTreeSet<String>) {
    for kind in reply_types() {
        for length in lengths() {
            attack(|| after(earlier), &reply(option, kind, length), states);
        }
    }
}

fn connectors(states: &mut BTreeSet<String>) {
    use OptionType as O;
    const ACK: u32 = 1;
    const UNSUP: u32 = 0x8000_0001;
    const SHUTDOWN: u32 = 0x8000_0007;
    for greeting in [&b""[..], GREETING, OLDSTYLE] {
        attack(|| after(b""), greeting, states);
    }
    // Every option after the options before it were acknowledged.
    let mut earlier = GREETING.to_vec();
    for option in [O::STARTTLS, O::EXTENDED_HEADERS, O::SET_META_CONTEXT, O::GO] {
        replies(&earlier, option, states);
        if option == O::GO {
            attack(|| after(&earlier), &granted(), states);
        }
        earlier.extend(reply(option, ACK, 0));
    }
    // Every option after those before it were refused; with zeroes at the end.
    let mut earlier = b"NBDMAGICIHAVEOPT\0\x01".to_vec();
    for option in [O::STARTTLS, O::EXTENDED_HEADERS, O::STRUCTURED_REPLY, O::GO] {
        replies(&earlier, option, states);
        earlier.extend(reply(option, UNSUP, 0));
    }
    attack(|| after(&earlier), b"", states);
    let mut earlier = GREETING.to_vec();
    earlier.extend(reply(O::STARTTLS, SHUTDOWN, 0));
    replies(&earlier, O::ABORT, states);
}

/// (States that end with `transmit` are not between two steps.)
#[test]
fn connect() {
    on_a_small_stack(|| {
        let mut states = BTreeSet::new();
        connectors(&mut states);
        assert_states(
            &states,
            &[
                "Greeting",
                "Idle",
                "Replies",
                "ExportName",
                "Zeroes",
                "Discard",
                "Ready, reported",
                "Aborted",
            ],
        );
    });
}

// ------------------------------------------------------------- transmission

impl Target for Transmission<[Slot; 2]> {
    fn receive(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        Ok(Next::of(&self.receive(input)?))
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.end_of_input()
    }
}

const COMMANDS: [Request; 5] = [
    Request::read(4096, 65_536),
    Request::write(0, 512),
    Request::flush(),
    Request::block_status(0, 1 << 20),
    Request::resize(1 << 21),
];

/// A session with a command in flight.
fn sending(framing: Framing, request: Request) -> (Transmission<[Slot; 2]>, Cookie) {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut export = Negotiated::new(framing, 1 << 20, all);
    if framing > Framing::Simple {
        let (id, width) = (ContextId(0), StatusWidth::Narrow);
        export.contexts.push(SelectedContext { id, width }).unwrap();
    }
    let mut machine = Transmission::new(export, [Slot::EMPTY; 2], LIMITS);
    let cookie = machine.submit(request).unwrap().cookie();
    (machine, cookie)
}

/// Chunk types, and unknown ones.
const CHUNKS: [u16; 11] = [0, 1, 2, 3, 5, 6, 0x7fff, 0x8000, 0x8001, 0x8002, 0xffff];

/// The header of a chunk, up to its length.
fn chunk(framing: Framing, done: u16, kind: u16, cookie: Cookie, offset: u64) -> Vec<u8> {
    let magic = match framing {
        Framing::Extended => EXTENDED_REPLY_MAGIC,
        _ => STRUCTURED_REPLY_MAGIC,
    };
    let mut header = magic.to_be_bytes().to_vec();
    header.extend(done.to_be_bytes());
    header.extend(kind.to_be_bytes());
    header.extend(cookie.0.to_be_bytes());
    if framing == Framing::Extended {
        header.extend(offset.to_be_bytes());
    }
    header
}

/// What a chunk's body may begin with: the offset of its content, a context, an
/// error and the length of its message.
fn prefixes(kind: ChunkType, request: &Request) -> Vec<Vec<u8>> {
    let error = |message: u16| [&[0, 0, 0, 5][..], &message.to_be_bytes()].concat();
    let mut prefixes = vec![Vec::new()];
    match kind {
        ChunkType::OFFSET_DATA | ChunkType::OFFSET_HOLE => {
            let offset = request.offset.to_be_bytes();
            prefixes.push(offset.to_vec());
            prefixes.push([&offset[..], &[0, 0, 2, 0]].concat());
        }
        ChunkType::BLOCK_STATUS_EXT => {
            for count in [0, 1, 1 << 20, u32::MAX] {
                prefixes.push([[0; 4], count.to_be_bytes()].concat());
            }
        }
        kind if kind.is_error() => prefixes.extend([0, 122, 123, u16::MAX].map(error)),
        _ => {}
    }
    prefixes
}

/// Every chunk, in reply to one command.
fn chunks(framing: Framing, request: Request, states: &mut BTreeSet<String>) {
    let (_, cookie) = sending(framing, request);
    let start = || sending(framing, request).0;
    for kind in CHUNKS {
        for done in [0, 1] {
            let header = chunk(framing, done, kind, cookie, request.offset);
            let lengths = match framing {
                Framing::Extended => wide_lengths(),
                _ => lengths().into_iter().map(u64::from).collect(),
            };
            for length in lengths {
                for prefix in prefixes(ChunkType(kind), &request) {
                    let length = length.to_be_bytes();
                    let length = match framing {
                        Framing::Extended => &length[..],
                        _ => &length[4..],
                    };
                    attack(start, &[&header[..], length, &prefix].concat(), states);
                }
            }
        }
    }
    let unknown = chunk(framing, 1, 0, Cookie(u64::MAX), 0);
    attack(start, &unknown, states);
}

/// (A hole is reported with its header, and is no state.)
#[test]
fn transmission() {
    let mut all = BTreeSet::new();
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let (send, receive) = std::sync::mpsc::channel();
        on_a_small_stack(move || {
            let mut states = BTreeSet::new();
            for request in COMMANDS {
                if framing == Framing::Simple && request.command == Command::BLOCK_STATUS {
                    continue;
                }
                let (_, cookie) = sending(framing, request);
                for error in [0_u32, 5, u32::MAX] {
                    let mut header = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
                    header.extend(error.to_be_bytes());
                    header.extend(cookie.0.to_be_bytes());
                    attack(|| sending(framing, request).0, &header, &mut states);
                }
                if framing > Framing::Simple {
                    chunks(framing, request, &mut states);
                }
            }
            send.send(states).unwrap();
        });
        all.extend(receive.recv().unwrap());
    }
    assert_states(
        &all,
        &[
            "Header", "Data", "Extents", "Error", "Discard", "Done", "Failed",
        ],
    );
}
