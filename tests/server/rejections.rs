//! Requests that the server rejects: the error of each, and that the server
//! finds the next request.

use nbd_codec::server::{Transmission, TransmissionEvent};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Framing, Limits, Negotiated, Step};

use crate::requests::{COOKIE, WRITABLE, export, play_with};
use crate::script::bytes;

pub(crate) const COMPACT: [Framing; 2] = [Framing::Simple, Framing::Structured];

const FLAG: &str = "command flag not advertised, or not of this command";
const TOO_LONG: &str = "the request is too long; split it";
const ZERO_LENGTH: &str = "a length of zero has no defined meaning";

/// Plays a rejected request, and a read that follows it.
#[track_caller]
fn rejects(export: Negotiated, request: &str, error: &str, text: &str) {
    rejects_within(export, Limits::DEFAULT, request, error, text);
}

#[track_caller]
fn rejects_within(export: Negotiated, limits: Limits, request: &str, error: &str, text: &str) {
    let transcript = rejection(export.framing, request, error, text);
    play_with(export, limits, &transcript);
}

/// The transcript of a rejected request, and of a read that follows it.
pub(crate) fn rejection(framing: Framing, request: &str, error: &str, text: &str) -> String {
    let [_magic, _flags, command, _cookie, offset] = request
        .split_whitespace()
        .take(5)
        .collect::<Vec<_>>()
        .try_into()
        .expect("a request header");
    let command = if command.starts_with(|c: char| c.is_ascii_digit()) {
        format!("Command(0x{command})")
    } else {
        format!("NBD_CMD_{command}")
    };
    let (reply, next, data) = match framing {
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
        // The reply repeats the offset of the request.
        Framing::Extended => (
            format!("EXTCHUNK DONE ERROR {COOKIE} {offset} 8{{ {error} 2{{ \"{text}\" }} }}"),
            format!("EXTREQUEST 0000 READ {COOKIE} 0000_0000_0000_0200 0000_0000_0000_0200"),
            format!(
                "EXTCHUNK DONE OFFSET_DATA {COOKIE} 0000_0000_0000_0200 0000_0000_0000_0208 0000_0000_0000_0200"
            ),
        ),
    };
    let bytes: String = (0..512).map(|at| format!("{:02x}", at % 256)).collect();
    format!(
        "C: {request}
         E: rejected {command} NBD_{error}
         S: {reply}
         C: {next}
         E: read 0x200+0x200
         S: {data} {bytes}"
    )
}

/// A rejected request with compact headers, with simple and structured replies.
#[track_caller]
fn compact(flags: TransmissionFlags, request: &str, error: &str, text: &str) {
    for framing in COMPACT {
        let request = format!("REQUEST {request}");
        rejects(export(framing, flags), &request, error, text);
    }
}

#[track_caller]
fn extended(flags: TransmissionFlags, request: &str, error: &str, text: &str) {
    let request = format!("EXTREQUEST {request}");
    rejects(export(Framing::Extended, flags), &request, error, text);
}

/// A rejected request without payload in every framing; its length has 32 bits.
#[track_caller]
fn every_framing(
    flags: TransmissionFlags,
    request: &str,
    range: [&str; 2],
    error: &str,
    text: &str,
) {
    let [offset, length] = range;
    let request = format!("{request} {COOKIE} {offset}");
    compact(flags, &format!("{request} {length}"), error, text);
    extended(flags, &format!("{request} 0000_0000 {length}"), error, text);
}

/// A range within the export.
const RANGE: [&str; 2] = ["0000_0000_0000_0200", "0000_0200"];

/// The transmission flags that the client was told decide.
#[test]
fn unadvertised_commands_and_flags_get_einval() {
    use TransmissionFlags as F;
    let unadvertised = "the command was not advertised";
    for (request, needed, text) in [
        ("0000 FLUSH", F::SEND_FLUSH, unadvertised),
        ("0000 TRIM", F::SEND_TRIM, unadvertised),
        ("0000 CACHE", F::SEND_CACHE, unadvertised),
        ("0000 WRITE_ZEROES", F::SEND_WRITE_ZEROES, unadvertised),
        ("0000 RESIZE", F::SEND_RESIZE, unadvertised),
        ("0001 READ", F::SEND_FUA, FLAG),
        ("0004 READ", F::SEND_DF, FLAG),
        ("0010 WRITE_ZEROES", F::SEND_FAST_ZERO, FLAG),
    ] {
        let flags = WRITABLE.difference(needed);
        every_framing(flags, request, RANGE, "EINVAL", text);
    }
}

#[test]
fn flags_of_other_commands_get_einval() {
    for request in [
        "0002 READ",
        "0008 READ",
        "0010 READ",
        "8000 READ",
        "0004 TRIM",
        "0004 WRITE_ZEROES",
        "0002 FLUSH",
        "0002 CACHE",
        // Only with extended headers.
        "0020 READ",
    ] {
        let [offset, length] = RANGE;
        let request = format!("{request} {COOKIE} {offset} {length}");
        compact(WRITABLE, &request, "EINVAL", FLAG);
    }
    // The server discards the payload.
    for bits in ["0002", "0004", "0020", "0040"] {
        let request = format!("{bits} WRITE {COOKIE} 0000_0000_0000_0200 4{{ ff*300 }}");
        compact(WRITABLE, &request, "EINVAL", FLAG);
    }
    for bits in ["0002", "0022"] {
        let request = format!("{bits} WRITE {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
        extended(WRITABLE, &request, "EINVAL", FLAG);
    }
}

#[test]
fn unknown_commands_get_einval() {
    let text = "unknown command";
    every_framing(WRITABLE, "0000 1234", RANGE, "EINVAL", text);
    let request = format!("0000 1234 {COOKIE} 0000_0000_0000_0200 0000_0000_ffff_ffff");
    extended(WRITABLE, &request, "EINVAL", text);
    // With PAYLOAD_LEN, the server discards the payload.
    let request = format!("0020 1234 {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
    extended(WRITABLE, &request, "EINVAL", text);
}

#[test]
fn writes_to_read_only_exports_get_eperm() {
    let all = TransmissionFlags::KNOWN;
    let text = "the export is read-only";
    let write = format!("0000 WRITE {COOKIE} 0000_0000_0000_0200 4{{ ff*300 }}");
    compact(all, &write, "EPERM", text);
    let write = format!("0020 WRITE {COOKIE} 0000_0000_0000_0200 8{{ ff*300 }}");
    extended(all, &write, "EPERM", text);
    // Whether the command is advertised or not.
    for flags in [all, TransmissionFlags::READ_ONLY] {
        for request in ["0000 TRIM", "0000 WRITE_ZEROES", "0000 RESIZE"] {
            every_framing(flags, request, RANGE, "EPERM", text);
        }
    }
}

#[test]
fn ranges_past_the_end_are_rejected() {
    let text = "the range ends past the end of the export";
    // Just past the end, far past it, and around the end of 64 bits.
    for range in [
        ["0000_ffff_ffff_ff01", "0000_0100"],
        ["0001_0000_0000_0000", "0000_0001"],
        ["ffff_ffff_ffff_ffff", "0000_0001"],
        ["ffff_ffff_ffff_ff00", "ffff_ffff"],
    ] {
        for (request, error) in [
            ("0000 READ", "EINVAL"),
            ("0000 TRIM", "EINVAL"),
            ("0000 CACHE", "EINVAL"),
            ("0000 WRITE_ZEROES", "ENOSPC"),
        ] {
            every_framing(WRITABLE, request, range, error, text);
        }
        let structured = export(Framing::Structured, WRITABLE);
        let [offset, length] = range;
        let request = format!("REQUEST 0000 BLOCK_STATUS {COOKIE} {offset} {length}");
        rejects(structured, &request, "EINVAL", text);
    }
    let request = format!("0000 WRITE {COOKIE} 0000_ffff_ffff_ff01 4{{ ff*256 }}");
    compact(WRITABLE, &request, "ENOSPC", text);
    // The largest 64-bit length.
    for code in ["TRIM", "BLOCK_STATUS"] {
        let request = format!("0000 {code} {COOKIE} 0000_0000_0000_0001 ffff_ffff_ffff_ffff");
        extended(WRITABLE, &request, "EINVAL", text);
    }
}

#[test]
fn unaligned_requests_get_einval() {
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
                rejects(export, &request, "EINVAL", text);
            }
        }
        let request = format!("REQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0200 4{{ 00*300 }}");
        rejects(export, &request, "EINVAL", text);
    }
}

#[test]
fn reads_beyond_the_maximum_payload_are_rejected() {
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
        rejects(export, &request("0001_0001"), error, TOO_LONG);
        // The length of a chunk includes its offset: it must not wrap around 32 bits.
        export.block_sizes = Some(BlockSizes {
            maximum: u32::MAX,
            ..sizes
        });
        if framing != Framing::Simple {
            rejects(export, &request("ffff_fff8"), error, TOO_LONG);
            let mut server = Transmission::new(export, Limits::DEFAULT).unwrap();
            let longest = bytes(&request("ffff_fff7"));
            let step = server.receive(&mut &longest[..]).unwrap();
            assert!(matches!(step, Step::Event(TransmissionEvent::Request(_))));
        }
    }
}

#[test]
fn effect_lengths_beyond_the_limit_get_eoverflow() {
    let mut limits = Limits::DEFAULT;
    limits.max_effect_length = 0x1000;
    for code in ["TRIM", "CACHE", "WRITE_ZEROES"] {
        for framing in COMPACT {
            let export = export(framing, WRITABLE);
            let request = format!("REQUEST 0000 {code} {COOKIE} 0000_0000_0000_0200 0000_1001");
            rejects_within(export, limits, &request, "EOVERFLOW", TOO_LONG);
        }
        let request =
            format!("EXTREQUEST 0000 {code} {COOKIE} 0000_0000_0000_0200 0000_0001_0000_0000");
        let export = export(Framing::Extended, WRITABLE);
        rejects_within(export, limits, &request, "EOVERFLOW", TOO_LONG);
    }
    // The limit applies neither to FAST_ZERO nor to BLOCK_STATUS.
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
fn payloads_beyond_the_maximum_are_rejected() {
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
        rejects_within(export, limits, &request, "EINVAL", text);
        // Beyond the limit: the session ends.
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

#[test]
fn payload_len_on_other_commands_gets_einval() {
    for code in ["READ", "TRIM", "FLUSH", "CACHE", "WRITE_ZEROES", "RESIZE"] {
        for payload in ["8{ }", "8{ ff }", "8{ ff*300 }"] {
            let request = format!("0020 {code} {COOKIE} 0000_0000_0000_0200 {payload}");
            extended(WRITABLE, &request, "EINVAL", "the command takes no payload");
        }
    }
}

#[test]
fn block_status_without_context_gets_einval() {
    let text = "no metadata context was selected";
    for framing in COMPACT {
        let mut export = export(framing, WRITABLE);
        export.contexts = Default::default();
        let request = format!("REQUEST 0000 BLOCK_STATUS {COOKIE} 0000_0000_0000_0200 0000_0200");
        rejects(export, &request, "EINVAL", text);
    }
}

#[test]
fn invalid_block_status_payloads_get_einval() {
    let length = "0000_0000_0000_0200";
    let rejected = |flags, payload: &str, text: &str| {
        let request = format!("0020 BLOCK_STATUS {COOKIE} 0000_0000_0000_0200 8{{ {payload} }}");
        extended(flags, &request, "EINVAL", text);
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
    // Three contexts, of which the export has two.
    rejected(
        WRITABLE,
        &format!("{length} 0000_0000 0000_0003 0000_0001"),
        impossible,
    );
    let unknown = "metadata context unknown, or named twice";
    rejected(WRITABLE, &format!("{length} 0000_0001"), unknown);
    rejected(WRITABLE, &format!("{length} 0000_0023"), unknown);
    rejected(WRITABLE, &format!("{length} 0000_0003 0000_0003"), unknown);
    rejected(WRITABLE, "00*8 0000_0003", ZERO_LENGTH);
    let beyond = "the range ends past the end of the export";
    rejected(WRITABLE, "ff*8 0000_0003", beyond);
    let without = WRITABLE.difference(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    rejected(
        without,
        &format!("{length} 0000_0003"),
        "block status takes no payload",
    );
}
