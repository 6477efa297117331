//! Every command in every framing: what is handed over, what is rejected, and
//! with which error.

use nbd_codec::server::{Event, Request, Transmission};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ContextId;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Context, Framing, Limits, Negotiated, Width};

use crate::drive::{Desk, play};
use crate::script::bytes;

const SIZE: u64 = 0x1_0000_0000_0000;
const WRITABLE: TransmissionFlags = TransmissionFlags(0x1fff & !TransmissionFlags::READ_ONLY.0);

/// An export with two contexts, the second one wide where it can be.
pub(crate) fn export(framing: Framing, flags: TransmissionFlags) -> Negotiated {
    let mut export = Negotiated::new(framing, SIZE, flags);
    if framing != Framing::Simple {
        let width = [Width::Narrow, Width::Wide][usize::from(framing == Framing::Extended)];
        for (id, width) in [(0, Width::Narrow), (3, width)] {
            let id = ContextId(id);
            export.contexts.push(Context { id, width }).unwrap();
        }
    }
    export
}

/// Does everything: a byte of the export is the low byte of its offset.
pub(crate) fn obey(transmission: &mut Transmission, request: Request, out: &mut Vec<u8>) {
    let reply = match request {
        Request::Read(read) => {
            let from = read.offset();
            let head = read.data();
            out.extend(head.as_bytes());
            out.extend((0..u64::from(head.payload_length())).map(|at| (from + at) as u8));
            return;
        }
        Request::Write(it) => it.succeed(),
        Request::Flush(it) => it.succeed(),
        Request::Trim(it) => it.succeed(),
        Request::Cache(it) => it.succeed(),
        Request::WriteZeroes(it) => it.succeed(),
        Request::Resize(it) => transmission.resized(it),
        Request::BlockStatus32(mut it) => {
            for id in it.contexts() {
                let length = it.length().try_into().unwrap();
                let extent = Extent32 {
                    length,
                    flags: id.0 + 1,
                };
                match it.answer(id, [extent], out).unwrap() {
                    Some(more) => it = more,
                    None => return,
                }
            }
            panic!("a status reply without end");
        }
        Request::BlockStatus64(mut it) => {
            for id in it.contexts() {
                let extent = Extent64 {
                    length: it.length(),
                    flags: u64::from(id.0) + 1,
                };
                match it.answer(id, [extent], out).unwrap() {
                    Some(more) => it = more,
                    None => return,
                }
            }
            panic!("a status reply without end");
        }
        other => panic!("unknown {other:?}"),
    };
    reply.encode(out).unwrap();
}

#[track_caller]
fn play_on(export: Negotiated, transcript: &str) {
    play_with(export, Limits::DEFAULT, transcript);
}

#[track_caller]
fn play_with(export: Negotiated, limits: Limits, transcript: &str) {
    let start = || Desk {
        transmission: Transmission::new(export, limits).unwrap(),
        answer: obey,
    };
    play(start, transcript);
}

const COOKIE: &str = "c00c_1e00_0000_0001";

/// A request that is rejected, and one behind it that finds its place.
#[track_caller]
fn rejects(export: Negotiated, request: &str, command: &str, error: &str, text: &str) {
    rejects_within(export, Limits::DEFAULT, request, command, error, text);
}

#[track_caller]
fn rejects_within(
    export: Negotiated,
    limits: Limits,
    request: &str,
    command: &str,
    error: &str,
    text: &str,
) {
    let (reply, next, data) = match export.framing {
        Framing::Simple => (
            format!("SIMPLE {error} {COOKIE}"),
            format!("REQUEST 0000 READ {COOKIE} 0000_0000_0000_0200 0000_0200"),
            format!("SIMPLE OK {COOKIE}"),
        ),
        Framing::Structured => (
            format!("CHUNK DONE ERROR {COOKIE} 4{{ {error} 2{{ \"{text}\" }} }}"),
            format!("REQUEST 0000 READ {COOKIE} 0000_0000_0000_0200 0000_0200"),
            format!("CHUNK DONE OFFSET_DATA {COOKIE} 0000_0208 0000_0000_0000_0200"),
        ),
        Framing::Extended => {
            // The offset of the request comes back.
            let offset = request.split_whitespace().nth(4).unwrap();
            (
                format!("EXTCHUNK DONE ERROR {COOKIE} {offset} 8{{ {error} 2{{ \"{text}\" }} }}"),
                format!("EXTREQUEST 0000 READ {COOKIE} 0000_0000_0000_0200 0000_0000_0000_0200"),
                format!(
                    "EXTCHUNK DONE OFFSET_DATA {COOKIE} 0000_0000_0000_0200 0000_0000_0000_0208 0000_0000_0000_0200"
                ),
            )
        }
    };
    let bytes: String = (0..512).map(|at| format!("{:02x}", at % 256)).collect();
    play_with(
        export,
        limits,
        &format!(
            "C: {request}
             E: rejected NBD_CMD_{command} NBD_{error}
             S: {reply}
             C: {next}
             E: read 0x200+0x200
             S: {data} {bytes}"
        ),
    );
}

#[test]
fn simple_framing() {
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: REQUEST 0000 READ {COOKIE} 0000_0000_0000_00fe 0000_0004
             E: read 0xfe+0x4
             S: SIMPLE OK {COOKIE} feff0001
             C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_1000 4{{ \"payload\" }}
             E: payload 0x1000+0x7
             E: data 0x1000 payload
             E: write 0x1000+0x7
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0001 WRITE {COOKIE} 0000_0000_0000_1000 4{{ \"p\" }}
             E: payload 0x1000+0x1
             E: data 0x1000 p
             E: write 0x1000+0x1 FUA
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000
             E: flush
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0001 TRIM {COOKIE} 0000_0000_0000_0000 ffff_ffff
             E: trim 0x0+0xffffffff FUA
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 CACHE {COOKIE} 0000_0000_0000_0001 0000_0002
             E: cache 0x1+0x2
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0013 WRITE_ZEROES {COOKIE} 0000_ffff_ffff_ffff 0000_0001
             E: zeroes 0xffffffffffff+0x1 FUA NO_HOLE FAST_ZERO
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_1000 0000_0000
             E: resize 0x1000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000
             E: Disconnect"
        ),
    );
}

#[test]
fn structured_framing() {
    let ok = format!("CHUNK DONE NONE {COOKIE} 4{{ }}");
    play_on(
        export(Framing::Structured, WRITABLE),
        &format!(
            "C: REQUEST 0005 READ {COOKIE} 0000_0000_0000_00fe 0000_0004
             E: read 0xfe+0x4 DF
             S: CHUNK DONE OFFSET_DATA {COOKIE} 4{{ 0000_0000_0000_00fe feff0001 }}
             C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_1000 4{{ \"payload\" }}
             E: payload 0x1000+0x7
             E: data 0x1000 payload
             E: write 0x1000+0x7
             S: {ok}
             C: REQUEST 0001 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000
             E: flush
             S: {ok}
             C: REQUEST 0000 TRIM {COOKIE} 0000_0000_0000_0000 ffff_ffff
             E: trim 0x0+0xffffffff
             S: {ok}
             C: REQUEST 0001 CACHE {COOKIE} 0000_0000_0000_0001 0000_0002
             E: cache 0x1+0x2
             S: {ok}
             C: REQUEST 0002 WRITE_ZEROES {COOKIE} 0000_ffff_ffff_ffff 0000_0001
             E: zeroes 0xffffffffffff+0x1 NO_HOLE
             S: {ok}
             C: REQUEST 0008 BLOCK_STATUS {COOKIE} 0000_0000_0001_0000 8000_0000
             E: status32 0x10000+0x80000000 of ContextId(0) ContextId(3) REQ_ONE
             S: CHUNK MORE STATUS {COOKIE} 4{{ 0000_0000 8000_0000 0000_0001 }}
             S: CHUNK DONE STATUS {COOKIE} 4{{ 0000_0003 8000_0000 0000_0004 }}
             C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_1000 0000_0000
             E: resize 0x1000
             S: {ok}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000
             E: Disconnect"
        ),
    );
}

/// Effect lengths of 64 bits where there is no payload.
#[test]
fn extended_framing() {
    let ok = |offset| format!("EXTCHUNK DONE NONE {COOKIE} {offset} 8{{ }}");
    let (zero, half) = ("0000_0000_0000_0000", "0000_4000_0000_0000");
    play_on(
        export(Framing::Extended, WRITABLE),
        &format!(
            "C: EXTREQUEST 0005 READ {COOKIE} 0000_0000_0000_00fe 0000_0000_0000_0004
             E: read 0xfe+0x4 DF
             S: EXTCHUNK DONE OFFSET_DATA {COOKIE} 0000_0000_0000_00fe 8{{ 0000_0000_0000_00fe feff0001 }}
             C: EXTREQUEST 0021 WRITE {COOKIE} {half} 8{{ \"payload\" }}
             E: payload 0x400000000000+0x7
             E: data 0x400000000000 payload
             E: write 0x400000000000+0x7 FUA
             S: {}
             C: EXTREQUEST 0001 FLUSH {COOKIE} {zero} {zero}
             E: flush
             S: {}
             C: EXTREQUEST 0000 TRIM {COOKIE} {half} {half}
             E: trim 0x400000000000+0x400000000000
             S: {}
             C: EXTREQUEST 0000 CACHE {COOKIE} {half} {half}
             E: cache 0x400000000000+0x400000000000
             S: {}
             C: EXTREQUEST 0010 WRITE_ZEROES {COOKIE} {half} {half}
             E: zeroes 0x400000000000+0x400000000000 FAST_ZERO
             S: {}
             C: EXTREQUEST 0000 BLOCK_STATUS {COOKIE} {half} {half}
             E: status64 0x400000000000+0x400000000000 of ContextId(0) ContextId(3)
             S: EXTCHUNK MORE STATUS_EXT {COOKIE} {half} 8{{ 0000_0000 0000_0001 {half} 0000_0000_0000_0001 }}
             S: EXTCHUNK DONE STATUS_EXT {COOKIE} {half} 8{{ 0000_0003 0000_0001 {half} 0000_0000_0000_0004 }}
             C: EXTREQUEST 0028 BLOCK_STATUS {COOKIE} {half} 8{{ {half} 0000_0003 }}
             E: status64 0x400000000000+0x400000000000 of ContextId(3) REQ_ONE
             S: EXTCHUNK DONE STATUS_EXT {COOKIE} {half} 8{{ 0000_0003 0000_0001 {half} 0000_0000_0000_0004 }}
             C: EXTREQUEST 0000 RESIZE {COOKIE} {half} {zero}
             E: resize 0x400000000000
             S: {}
             C: EXTREQUEST 0000 DISC {COOKIE} {zero} {zero}
             E: Disconnect",
            ok(half),
            ok(zero),
            ok(half),
            ok(half),
            ok(half),
            ok(half),
        ),
    );
}

#[test]
fn fields_nobody_needs_are_ignored() {
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0003 0000_0007
             E: flush
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0003 0000_0007
             E: Disconnect"
        ),
    );
}

const COMPACT: [Framing; 2] = [Framing::Simple, Framing::Structured];

/// A rejected request in compact headers, with either reply.
#[track_caller]
fn compact(flags: TransmissionFlags, request: &str, command: &str, error: &str, text: &str) {
    for framing in COMPACT {
        rejects(
            export(framing, flags),
            &format!("REQUEST {request}"),
            command,
            error,
            text,
        );
    }
}

#[track_caller]
fn extended(flags: TransmissionFlags, request: &str, command: &str, error: &str, text: &str) {
    let request = format!("EXTREQUEST {request}");
    rejects(
        export(Framing::Extended, flags),
        &request,
        command,
        error,
        text,
    );
}

/// The one value decides: what is not advertised is not accepted.
#[test]
fn what_was_not_advertised_is_einval() {
    let unadvertised = "the command was not advertised";
    let flag = "command flag not advertised, or not of this command";
    for (code, command, needed) in [
        ("FLUSH", "FLUSH", TransmissionFlags::SEND_FLUSH),
        ("TRIM", "TRIM", TransmissionFlags::SEND_TRIM),
        ("CACHE", "CACHE", TransmissionFlags::SEND_CACHE),
        (
            "WRITE_ZEROES",
            "WRITE_ZEROES",
            TransmissionFlags::SEND_WRITE_ZEROES,
        ),
        ("RESIZE", "RESIZE", TransmissionFlags::SEND_RESIZE),
    ] {
        let flags = WRITABLE.difference(needed);
        let request = format!("0000 {code} {COOKIE} 0000_0000_0000_0200");
        compact(
            flags,
            &format!("{request} 0000_0200"),
            command,
            "EINVAL",
            unadvertised,
        );
        let request = format!("{request} 0000_0000_0000_0200");
        extended(flags, &request, command, "EINVAL", unadvertised);
    }
    for (bits, code, needed) in [
        ("0001", "READ", TransmissionFlags::SEND_FUA),
        ("0004", "READ", TransmissionFlags::SEND_DF),
        ("0010", "WRITE_ZEROES", TransmissionFlags::SEND_FAST_ZERO),
    ] {
        let flags = WRITABLE.difference(needed);
        let request = format!("{bits} {code} {COOKIE} 0000_0000_0000_0200");
        compact(flags, &format!("{request} 0000_0200"), code, "EINVAL", flag);
        extended(
            flags,
            &format!("{request} 0000_0000_0000_0200"),
            code,
            "EINVAL",
            flag,
        );
    }
}

#[test]
fn flags_of_other_commands_are_einval() {
    let flag = "command flag not advertised, or not of this command";
    for (bits, code) in [
        ("0002", "READ"),
        ("0008", "READ"),
        ("0010", "READ"),
        ("8000", "READ"),
        ("0004", "TRIM"),
        ("0004", "WRITE_ZEROES"),
        ("0002", "FLUSH"),
        ("0002", "CACHE"),
        // Only with extended headers.
        ("0020", "READ"),
    ] {
        let request = format!("{bits} {code} {COOKIE} 0000_0000_0000_0200 0000_0200");
        compact(WRITABLE, &request, code, "EINVAL", flag);
    }
    // The payload is drained.
    for bits in ["0002", "0004", "0020", "0040"] {
        let request = format!("{bits} WRITE {COOKIE} 0000_0000_0000_0200 4{{ ff*300 }}");
        compact(WRITABLE, &request, "WRITE", "EINVAL", flag);
    }
    let request = format!("0022 WRITE {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
    extended(WRITABLE, &request, "WRITE", "EINVAL", flag);
}

#[test]
fn unknown_commands_are_einval() {
    let known = |framing| export(framing, WRITABLE);
    for framing in COMPACT {
        let request = format!("REQUEST 0000 1234 {COOKIE} 0000_0000_0000_0200 0000_0200");
        unknown(known(framing), &request);
    }
    let request = format!("EXTREQUEST 0000 1234 {COOKIE} 0000_0000_0000_0200 0000_0000_ffff_ffff");
    unknown(known(Framing::Extended), &request);
    // What it says it brings is drained.
    let request = format!("EXTREQUEST 0020 1234 {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
    unknown(known(Framing::Extended), &request);
}

#[track_caller]
fn unknown(export: Negotiated, request: &str) {
    let (head, behind) = match export.framing {
        Framing::Simple => (format!("SIMPLE EINVAL {COOKIE}"), String::new()),
        Framing::Structured => (
            format!("CHUNK DONE ERROR {COOKIE}"),
            "4{ EINVAL 2{ \"unknown command\" } }".to_owned(),
        ),
        Framing::Extended => (
            format!("EXTCHUNK DONE ERROR {COOKIE} 0000_0000_0000_0200"),
            "8{ EINVAL 2{ \"unknown command\" } }".to_owned(),
        ),
    };
    play_on(
        export,
        &format!(
            "C: {request}
             E: rejected Command(0x1234) NBD_EINVAL
             S: {head} {behind}
             C: {request}
             E: rejected Command(0x1234) NBD_EINVAL
             S: {head} {behind}"
        ),
    );
}

#[test]
fn read_only_is_eperm() {
    let all = TransmissionFlags::KNOWN;
    let text = "the export is read-only";
    let write = format!("0000 WRITE {COOKIE} 0000_0000_0000_0200 4{{ ff*300 }}");
    compact(all, &write, "WRITE", "EPERM", text);
    let write = format!("0020 WRITE {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
    extended(all, &write, "WRITE", "EPERM", text);
    // Whether they are advertised or not.
    for flags in [all, TransmissionFlags::READ_ONLY] {
        for code in ["TRIM", "WRITE_ZEROES", "RESIZE"] {
            let request = format!("0000 {code} {COOKIE} 0000_0000_0000_0200");
            compact(flags, &format!("{request} 0000_0200"), code, "EPERM", text);
            extended(
                flags,
                &format!("{request} 0000_0000_0000_0200"),
                code,
                "EPERM",
                text,
            );
        }
    }
}

#[test]
fn ranges_end_with_the_export() {
    let text = "the range ends behind the export";
    // Offset and length: just beyond, far beyond, and around the end of 64 bits.
    for (offset, length) in [
        ("0000_ffff_ffff_ff01", "0000_0100"),
        ("0001_0000_0000_0000", "0000_0001"),
        ("ffff_ffff_ffff_ffff", "0000_0001"),
        ("ffff_ffff_ffff_ff00", "ffff_ffff"),
    ] {
        for (code, error) in [
            ("READ", "EINVAL"),
            ("TRIM", "EINVAL"),
            ("CACHE", "EINVAL"),
            ("WRITE_ZEROES", "ENOSPC"),
        ] {
            let request = format!("0000 {code} {COOKIE} {offset} {length}");
            compact(WRITABLE, &request, code, error, text);
            let request = format!("0000 {code} {COOKIE} {offset} 0000_0000 {length}");
            extended(WRITABLE, &request, code, error, text);
        }
        let structured = export(Framing::Structured, WRITABLE);
        let request = format!("REQUEST 0000 BLOCK_STATUS {COOKIE} {offset} {length}");
        rejects(structured, &request, "BLOCK_STATUS", "EINVAL", text);
    }
    let request = format!("0000 WRITE {COOKIE} 0000_ffff_ffff_ff01 4{{ ff*256 }}");
    compact(WRITABLE, &request, "WRITE", "ENOSPC", text);
    // A whole u64 of length.
    for code in ["TRIM", "BLOCK_STATUS"] {
        let request = format!("0000 {code} {COOKIE} 0000_0000_0000_0001 ffff_ffff_ffff_ffff");
        extended(WRITABLE, &request, code, "EINVAL", text);
    }
}

#[test]
fn blocks_are_aligned() {
    let text = "offset or length is not aligned";
    let sizes = BlockSizes {
        minimum: 512,
        ..BlockSizes::DEFAULT
    };
    for framing in COMPACT {
        let mut export = export(framing, WRITABLE);
        export.block_sizes = Some(sizes);
        for (offset, length) in [
            ("0000_0100", "0000_0200"),
            ("0000_0200", "0000_0100"),
            ("0000_0100", "0000_0100"),
        ] {
            for code in ["READ", "TRIM", "CACHE", "WRITE_ZEROES"] {
                let request = format!("REQUEST 0000 {code} {COOKIE} 0000_0000 {offset} {length}");
                rejects(export, &request, code, "EINVAL", text);
            }
        }
        let request = format!("REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0200 4{{ 00*300 }}");
        rejects(export, &request, "WRITE", "EINVAL", text);
    }
}

/// Nothing says what no bytes mean; the connection stays.
#[test]
fn zero_length_is_einval() {
    let text = "a length of zero has no defined meaning";
    for code in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES"] {
        let request = format!("0000 {code} {COOKIE} 0000_0000_0000_0200 0000_0000");
        compact(WRITABLE, &request, code, "EINVAL", text);
    }
    for (bits, code) in [
        ("0000", "READ"),
        ("0020", "WRITE"),
        ("0000", "BLOCK_STATUS"),
    ] {
        let request = format!("{bits} {code} {COOKIE} 0000_0000_0000_0200 0000_0000_0000_0000");
        extended(WRITABLE, &request, code, "EINVAL", text);
    }
}

#[test]
fn reads_are_as_long_as_the_maximum() {
    let text = "the request is too long; split it";
    let sizes = BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum: 0x1_0000,
    };
    for (framing, error) in [
        (Framing::Simple, "EINVAL"),
        (Framing::Structured, "EOVERFLOW"),
        (Framing::Extended, "EOVERFLOW"),
    ] {
        let mut export = export(framing, WRITABLE);
        export.block_sizes = Some(sizes);
        let (magic, zeroes) = match framing {
            Framing::Extended => ("EXTREQUEST", "0000_0000"),
            _ => ("REQUEST", ""),
        };
        let request =
            |length| format!("{magic} 0000 READ {COOKIE} 0000_0000_0000_0200 {zeroes} {length}");
        rejects(export, &request("0001_0001"), "READ", error, text);
        // The offset of a chunk counts in its length: no wrap in 32 bits.
        export.block_sizes = Some(BlockSizes {
            maximum: u32::MAX,
            ..sizes
        });
        if framing != Framing::Simple {
            rejects(export, &request("ffff_fff8"), "READ", error, text);
            let mut server = Transmission::new(export, Limits::DEFAULT).unwrap();
            let longest = bytes(&request("ffff_fff7"));
            let event = server.receive(&mut &longest[..]).unwrap();
            assert!(matches!(event, Some(Event::Request(_))), "{event:?}");
        }
    }
}

#[test]
fn effects_are_as_long_as_the_limit() {
    let text = "the request is too long; split it";
    let mut limits = Limits::DEFAULT;
    limits.effect = 0x1000;
    for code in ["TRIM", "CACHE", "WRITE_ZEROES"] {
        for framing in COMPACT {
            let export = export(framing, WRITABLE);
            let request = format!("REQUEST 0000 {code} {COOKIE} 0000_0000_0000_0200 0000_1001");
            rejects_within(export, limits, &request, code, "EOVERFLOW", text);
        }
        let request =
            format!("EXTREQUEST 0000 {code} {COOKIE} 0000_0000_0000_0200 0000_0001_0000_0000");
        let export = export(Framing::Extended, WRITABLE);
        rejects_within(export, limits, &request, code, "EOVERFLOW", text);
    }
    // Fast zeroes are fast at any length, or not at all; status is a hint.
    play_with(
        export(Framing::Structured, WRITABLE),
        limits,
        &format!(
            "C: REQUEST 0010 WRITE_ZEROES {COOKIE} 0000_0000_0000_0000 ffff_ffff
             E: zeroes 0x0+0xffffffff FAST_ZERO
             S: CHUNK DONE NONE {COOKIE} 4{{ }}
             C: REQUEST 0000 BLOCK_STATUS {COOKIE} 0000_0000_0000_0000 0000_2000
             E: status32 0x0+0x2000 of ContextId(0) ContextId(3)
             S: CHUNK MORE STATUS {COOKIE} 4{{ 0000_0000 0000_2000 0000_0001 }}
             S: CHUNK DONE STATUS {COOKIE} 4{{ 0000_0003 0000_2000 0000_0004 }}"
        ),
    );
}

#[test]
fn payloads_are_as_long_as_the_maximum() {
    let sizes = BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum: 600,
    };
    let mut limits = Limits::DEFAULT;
    limits.payload = 700;
    for framing in COMPACT {
        let mut export = export(framing, WRITABLE);
        export.block_sizes = Some(sizes);
        let request = format!("REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0200 4{{ ff*700 }}");
        let text = "longer than the maximum payload";
        rejects_within(export, limits, &request, "WRITE", "EINVAL", text);
        // Nobody means this.
        play_with(
            export,
            limits,
            &format!(
                "C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0200 0000_02bd
                 X: the peer broke the protocol: NBD_CMD_WRITE with a payload of 701 bytes is beyond the limit"
            ),
        );
    }
    let mut export = export(Framing::Extended, WRITABLE);
    export.block_sizes = Some(sizes);
    for (code, length, over) in [
        (
            "WRITE",
            "0000_0000_0000_0259",
            "NBD_CMD_WRITE with a payload of 601 bytes",
        ),
        (
            "READ",
            "0000_0001_0000_0000",
            "NBD_CMD_READ with a payload of 4294967296 bytes",
        ),
        (
            "1234",
            "0000_0000_0000_0259",
            "Command(0x1234) with a payload of 601 bytes",
        ),
    ] {
        play_with(
            export,
            limits,
            &format!(
                "C: EXTREQUEST 0020 {code} {COOKIE} 0000_0000_0000_0200 {length}
                 X: the peer broke the protocol: {over} is beyond the limit"
            ),
        );
    }
}

/// QEMU's client leaves PAYLOAD_LEN out; the data is there all the same.
#[test]
fn a_write_has_a_payload_whatever_its_flags_say() {
    let zero = "0000_0000_0000_0000";
    play_on(
        export(Framing::Extended, WRITABLE),
        &format!(
            "C: EXTREQUEST 0001 WRITE {COOKIE} {zero} 8{{ \"data\" }}
             E: payload 0x0+0x4
             E: data 0x0 data
             E: write 0x0+0x4 FUA
             S: EXTCHUNK DONE NONE {COOKIE} {zero} 8{{ }}"
        ),
    );
    let request = format!("0002 WRITE {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
    let flag = "command flag not advertised, or not of this command";
    extended(WRITABLE, &request, "WRITE", "EINVAL", flag);
}

#[test]
fn payload_len_is_for_what_has_a_payload() {
    for code in ["READ", "TRIM", "FLUSH", "CACHE", "WRITE_ZEROES", "RESIZE"] {
        for payload in ["8{ }", "8{ ff }", "8{ ff*300 }"] {
            let request = format!("0020 {code} {COOKIE} 0000_0000_0000_0200 {payload}");
            extended(
                WRITABLE,
                &request,
                code,
                "EINVAL",
                "the command takes no payload",
            );
        }
    }
}

#[test]
fn block_status_needs_a_context() {
    let text = "no metadata context was selected";
    for framing in COMPACT {
        let mut export = export(framing, WRITABLE);
        export.contexts = Default::default();
        let request = format!("REQUEST 0000 BLOCK_STATUS {COOKIE} 0000_0000_0000_0200 0000_0200");
        rejects(export, &request, "BLOCK_STATUS", "EINVAL", text);
    }
}

#[test]
fn block_status_payload_names_contexts_once() {
    let length = "0000_0000_0000_0200";
    let rejected = |flags, payload: &str, text: &str| {
        let request = format!("0020 BLOCK_STATUS {COOKIE} 0000_0000_0000_0200 8{{ {payload} }}");
        extended(flags, &request, "BLOCK_STATUS", "EINVAL", text);
    };
    let impossible = "block status payload of impossible length";
    for payload in [
        "",
        "00*7",
        length,
        &format!("{length} 00*3"),
        &format!("{length} 00*300"),
    ] {
        rejected(WRITABLE, payload, impossible);
    }
    // Three of two.
    rejected(
        WRITABLE,
        &format!("{length} 0000_0000 0000_0003 0000_0001"),
        impossible,
    );
    let unknown = "metadata context unknown, or named twice";
    rejected(WRITABLE, &format!("{length} 0000_0001"), unknown);
    rejected(WRITABLE, &format!("{length} 0000_0023"), unknown);
    rejected(WRITABLE, &format!("{length} 0000_0003 0000_0003"), unknown);
    let zero = "a length of zero has no defined meaning";
    rejected(WRITABLE, "00*8 0000_0003", zero);
    let beyond = "the range ends behind the export";
    rejected(WRITABLE, "ff*8 0000_0003", beyond);
    let without = WRITABLE.difference(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    rejected(
        without,
        &format!("{length} 0000_0003"),
        "block status takes no payload",
    );
}

#[test]
fn resize_moves_the_end() {
    let (inside, beyond) = ("0000_0000_0000_1000", "0000_ffff_ffff_f000");
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_2000 0000_0000
             E: resize 0x2000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {inside} 0000_1000
             E: trim 0x1000+0x1000
             S: SIMPLE OK {COOKIE}
             # What the resize took away is ENOSPC for every command.
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1000
             E: rejected NBD_CMD_TRIM NBD_ENOSPC
             S: SIMPLE ENOSPC {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1001
             E: rejected NBD_CMD_TRIM NBD_EINVAL
             S: SIMPLE EINVAL {COOKIE}
             C: REQUEST 0000 RESIZE {COOKIE} 0001_0000_0000_1000 0000_0000
             E: resize 0x1000000001000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1001
             E: trim 0xfffffffff000+0x1001
             S: SIMPLE OK {COOKIE}
             # The same, of what an earlier resize had added.
             C: REQUEST 0000 RESIZE {COOKIE} 0000_0000_0000_2000 0000_0000
             E: resize 0x2000
             S: SIMPLE OK {COOKIE}
             C: REQUEST 0000 TRIM {COOKIE} {beyond} 0000_1001
             E: rejected NBD_CMD_TRIM NBD_ENOSPC
             S: SIMPLE ENOSPC {COOKIE}"
        ),
    );
}

#[test]
fn shutdown_is_said_to_every_request() {
    let start = || {
        let export = export(Framing::Structured, WRITABLE);
        let mut transmission = Transmission::new(export, Limits::DEFAULT).unwrap();
        transmission.shut_down();
        Desk {
            transmission,
            answer: |_: &mut _, request, _: &mut _| panic!("{request:?}"),
        }
    };
    let down = format!(
        "S: CHUNK DONE ERROR {COOKIE} 4{{ ESHUTDOWN 2{{ \"the server is shutting down\" }} }}"
    );
    play(
        start,
        &format!(
            "C: REQUEST 0000 READ {COOKIE} 0000_0000_0000_0000 0000_0200
             E: rejected NBD_CMD_READ NBD_ESHUTDOWN
             {down}
             C: REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0000 4{{ \"drained\" }}
             E: rejected NBD_CMD_WRITE NBD_ESHUTDOWN
             {down}
             C: REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000
             E: rejected NBD_CMD_FLUSH NBD_ESHUTDOWN
             {down}
             C: REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000
             E: Disconnect"
        ),
    );
}

#[test]
fn the_magic_number_is_that_of_the_framing() {
    let wrong = |framing, bytes: &str, over: &str| {
        play_on(export(framing, WRITABLE), &format!("C: {bytes}\nX: {over}"));
    };
    let compact = "the peer sent bytes that are no message: wrong magic number in compact request: not NBD, or the stream lost its place";
    let extended = "the peer sent bytes that are no message: wrong magic number in extended request: not NBD, or the stream lost its place";
    let other = |framing: Framing| {
        format!(
            "the peer broke the protocol: a message of another framing than {framing}, which was agreed on"
        )
    };
    for framing in COMPACT {
        wrong(framing, "00", compact);
        wrong(framing, "2560_9514", compact);
        wrong(framing, "EXTREQUEST", &other(framing));
    }
    wrong(Framing::Extended, "00", extended);
    wrong(Framing::Extended, "21e4_1c70", extended);
    wrong(Framing::Extended, "REQUEST", &other(Framing::Extended));
}

/// Requests in one piece are told apart.
#[test]
fn requests_follow_one_another() {
    let request = format!("REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0000 4{{ \"ab\" }}");
    let flush = format!("REQUEST 0000 FLUSH {COOKIE} 0000_0000_0000_0000 0000_0000");
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!(
            "C: {request} {request} {flush}
             E: payload 0x0+0x2
             E: data 0x0 ab
             E: write 0x0+0x2
             E: payload 0x0+0x2
             E: data 0x0 ab
             E: write 0x0+0x2
             E: flush
             S: SIMPLE OK {COOKIE} SIMPLE OK {COOKIE} SIMPLE OK {COOKIE}"
        ),
    );
}

/// Nothing is received behind goodbye.
#[test]
fn disconnect_is_the_end() {
    let disc = format!("REQUEST 0000 DISC {COOKIE} 0000_0000_0000_0000 0000_0000");
    play_on(
        export(Framing::Simple, WRITABLE),
        &format!("C: {disc}\nE: Disconnect\nC: {disc}"),
    );
}
