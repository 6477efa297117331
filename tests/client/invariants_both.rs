//! Faults of other programs that must not happen in either role: the client's
//! part. Each test is named after its row in the table of faults.

use nbd_codec::Framing::{self, Extended, Simple, Structured};
use nbd_codec::Limits;
use nbd_codec::client::{Config, MetaContextQuery, Request, Slot, Transmission};
use nbd_codec::wire::number::ErrorValue;

use super::connect::{GRANTED, GREETED, connect};
use super::machines::{
    Client, FRAMINGS, automatic, export, lenient, transmission, with_block_sizes, with_contexts,
};
use super::transcript::once;

/// Commands of length zero have no defined meaning: they are refused before they
/// are sent, and where a lenient client sends them, no reply ends the session.
#[test]
fn both_zero_length_commands() {
    for framing in FRAMINGS {
        let (ok, failed) = match framing {
            Simple => ("simple OK", "simple EINVAL"),
            _ => ("last NONE", "last ERROR"),
        };
        let body = if framing == Simple {
            ""
        } else {
            "EINVAL:32 0:16"
        };
        for command in ["READ", "WRITE", "TRIM", "CACHE", "WRITE_ZEROES"] {
            let event = if framing == Simple {
                ""
            } else {
                "E: #1 error NBD_EINVAL \"\"\n"
            };
            lenient(
                export(framing),
                &format!(
                    "C: {command} 0 0\nC: {command} 512 0\nS: {ok} #0\nS: {failed} #1 {body}\nE: #0 done\n{event}E: #1 done NBD_EINVAL"
                ),
            );
        }
    }
}

/// Unknown transmission flags and information are ignored, and the caller can
/// read them.
#[test]
fn both_unknown_flags_and_information() {
    let transcript = format!(
        r#"{GREETED}
        C: opt EXTENDED_HEADERS
        S: rep EXTENDED_HEADERS ACK
        C: opt GO 4:32 "disk" 1:16 BLOCK_SIZE:16
        S: rep GO INFO 0x1234:16 "what is this"
        S: rep GO INFO EXPORT:16 1M:64 0xe001:16
        S: rep GO INFO 0xffff:16
        S: rep GO ACK
        E: Info(Other {{ info: InfoType(0x1234), data: [119, 104, 97, 116, 32, 105, 115, 32, 116, 104, 105, 115] }})
        E: Info(Export {{ size: 1048576, flags: TransmissionFlags(HAS_FLAGS | 0xe000) }})
        E: Info(Other {{ info: InfoType(0xffff), data: [] }})
        E: Ready
        "#
    );
    automatic(Config::new("disk"), &transcript);
    let agreed = connect(Config::new("disk"), &transcript)
        .into_negotiated()
        .unwrap();
    assert_eq!(agreed.flags.0, 0xe001);
    let mut machine = Transmission::new(agreed, [Slot::EMPTY; 1], Limits::DEFAULT);
    assert!(machine.submit(Request::read(0, 512)).is_ok());
}

/// Metadata contexts of namespaces that were not asked for are reported.
#[test]
fn both_unknown_namespaces() {
    let queries = [MetaContextQuery::narrow("base:allocation")];
    let config = Config::new("disk").contexts(&queries);
    let transcript = format!(
        r#"{GREETED}
        C: opt EXTENDED_HEADERS
        S: rep EXTENDED_HEADERS ACK
        C: opt SET_META_CONTEXT 4:32 "disk" 1:32 15:32 "base:allocation"
        S: rep SET_META_CONTEXT META_CONTEXT 1:32 "x-other:thing"
        S: rep SET_META_CONTEXT META_CONTEXT 2:32 "no colon at all"
        S: rep SET_META_CONTEXT ACK
        E: Context {{ wanted: None, id: ContextId(1), name: "x-other:thing" }}
        E: Context {{ wanted: None, id: ContextId(2), name: "no colon at all" }}
        C: opt GO 4:32 "disk" 1:16 BLOCK_SIZE:16
        {GRANTED}"#
    );
    automatic(config, &transcript);
}

/// Unexpected error numbers mean EINVAL; EDQUOT and EFBIG map to ENOSPC.
#[test]
fn both_unexpected_error_numbers() {
    for number in [2, 3, 11, 27, 30, 122, 1000, u32::MAX] {
        transmission(
            export(Simple),
            &format!("C: WRITE 0 512\nS: simple {number} #0\nE: #0 done ErrorValue({number:#x})"),
        );
        assert_eq!(ErrorValue(number).or_invalid(), ErrorValue::EINVAL);
    }
    for errno in [27, 28, 122] {
        assert_eq!(ErrorValue::from_linux_errno(errno), ErrorValue::ENOSPC);
    }
}

/// Extents that are not aligned to the minimum block size are accepted.
#[test]
fn both_unaligned_extents() {
    for (framing, chunk, width) in [
        (
            Structured,
            "BLOCK_STATUS #0 1:32 511:32 3:32 1:32 0:32",
            "narrow",
        ),
        (
            Extended,
            "BLOCK_STATUS_EXT #0 1:32 2:32 511:64 3:64 1:64 0:64",
            "wide",
        ),
    ] {
        let mut export = with_contexts(framing, 1);
        export.block_sizes = with_block_sizes(framing, 4096, 1 << 20).block_sizes;
        transmission(
            export,
            &format!(
                "C: STATUS 0 4K\nS: last {chunk}\nE: #0 {width} 1 @0 511/0x3 1/0x0\nE: #0 done"
            ),
        );
    }
}

/// FUA is accepted with every command where it was advertised.
#[test]
fn both_fua_on_commands_that_do_not_write() {
    for framing in FRAMINGS {
        for command in [
            "READ 0 512 FUA",
            "FLUSH 0 0 FUA",
            "CACHE 0 512 FUA",
            "STATUS 0 512 FUA",
        ] {
            if command.starts_with("STATUS") && framing == Framing::Simple {
                // The reply has chunks.
                continue;
            }
            let mut client = Client::new(with_contexts(framing, 1));
            once(&mut client, &format!("C: {command}"));
        }
    }
}
