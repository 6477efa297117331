//! Attacks on the server's machines.

use std::collections::BTreeSet;

use nbd_codec::server::handshake::{Event, Handshake};
use nbd_codec::server::{self, Export, MetaContext, Offer, Request, TlsMode, Transmission};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ContextId, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::{Context, Contexts, Error, Framing, Need, Negotiated, Width};

use super::attack::{
    Victim, assert_states, attack, lengths, limits, on_a_small_stack, wide_lengths,
};

const CONTEXTS: &[MetaContext<'static>] = &[MetaContext::narrow("base:allocation")];

fn export(name: &'static str) -> Export<'static> {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut export = Export::new(name, 1 << 20, all);
    export.contexts = CONTEXTS;
    export
}

// ---------------------------------------------------------------- handshake

/// A handshake, and what its caller does with an event.
#[derive(Debug)]
struct Shop {
    machine: Handshake,
    caller: Caller,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    Grants,
    Refuses,
    /// Is asked, and never answers.
    Sleeps,
}

impl Shop {
    fn answer(&mut self, event: Event<'_>, sink: &mut &mut [u8]) {
        if let Event::StartTls = event {
            return self.machine.tls_established().unwrap();
        }
        let asks = matches!(
            event,
            Event::List | Event::Export(_) | Event::MetaContexts(_)
        );
        match (self.caller, event) {
            (Caller::Refuses, _) if asks => {
                let error = OptionReplyType::ERR_UNKNOWN;
                self.machine.refuse(error, "none of these", sink).unwrap();
            }
            (Caller::Grants, Event::List) => {
                self.machine.list(&export("disk"), sink).unwrap();
                self.machine.done(sink).unwrap();
            }
            (Caller::Grants, Event::Export(asked) | Event::MetaContexts(asked)) => {
                self.machine.grant(&asked, &export("disk"), sink).unwrap();
            }
            _ => {}
        }
    }
}

impl Victim for Shop {
    fn look(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let mut out = [0; 512];
        let mut sink = &mut out[..];
        match self.machine.receive(input)? {
            Some(event) => {
                self.answer(event, &mut sink);
                Ok(true)
            }
            None => Ok(self.machine.transmit(&mut sink).unwrap() > 0),
        }
    }

    fn need(&self) -> Need {
        self.machine.need()
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.machine.end_of_input()
    }
}

/// An option: its header, and the front of its data.
fn option(option: OptionType, length: u32, data: &[u8]) -> Vec<u8> {
    let mut head = b"IHAVEOPT".to_vec();
    head.extend(option.0.to_be_bytes());
    head.extend(length.to_be_bytes());
    head.extend(data);
    head
}

/// A server behind what the client has said so far.
fn behind(tls: TlsMode, said: &[u8], caller: Caller) -> Shop {
    let mut offer = Offer::default();
    offer.tls = tls;
    offer.limits = limits();
    let machine = Handshake::new(offer).unwrap();
    let mut shop = Shop { machine, caller };
    let mut rest = said;
    while !rest.is_empty() {
        let at = match rest.starts_with(b"IHAVEOPT") {
            true => 16 + usize::from(rest[15]),
            false => 4,
        };
        let (message, behind) = rest.split_at(at);
        let mut input = message;
        while shop.look(&mut input).unwrap() {}
        assert!(input.is_empty());
        rest = behind;
    }
    shop
}

/// Names and lists whose lengths lie, or do not.
fn fronts(of: OptionType) -> Vec<Vec<u8>> {
    let named = |length: u32, name: &[u8], behind: &[u8]| {
        [&length.to_be_bytes()[..], name, behind].concat()
    };
    match of {
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

/// Every option with every length, behind what was said.
fn options(tls: TlsMode, said: &[u8], caller: Caller, states: &mut BTreeSet<String>) {
    for number in (0..=12).chain([99, u32::MAX]) {
        let number = OptionType(number);
        for front in fronts(number) {
            let exact = u32::try_from(front.len()).unwrap();
            for length in lengths().into_iter().chain([exact]) {
                let head = option(number, length, &front);
                attack(|| behind(tls, said, caller), &head, states);
            }
        }
    }
}

fn handshakes(states: &mut BTreeSet<String>) {
    const FLAGS: &[u8] = &[0, 0, 0, 3];
    for flags in 0..=4_u32 {
        let flags = flags.to_be_bytes();
        attack(
            || behind(TlsMode::None, b"", Caller::Grants),
            &flags,
            states,
        );
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
    // TLS that is waited for.
    let tls = || behind(TlsMode::Forced, FLAGS, Caller::Grants);
    attack(tls, &bare(OptionType::STARTTLS), states);
    let oldstyle = || Shop {
        machine: Handshake::oldstyle(&export("")).unwrap(),
        caller: Caller::Grants,
    };
    attack(oldstyle, b"", states);
}

/// (The caller of these states the outcome of TLS at once.)
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
                "Skip",
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

impl Victim for Transmission {
    fn look(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let Some(event) = self.receive(input)? else {
            return Ok(false);
        };
        let mut out = [0; 256];
        let mut sink = &mut out[..];
        let reply = match event {
            server::Event::Request(Request::Resize(resize)) => self.resized(resize),
            server::Event::Request(request) => request.fail(ErrorValue::EIO, "no"),
            server::Event::Rejected { reply, .. } => reply,
            _ => return Ok(true),
        };
        reply.encode(&mut sink).unwrap();
        Ok(true)
    }

    fn need(&self) -> Need {
        self.need()
    }

    fn end_of_input(&mut self) -> Result<(), Error> {
        self.end_of_input()
    }
}

/// A session with as many contexts as there can be.
fn serving(framing: Framing) -> Transmission {
    let all = TransmissionFlags::KNOWN - TransmissionFlags::READ_ONLY;
    let mut negotiated = Negotiated::new(framing, 1 << 20, all);
    if framing > Framing::Simple {
        for id in (0..).take(Contexts::CAPACITY).map(ContextId) {
            let width = Width::Narrow;
            negotiated.contexts.push(Context { id, width }).unwrap();
        }
    }
    Transmission::new(negotiated, limits()).unwrap()
}

fn request(framing: Framing, flags: u16, command: u16, offset: u64, length: u64) -> Vec<u8> {
    let magic: u32 = match framing {
        Framing::Extended => 0x21e4_1c71,
        _ => 0x2560_9513,
    };
    let mut head = magic.to_be_bytes().to_vec();
    head.extend(flags.to_be_bytes());
    head.extend(command.to_be_bytes());
    head.extend(u64::MAX.to_be_bytes());
    head.extend(offset.to_be_bytes());
    match framing {
        Framing::Extended => head.extend(length.to_be_bytes()),
        _ => head.extend(u32::try_from(length).unwrap().to_be_bytes()),
    }
    head
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
                    let head = request(framing, flags, command, offset, *length);
                    attack(|| serving(framing), &head, states);
                }
            }
        }
    }
    // Block status of all the contexts, and of as many of one.
    for step in [0, 1] {
        let length = 8 + 4 * Contexts::CAPACITY as u64;
        let mut head = request(framing, PAYLOAD_LEN, 7, 0, length);
        head.extend(512_u64.to_be_bytes());
        for id in (0..).take(Contexts::CAPACITY) {
            head.extend((step * id as u32).to_be_bytes());
        }
        attack(|| serving(framing), &head, states);
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
    assert_states(&all, &["Header", "Payload", "Drain", "Disconnected"]);
}
