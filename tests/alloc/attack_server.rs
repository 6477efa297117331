//! Attacks on the state machines of the server.

use std::collections::BTreeSet;

use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, MetaContext, Request, TlsMode, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ContextId, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::{Error, Framing, Negotiated, SelectedContext, SelectedContexts, StatusWidth, Step};

use super::attack::{
    LIMITS, Next, Target, assert_states, attack, lengths, on_a_small_stack, wide_lengths,
};

const CONTEXTS: &[MetaContext<'static>] = &[MetaContext::narrow("base:allocation")];

fn export(name: &'static str) -> Export<'static> {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut export = Export::new(name, 1 << 20, all);
    export.contexts = CONTEXTS;
    export
}

// ---------------------------------------------------------------- handshake

/// A handshake, and the caller that answers its events.
#[derive(Debug)]
struct Server {
    handshake: Handshake,
    caller: Caller,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    Grants,
    Refuses,
    /// Never answers.
    Sleeps,
}

impl Server {
    fn answer(&mut self, event: HandshakeEvent<'_>, sink: &mut &mut [u8]) {
        use HandshakeEvent as E;
        let asks = matches!(event, E::List | E::Export(_) | E::MetaContexts(_));
        match (self.caller, event) {
            (Caller::Refuses, _) if asks => {
                let error = OptionReplyType::ERR_UNKNOWN;
                self.handshake
                    .refuse(error, "no such export", sink)
                    .unwrap();
            }
            (Caller::Grants, E::List) => {
                self.handshake.list(&export("disk"), sink).unwrap();
                self.handshake.finish_list(sink).unwrap();
            }
            (Caller::Grants, E::Export(query) | E::MetaContexts(query)) => {
                self.handshake.grant(&query, &export("disk"), sink).unwrap();
            }
            _ => {}
        }
    }
}

impl Target for Server {
    fn receive(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        let mut out = [0; 512];
        let mut sink = &mut out[..];
        match self.handshake.receive(input) {
            Ok(Step::Event(event)) => self.answer(event, &mut sink),
            Ok(Step::Transmit) => assert!(self.handshake.transmit(&mut sink).unwrap() > 0),
            Ok(Step::StartTls) => self.handshake.tls_established().unwrap(),
            Err(Error::Unanswered) if self.caller == Caller::Sleeps => return Ok(Next::Stop),
            step => return Ok(Next::of(&step?)),
        }
        Ok(Next::Step)
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.handshake.end_of_input()
    }
}

/// An option: its header, and the first bytes of its data.
fn option(option: OptionType, length: u32, data: &[u8]) -> Vec<u8> {
    let mut header = b"IHAVEOPT".to_vec();
    header.extend(option.0.to_be_bytes());
    header.extend(length.to_be_bytes());
    header.extend(data);
    header
}

/// A server that has received `messages`.
fn after(tls: TlsMode, messages: &[u8], caller: Caller) -> Server {
    let config = Config::new().tls(tls).limits(LIMITS);
    let handshake = Handshake::new(config).unwrap();
    let mut server = Server { handshake, caller };
    let mut rest = messages;
    while !rest.is_empty() {
        let at = if rest.starts_with(b"IHAVEOPT") {
            16 + usize::from(rest[15])
        } else {
            4
        };
        let (message, unsent) = rest.split_at(at);
        let mut input = message;
        while server.receive(&mut input).unwrap() == Next::Step {}
        assert!(input.is_empty());
        rest = unsent;
    }
    server
}

/// Names and lists with right and wrong lengths.
fn data_of(option: OptionType) -> Vec<Vec<u8>> {
    let named =
        |length: u32, name: &[u8], after: &[u8]| [&length.to_be_bytes()[..], name, after].concat();
    match option {
        OptionType::INFO | OptionType::GO => vec![
            vec![],
            named(4, b"disk", &[0xff, 0xff]),
            named(0, b"", &[0, 1, 0, 3]),
            named(5, b"disk", &[0, 0]),
            named(u32::MAX - 1, b"disk", &[]),
        ],
        OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => vec![
            vec![],
            named(4, b"disk", &[0xff, 0xff, 0xff, 0xff]),
            named(4, b"disk", b"\0\0\0\x01\xff\xff\xff\xff"),
            named(4, b"disk", b"\0\0\0\x01\0\0\0\x05base:"),
            named(u32::MAX - 3, b"disk", &[]),
        ],
        _ => vec![vec![]],
    }
}

/// Every option with every length, after earlier messages.
fn options(tls: TlsMode, earlier: &[u8], caller: Caller, states: &mut BTreeSet<String>) {
    for number in (0..=12).chain([99, u32::MAX]) {
        let number = OptionType(number);
        for data in data_of(number) {
            let exact = u32::try_from(data.len()).unwrap();
            for length in lengths().into_iter().chain([exact]) {
                let header = option(number, length, &data);
                attack(|| after(tls, earlier, caller), &header, states);
            }
        }
    }
}

fn handshakes(states: &mut BTreeSet<String>) {
    const FLAGS: &[u8] = &[0, 0, 0, 3];
    for flags in 0..=4_u32 {
        let flags = flags.to_be_bytes();
        attack(|| after(TlsMode::None, b"", Caller::Grants), &flags, states);
    }
    for caller in [Caller::Grants, Caller::Refuses, Caller::Sleeps] {
        options(TlsMode::None, FLAGS, caller, states);
    }
    // Not fixed newstyle.
    options(TlsMode::None, &[0; 4], Caller::Grants, states);
    let bare = |number| option(number, 0, b"");
    let agreed = |number| [FLAGS, &bare(number)].concat();
    let secured = agreed(OptionType::STARTTLS);
    options(TlsMode::Forced, FLAGS, Caller::Grants, states);
    options(TlsMode::Forced, &secured, Caller::Grants, states);
    for number in [OptionType::STRUCTURED_REPLY, OptionType::EXTENDED_HEADERS] {
        options(TlsMode::None, &agreed(number), Caller::Grants, states);
    }
    // While TLS is to be started.
    let tls = || after(TlsMode::Forced, FLAGS, Caller::Grants);
    attack(tls, &bare(OptionType::STARTTLS), states);
    let oldstyle = || Server {
        handshake: Handshake::oldstyle(&export("")).unwrap(),
        caller: Caller::Grants,
    };
    attack(oldstyle, b"", states);
}

/// (The caller reports the outcome of TLS at once.)
#[test]
fn handshake() {
    on_a_small_stack(|| {
        let mut states = BTreeSet::new();
        handshakes(&mut states);
        assert_states(
            &states,
            &[
                "ClientFlags",
                "Option",
                "Discard",
                "Asked",
                "Tls",
                "Ready",
                "Ready, reported",
                "Aborted",
                "Aborted, reported",
            ],
        );
    });
}

// ------------------------------------------------------------- transmission

impl Target for Transmission {
    fn receive(&mut self, input: &mut &[u8]) -> Result<Next, Error> {
        use TransmissionEvent as E;
        let reply = match self.receive(input)? {
            Step::Event(E::Request(Request::Resize(resize))) => self.resized(resize),
            Step::Event(E::Request(request)) => request.fail(ErrorValue::EIO, "no"),
            Step::Event(E::Answered { reply, .. }) => reply,
            step => return Ok(Next::of(&step)),
        };
        let mut out = [0; 256];
        reply.encode(&mut &mut out[..]).unwrap();
        Ok(Next::Step)
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.end_of_input()
    }
}

/// A session with the most contexts.
fn serving(framing: Framing) -> Transmission {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut negotiated = Negotiated::new(framing, 1 << 20, all);
    if framing > Framing::Simple {
        for id in (0..).take(SelectedContexts::CAPACITY).map(ContextId) {
            let width = StatusWidth::Narrow;
            negotiated
                .contexts
                .push(SelectedContext { id, width })
                .unwrap();
        }
    }
    Transmission::new(negotiated, LIMITS).unwrap()
}

fn request(framing: Framing, flags: u16, command: u16, offset: u64, length: u64) -> Vec<u8> {
    let magic: u32 = match framing {
        Framing::Extended => 0x21e4_1c71,
        _ => 0x2560_9513,
    };
    let mut header = magic.to_be_bytes().to_vec();
    header.extend(flags.to_be_bytes());
    header.extend(command.to_be_bytes());
    header.extend(u64::MAX.to_be_bytes());
    header.extend(offset.to_be_bytes());
    match framing {
        Framing::Extended => header.extend(length.to_be_bytes()),
        _ => header.extend(u32::try_from(length).unwrap().to_be_bytes()),
    }
    header
}

fn requests(framing: Framing, states: &mut BTreeSet<String>) {
    let lengths = match framing {
        Framing::Extended => wide_lengths(),
        _ => lengths().into_iter().map(u64::from).collect(),
    };
    const PAYLOAD_LEN: u16 = 32;
    for command in (0..=9).chain([u16::MAX]) {
        for flags in [0, PAYLOAD_LEN, u16::MAX] {
            for offset in [0, 1 << 20, u64::MAX] {
                for length in &lengths {
                    let header = request(framing, flags, command, offset, *length);
                    attack(|| serving(framing), &header, states);
                }
            }
        }
    }
    // Block status of all contexts, and of one context as many times.
    for step in [0, 1] {
        let length = 8 + 4 * SelectedContexts::CAPACITY as u64;
        let mut header = request(framing, PAYLOAD_LEN, 7, 0, length);
        header.extend(512_u64.to_be_bytes());
        for id in (0..).take(SelectedContexts::CAPACITY) {
            header.extend((step * id as u32).to_be_bytes());
        }
        attack(|| serving(framing), &header, states);
    }
}

#[test]
fn transmission() {
    let mut all = BTreeSet::new();
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let (send, receive) = std::sync::mpsc::channel();
        on_a_small_stack(move || {
            let mut states = BTreeSet::new();
            requests(framing, &mut states);
            send.send(states).unwrap();
        });
        all.extend(receive.recv().unwrap());
    }
    assert_states(
        &all,
        &["Header", "Payload", "Discard", "Disconnected", "Failed"],
    );
}
