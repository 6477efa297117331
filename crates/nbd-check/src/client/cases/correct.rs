//! Correct servers, in every dialect.

use nbd_codec::Framing;
use nbd_codec::wire::flags::{HandshakeFlags, ReplyFlags, TransmissionFlags as Has};
use nbd_codec::wire::number::Command;
use nbd_codec::wire::option_reply::BlockSizes;

use super::{Turn, for_chunks};
use crate::case::Cases;
use crate::client::message::Message;
use crate::client::script::{Asked, Dialect, Extents, Pieces, Style};
use crate::client::trial::{Expect, Spoils};
use crate::profile::{FRAMINGS, framing_name};

pub(super) fn add(cases: &mut Cases) {
    for framing in FRAMINGS {
        let name = framing_name(framing);
        let minimal = Dialect::minimal(framing);
        let maximal = Dialect::maximal(framing);
        Turn::correct(
            "B2",
            format!("{name}-minimal"),
            "what must be there",
            minimal,
        )
        .add(cases);
        let slow = Dialect {
            byte_by_byte: true,
            ..maximal.clone()
        };
        Turn::correct(
            "B2",
            format!("{name}-maximal"),
            "all that there is",
            maximal,
        )
        .add(cases);
        Turn::correct("B2", format!("{name}-bytes"), "every byte by itself", slow).add(cases);
    }
    greetings(cases);
    handshakes(cases);
    replies(cases);
}

fn greetings(cases: &mut Cases) {
    let minimal = Dialect::minimal(Framing::Simple);
    let oldstyle = Dialect {
        style: Style::Oldstyle,
        ..minimal.clone()
    };
    let newstyle = Dialect {
        style: Style::Newstyle,
        handshake_flags: HandshakeFlags::NONE,
        ..minimal.clone()
    };
    for (name, sends, dialect) in [
        ("oldstyle", "an oldstyle greeting", oldstyle),
        ("newstyle", "a greeting without fixed newstyle", newstyle),
    ] {
        Turn::correct("B2", name, sends, dialect)
            .expect(Expect::Optional)
            .add(cases);
    }
    let flags = Dialect {
        handshake_flags: minimal.handshake_flags | HandshakeFlags(1 << 9),
        ..Dialect::maximal(Framing::Extended)
    };
    Turn::correct("H5", "unknown-flag", "the handshake flag 0x200 too", flags).add(cases);
    let zeroes = HandshakeFlags::FIXED_NEWSTYLE;
    for (duty, name, sends, handshake_flags) in [
        (
            "O56",
            "no-go",
            "ERR_UNSUP to GO and INFO",
            minimal.handshake_flags,
        ),
        (
            "O3",
            "zeroes",
            "no GO, no NO_ZEROES; zeroes after EXPORT_NAME",
            zeroes,
        ),
    ] {
        let dialect = Dialect {
            go: false,
            handshake_flags,
            ..minimal.clone()
        };
        Turn::correct(duty, name, sends, dialect).add(cases);
    }
    let structured = Dialect {
        go: false,
        ..Dialect::maximal(Framing::Structured)
    };
    let sends = "ERR_UNSUP to GO and INFO, structured replies";
    Turn::correct("O56", "no-go-structured", sends, structured).add(cases);
}

fn handshakes(cases: &mut Cases) {
    let maximal = Dialect::maximal(Framing::Extended);
    for (duty, sends, framing) in [
        ("O65", "ERR_UNSUP to STRUCTURED_REPLY", Framing::Simple),
        ("O108", "ERR_UNSUP to EXTENDED_HEADERS", Framing::Structured),
    ] {
        let dialect = Dialect {
            framing,
            ..maximal.clone()
        };
        Turn::correct(duty, "unsupported", sends, dialect).add(cases);
    }
    let info = Dialect {
        more_info: true,
        ..maximal.clone()
    };
    let sends = "name, description and unknown information too";
    Turn::correct("O47", "more-information", sends, info).add(cases);
    let sends = "NBD_INFO_BLOCK_SIZE before NBD_INFO_EXPORT";
    Turn::correct("O114", "sizes-first", sends, maximal.clone()).add(cases);
    let flags = Dialect {
        flags: maximal.flags | Has(1 << 15),
        ..maximal.clone()
    };
    let sends = "the transmission flag 0x8000 too";
    Turn::correct("O24", "unknown-flag", sends, flags).add(cases);
    let read_only = Dialect {
        flags: Has::HAS_FLAGS | Has::READ_ONLY,
        ..maximal.clone()
    };
    Turn::correct("O13", "read-only", "a read-only export", read_only)
        .expect(Expect::Optional)
        .add(cases);
    let connections = Dialect {
        flags: maximal.flags | Has::CAN_MULTI_CONN,
        ..maximal.clone()
    };
    Turn::correct("O19", "multi-conn", "CAN_MULTI_CONN", connections).add(cases);
    let coarse = BlockSizes {
        minimum: 4096,
        preferred: 4096,
        maximum: 1 << 16,
    };
    let large = BlockSizes {
        minimum: 1 << 16,
        preferred: 1 << 16,
        maximum: 1 << 16,
    };
    let odd = BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum: 700_001,
    };
    let unlimited = BlockSizes {
        maximum: u32::MAX,
        ..BlockSizes::DEFAULT
    };
    for (name, sizes) in [
        ("coarse", coarse),
        ("large", large),
        ("odd-maximum", odd),
        ("unlimited", unlimited),
    ] {
        for framing in [Framing::Simple, Framing::Extended] {
            let dialect = Dialect {
                sizes: Some(sizes),
                ..Dialect::maximal(framing)
            };
            let name = format!("{}-{name}", framing_name(framing));
            let sends = format!(
                "block sizes {}, {}, {}",
                sizes.minimum, sizes.preferred, sizes.maximum
            );
            Turn::correct("S4", name, sends, dialect)
                .expect(Expect::Optional)
                .add(cases);
        }
    }
}

fn replies(cases: &mut Cases) {
    for framing in FRAMINGS {
        let dialect = Dialect {
            out_of_order: true,
            ..Dialect::maximal(framing)
        };
        let name = format!("{}-out-of-order", framing_name(framing));
        let sends = "requests in flight are answered last to first";
        Turn::correct("T5", name, sends, dialect).add(cases);
    }
    for_chunks(|name, dialect| {
        let pieces = [
            ("one", "data and end in one chunk", Pieces::One),
            (
                "pieces",
                "data and holes in order, and NONE",
                Pieces::Ordered,
            ),
            (
                "reversed",
                "data and holes, the last one first",
                Pieces::Reversed,
            ),
        ];
        for (piece, sends, pieces) in pieces {
            let dialect = Dialect {
                pieces,
                ..dialect.clone()
            };
            Turn::correct("R91", format!("{name}-{piece}"), sends, dialect).add(cases);
        }
        let extents = [
            (
                "M3",
                "longer",
                "an extent past the end of the request",
                Extents::Whole,
            ),
            ("M3", "first", "the first extent only", Extents::First),
            (
                "R153",
                "equal",
                "neighbours of equal status",
                Extents::Split,
            ),
        ];
        for (duty, extent, sends, extents) in extents {
            let dialect = Dialect {
                extents,
                ..dialect.clone()
            };
            Turn::correct(duty, format!("{name}-{extent}"), sends, dialect).add(cases);
        }
        Turn::correct(
            "R18",
            format!("{name}-unknown-flag"),
            "the reply flag 0x4000 too",
            dialect.clone(),
        )
        .twist(Spoils::Session, move |asked, messages| {
            let mut changed = false;
            for message in messages {
                if let (Asked::Request(..), Message::Chunk(chunk)) = (asked, message) {
                    chunk.flags |= ReplyFlags(1 << 14);
                    changed = true;
                }
            }
            changed
        })
        .add(cases);
        let sends = "status with a bit that base:allocation does not define";
        Turn::correct("M19", format!("{name}-unknown-status"), sends, dialect)
            .answer(Command::BLOCK_STATUS, |_, messages| {
                let Some(Message::Chunk(chunk)) = messages.first_mut() else {
                    return false;
                };
                // The lowest byte of the last extent's status is its flags.
                let byte = chunk.payload.last_mut();
                byte.map(|byte| *byte |= 0x40).is_some()
            })
            .add(cases);
    });
}
