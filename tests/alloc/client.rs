//! The client: a handshake, and 10,000 commands of every kind in every framing.

use nbd_codec::client::{
    Config, ConnectEvent, Connector, MetaContextQuery, Request, Slot, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::chunk::Chunk;
use nbd_codec::wire::extent::{Extent32, Extent64, Extents32, Extents64};
use nbd_codec::wire::flags::{CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags};
use nbd_codec::wire::greeting::NewstyleGreeting;
use nbd_codec::wire::number::{ChunkType, Command, ContextId, Cookie, ErrorValue, OptionType};
use nbd_codec::wire::option_reply::{Info, OptionReply};
use nbd_codec::wire::reply::{ExtendedHeader, SimpleReply, StructuredHeader};
use nbd_codec::{Framing, Limits, Negotiated, SelectedContext, StatusWidth, Step};

use super::allocations;

/// The bytes that the server sends, in memory of fixed size.
struct Peer {
    bytes: [u8; 1 << 16],
    length: usize,
}

impl Peer {
    const fn new() -> Self {
        Self {
            bytes: [0; 1 << 16],
            length: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn option_reply(&mut self, option: OptionType, reply: OptionReply<'_>) {
        let mut sink = &mut self.bytes[self.length..];
        self.length += reply.encode(option, &mut sink).unwrap();
    }

    fn simple(&mut self, error: ErrorValue, cookie: Cookie) {
        self.put(&SimpleReply { error, cookie }.encode());
    }

    fn chunk(
        &mut self,
        framing: Framing,
        last: bool,
        cookie: Cookie,
        offset: u64,
        chunk: Chunk<'_>,
    ) {
        let mut payload = [0; 8192];
        let length = chunk.encode(&mut payload.as_mut_slice()).unwrap();
        let flags = if last {
            ReplyFlags::DONE
        } else {
            ReplyFlags::NONE
        };
        let payload = &payload[..length];
        let chunk = chunk.chunk();
        match framing {
            Framing::Extended => self.put(
                &ExtendedHeader {
                    flags,
                    chunk,
                    cookie,
                    offset,
                    length: length as u64,
                }
                .encode(),
            ),
            _ => self.put(
                &StructuredHeader {
                    flags,
                    chunk,
                    cookie,
                    length: u32::try_from(length).unwrap(),
                }
                .encode(),
            ),
        }
        self.put(payload);
    }

    /// Answers a command: reads with data and a hole, block status with
    /// extents, every seventh command with an error.
    fn answer(&mut self, framing: Framing, round: usize, request: &Request, cookie: Cookie) {
        let offset = request.offset;
        if framing == Framing::Simple {
            match round % 7 {
                0 => self.simple(ErrorValue::EIO, cookie),
                _ => {
                    self.simple(ErrorValue::NONE, cookie);
                    if request.command == Command::READ {
                        self.put(&[7; 512]);
                    }
                }
            }
            return;
        }
        if round.is_multiple_of(7) {
            let error = Chunk::Error {
                chunk: ChunkType::ERROR,
                error: ErrorValue::EIO,
                message: "the disk failed".into(),
                rest: &[],
            };
            return self.chunk(framing, true, cookie, offset, error);
        }
        match request.command {
            Command::READ => {
                let data = [7; 256];
                let hole = Chunk::OffsetHole {
                    offset: offset + 256,
                    length: 256,
                };
                let data = Chunk::OffsetData {
                    offset,
                    data: &data,
                };
                self.chunk(framing, false, cookie, offset, hole);
                self.chunk(framing, true, cookie, offset, data);
            }
            Command::BLOCK_STATUS => {
                let narrow = Extent32 {
                    length: 256,
                    flags: 3,
                };
                let context = ContextId(1);
                let chunk = match framing {
                    Framing::Extended => {
                        let bytes = [Extent64::from(narrow).encode(); 2];
                        let (extents, _) = Extents64::split(bytes.as_flattened());
                        self.chunk(
                            framing,
                            false,
                            cookie,
                            offset,
                            Chunk::BlockStatusExt { context, extents },
                        );
                        Chunk::None
                    }
                    _ => {
                        let bytes = [narrow.encode(); 2];
                        let (extents, _) = Extents32::split(bytes.as_flattened());
                        self.chunk(
                            framing,
                            false,
                            cookie,
                            offset,
                            Chunk::BlockStatus { context, extents },
                        );
                        Chunk::None
                    }
                };
                self.chunk(framing, true, cookie, offset, chunk);
            }
            _ => self.chunk(framing, true, cookie, offset, Chunk::None),
        }
    }
}

const KINDS: [Request; 9] = [
    Request::read(512, 512),
    Request::write(1024, 512),
    Request::flush(),
    Request::trim(0, 512),
    Request::cache(0, 512),
    Request::write_zeroes(0, 512),
    Request::block_status(512, 512),
    Request::resize(1 << 20),
    Request::read(0, 512),
];

fn export(framing: Framing) -> Negotiated {
    let flags = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut export = Negotiated::new(framing, 1 << 20, flags);
    if framing != Framing::Simple {
        let width = StatusWidth::Narrow;
        let id = ContextId(1);
        export.contexts.push(SelectedContext { id, width }).unwrap();
    }
    export
}

/// Keeps nine commands of every kind in flight, answered together, until 10,000
/// are done. Half of the payload comes as content, the other half is read
/// directly.
fn commands(framing: Framing, peer: &mut Peer) -> usize {
    let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 16], Limits::DEFAULT);
    let mut payload = [0; 64];
    let (mut round, mut done, mut extents, mut bytes) = (0, 0, 0, 0);
    while done < 10_000 {
        peer.length = 0;
        for request in KINDS {
            round += 1;
            if request.command == Command::BLOCK_STATUS && framing == Framing::Simple {
                continue;
            }
            let filtered = request.command == Command::BLOCK_STATUS
                && framing == Framing::Extended
                && round % 2 == 0;
            let header = if filtered {
                machine.block_status_of(
                    &[ContextId(1)],
                    request.offset,
                    request.length,
                    CommandFlags::NONE,
                    &mut payload.as_mut_slice(),
                )
            } else {
                machine.submit(request)
            };
            let header = header.unwrap();
            std::hint::black_box(header.as_bytes());
            peer.answer(framing, round, &request, header.cookie());
        }
        let mut input = &peer.bytes[..peer.length];
        // Offered nothing, the state machine announces a payload.
        let mut direct = done % 2 == 0;
        loop {
            use TransmissionEvent as E;
            let step = if direct {
                machine.receive(&mut &[][..])
            } else {
                machine.receive(&mut input)
            };
            match step.unwrap() {
                Step::Read(_) if direct => {
                    direct = false;
                    continue;
                }
                Step::Read(_) => break,
                Step::ReadPayload { length, .. } => {
                    let n = usize::try_from(length).unwrap().min(input.len());
                    machine.advance(n as u64).unwrap();
                    input = &input[n..];
                    bytes += n;
                }
                Step::Content(content) => bytes += content.length() as usize,
                Step::Event(E::Extents32 { extents: list, .. }) => extents += list.count(),
                Step::Event(E::Extents64 { extents: list, .. }) => extents += list.count(),
                Step::Event(E::Done { .. }) => done += 1,
                Step::Event(_) => {}
                other => panic!("{other:?}"),
            }
            direct = done % 2 == 0;
        }
        assert!(input.is_empty());
        assert_eq!(machine.in_flight(), 0);
    }
    assert!(bytes > 0 && (extents > 0 || framing == Framing::Simple));
    done
}

#[test]
fn ten_thousand_commands() {
    let mut peer = Box::new(Peer::new());
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let mut done = 0;
        let count = allocations(|| done = commands(framing, &mut peer));
        assert!(done >= 10_000);
        assert_eq!(count, 0, "{framing}: allocations");
    }
}

/// A handshake with contexts and every information type.
#[test]
fn handshake() {
    let mut peer = Box::new(Peer::new());
    let flags = HandshakeFlags::KNOWN;
    peer.put(&NewstyleGreeting { flags }.encode());
    let greeting = peer.length;
    peer.option_reply(OptionType::EXTENDED_HEADERS, OptionReply::Ack);
    let extended = peer.length;
    let option = OptionType::SET_META_CONTEXT;
    let id = ContextId(1);
    let name = "base:allocation".into();
    peer.option_reply(option, OptionReply::MetaContext { id, name });
    peer.option_reply(option, OptionReply::Ack);
    let selected = peer.length;
    let (size, flags) = (u64::MAX, TransmissionFlags::HAS_FLAGS);
    for info in [
        Info::Name("disk".into()),
        Info::Description("a disk".into()),
        Info::Export { size, flags },
    ] {
        peer.option_reply(OptionType::GO, OptionReply::Info(info));
    }
    peer.option_reply(OptionType::GO, OptionReply::Ack);
    let turns = [
        0..greeting,
        greeting..extended,
        extended..selected,
        selected..peer.length,
    ];

    let wanted = [MetaContextQuery::narrow("base:allocation")];
    let config = Config::new("disk").contexts(&wanted).describe(true);
    let mut agreed = None;
    let count = allocations(|| {
        let mut connector = Connector::new(config).unwrap();
        let mut ready = false;
        for turn in turns {
            let mut input = &peer.bytes[turn];
            let mut out = [0; 256];
            let mut sink = out.as_mut_slice();
            loop {
                match connector.receive(&mut input).unwrap() {
                    Step::Event(event) => ready |= event == ConnectEvent::Ready,
                    Step::Transmit => drop(connector.transmit(&mut sink).unwrap()),
                    Step::Read(_) | Step::Finished => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(ready);
        agreed = connector.into_negotiated().ok();
    });
    let agreed = agreed.expect("the handshake is finished");
    assert_eq!((agreed.size, agreed.framing), (u64::MAX, Framing::Extended));
    assert_eq!(agreed.contexts.len(), 1);
    assert_eq!(count, 0);
}
