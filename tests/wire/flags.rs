//! Every flag, and undefined bits.

use nbd_codec::wire::flags::{
    AllocationFlags, ClientFlags, CommandFlags, DirtyBitmapFlags, HandshakeFlags, ReplyFlags,
    TransmissionFlags,
};
use nbd_codec::wire::greeting::{ExportNameReply, Greeting, NewstyleGreeting, OldstyleGreeting};
use nbd_codec::wire::number::{ChunkType, Command, Cookie};
use nbd_codec::wire::reply::{ExtendedHeader, StructuredHeader};
use nbd_codec::wire::request::{CompactRequest, ExtendedRequest};

/// Compares a table of flags and bits with the type, bit by bit.
macro_rules! check {
    ($kind:ident($word:ident): $($flag:ident = $bit:literal;)*) => {{
        let table = [$(($kind::$flag, $bit, stringify!($flag))),*];
        for (flag, bit, _) in table {
            assert_eq!(flag, $kind(1 << bit));
        }
        let known = table.iter().fold(0, |bits, (_, bit, _)| bits | 1 << bit);
        assert_eq!($kind::KNOWN, $kind(known));
        for bit in 0..$word::BITS {
            let flag = $kind(1 << bit);
            let shown = match table.iter().find(|(_, known, _)| *known == bit) {
                Some((_, _, name)) => name.to_string(),
                None => format!("{:#x}", flag.0),
            };
            assert_eq!(flag.to_string(), shown);
            assert_eq!(format!("{flag:?}"), format!(concat!(stringify!($kind), "({})"), shown));
        }
        let names: Vec<_> = table.iter().map(|(_, _, name)| *name).collect();
        assert_eq!($kind::KNOWN.to_string(), names.join(" | "));
        let unknown = format!(" | {:#x}", !known);
        assert_eq!($kind($word::MAX).to_string(), names.join(" | ") + &unknown);
        assert_eq!($kind(!known).to_string(), format!("{:#x}", !known));
        assert_eq!(($kind::NONE, $kind::default()), ($kind(0), $kind(0)));
        assert_eq!($kind::NONE.to_string(), "0x0");
    }};
}

#[test]
fn handshake_flags() {
    check! { HandshakeFlags(u16):
        FIXED_NEWSTYLE = 0;
        NO_ZEROES = 1;
    }
}

#[test]
fn client_flags() {
    check! { ClientFlags(u32):
        FIXED_NEWSTYLE = 0;
        NO_ZEROES = 1;
    }
}

#[test]
fn transmission_flags() {
    check! { TransmissionFlags(u16):
        HAS_FLAGS = 0;
        READ_ONLY = 1;
        SEND_FLUSH = 2;
        SEND_FUA = 3;
        ROTATIONAL = 4;
        SEND_TRIM = 5;
        SEND_WRITE_ZEROES = 6;
        SEND_DF = 7;
        CAN_MULTI_CONN = 8;
        SEND_RESIZE = 9;
        SEND_CACHE = 10;
        SEND_FAST_ZERO = 11;
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

#[test]
fn command_flags() {
    check! { CommandFlags(u16):
        FUA = 0;
        NO_HOLE = 1;
        DF = 2;
        REQ_ONE = 3;
        FAST_ZERO = 4;
        PAYLOAD_LEN = 5;
    }
}

#[test]
fn reply_flags() {
    check! { ReplyFlags(u16):
        DONE = 0;
    }
}

#[test]
fn allocation_flags() {
    check! { AllocationFlags(u32):
        HOLE = 0;
        ZERO = 1;
    }
}

#[test]
fn dirty_bitmap_flags() {
    check! { DirtyBitmapFlags(u32):
        DIRTY = 0;
    }
}

#[test]
fn sets() {
    for (a, b) in [
        (0, 0),
        (0b0011, 0b0101),
        (0x8001, 0x8000),
        (u16::MAX, 0x0100),
    ] {
        let (left, right) = (CommandFlags(a), CommandFlags(b));
        assert_eq!(
            (left | right, left.union(right)),
            (CommandFlags(a | b), CommandFlags(a | b))
        );
        assert_eq!(
            (left & right, left.intersection(right)),
            (CommandFlags(a & b), CommandFlags(a & b))
        );
        assert_eq!(
            (left - right, left.difference(right)),
            (CommandFlags(a & !b), CommandFlags(a & !b))
        );
        let mut both = left;
        both |= right;
        assert_eq!(both, CommandFlags(a | b));
        assert!(both.contains(left) && both.contains(right));
        let mut inserted = left;
        inserted.insert(right);
        assert_eq!(inserted, both);
        let mut removed = left;
        removed.remove(right);
        assert_eq!(removed, left - right);
        assert_eq!((!left).0, !a);
        assert_eq!(left & !right, left - right);
        assert_eq!(left.contains(right), a | b == a);
        assert_eq!(left.is_empty(), a == 0);
        assert!(left.contains(CommandFlags::NONE));
    }
    assert!(
        !CommandFlags(0b01).contains(CommandFlags(0b11)),
        "all of them, not one"
    );
}

/// Every bit, defined or not, is kept and changes no other field.
#[test]
fn every_bit_survives_the_wire() {
    for bit in 0..u16::BITS {
        let bits = 1 << bit;

        let greeting = NewstyleGreeting {
            flags: HandshakeFlags(bits),
        };
        let bytes = greeting.encode();
        assert_eq!(
            Greeting::decode(&mut &bytes[..]),
            Ok(Some(Greeting::Newstyle(greeting)))
        );

        for (upper, lower) in [(bits, 0), (0, bits)] {
            let greeting = OldstyleGreeting {
                size: 0,
                handshake_flags: HandshakeFlags(upper),
                flags: TransmissionFlags(lower),
            };
            let bytes = greeting.encode();
            assert_eq!(
                Greeting::decode(&mut &bytes[..]),
                Ok(Some(Greeting::Oldstyle(greeting)))
            );
        }

        let reply = ExportNameReply {
            size: 0,
            flags: TransmissionFlags(bits),
        };
        assert_eq!(
            ExportNameReply::decode(&mut &reply.encode()[..]),
            Some(reply)
        );

        let (flags, command, cookie) = (CommandFlags(bits), Command::READ, Cookie(0));
        let request = CompactRequest {
            flags,
            command,
            cookie,
            offset: 0,
            length: 0,
        };
        assert_eq!(
            CompactRequest::decode(&mut &request.encode()[..]),
            Ok(Some(request))
        );
        let request = ExtendedRequest {
            flags,
            command,
            cookie,
            offset: 0,
            length: 0,
        };
        assert_eq!(
            ExtendedRequest::decode(&mut &request.encode()[..]),
            Ok(Some(request))
        );

        let (flags, chunk) = (ReplyFlags(bits), ChunkType::NONE);
        let header = StructuredHeader {
            flags,
            chunk,
            cookie,
            length: 0,
        };
        assert_eq!(
            StructuredHeader::decode(&mut &header.encode()[..]),
            Ok(Some(header))
        );
        let header = ExtendedHeader {
            flags,
            chunk,
            cookie,
            offset: 0,
            length: 0,
        };
        assert_eq!(
            ExtendedHeader::decode(&mut &header.encode()[..]),
            Ok(Some(header))
        );
    }
    for bit in 0..u32::BITS {
        let flags = ClientFlags(1 << bit);
        assert_eq!(ClientFlags::decode(&mut &flags.encode()[..]), Some(flags));
    }
}
