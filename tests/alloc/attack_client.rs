//! Attacks on the client's machines.

use std::collections::BTreeSet;

use nbd_codec::client::connect::{Connect, Plan, TlsPolicy};
use nbd_codec::client::handshake::{ContextQuery, Handshake};
use nbd_codec::client::{Request, Slot, Transmission};
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::number::{ChunkType, Command, ContextId, Cookie, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest, Queries};
use nbd_codec::wire::reply::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use nbd_codec::{Context, Error, Framing, Need, Negotiated, Width};

use super::attack::{
    Victim, assert_states, attack, lengths, limits, on_a_small_stack, wide_lengths,
};

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// A greeting of fixed newstyle.
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

const OLDSTYLE: &[u8] = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53";

/// The header of a reply to an option.
fn reply(option: OptionType, kind: u32, length: u32) -> Vec<u8> {
    let mut head = REPLY_MAGIC.to_be_bytes().to_vec();
    head.extend(option.0.to_be_bytes());
    head.extend(kind.to_be_bytes());
    head.extend(length.to_be_bytes());
    head
}

/// Every reply type, and some that nobody knows.
fn reply_types() -> impl Iterator<Item = u32> {
    (0..=5).chain([99, 0x8000_0000, 0x8000_0001, 0x8000_0007, u32::MAX])
}

/// An export that is granted: its size, and the end.
fn granted() -> Vec<u8> {
    let go = OptionType::GO;
    [reply(go, 3, 12), vec![0; 12], reply(go, 1, 0)].concat()
}

// ------------------------------------------------------- handshake, by hand

impl Victim for Handshake {
    fn look(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        Ok(self.receive(input)?.is_some())
    }

    fn need(&self) -> Need {
        self.need()
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.end_of_input()
    }
}

fn greeted(wanted: ClientFlags) -> Handshake {
    let mut machine = Handshake::new(false, limits());
    let mut input = GREETING;
    assert!(machine.receive(&mut input).unwrap().is_some());
    let mut out = [0; 4];
    let written = machine.send_client_flags(wanted, &mut out.as_mut_slice());
    assert_eq!(written, Ok(4));
    machine
}

/// Sends an option; by hand a structured reply before, for those that need it.
fn asked(request: &OptionRequest<'_>, wanted: ClientFlags) -> Handshake {
    let mut machine = greeted(wanted);
    let mut out = [0; 128];
    let needs_chunks = [OptionType::LIST_META_CONTEXT, OptionType::SET_META_CONTEXT];
    if needs_chunks.contains(&request.option()) {
        let option = OptionRequest::StructuredReply;
        machine.send(&option, &mut out.as_mut_slice()).unwrap();
        let ack = reply(OptionType::STRUCTURED_REPLY, 1, 0);
        assert!(machine.receive(&mut &ack[..]).unwrap().is_some());
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
    let new = || Handshake::new(false, limits());
    for head in [
        &b""[..],
        b"NBDMAGIC",
        b"NBDMAGICIHAVEOPT",
        GREETING,
        OLDSTYLE,
    ] {
        attack(new, head, states);
    }
    // Nothing is due; anything is too much.
    attack(|| greeted(ClientFlags::KNOWN), b"", states);
    let export_name = OptionRequest::ExportName("disk".into());
    for wanted in [ClientFlags::KNOWN, ClientFlags::FIXED_NEWSTYLE] {
        attack(|| asked(&export_name, wanted), b"", states);
    }
    for request in options() {
        for kind in reply_types() {
            for length in lengths() {
                let head = reply(request.option(), kind, length);
                attack(|| asked(&request, ClientFlags::KNOWN), &head, states);
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
                "Skip",
                "Tls",
                "Ready",
                "Ready, reported",
                "Aborted",
            ],
        );
    });
}

// ---------------------------------------------------------------- by policy

/// A policy, and TLS that always comes up.
#[derive(Debug)]
struct ByPlan(Connect<'static>);

impl Victim for ByPlan {
    fn look(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        use nbd_codec::client::connect::Event as E;
        match self.0.receive(input)? {
            Some(E::StartTls) => {
                self.0.tls_established().unwrap();
                Ok(true)
            }
            Some(_) => Ok(true),
            None => {
                let mut out = [0; 128];
                let written = self.0.transmit(&mut out.as_mut_slice());
                Ok(written.unwrap() > 0)
            }
        }
    }

    fn need(&self) -> Need {
        self.0.need()
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.0.end_of_input()
    }
}

const WANTED: &[ContextQuery<'static>] = &[ContextQuery::narrow("base:allocation")];

/// A policy behind what the server has said so far.
fn behind(said: &[u8]) -> ByPlan {
    let mut plan = Plan::new("disk");
    plan.tls = TlsPolicy::Prefer;
    plan.contexts = WANTED;
    plan.describe = true;
    plan.limits = limits();
    let mut policy = ByPlan(Connect::new(plan).unwrap());
    // Answers come one by one: a server waits until it is asked.
    let mut rest = said;
    while !rest.is_empty() {
        let at = match rest.starts_with(b"NBDMAGIC") {
            true => GREETING.len(),
            false => 20 + usize::from(rest[19]),
        };
        let (answer, behind) = rest.split_at(at);
        let mut input = answer;
        while policy.look(&mut input).unwrap() {}
        assert!(input.is_empty());
        rest = behind;
    }
    policy
}

/// Any answer to an option, behind what was said before.
fn answers(said: &[u8], option: OptionType, states: &mut BTreeSet<String>) {
    for kind in reply_types() {
        for length in lengths() {
            attack(|| behind(said), &reply(option, kind, length), states);
        }
    }
}

fn policies(states: &mut BTreeSet<String>) {
    use OptionType as O;
    const ACK: u32 = 1;
    const UNSUP: u32 = 0x8000_0001;
    const SHUTDOWN: u32 = 0x8000_0007;
    for greeting in [&b""[..], GREETING, OLDSTYLE] {
        attack(|| behind(b""), greeting, states);
    }
    // Every option in its turn.
    let mut said = GREETING.to_vec();
    for option in [O::STARTTLS, O::EXTENDED_HEADERS, O::SET_META_CONTEXT, O::GO] {
        answers(&said, option, states);
        if option == O::GO {
            attack(|| behind(&said), &granted(), states);
        }
        said.extend(reply(option, ACK, 0));
    }
    // Every option that follows a refusal; with zeroes at the end.
    let mut said = b"NBDMAGICIHAVEOPT\0\x01".to_vec();
    for option in [O::STARTTLS, O::EXTENDED_HEADERS, O::STRUCTURED_REPLY, O::GO] {
        answers(&said, option, states);
        said.extend(reply(option, UNSUP, 0));
    }
    attack(|| behind(&said), b"", states);
    let mut said = GREETING.to_vec();
    said.extend(reply(O::STARTTLS, SHUTDOWN, 0));
    answers(&said, O::ABORT, states);
}

/// (What lasts only until the policy has said what is due is not seen.)
#[test]
fn connect() {
    on_a_small_stack(|| {
        let mut states = BTreeSet::new();
        policies(&mut states);
        assert_states(
            &states,
            &[
                "Greeting",
                "Idle",
                "Replies",
                "ExportName",
                "Zeroes",
                "Skip",
                "Ready, reported",
                "Aborted",
            ],
        );
    });
}

// ------------------------------------------------------------- transmission

impl Victim for Transmission<[Slot; 2]> {
    fn look(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        Ok(self.receive(input)?.is_some())
    }

    fn need(&self) -> Need {
        self.need()
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
        let (id, width) = (ContextId(0), Width::Narrow);
        export.contexts.push(Context { id, width }).unwrap();
    }
    let mut machine = Transmission::new(export, [Slot::EMPTY; 2], limits());
    let cookie = machine.submit(request).unwrap().cookie();
    (machine, cookie)
}

/// Chunk types, and some that nobody knows.
const CHUNKS: [u16; 11] = [0, 1, 2, 3, 5, 6, 0x7fff, 0x8000, 0x8001, 0x8002, 0xffff];

/// The head of a chunk, up to its length.
fn chunk(framing: Framing, done: u16, kind: u16, cookie: Cookie, offset: u64) -> Vec<u8> {
    let magic = match framing {
        Framing::Extended => EXTENDED_REPLY_MAGIC,
        _ => STRUCTURED_REPLY_MAGIC,
    };
    let mut head = magic.to_be_bytes().to_vec();
    head.extend(done.to_be_bytes());
    head.extend(kind.to_be_bytes());
    head.extend(cookie.0.to_be_bytes());
    if framing == Framing::Extended {
        head.extend(offset.to_be_bytes());
    }
    head
}

/// What may stand at the front of a chunk's body: the offset of its content,
/// a context, an error and the length of its message.
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

/// Every chunk there can be, in answer to one command.
fn chunks(framing: Framing, request: Request, states: &mut BTreeSet<String>) {
    let (_, cookie) = sending(framing, request);
    let start = || sending(framing, request).0;
    for kind in CHUNKS {
        for done in [0, 1] {
            let head = chunk(framing, done, kind, cookie, request.offset);
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
                    attack(start, &[&head[..], length, &prefix].concat(), states);
                }
            }
        }
    }
    let unknown = chunk(framing, 1, 0, Cookie(u64::MAX), 0);
    attack(start, &unknown, states);
}

/// (A hole is reported where its head is read, and never waited in.)
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
                    let mut head = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
                    head.extend(error.to_be_bytes());
                    head.extend(cookie.0.to_be_bytes());
                    attack(|| sending(framing, request).0, &head, &mut states);
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
            "Header", "Data", "Extents", "Message", "Rest", "Done", "Failed",
        ],
    );
}
