//! Faults of a client that cost it at most the command, and what a strict server
//! makes of them: the rows of `guide::faults`.

use nbd_codec::server::{Config, Transmission};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Framing, Limits, Negotiated};

use crate::drive::{HandshakeDriver, TransmissionDriver, play};
use crate::options::{DISK, fixed};
use crate::rejections::{COMPACT, rejection};
use crate::requests::{COOKIE, WRITABLE, export, play_on, play_with, succeed};

const ALL: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];
const ZERO_LENGTH: &str = "a length of zero has no defined meaning";

/// Plays a transcript against a strict server.
#[track_caller]
fn play_strict(export: Negotiated, transcript: &str) {
    let limits = Limits::DEFAULT;
    let start = || TransmissionDriver {
        transmission: Transmission::new(export, limits).unwrap().strict(),
        limits,
        answer: succeed,
    };
    play(start, transcript);
}

/// Plays an option against a server, and against a strict one, which refuses it.
#[track_caller]
fn option(before: &str, accepted: &str, refused: &str) {
    for (strict, rest) in [(false, accepted), (true, refused)] {
        let config = Config::new().strict(strict);
        let transcript = fixed(&format!("{before}\n{rest}"));
        play(|| HandshakeDriver::new(config, DISK), &transcript);
    }
}

/// A request without payload; numbers are hexadecimal.
fn request(framing: Framing, flags: &str, code: &str, offset: &str, length: &str) -> String {
    match framing {
        Framing::Extended => {
            format!("EXTREQUEST {flags} {code} {COOKIE} {offset} 0000_0000 {length}")
        }
        _ => format!("REQUEST {flags} {code} {COOKIE} {offset} {length}"),
    }
}

/// A reply of success without data.
fn success(framing: Framing, offset: &str) -> String {
    match framing {
        Framing::Simple => format!("SIMPLE OK {COOKIE}"),
        Framing::Structured => format!("CHUNK DONE NONE {COOKIE} 4{{ }}"),
        Framing::Extended => format!("EXTCHUNK DONE NONE {COOKIE} {offset} 8{{ }}"),
    }
}

/// Nothing is to be done, so the caller is not asked. No content chunk is empty:
/// a read has none.
#[test]
fn zero_length_succeeds() {
    for framing in ALL {
        for code in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES"] {
            // Within the export, and at its end.
            for offset in ["0000_0000_0000_0200", "0001_0000_0000_0000"] {
                let request = request(framing, "0000", code, offset, "0000_0000");
                let reply = success(framing, offset);
                let transcript = format!(
                    "C: {request}
                     E: answered NBD_CMD_{code}
                     S: {reply}"
                );
                play_on(export(framing, WRITABLE), &transcript);
            }
        }
    }
    let offset = "0000_0000_0000_0200";
    let write = request(Framing::Extended, "0021", "WRITE", offset, "0000_0000");
    let reply = success(Framing::Extended, offset);
    let transcript = format!(
        "C: {write}
         E: answered NBD_CMD_WRITE
         S: {reply}"
    );
    play_on(export(Framing::Extended, WRITABLE), &transcript);
}

/// A length of zero excuses no other fault.
#[test]
fn zero_length_is_checked_as_any_other() {
    let inside = "0000_0000_0000_0200";
    let beyond = "the range ends past the end of the export";
    let read_only = WRITABLE | TransmissionFlags::READ_ONLY;
    let unknown = "command flag not advertised, or not of this command";
    for framing in ALL {
        let mut aligned = export(framing, WRITABLE);
        aligned.block_sizes = Some(BlockSizes {
            minimum: 512,
            ..BlockSizes::DEFAULT
        });
        let writable = export(framing, WRITABLE);
        for (export, flags, code, offset, error, text) in [
            (
                writable,
                "0000",
                "READ",
                "0001_0000_0000_0001",
                "EINVAL",
                beyond,
            ),
            (
                writable,
                "0000",
                "WRITE",
                "0001_0000_0000_0001",
                "ENOSPC",
                beyond,
            ),
            (writable, "8000", "READ", inside, "EINVAL", unknown),
            (
                export(framing, read_only),
                "0000",
                "WRITE",
                inside,
                "EPERM",
                "the export is read-only",
            ),
            (
                aligned,
                "0000",
                "TRIM",
                "0000_0000_0000_0201",
                "EINVAL",
                "offset or length is not aligned",
            ),
        ] {
            let request = request(framing, flags, code, offset, "0000_0000");
            play_on(export, &rejection(framing, &request, error, text));
        }
    }
}

/// A status chunk has an extent at least, and no extent is empty: there is no
/// reply of success.
#[test]
fn block_status_of_zero_length_gets_einval() {
    for framing in [Framing::Structured, Framing::Extended] {
        let offset = "0000_0000_0000_0200";
        let request = request(framing, "0000", "BLOCK_STATUS", offset, "0000_0000");
        let transcript = rejection(framing, &request, "EINVAL", ZERO_LENGTH);
        play_on(export(framing, WRITABLE), &transcript);
        play_strict(export(framing, WRITABLE), &transcript);
    }
}

#[test]
fn strict_zero_length_gets_einval() {
    for framing in ALL {
        for code in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES"] {
            let flags = match (framing, code) {
                (Framing::Extended, "WRITE") => "0020",
                _ => "0000",
            };
            let request = request(framing, flags, code, "0000_0000_0000_0200", "0000_0000");
            let transcript = rejection(framing, &request, "EINVAL", ZERO_LENGTH);
            play_strict(export(framing, WRITABLE), &transcript);
        }
    }
}

/// Offset and length of a flush, and the length of a resize, are reserved.
#[test]
fn ranges_of_commands_without_one() {
    let zero = "0000_0000_0000_0000";
    let size = "0000_0000_0000_2000";
    for framing in ALL {
        for (code, offset, length, event) in [
            ("FLUSH", size, "0000_0000", "flush"),
            ("FLUSH", zero, "0000_0200", "flush"),
            ("RESIZE", size, "0000_0200", "resize 0x2000"),
        ] {
            let request = request(framing, "0000", code, offset, length);
            let reply = success(framing, offset);
            let transcript = format!(
                "C: {request}
                 E: {event}
                 S: {reply}"
            );
            play_on(export(framing, WRITABLE), &transcript);
            let text = "the command has no range";
            let transcript = rejection(framing, &request, "EINVAL", text);
            play_strict(export(framing, WRITABLE), &transcript);
        }
        // What is legal is accepted.
        for (code, offset, event) in [("FLUSH", zero, "flush"), ("RESIZE", size, "resize 0x2000")] {
            let request = request(framing, "0000", code, offset, "0000_0000");
            let reply = success(framing, offset);
            let transcript = format!(
                "C: {request}
                 E: {event}
                 S: {reply}"
            );
            play_strict(export(framing, WRITABLE), &transcript);
        }
    }
}

/// Offset and length of `DISC` are zero. It has no reply that could say so.
#[test]
fn disconnects_with_a_range() {
    let zero = "0000_0000_0000_0000";
    let one = "0000_0000_0000_0001";
    for framing in ALL {
        for (offset, length) in [(one, "0000_0000"), (zero, "0000_0001")] {
            let request = request(framing, "0000", "DISC", offset, length);
            play_on(
                export(framing, WRITABLE),
                &format!("C: {request}\nE: Disconnect"),
            );
            let fault = "NBD_CMD_DISC with an offset or a length";
            play_strict(
                export(framing, WRITABLE),
                &format!("C: {request}\nX: the peer broke the protocol: {fault}"),
            );
        }
        let request = request(framing, "0000", "DISC", zero, "0000_0000");
        play_strict(
            export(framing, WRITABLE),
            &format!("C: {request}\nE: Disconnect"),
        );
    }
}

/// QEMU 10.0.2 leaves the flag out.
#[test]
fn strict_writes_need_payload_len() {
    let offset = "0000_0000_0000_0200";
    let request = format!("EXTREQUEST 0000 WRITE {COOKIE} {offset} 8{{ \"data\" }}");
    let text = "a write without NBD_CMD_FLAG_PAYLOAD_LEN";
    let transcript = rejection(Framing::Extended, &request, "EINVAL", text);
    play_strict(export(Framing::Extended, WRITABLE), &transcript);
    let reply = success(Framing::Extended, offset);
    let transcript = format!(
        "C: EXTREQUEST 0020 WRITE {COOKIE} {offset} 8{{ \"data\" }}
         E: payload 0x200+0x4
         E: data 0x200 data
         E: write 0x200+0x4
         S: {reply}"
    );
    play_strict(export(Framing::Extended, WRITABLE), &transcript);
    // With compact headers there is no such flag.
    for framing in COMPACT {
        let reply = success(framing, offset);
        let transcript = format!(
            "C: REQUEST 0000 WRITE {COOKIE} {offset} 4{{ \"data\" }}
             E: payload 0x200+0x4
             E: data 0x200 data
             E: write 0x200+0x4
             S: {reply}"
        );
        play_strict(export(framing, WRITABLE), &transcript);
    }
}

/// The specification ends the session for a payload that the flag announces, and
/// has any other discarded.
#[test]
fn unannounced_payloads_beyond_the_maximum_are_discarded() {
    let mut export = export(Framing::Extended, WRITABLE);
    export.block_sizes = Some(BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum: 600,
    });
    let mut limits = Limits::DEFAULT;
    limits.payload = 700;
    let write = format!("EXTREQUEST 0000 WRITE {COOKIE} 0000_0000_0000_0200");
    let too_long = |bytes| {
        format!(
            "X: the peer broke the protocol: NBD_CMD_WRITE with a payload of {bytes} bytes is beyond the limit"
        )
    };
    let rejected = rejection(
        Framing::Extended,
        &format!("{write} 8{{ ff*700 }}"),
        "EINVAL",
        "longer than the maximum payload",
    );
    play_with(export, limits, &rejected);
    let beyond = format!("C: {write} 0000_0000_0000_02bd\n{}", too_long(701));
    play_with(export, limits, &beyond);
    let beyond = format!("C: {write} 0000_0000_0000_0259\n{}", too_long(601));
    play_strict(export, &beyond);
}

#[test]
fn a_framing_agreed_on_twice() {
    for name in ["STRUCTURED_REPLY", "EXTENDED_HEADERS"] {
        option(
            &format!(
                "C: IHAVEOPT {name} 4{{ }}
                 S: REPLY {name} ACK 4{{ }}
                 C: IHAVEOPT {name} 4{{ }}"
            ),
            &format!("S: REPLY {name} ACK 4{{ }}"),
            &format!("S: REPLY {name} ERR_INVALID 4{{ \"agreed on already\" }}"),
        );
    }
}

/// The better framing may follow the other.
#[test]
fn strict_framings_in_the_order_of_the_specification() {
    let both = "C: IHAVEOPT STRUCTURED_REPLY 4{ }
                S: REPLY STRUCTURED_REPLY ACK 4{ }
                C: IHAVEOPT EXTENDED_HEADERS 4{ }
                S: REPLY EXTENDED_HEADERS ACK 4{ }";
    option(both, "", "");
}

#[test]
fn contexts_listed_before_the_framing() {
    let list = "C: IHAVEOPT LIST_META 4{ 4{ \"disk\" } 0000_0000 }";
    option(
        list,
        "E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"disk\" []
         S: REPLY LIST_META ACK 4{ }",
        "S: REPLY LIST_META ERR_INVALID 4{ \"agree on structured replies or extended headers first\" }",
    );
    let after = format!(
        "C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
         S: REPLY STRUCTURED_REPLY ACK 4{{ }}
         {list}"
    );
    let reply = "E: MetaContexts NBD_OPT_LIST_META_CONTEXT \"disk\" []
                 S: REPLY LIST_META ACK 4{ }";
    option(&after, reply, reply);
}

#[test]
fn information_requested_twice() {
    for name in ["INFO", "GO"] {
        let granted = format!(
            "E: Export NBD_OPT_{name} \"disk\" [InfoType(0x8000), NBD_INFO_DESCRIPTION, InfoType(0x8000)]
             S: REPLY {name} REP_INFO 4{{ 0000 0000_0000_0010_0000 0005 }}
             S: REPLY {name} REP_INFO 4{{ 0002 \"a disk\" }}
             S: REPLY {name} ACK 4{{ }}"
        );
        let granted = match name {
            "GO" => format!("{granted}\nE: Ready"),
            _ => granted,
        };
        option(
            &format!("C: IHAVEOPT {name} 4{{ 4{{ \"disk\" }} 0003 8000 0002 8000 }}"),
            &granted,
            &format!("S: REPLY {name} ERR_INVALID 4{{ \"information is requested twice\" }}"),
        );
    }
}
