//! Bugs of other servers: one test for each, which fails without the check that
//! prevents the bug here.

use nbd_codec::server::{
    Config, Export, Handshake, HandshakeEvent, MetaContext, Request, TlsMode, Transmission,
    TransmissionEvent,
};
use nbd_codec::wire::extent::Extent32;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, ErrorValue, OptionReplyType, OptionType};
use nbd_codec::wire::option::OptionHeader;
use nbd_codec::wire::option_reply::{OptionReply, OptionReplyHeader};
use nbd_codec::{Error, Framing, Limits, Misuse, Negotiated, Step, Violation};

use crate::drive::{HandshakeDriver, play};
use crate::options::fixed;
use crate::replies::{request, request_of_type};
use crate::requests::{export, succeed};
use crate::script::bytes;
use crate::tls::negotiating;

const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];

fn disk() -> Export<'static> {
    let mut export = Export::new("disk", 1 << 20, TransmissionFlags::KNOWN);
    export.contexts = CONTEXTS;
    export
}

/// Offers input until the handshake needs more, answers every query with the
/// one export, and returns the bytes written.
fn run(handshake: &mut Handshake, input: &mut &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    loop {
        use HandshakeEvent as E;
        match handshake.receive(input)? {
            Step::Event(E::List) => {
                handshake.list(&disk(), &mut out).unwrap();
                handshake.finish_list(&mut out).unwrap();
            }
            Step::Event(E::Export(query) | E::MetaContexts(query)) => {
                handshake.grant(&query, &disk(), &mut out).unwrap();
            }
            Step::Event(_) => {}
            Step::Transmit => assert!(handshake.transmit(&mut out).unwrap() > 0),
            Step::StartTls => handshake.tls_established().unwrap(),
            Step::Read(_) | Step::Finished => return Ok(out),
            other => panic!("{other:?}"),
        }
    }
}

/// The type of the final reply. The bytes must be whole replies to one option,
/// and only the last of them final.
#[track_caller]
fn final_reply(mut written: &[u8], option: OptionType) -> OptionReplyType {
    loop {
        let header = OptionReplyHeader::decode(&mut written).unwrap().unwrap();
        assert_eq!(header.option, option);
        let (data, remainder) = written.split_at(header.length as usize);
        OptionReply::decode(header.reply, data).unwrap();
        written = remainder;
        let last = header.reply == OptionReplyType::ACK || header.reply.is_error();
        assert_eq!(last, written.is_empty(), "{}", header.reply);
        if last {
            return header.reply;
        }
    }
}

/// nbdkit CVE-2019-14850: no option before GO makes the caller open an export.
#[test]
fn options_before_go_open_no_export() {
    let mut handshake = Handshake::new(Config::new()).unwrap();
    let mut seen = Vec::new();
    let stream = bytes(
        "00000003
         IHAVEOPT LIST 4{ } IHAVEOPT STRUCTURED_REPLY 4{ } IHAVEOPT EXTENDED_HEADERS 4{ }
         IHAVEOPT LIST_META 4{ 4{ \"disk\" } 00000000 }
         IHAVEOPT SET_META 4{ 4{ \"disk\" } 00000000 }
         IHAVEOPT 00001234 4{ \"disk\" } IHAVEOPT STARTTLS 4{ }
         IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }",
    );
    let mut input = &stream[..];
    let mut out = Vec::new();
    while !seen.contains(&"Export") {
        use HandshakeEvent as E;
        match handshake.receive(&mut input).unwrap() {
            Step::Transmit => drop(handshake.transmit(&mut out).unwrap()),
            Step::Event(E::List) => {
                seen.push("List");
                handshake.finish_list(&mut out).unwrap();
            }
            Step::Event(E::MetaContexts(query)) => {
                assert!(!query.starts_transmission());
                seen.push("MetaContexts");
                handshake.grant(&query, &disk(), &mut out).unwrap();
            }
            Step::Event(E::Export(query)) => {
                assert!(query.starts_transmission());
                seen.push("Export");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["List", "MetaContexts", "MetaContexts", "Export"]);
}

/// nbdkit CVE-2019-14851: any options, in any order, any number of times.
#[test]
fn options_come_in_any_order() {
    let options = [
        ("LIST", OptionType::LIST, ""),
        ("STARTTLS", OptionType::STARTTLS, ""),
        ("INFO", OptionType::INFO, "4{ \"disk\" } 0001 0003"),
        ("STRUCTURED_REPLY", OptionType::STRUCTURED_REPLY, ""),
        ("EXTENDED_HEADERS", OptionType::EXTENDED_HEADERS, ""),
        (
            "LIST_META",
            OptionType::LIST_META_CONTEXT,
            "4{ \"disk\" } 00000000",
        ),
        (
            "SET_META",
            OptionType::SET_META_CONTEXT,
            "4{ \"disk\" } 00000001 4{ \"base:allocation\" }",
        ),
        ("SET_META", OptionType::SET_META_CONTEXT, "00"),
        ("PEEK_EXPORT", OptionType::PEEK_EXPORT, "4{ \"disk\" }"),
    ]
    .map(|(name, option, data)| (option, bytes(&format!("IHAVEOPT {name} 4{{ {data} }}"))));
    let go = bytes("IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }");
    let mut order = [0; 4];
    let last = options.len() - 1;
    let modes = [TlsMode::None, TlsMode::Selective, TlsMode::Forced];
    loop {
        let tls = modes[order.iter().sum::<usize>() % 3];
        let mut handshake = negotiating(tls);
        for (option, stream) in order.iter().map(|at| &options[*at]) {
            let mut input = &stream[..];
            let written = run(&mut handshake, &mut input).unwrap();
            final_reply(&written, *option);
            assert!(input.is_empty() && handshake.is_negotiating());
        }
        let written = run(&mut handshake, &mut &go[..]).unwrap();
        let granted = final_reply(&written, OptionType::GO) == OptionReplyType::ACK;
        assert_eq!(granted, handshake.into_negotiated().is_ok());
        assert!(granted || tls == TlsMode::Forced);
        // The next of 9^4 orders.
        match order.iter().rposition(|at| *at < last) {
            Some(at) => {
                order[at] += 1;
                order[at + 1..].fill(0);
            }
            None => return,
        }
    }
}

/// nbdkit CVE-2021-3716: STARTTLS discards what was negotiated in plain text, and
/// plain text after STARTTLS is never taken for data from TLS.
#[test]
fn starttls_discards_state_and_plain_text() {
    let mut handshake = negotiating(TlsMode::Selective);
    let before = bytes(
        "IHAVEOPT EXTENDED_HEADERS 4{ }
         IHAVEOPT SET_META 4{ 4{ \"disk\" } 00000001 4{ \"base:allocation\" } }",
    );
    run(&mut handshake, &mut &before[..]).unwrap();
    assert_eq!(handshake.agreed().framing, Framing::Extended);
    assert_eq!(handshake.agreed().contexts.len(), 1);
    let start = bytes("IHAVEOPT STARTTLS 4{ }");
    run(&mut handshake, &mut &start[..]).unwrap();
    let mut fresh = Negotiated::new(Framing::Simple, 0, TransmissionFlags::NONE);
    fresh.tls = true;
    assert_eq!(*handshake.agreed(), fresh);
    let go = bytes("IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }");
    run(&mut handshake, &mut &go[..]).unwrap();
    let negotiated = handshake.into_negotiated().unwrap();
    assert!(negotiated.contexts.is_empty() && negotiated.framing == Framing::Simple);

    let mut handshake = negotiating(TlsMode::Forced);
    let injected = bytes("IHAVEOPT STARTTLS 4{ } IHAVEOPT STRUCTURED_REPLY 4{ }");
    let over = Err(Error::Violation(Violation::PlaintextAfterStartTls));
    assert_eq!(run(&mut handshake, &mut &injected[..]), over);
    assert_eq!(handshake.transmit(&mut Vec::new()), Ok(0));
}

/// nbdkit, same series: a refused option leaves nothing in the stream, in whatever
/// pieces it arrives.
#[test]
fn refused_options_are_drained_exactly() {
    let option = "IHAVEOPT ABORT 4{ }";
    for (tls, shutting_down, error, text) in [
        (TlsMode::Forced, false, "ERR_TLS_REQD", "start TLS first"),
        (
            TlsMode::None,
            true,
            "ERR_SHUTDOWN",
            "the server is shutting down",
        ),
        (TlsMode::None, false, "ERR_UNSUP", "unsupported option"),
    ] {
        for length in [0, 1, 15, 16, 17, 8196, 8197, 100_000] {
            // The data of the refused option looks like options. The next one is in
            // the same input.
            let data: String = bytes(option)
                .iter()
                .cycle()
                .take(length)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let refused = |option| format!("REPLY {option} {error} 4{{ \"{text}\" }}");
            let transcript = fixed(&format!(
                "C: IHAVEOPT 00001234 4{{ {data} }} IHAVEOPT 00001235 4{{ }}
                 S: {} {}
                 C: {option}
                 S: REPLY ABORT ACK 4{{ }}
                 E: Aborted",
                refused("00001234"),
                refused("00001235"),
            ));
            let start = || {
                let mut driver = HandshakeDriver::new(Config::new().tls(tls), &[]);
                if shutting_down {
                    driver.handshake.shut_down();
                }
                driver
            };
            play(start, &transcript);
        }
    }
}

/// nbdkit CVE-2025-47711, -47712: lengths near 2^32 are rejected, never wrapped.
#[test]
fn extents_near_4_gib_are_rejected_or_split() {
    let four = Extent32 {
        length: u32::MAX,
        flags: 0,
    };
    let status = request_of_type!(Framing::Structured, BlockStatus32, BLOCK_STATUS);
    let mut out = Vec::new();
    let rejected = status
        .reply(ContextId(0), [four, four], &mut out)
        .unwrap_err();
    assert_eq!(rejected.reason, Misuse::ExtentBeyond);
    let status = rejected.request;
    // `Extent32` cannot hold 4 GiB.
    let whole = crate::replies::wide(1 << 32, 0);
    assert!(Extent32::try_from(whole).is_err());
    let pieces = nbd_codec::server::narrow::split(whole).unwrap();
    let cut = status.truncate(pieces);
    assert!(status.reply(ContextId(0), cut, &mut out).is_ok());
    assert_eq!(out[24..28], [0xff, 0xff, 0, 0]);
}

/// QEMU CVE-2017-15119: the length of an option is validated before its data is
/// read.
#[test]
fn options_of_4_gib_end_the_session() {
    for option in [
        OptionType::LIST,
        OptionType::GO,
        OptionType::ABORT,
        OptionType(0x1234),
    ] {
        for length in [u32::MAX, 1 << 31, (1 << 25) + 1] {
            let mut handshake = negotiating(TlsMode::None);
            let header = OptionHeader { option, length }.encode();
            let over = Violation::OptionTooLong { option, length };
            assert_eq!(run(&mut handshake, &mut &header[..]), Err(over.into()));
        }
    }
    // A plausible length passes through a small buffer, and is answered.
    let mut handshake = negotiating(TlsMode::None);
    let option = OptionType::GO;
    let length = 1 << 25;
    let header = OptionHeader { option, length }.encode();
    assert_eq!(run(&mut handshake, &mut &header[..]), Ok(Vec::new()));
    let piece = [0; 512];
    for _ in 1..(1 << 25) / 512 {
        assert_eq!(run(&mut handshake, &mut &piece[..]), Ok(Vec::new()));
    }
    let written = run(&mut handshake, &mut &piece[..]).unwrap();
    assert_eq!(final_reply(&written, option), OptionReplyType::ERR_TOO_BIG);
}

/// QEMU CVE-2024-7409, nbd-server CVE-2013-7441: a client may close after every
/// byte, and a server can tell that it still negotiates.
#[test]
fn clients_may_close_in_every_state() {
    let stream = bytes(
        "00000003
         IHAVEOPT LIST 4{ } IHAVEOPT 00001234 4{ 00*20 } IHAVEOPT EXTENDED_HEADERS 4{ }
         IHAVEOPT SET_META 4{ 4{ \"disk\" } 00000001 4{ \"base:allocation\" } }
         IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }",
    );
    for end in 0..=stream.len() {
        let mut handshake = Handshake::new(Config::new()).unwrap();
        assert!(handshake.is_negotiating());
        run(&mut handshake, &mut &stream[..end]).unwrap();
        assert_eq!(handshake.is_negotiating(), end < stream.len());
        assert_eq!(handshake.end_of_input(), Err(Error::Closed));
        assert!(!handshake.is_negotiating());
        assert_eq!(handshake.receive(&mut &[][..]), Err(Error::Closed));
    }
    // Also while a query awaits its answer, and before the greeting.
    let mut handshake = negotiating(TlsMode::None);
    let list = bytes("IHAVEOPT LIST 4{ }");
    let list = handshake.receive(&mut &list[..]);
    assert_eq!(list, Ok(Step::Event(HandshakeEvent::List)));
    assert_eq!(handshake.end_of_input(), Err(Error::Closed));
    assert_eq!(
        Handshake::new(Config::new()).unwrap().end_of_input(),
        Err(Error::Closed)
    );
    // A client that sends ABORT need not wait for the answer.
    let mut handshake = negotiating(TlsMode::None);
    let abort = bytes("IHAVEOPT ABORT 4{ }");
    assert_eq!(handshake.receive(&mut &abort[..]), Ok(Step::Transmit));
    for _ in 0..3 {
        assert_eq!(handshake.end_of_input(), Ok(()));
    }

    let request =
        bytes("REQUEST 0000 WRITE 00*8 00*8 4{ 00*40 } REQUEST 0000 READ 00*8 00*8 00000001");
    for end in 0..=request.len() {
        let export = export(Framing::Simple, TransmissionFlags::NONE);
        let mut transmission = Transmission::new(export, Limits::DEFAULT).unwrap();
        let mut input = &request[..end];
        let mut out = Vec::new();
        loop {
            match transmission.receive(&mut input).unwrap() {
                Step::Event(TransmissionEvent::Request(request)) => {
                    succeed(&mut transmission, request, &mut out);
                }
                Step::Event(_) | Step::Content(_) => {}
                Step::Read(_) | Step::ReadPayload { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(transmission.end_of_input(), Err(Error::Closed));
        assert_eq!(
            transmission.receive(&mut &[][..]).unwrap_err(),
            Error::Closed
        );
    }
}

/// nbd-server CVE-2022-26495, -26496: an inner length is within the outer one,
/// and no buffer depends on either.
#[test]
fn inner_lengths_are_within_outer_lengths() {
    for (name, option) in [
        ("INFO", OptionType::INFO),
        ("GO", OptionType::GO),
        ("LIST_META", OptionType::LIST_META_CONTEXT),
    ] {
        for inner in ["ffffffff", "fffffffe", "7fffffff", "00000401", "00000007"] {
            let mut handshake = negotiating(TlsMode::None);
            let option_bytes = bytes(&format!("IHAVEOPT {name} 4{{ {inner} 00*6 }}"));
            let written = run(&mut handshake, &mut &option_bytes[..]).unwrap();
            assert_eq!(final_reply(&written, option), OptionReplyType::ERR_INVALID);
        }
    }
}

/// nbd-server advertised DF and answered EINVAL to it. Here the transmission
/// flags decide both, for every flag and command.
#[test]
fn only_advertised_flags_and_commands_are_accepted() {
    let needs = [
        (
            Command::FLUSH,
            CommandFlags::NONE,
            TransmissionFlags::SEND_FLUSH,
        ),
        (
            Command::TRIM,
            CommandFlags::NONE,
            TransmissionFlags::SEND_TRIM,
        ),
        (
            Command::CACHE,
            CommandFlags::NONE,
            TransmissionFlags::SEND_CACHE,
        ),
        (
            Command::RESIZE,
            CommandFlags::NONE,
            TransmissionFlags::SEND_RESIZE,
        ),
        (
            Command::WRITE_ZEROES,
            CommandFlags::NONE,
            TransmissionFlags::SEND_WRITE_ZEROES,
        ),
        (
            Command::WRITE_ZEROES,
            CommandFlags::NO_HOLE,
            TransmissionFlags::SEND_WRITE_ZEROES,
        ),
        (
            Command::WRITE_ZEROES,
            CommandFlags::FAST_ZERO,
            TransmissionFlags(1 << 6 | 1 << 11),
        ),
        (Command::READ, CommandFlags::DF, TransmissionFlags::SEND_DF),
        (
            Command::READ,
            CommandFlags::FUA,
            TransmissionFlags::SEND_FUA,
        ),
        (Command::READ, CommandFlags::NONE, TransmissionFlags::NONE),
    ];
    // Flags that enable no command.
    let informative = TransmissionFlags::READ_ONLY
        | TransmissionFlags::ROTATIONAL
        | TransmissionFlags::CAN_MULTI_CONN;
    let enabling = |flags: &TransmissionFlags| flags.intersection(informative).is_empty();
    for wanted in (0..1 << 13).map(TransmissionFlags).filter(enabling) {
        for framing in [Framing::Simple, Framing::Structured] {
            let mut handshake = negotiating(TlsMode::None);
            if framing == Framing::Structured {
                let option = bytes("IHAVEOPT STRUCTURED_REPLY 4{ }");
                run(&mut handshake, &mut &option[..]).unwrap();
            }
            let go = bytes("IHAVEOPT GO 4{ 4{ } 0000 }");
            let Ok(Step::Event(HandshakeEvent::Export(it))) = handshake.receive(&mut &go[..])
            else {
                panic!("no query");
            };
            let mut out = Vec::new();
            handshake
                .grant(&it, &Export::new("", 1 << 20, wanted), &mut out)
                .unwrap();
            let advertised = TransmissionFlags(u16::from_be_bytes([out[30], out[31]]));
            let ready = Step::Event(HandshakeEvent::Ready { export: 0 });
            assert_eq!(handshake.receive(&mut &[][..]), Ok(ready));
            let negotiated = handshake.into_negotiated().unwrap();
            assert_eq!(negotiated.flags, advertised);
            for (command, flags, need) in needs {
                let mut transmission = Transmission::new(negotiated, Limits::DEFAULT).unwrap();
                let request = nbd_codec::wire::request::CompactRequest {
                    flags,
                    command,
                    cookie: Default::default(),
                    offset: 0,
                    length: 512,
                };
                let accepted = match transmission.receive(&mut &request.encode()[..]) {
                    Ok(Step::Event(TransmissionEvent::Request(_))) => true,
                    Ok(Step::Event(TransmissionEvent::Answered { .. })) => false,
                    other => panic!("{other:?}"),
                };
                assert_eq!(
                    accepted,
                    advertised.contains(need),
                    "{advertised} {command} {flags}"
                );
            }
        }
    }
}

/// nbd-server sent a simple reply to a READ that failed in structured mode, and
/// its numbers in little-endian order.
#[test]
fn replies_have_the_type_of_the_framing() {
    for (framing, magic, error_at) in [
        (Framing::Simple, "SIMPLE", 4),
        (Framing::Structured, "CHUNK", 20),
        (Framing::Extended, "EXTCHUNK", 32),
    ] {
        let reply = request(framing, Command::READ, CommandFlags::NONE);
        let mut out = Vec::new();
        reply
            .fail(ErrorValue::EOVERFLOW, "")
            .encode(&mut out)
            .unwrap();
        assert!(out.starts_with(&bytes(magic)));
        assert_eq!(out[error_at..error_at + 4], [0, 0, 0, 75]);
    }
}

/// The `nbd` crate answered a failing write and read its payload as a request.
#[test]
fn payloads_are_drained_before_the_next_header() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        for length in [1, 27, 28, 31, 32, 33, 5000] {
            let export = export(framing, TransmissionFlags::READ_ONLY);
            let mut transmission = Transmission::new(export, Limits::DEFAULT).unwrap();
            let (write, read) = match framing {
                Framing::Extended => (
                    format!("EXTREQUEST 0020 WRITE 00*8 00*8 {length:016x}"),
                    "EXTREQUEST 0000 READ 00*8 00*8 0000_0000_0000_0001",
                ),
                _ => (
                    format!("REQUEST 0000 WRITE 00*8 00*8 {length:08x}"),
                    "REQUEST 0000 READ 00*8 00*8 0000_0001",
                ),
            };
            // The payload looks like a request.
            let read = bytes(read);
            let mut stream = bytes(&write);
            stream.extend(read.iter().cycle().take(length));
            stream.extend(&read);
            let mut input = &stream[..];
            let step = transmission.receive(&mut input).unwrap();
            assert!(matches!(
                step,
                Step::Event(TransmissionEvent::Answered {
                    result: Err(ErrorValue::EPERM),
                    ..
                })
            ));
            assert_eq!(input, read);
            let step = transmission.receive(&mut input).unwrap();
            let Step::Event(TransmissionEvent::Request(request)) = step else {
                panic!("{step:?}");
            };
            assert!(matches!(request, Request::Read(_)));
        }
    }
}

/// tokio-nbd: `offset + length` overflows, and 4 GiB are allocated on request.
/// Here the length of a request may size an allocation.
#[test]
fn reads_are_within_export_and_maximum_payload() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let export = export(framing, TransmissionFlags::KNOWN);
        let maximum = u64::from(export.constraints().maximum);
        for offset in [0, 1, export.size - 1, export.size, u64::MAX - 1, u64::MAX] {
            for length in [1, maximum - 1, maximum, maximum + 1, u64::from(u32::MAX)] {
                let mut transmission = Transmission::new(export, Limits::DEFAULT).unwrap();
                let header = match framing {
                    Framing::Extended => {
                        format!("EXTREQUEST 0000 READ 00*8 {offset:016x} {length:016x}")
                    }
                    _ => format!("REQUEST 0000 READ 00*8 {offset:016x} {length:08x}"),
                };
                let header = bytes(&header);
                let step = transmission.receive(&mut &header[..]);
                let inside = offset
                    .checked_add(length)
                    .is_some_and(|end| end <= export.size);
                match step.unwrap() {
                    Step::Event(TransmissionEvent::Request(Request::Read(read))) => {
                        assert!(inside && u64::from(read.length()) <= maximum);
                    }
                    Step::Event(TransmissionEvent::Answered { .. }) => {
                        assert!(!inside || length > maximum)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// Several servers close the connection at an option they do not know, so
/// newer clients cannot connect.
#[test]
fn unknown_options_are_answered() {
    let mut handshake = negotiating(TlsMode::None);
    for option in (12..200).chain([0, 4, 0x8000_0000, u32::MAX]) {
        for length in [0, 5] {
            let stream = bytes(&format!("IHAVEOPT {option:08x} 4{{ ff*{length} }}"));
            let written = run(&mut handshake, &mut &stream[..]).unwrap();
            let reply = final_reply(&written, OptionType(option));
            assert_eq!(reply, OptionReplyType::ERR_UNSUP);
        }
    }
}

/// e2b, ZeroFS, containerization: FUA, NO_HOLE and FAST_ZERO were advertised
/// and ignored. Here the request carries them.
#[test]
fn requests_carry_the_command_flags() {
    use CommandFlags as F;
    for bits in 0..8 {
        let pick = |bit: u16, flag| if bits & bit != 0 { flag } else { F::NONE };
        let flags = pick(1, F::FUA) | pick(2, F::NO_HOLE) | pick(4, F::FAST_ZERO);
        let zeroes = request_of_type!(Framing::Extended, WriteZeroes, WRITE_ZEROES, flags);
        assert_eq!(zeroes.fua(), bits & 1 != 0);
        assert_eq!(zeroes.no_hole(), bits & 2 != 0);
        assert_eq!(zeroes.fast_zero(), bits & 4 != 0);
    }
    for (flags, fua) in [(F::NONE, false), (F::FUA, true)] {
        assert_eq!(
            request_of_type!(Framing::Simple, Write, WRITE, flags).fua(),
            fua
        );
        assert_eq!(
            request_of_type!(Framing::Simple, Trim, TRIM, flags).fua(),
            fua
        );
        // Clients set FUA on commands that do not write: accepted.
        let _ = request_of_type!(Framing::Simple, Read, READ, flags);
        let _ = request_of_type!(Framing::Simple, Flush, FLUSH, flags);
        let _ = request_of_type!(Framing::Simple, Cache, CACHE, flags);
    }
}

/// Two names can have the same hash. A client that selects contexts of the one
/// export and enters the other gets no context that the other does not have.
#[test]
fn export_names_with_equal_hash_share_no_contexts() {
    const TWINS: [&str; 2] = ["8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ"];
    const RICH: &[MetaContext<'_>] = &[
        MetaContext::narrow("base:allocation"),
        MetaContext::narrow("x-a:secret"),
    ];
    let mut handshake = negotiating(TlsMode::None);
    let structured = bytes("IHAVEOPT STRUCTURED_REPLY 4{ }");
    run(&mut handshake, &mut &structured[..]).unwrap();
    let ask = |handshake: &mut Handshake, option: &str, contexts| {
        let stream = bytes(option);
        let mut out = Vec::new();
        match handshake.receive(&mut &stream[..]) {
            Ok(Step::Event(
                HandshakeEvent::Export(query) | HandshakeEvent::MetaContexts(query),
            )) => {
                let mut export = Export::new(query.export(), 1, TransmissionFlags::NONE);
                export.contexts = contexts;
                handshake.grant(&query, &export, &mut out).map(|_| ())
            }
            other => panic!("{other:?}"),
        }
    };
    let queries = "00000002 4{ \"base:allocation\" } 4{ \"x-a:secret\" }";
    let set = format!("IHAVEOPT SET_META 4{{ 4{{ \"{}\" }} {queries} }}", TWINS[0]);
    assert_eq!(ask(&mut handshake, &set, RICH), Ok(()));
    assert_eq!(handshake.agreed().contexts.len(), 2);
    let go = format!("IHAVEOPT GO 4{{ 4{{ \"{}\" }} 0000 }}", TWINS[1]);
    // The poorer export does not get the contexts of the richer one, and the
    // session does not silently go on with some of them.
    let changed = Err(Misuse::ContextsChanged);
    assert_eq!(ask(&mut handshake, &go, CONTEXTS), changed);
    assert_eq!(handshake.agreed().contexts.len(), 2);
}
