//! Commands that are refused before a byte is made; a refused command changes
//! nothing.

use nbd_codec::client::{Request, RequestHeader, Slot, Transmission};
use nbd_codec::wire::EncodeError;
use nbd_codec::wire::flags::{CommandFlags as F, TransmissionFlags as T};
use nbd_codec::wire::number::{Command, ContextId};
use nbd_codec::{Framing, Limits, Misuse, Negotiated};

use super::machines::{
    self, ALL, Bytes, Client, FRAMINGS, export, request, with_block_sizes, with_contexts,
};
use super::transcript::once;

/// Checks that a request is refused, and that the next good one is made as if
/// the refused one had never been submitted.
#[track_caller]
fn refused(export: Negotiated, request: Request, misuse: Misuse) {
    let machine = || Transmission::new(export, [Slot::EMPTY; 2], Limits::DEFAULT);
    let good = Request {
        command: Command::READ,
        flags: F::NONE,
        offset: 0,
        length: u64::from(export.constraints().minimum),
    };
    if let Some(made) = while_resizing(export, request) {
        assert_eq!(made, Err(misuse), "{request:?}");
    }
    if request.command != Command::DISC {
        assert_eq!(export.check(&request), Err(misuse), "{request:?}");
    }
    let (mut offered, mut fresh) = (machine(), machine());
    let before = format!("{offered:?}");
    for _ in 0..3 {
        assert_eq!(offered.submit(request), Err(misuse), "{request:?}");
        assert_eq!(offered.in_flight(), 0);
        assert_eq!(format!("{offered:?}"), before);
    }
    assert_eq!(offered.submit(good), fresh.submit(good));
    assert_eq!(offered.submit(request), Err(misuse));
    assert_eq!(offered.submit(good), fresh.submit(good));
    assert_eq!(format!("{offered:?}"), format!("{fresh:?}"));
}

#[track_caller]
fn accepted(export: Negotiated, request: Request) {
    let mut machine = Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT);
    let made = machine.submit(request);
    assert!(made.is_ok(), "{request:?}: {made:?}");
    assert_eq!(export.check(&request), Ok(()), "{request:?}");
    if let Some(made) = while_resizing(export, request) {
        assert!(made.is_ok(), "{request:?}: {made:?}");
    }
}

/// The same while a resize to the same size is in flight: then the slow path
/// checks reads and writes.
fn while_resizing(export: Negotiated, request: Request) -> Option<Result<RequestHeader, Misuse>> {
    let mut machine = Transmission::new(export, [Slot::EMPTY; 2], Limits::DEFAULT);
    let resize = Request::resize(export.size);
    let other = request.command != Command::RESIZE;
    let resizing = other && machine.submit(resize).is_ok();
    resizing.then(|| machine.submit(request))
}

fn with_flags(framing: Framing, flags: T) -> Negotiated {
    let mut export = with_contexts(framing, 1);
    export.flags = flags;
    export
}

/// Each command needs its own flag.
#[test]
fn commands_that_are_not_advertised() {
    for framing in FRAMINGS {
        for (line, flag, command) in [
            ("FLUSH", T::SEND_FLUSH, Command::FLUSH),
            ("TRIM 0 512", T::SEND_TRIM, Command::TRIM),
            ("CACHE 0 512", T::SEND_CACHE, Command::CACHE),
            (
                "WRITE_ZEROES 0 512",
                T::SEND_WRITE_ZEROES,
                Command::WRITE_ZEROES,
            ),
            ("RESIZE 2M", T::SEND_RESIZE, Command::RESIZE),
        ] {
            let (request, _) = request(line);
            let misuse = Misuse::NotAdvertised(command);
            refused(with_flags(framing, ALL - flag), request, misuse);
            accepted(with_flags(framing, flag), request);
        }
        for number in [9, 0x1234, 0xffff] {
            let (mut request, _) = request("READ 0 512");
            request.command = Command(number);
            let misuse = Misuse::NotAdvertised(Command(number));
            refused(with_flags(framing, T(0xffff)), request, misuse);
        }
        let (status, _) = request("STATUS 0 512");
        refused(export(framing), status, Misuse::NoContext);
        let (disc, _) = request("DISC");
        let why = Misuse::State("use disconnect to end the session");
        refused(export(framing), disc, why);
    }
}

#[test]
fn writing_to_what_is_read_only() {
    for framing in FRAMINGS {
        let export = with_flags(framing, T::KNOWN);
        for line in [
            "WRITE 0 512",
            "TRIM 0 512",
            "WRITE_ZEROES 0 512",
            "RESIZE 2M",
        ] {
            refused(export, request(line).0, Misuse::ReadOnly);
        }
        for line in ["READ 0 512", "FLUSH", "CACHE 0 512"] {
            accepted(export, request(line).0);
        }
    }
}

/// Which flags each command accepts, where all are advertised.
#[test]
fn flags_and_commands() {
    let all_flags = [
        F::FUA,
        F::NO_HOLE,
        F::DF,
        F::REQ_ONE,
        F::FAST_ZERO,
        F::PAYLOAD_LEN,
        F(1 << 6),
        F(1 << 15),
    ];
    for framing in [Framing::Structured, Framing::Extended] {
        let export = with_contexts(framing, 1);
        for (line, own) in [
            ("READ 0 512", F::DF),
            ("WRITE 0 512", F::NONE),
            ("FLUSH", F::NONE),
            ("TRIM 0 512", F::NONE),
            ("CACHE 0 512", F::NONE),
            ("WRITE_ZEROES 0 512", F::NO_HOLE | F::FAST_ZERO),
            ("STATUS 0 512", F::REQ_ONE),
            ("RESIZE 2M", F::NONE),
        ] {
            for flag in all_flags {
                let request = request(line).0.with_flags(flag);
                if (own | F::FUA).contains(flag) {
                    accepted(export, request)
                } else {
                    refused(export, request, Misuse::Flag)
                }
            }
        }
    }
}

/// Flags need their own advertisement.
#[test]
fn flags_that_are_not_advertised() {
    for framing in FRAMINGS {
        for (line, flag) in [
            ("WRITE 0 512 FUA", T::SEND_FUA),
            ("READ 0 512 FUA", T::SEND_FUA),
            ("FLUSH 0 0 FUA", T::SEND_FUA),
            ("READ 0 512 DF", T::SEND_DF),
            ("WRITE_ZEROES 0 512 FAST_ZERO", T::SEND_FAST_ZERO),
            ("WRITE_ZEROES 0 512 NO_HOLE|FAST_ZERO", T::SEND_FAST_ZERO),
        ] {
            refused(
                with_flags(framing, ALL - flag),
                request(line).0,
                Misuse::Flag,
            );
        }
    }
    // Without chunks there are no fragments to forbid.
    refused(
        export(Framing::Simple),
        request("READ 0 512 DF").0,
        Misuse::Flag,
    );
}

/// Block status needs a framing with chunks.
fn is_supported(command: &str, framing: Framing) -> bool {
    command != "STATUS" || framing != Framing::Simple
}

#[test]
fn ranges() {
    let size = 1 << 20;
    for framing in FRAMINGS {
        for command in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES", "STATUS"] {
            if !is_supported(command, framing) {
                continue;
            }
            let make = |offset: u64, length: u64| Request {
                offset,
                length,
                ..request(&format!("{command} 0 0")).0
            };
            let export = with_contexts(framing, 1);
            for (offset, length) in [
                (0, size + 1),
                (1, size),
                (size, 1),
                (size - 1, 2),
                (size + 1, 1),
                (u64::MAX, 1),
                (u64::MAX, u64::MAX),
                (1, u64::MAX),
                (u64::MAX - 10, 11),
            ] {
                let misuse = Misuse::OutOfBounds { size };
                refused(export, make(offset, length), misuse);
            }
            for offset in [0, size, u64::MAX] {
                refused(export, make(offset, 0), Misuse::ZeroLength);
            }
            for (offset, length) in [(0, 1), (0, size), (size - 1, 1), (4095, 4097)] {
                accepted(export, make(offset, length));
            }
        }
    }
}

#[test]
fn alignment() {
    for framing in FRAMINGS {
        for minimum in [2, 512, 4096, 65_536] {
            let export = with_block_sizes(framing, minimum, 1 << 20);
            let block = u64::from(minimum);
            for command in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES"] {
                let make = |offset: u64, length: u64| Request {
                    offset,
                    length,
                    ..request(&format!("{command} 0 0")).0
                };
                for (offset, length) in [
                    (1, block),
                    (block, 1),
                    (block - 1, block),
                    (block, block + 1),
                    // Both by the same amount.
                    (block + 1, block + 1),
                    (block / 2, block / 2),
                ] {
                    let misuse = Misuse::Misaligned { minimum };
                    refused(export, make(offset, length), misuse);
                }
                accepted(export, make(block, 2 * block));
            }
        }
    }
}

/// Only payloads have a maximum, reads with every framing.
#[test]
fn maximum_payload() {
    for framing in FRAMINGS {
        let export = with_block_sizes(framing, 1, 4096);
        for command in ["READ", "WRITE"] {
            let maximum = 4096;
            let too_long = request(&format!("{command} 0 4097")).0;
            refused(export, too_long, Misuse::TooLarge { maximum });
            accepted(export, request(&format!("{command} 0 4096")).0);
        }
        for command in ["TRIM", "CACHE", "WRITE_ZEROES"] {
            accepted(export, request(&format!("{command} 0 1M")).0);
        }
        let mut default = with_contexts(framing, 1);
        default.size = u64::MAX;
        for command in ["READ", "WRITE"] {
            let maximum = 1 << 25;
            let too_long = request(&format!("{command} 0 33554433")).0;
            refused(default, too_long, Misuse::TooLarge { maximum });
            accepted(default, request(&format!("{command} 0 32M")).0);
        }
    }
}

/// Lengths of more than 32 bits are refused, not truncated.
#[test]
fn lengths_beyond_the_framing() {
    for framing in [Framing::Simple, Framing::Structured] {
        let mut export = with_contexts(framing, 1);
        export.size = u64::MAX;
        for command in ["TRIM", "CACHE", "WRITE_ZEROES", "STATUS"] {
            if !is_supported(command, framing) {
                continue;
            }
            let misuse = Misuse::NotExpressible { framing };
            for length in ["4G", "5G", "2^63", "2^64-1"] {
                let request = request(&format!("{command} 0 {length}")).0;
                refused(export, request, misuse);
            }
            accepted(export, request(&format!("{command} 0 2^32-1")).0);
        }
    }
    let mut export = with_contexts(Framing::Extended, 1);
    export.size = u64::MAX;
    for command in ["TRIM", "CACHE", "WRITE_ZEROES", "STATUS"] {
        accepted(export, request(&format!("{command} 0 2^64-1")).0);
    }
}

#[test]
fn every_slot_in_flight() {
    for framing in FRAMINGS {
        let mut machine = Transmission::new(export(framing), [Slot::EMPTY; 3], Limits::DEFAULT);
        for _ in 0..3 {
            assert!(machine.submit(Request::flush()).is_ok());
        }
        let before = format!("{machine:?}");
        assert_eq!(machine.submit(Request::flush()), Err(Misuse::Full));
        // A resize that finds no slot is not in flight.
        assert_eq!(machine.submit(Request::resize(0)), Err(Misuse::Full));
        assert_eq!(format!("{machine:?}"), before);
        assert_eq!(machine.in_flight(), 3);
        let mut none = Transmission::new(export(framing), [Slot::EMPTY; 0], Limits::DEFAULT);
        assert_eq!(none.submit(Request::flush()), Err(Misuse::Full));
        // DISC takes no slot.
        assert!(machine.disconnect().is_ok() && none.disconnect().is_ok());
    }
}

/// Block status of some contexts.
#[test]
fn filtered_status() {
    let ids = |ids: &[u32]| ids.iter().map(|id| ContextId(*id)).collect::<Vec<_>>();
    let with = |export: Negotiated, asked: &[u32], flags: F, misuse: Misuse| {
        let mut machine = Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT);
        let before = format!("{machine:?}");
        let mut payload = Bytes::default();
        let made = machine.block_status_of(&ids(asked), 0, 512, flags, &mut payload);
        assert_eq!(made, Err(misuse), "{asked:?}");
        assert!(payload.0.is_empty());
        assert_eq!(format!("{machine:?}"), before);
    };
    let export = with_contexts(Framing::Extended, 3);
    with(export, &[], F::NONE, Misuse::NoContext);
    with(export, &[4], F::NONE, Misuse::Context(ContextId(4)));
    with(export, &[1, 2, 1], F::NONE, Misuse::Context(ContextId(1)));
    with(export, &[1], F::DF, Misuse::Flag);
    let mut without = export;
    without.flags = ALL - T::BLOCK_STATUS_PAYLOAD;
    with(without, &[1], F::NONE, Misuse::Flag);
    let framing = Framing::Structured;
    let narrow = with_contexts(framing, 3);
    with(narrow, &[1], F::NONE, Misuse::NotExpressible { framing });
    let mut small = export;
    small.size = 511;
    with(small, &[1], F::NONE, Misuse::OutOfBounds { size: 511 });
    with(
        machines::export(Framing::Extended),
        &[],
        F::NONE,
        Misuse::NoContext,
    );

    // No room for the payload, and no slot.
    let mut machine = Transmission::new(export, [Slot::EMPTY; 1], Limits::DEFAULT);
    let before = format!("{machine:?}");
    for room in 0..16 {
        let mut payload = vec![0xee; room];
        let made =
            machine.block_status_of(&ids(&[1, 2]), 0, 512, F::NONE, &mut payload.as_mut_slice());
        assert_eq!(made, Err(EncodeError::NoRoom { needed: 16 }.into()));
        assert!(payload.iter().all(|byte| *byte == 0xee));
    }
    assert_eq!(format!("{machine:?}"), before);
    assert!(machine.submit(Request::flush()).is_ok());
    let mut payload = Bytes::default();
    let made = machine.block_status_of(&ids(&[1, 2]), 0, 512, F::NONE, &mut payload);
    assert_eq!(made, Err(Misuse::Full));
    assert!(payload.0.is_empty());
}

/// What a lenient client may send, and what the framing cannot express even
/// then.
#[test]
fn lenient() {
    for framing in FRAMINGS {
        let mut bare = Negotiated::new(framing, 512, T::NONE);
        bare.flags = T::READ_ONLY;
        for line in [
            "READ 0 0",
            "READ 1M 1 DF",
            "READ 0 64M",
            "WRITE 0 1 NO_HOLE|DF",
            "FLUSH 1 1",
            "TRIM 2^64-1 2^32-1",
            "CACHE 0 512",
            "WRITE_ZEROES 0 512 FAST_ZERO",
            "STATUS 0 512",
            "RESIZE 0",
            "0x1234 5 6 0xffff",
        ] {
            let mut client = Client::lenient(bare);
            once(&mut client, &format!("C: {line}"));
        }
        let mut client = Client::lenient(bare);
        let why = Misuse::State("use disconnect to end the session");
        assert_eq!(client.machine.submit(request("DISC").0), Err(why));
        let too_long = client.machine.submit(request("TRIM 0 4G").0);
        let payload = client.machine.submit(request("WRITE 0 4G").0);
        let not_expressible = Misuse::NotExpressible { framing };
        assert_eq!(too_long.is_ok(), framing == Framing::Extended);
        assert_eq!(payload, Err(not_expressible));
        if framing != Framing::Extended {
            assert_eq!(too_long, Err(not_expressible));
            let mut sink = Bytes::default();
            let ids = [ContextId(1)];
            let made = client
                .machine
                .block_status_of(&ids, 0, 1, F::NONE, &mut sink);
            assert_eq!(made, Err(not_expressible));
            assert!(sink.0.is_empty());
        } else {
            // Unknown and repeated contexts: for testers of servers.
            once(&mut client, "C: STATUS 0 512 of=1,1,77");
        }
    }
}

/// Replies to a lenient client are checked, also those to unknown commands.
#[test]
fn replies_to_lenient_commands() {
    machines::lenient(
        export(Framing::Simple),
        "C: 0x1234 5 6 0xffff\nS: simple EINVAL #0\nE: #0 done NBD_EINVAL",
    );
    machines::lenient(
        export(Framing::Structured),
        r#"
        C: 0x1234 5 6 0xffff
        S: last ERROR_OFFSET #0 EINVAL:32 0:16 11:64
        ! Violation(OutOfBounds(#0))
        "#,
    );
    machines::lenient(
        export(Framing::Extended),
        "C: 0x1234 5 6 0xffff\nS: last NONE #0\nE: #0 done",
    );
    // A context that is named twice has one status chunk.
    machines::lenient(
        with_contexts(Framing::Extended, 2),
        r#"
        C: STATUS 0 512 of=1,2,1
        S: chunk BLOCK_STATUS_EXT #0 1:32 1:32 512:64 0:64
        S: last BLOCK_STATUS_EXT #0 2:32 1:32 512:64 0:64
        E: #0 wide 1 @0 512/0x0
        E: #0 wide 2 @0 512/0x0
        E: #0 done
        "#,
    );
}
