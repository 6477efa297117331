//! Replies to options: the header and the data of every one.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::{ContextId, InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option_reply::{
    BlockSizes, Info, OPTION_REPLY_MAGIC, OptionReply, OptionReplyHeader,
};
use nbd_codec::wire::text::Text;

use crate::support::{Body, Cut, Stream, bytes, encoded, overrun, trailing};

#[test]
#[rustfmt::skip]
fn headers() {
    let header = Stream {
        decode: OptionReplyHeader::decode,
        encode: |header: &OptionReplyHeader| header.encode().to_vec(),
        magic: 8,
        message: "option reply",
    };
    let value = |option, reply, length| OptionReplyHeader { option, reply, length };
    header.check(&[
        ("accepted", "S: 0003e889_045565a9 0000_0008 0000_0001 0000_0000",
            value(OptionType::STRUCTURED_REPLY, OptionReplyType::ACK, 0)),
        ("refused", "S: 0003e889_045565a9 0000_0005 8000_0002 0000_0010",
            value(OptionType::STARTTLS, OptionReplyType::ERR_POLICY, 16)),
        ("an undefined option and reply", "S: 0003e889_045565a9 7fff_ffff ffff_ffff 0000_0000",
            value(OptionType(0x7fff_ffff), OptionReplyType(u32::MAX), 0)),
        ("4 GiB of data", "S: 0003e889_045565a9 0000_0003 0000_0002 ffff_ffff",
            value(OptionType::LIST, OptionReplyType::SERVER, u32::MAX)),
    ]);
    assert_eq!(OptionReplyHeader::SIZE, 20);
    assert_eq!(OPTION_REPLY_MAGIC, 0x3_e889_0455_65a9);
}

/// Runs every check on a reply with its data, header included.
fn check(name: &str, transcript: &str, value: OptionReply<'_>, cut: impl Fn(usize) -> Cut) {
    let body = Body::new(name, transcript, OptionReplyHeader::SIZE);
    let header = OptionReplyHeader::decode(&mut body.header())
        .unwrap()
        .unwrap();
    assert_eq!(header.reply, value.reply(), "{name}");
    assert_eq!(header.length as usize, body.body().len(), "{name}");
    body.check(
        &value,
        |data| OptionReply::decode(header.reply, data),
        |value, sink| value.encode(header.option, sink),
        cut,
    );
}

#[test]
#[rustfmt::skip]
fn ack() {
    for transcript in [
        "S: 0003e889_045565a9 0000_0007 0000_0001 0000_0000",
        "S: 0003e889_045565a9 ffff_ffff 0000_0001 0000_0000",
    ] {
        check("ACK", transcript, OptionReply::Ack, |_| trailing("NBD_REP_ACK"));
    }
}

#[test]
#[rustfmt::skip]
fn server() {
    for (name, transcript, export, description, least) in [
        ("the default export", "S: 0003e889_045565a9 0000_0003 0000_0002 0000_0004
                                S: 0000_0000", "", "", 4),
        ("an export", r#"S: 0003e889_045565a9 0000_0003 0000_0002 0000_0008
                         S: 0000_0004 "disk""#, "disk", "", 8),
        ("described", r#"S: 0003e889_045565a9 0000_0003 0000_0002 0000_000b
                         S: 0000_0004 "disk" "red""#, "disk", "red", 8),
        ("described, without a name", r#"S: 0003e889_045565a9 0000_0003 0000_0002 0000_0007
                                         S: 0000_0000 "red""#, "", "red", 4),
    ] {
        let value = OptionReply::Server { name: export.into(), description: description.into() };
        check(name, transcript, value, |n| {
            if n < least { overrun("NBD_REP_SERVER") } else { Cut::Body }
        });
    }
    for (name, data) in [
        ("nothing", "S:"),
        ("name length 2^32 - 1", r#"S: ffff_ffff "disk""#),
        ("name length 2^32 - 4", "S: ffff_fffc"),
        ("name length one too long", r#"S: 0000_0005 "disk""#),
        ("name length 1025, data one less", "S: 0000_0401 61*1024"),
    ] {
        let error = DecodeError::Overrun { message: "NBD_REP_SERVER" };
        let decoded = OptionReply::decode(OptionReplyType::SERVER, &bytes(data)).map(|_| ());
        assert_eq!(decoded, Err(error), "{name}");
    }
}

#[test]
#[rustfmt::skip]
fn meta_context() {
    for (name, transcript, id, context) in [
        ("a context", r#"S: 0003e889_045565a9 0000_000a 0000_0004 0000_0013
                         S: 0000_0001 "base:allocation""#, 1, "base:allocation"),
        ("the last id", r#"S: 0003e889_045565a9 0000_0009 0000_0004 0000_0005
                           S: ffff_ffff "x""#, u32::MAX, "x"),
        ("no name", "S: 0003e889_045565a9 0000_0009 0000_0004 0000_0004 0000_0000", 0, ""),
    ] {
        let value = OptionReply::MetaContext { id: ContextId(id), name: context.into() };
        check(name, transcript, value, |n| {
            if n < 4 { overrun("NBD_REP_META_CONTEXT") } else { Cut::Body }
        });
    }
}

#[test]
#[rustfmt::skip]
fn errors() {
    let known = [
        OptionReplyType::ERR_UNSUP, OptionReplyType::ERR_POLICY, OptionReplyType::ERR_INVALID,
        OptionReplyType::ERR_PLATFORM, OptionReplyType::ERR_TLS_REQD, OptionReplyType::ERR_UNKNOWN,
        OptionReplyType::ERR_SHUTDOWN, OptionReplyType::ERR_BLOCK_SIZE_REQD,
        OptionReplyType::ERR_TOO_BIG, OptionReplyType::ERR_EXT_HEADER_REQD,
    ];
    for (n, error) in (1..).zip(known) {
        let header = format!("S: 0003e889_045565a9 0000_0007 8000_00{n:02x}");
        let value = |message: &'static str| OptionReply::Error { error, message: message.into() };
        check("no message", &format!("{header} 0000_0000"), value(""), |_| Cut::Body);
        check("with a reason", &format!(r#"{header} 0000_0003 "no!""#), value("no!"), |_| Cut::Body);
    }
    for (name, transcript, error) in [
        ("number 0", r#"S: 0003e889_045565a9 0000_0007 8000_0000 0000_0002 ff00"#, 0x8000_0000),
        ("number 11", r#"S: 0003e889_045565a9 0000_0007 8000_000b 0000_0002 ff00"#, 0x8000_000b),
        ("the last", r#"S: 0003e889_045565a9 0000_0007 ffff_ffff 0000_0002 ff00"#, u32::MAX),
    ] {
        let (error, message) = (OptionReplyType(error), Text::new(b"\xff\0"));
        check(name, transcript, OptionReply::Error { error, message }, |_| Cut::Body);
    }
}

#[test]
#[rustfmt::skip]
fn undefined_replies() {
    for (name, transcript, reply, data) in [
        ("number 0", "S: 0003e889_045565a9 0000_0007 0000_0000 0000_0000", 0, &b""[..]),
        ("number 5", r#"S: 0003e889_045565a9 0000_0007 0000_0005 0000_0004 "data""#, 5, b"data"),
        ("the last", r#"S: 0003e889_045565a9 0000_0007 7fff_ffff 0000_0001 00"#, 0x7fff_ffff, b"\0"),
    ] {
        let reply = OptionReplyType(reply);
        check(name, transcript, OptionReply::Other { reply, data }, |_| Cut::Body);
    }
    let nonsense = OptionReply::Other { reply: OptionReplyType::ACK, data: b"oops" };
    assert_eq!(
        encoded(|sink| nonsense.encode(OptionType::LIST, sink)),
        bytes(r#"S: 0003e889_045565a9 0000_0003 0000_0001 0000_0004 "oops""#)
    );
}

#[test]
#[rustfmt::skip]
fn infos() {
    /// What a piece of information of `n` bytes, type included, is.
    fn fixed(message: &'static str, whole: usize) -> impl Fn(usize) -> Cut {
        move |n| match n {
            0..2 => overrun("NBD_REP_INFO"),
            _ if n < whole => overrun(message),
            _ => trailing(message),
        }
    }
    fn variable(n: usize) -> Cut {
        if n < 2 { overrun("NBD_REP_INFO") } else { Cut::Body }
    }

    let export = |size, flags| Info::Export { size, flags: TransmissionFlags(flags) };
    for (name, transcript, value) in [
        ("1 MiB", "S: 0003e889_045565a9 0000_0007 0000_0003 0000_000c
                   S: 0000 00000000_00100000 0001", export(1 << 20, 1)),
        ("2^63 - 1", "S: 0003e889_045565a9 0000_0006 0000_0003 0000_000c
                      S: 0000 7fffffff_ffffffff 1fff", export((1 << 63) - 1, 0x1fff)),
        ("2^64 - 1", "S: 0003e889_045565a9 0000_0006 0000_0003 0000_000c
                      S: 0000 ffffffff_ffffffff e001", export(u64::MAX, 0xe001)),
    ] {
        check(name, transcript, OptionReply::Info(value), fixed("NBD_INFO_EXPORT", 12));
    }

    let sizes = |minimum, preferred, maximum| Info::BlockSize(BlockSizes { minimum, preferred, maximum });
    for (name, transcript, value) in [
        ("the defaults", "S: 0003e889_045565a9 0000_0007 0000_0003 0000_000e
                          S: 0003 0000_0001 0000_1000 0200_0000", sizes(1, 4096, 1 << 25)),
        ("nonsense", "S: 0003e889_045565a9 0000_0007 0000_0003 0000_000e
                      S: 0003 0000_0000 ffff_ffff 0000_0003", sizes(0, u32::MAX, 3)),
    ] {
        check(name, transcript, OptionReply::Info(value), fixed("NBD_INFO_BLOCK_SIZE", 14));
    }

    for (name, transcript, value) in [
        ("a name", r#"S: 0003e889_045565a9 0000_0007 0000_0003 0000_0006 0001 "disk""#,
            Info::Name(Text::new(b"disk"))),
        ("no name", "S: 0003e889_045565a9 0000_0007 0000_0003 0000_0002 0001", Info::Name(Text::EMPTY)),
        ("a description", r#"S: 0003e889_045565a9 0000_0007 0000_0003 0000_0005 0002 "red""#,
            Info::Description(Text::new(b"red"))),
        ("no description", "S: 0003e889_045565a9 0000_0007 0000_0003 0000_0002 0002",
            Info::Description(Text::EMPTY)),
        ("number 4", r#"S: 0003e889_045565a9 0000_0007 0000_0003 0000_0003 0004 07"#,
            Info::Other { info: InfoType(4), data: &[7] }),
        ("the last number", "S: 0003e889_045565a9 0000_0007 0000_0003 0000_0002 ffff",
            Info::Other { info: InfoType(u16::MAX), data: &[] }),
    ] {
        check(name, transcript, OptionReply::Info(value), variable);
    }
}

#[test]
fn the_length_of_infos() {
    for (info, message, whole) in [
        (0, "NBD_INFO_EXPORT", Some(12)),
        (1, "NBD_INFO_NAME", None),
        (2, "NBD_INFO_DESCRIPTION", None),
        (3, "NBD_INFO_BLOCK_SIZE", Some(14)),
        (4, "unknown", None),
    ] {
        for length in 2..=40_usize {
            let mut data = vec![0; length];
            data[1] = info;
            let expected = match whole {
                Some(whole) if length < whole => Err(DecodeError::Overrun { message }),
                Some(whole) if length > whole => Err(DecodeError::Trailing { message }),
                _ => Ok(InfoType(info.into())),
            };
            let decoded = Info::decode(&data).map(|info| info.info());
            assert_eq!(decoded, expected, "{message}, {length} bytes");
        }
    }
    for data in [&[][..], &[0]] {
        let message = "NBD_REP_INFO";
        assert_eq!(Info::decode(data), Err(DecodeError::Overrun { message }));
    }
}

#[test]
fn block_sizes() {
    for (name, minimum, preferred, maximum, valid) in [
        ("the defaults", 1, 4096, 1 << 25, true),
        ("a disk", 512, 4096, 1 << 25, true),
        ("the least of each", 1, 512, 512, true),
        ("the most of each", 65536, 1 << 31, u32::MAX, true),
        ("all the same", 65536, 65536, 65536, true),
        ("maximum no power of two", 512, 4096, 1_000_000, true),
        ("minimum 0", 0, 4096, 1 << 25, false),
        ("minimum no power of two", 513, 4096, 1 << 25, false),
        ("minimum 128 KiB", 131_072, 131_072, 1 << 25, false),
        ("preferred 256", 1, 256, 1 << 25, false),
        ("preferred 0", 1, 0, 1 << 25, false),
        ("preferred no power of two", 512, 4097, 1 << 25, false),
        ("preferred below minimum", 4096, 2048, 1 << 25, false),
        ("maximum below preferred", 512, 4096, 4095, false),
        ("maximum 0", 1, 512, 0, false),
    ] {
        let sizes = BlockSizes {
            minimum,
            preferred,
            maximum,
        };
        assert_eq!(sizes.is_valid(), valid, "{name}");
    }
    let default = BlockSizes {
        minimum: 1,
        preferred: 4096,
        maximum: 33_554_432,
    };
    assert_eq!(BlockSizes::DEFAULT, default);
    assert_eq!(BlockSizes::default(), default);
}
