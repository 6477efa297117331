//! Handshake: greetings, client flags, the reply to `EXPORT_NAME`.

use nbd_codec::wire::DecodeError;
use nbd_codec::wire::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use nbd_codec::wire::greeting::{
    CLISERV_MAGIC, ExportNameReply, Greeting, INIT_PASSWD, NewstyleGreeting, OPTION_MAGIC,
    OldstyleGreeting, RESERVED_ZEROES,
};

use crate::support::{Stream, bytes};

const GREETING: Stream<Greeting> = Stream {
    decode: Greeting::decode,
    encode: |greeting| match greeting {
        Greeting::Oldstyle(greeting) => greeting.encode().to_vec(),
        Greeting::Newstyle(greeting) => greeting.encode().to_vec(),
    },
    magic: 16,
    message: "greeting",
};

const fn newstyle(flags: u16) -> Greeting {
    Greeting::Newstyle(NewstyleGreeting {
        flags: HandshakeFlags(flags),
    })
}

const fn oldstyle(size: u64, handshake_flags: u16, flags: u16) -> Greeting {
    Greeting::Oldstyle(OldstyleGreeting {
        size,
        handshake_flags: HandshakeFlags(handshake_flags),
        flags: TransmissionFlags(flags),
    })
}

#[test]
fn newstyle_greetings() {
    GREETING.check(&[
        (
            "newstyle, not fixed",
            r#"S: "NBDMAGIC" "IHAVEOPT" 0000"#,
            newstyle(0),
        ),
        (
            "fixed newstyle",
            r#"S: "NBDMAGIC" "IHAVEOPT" 0001"#,
            newstyle(1),
        ),
        (
            "fixed newstyle without zeroes",
            r#"S: "NBDMAGIC" "IHAVEOPT" 0003"#,
            newstyle(3),
        ),
        (
            "undefined flags",
            r#"S: "NBDMAGIC" "IHAVEOPT" fffc"#,
            newstyle(0xfffc),
        ),
    ]);
}

#[test]
fn oldstyle_greetings() {
    GREETING.check(&[
        (
            "oldstyle, 1 MiB, read-only",
            r#"S: "NBDMAGIC" 00004202_81861253 00000000_00100000
               S: 0000 0003 00*124"#,
            oldstyle(1 << 20, 0, 3),
        ),
        (
            "the size of an empty export",
            r#"S: "NBDMAGIC" 00004202_81861253 00000000_00000000
               S: 0000 0001 00*124"#,
            oldstyle(0, 0, 1),
        ),
        (
            "the largest size that is positive as a signed number",
            r#"S: "NBDMAGIC" 00004202_81861253 7fffffff_ffffffff
               S: 0000 0001 00*124"#,
            oldstyle((1 << 63) - 1, 0, 1),
        ),
        (
            "the largest size",
            r#"S: "NBDMAGIC" 00004202_81861253 ffffffff_ffffffff
               S: 0000 0001 00*124"#,
            oldstyle(u64::MAX, 0, 1),
        ),
        (
            "every flag, in both halves",
            r#"S: "NBDMAGIC" 00004202_81861253 00000000_00000200
               S: 8001 fffe 00*124"#,
            oldstyle(512, 0x8001, 0xfffe),
        ),
    ]);
}

#[test]
fn the_value_of_reserved_zeroes_is_ignored() {
    let greeting = bytes(
        r#"S: "NBDMAGIC" 00004202_81861253 00000000_00000200
           S: 0000 0001 ff*124 99"#,
    );
    let mut input = &greeting[..];
    assert_eq!(Greeting::decode(&mut input), Ok(Some(oldstyle(512, 0, 1))));
    assert_eq!(input, [0x99]);
}

#[test]
fn other_bytes_are_no_greeting() {
    let wrong = Err(DecodeError::Magic {
        message: "greeting",
    });
    for (name, transcript) in [
        ("another protocol", r#"S: "SSH-2.0-""#),
        ("an HTTP server", r#"S: "HTTP/1.1""#),
        ("the option magic first", r#"S: "I""#),
        ("a wrong second magic", r#"S: "NBDMAGIC" ff"#),
        (
            "oldstyle turns into newstyle",
            r#"S: "NBDMAGIC" 00 "HAVEOPT" 0000"#,
        ),
        (
            "newstyle turns into oldstyle",
            r#"S: "NBDMAGIC" 49 004202_81861253"#,
        ),
        ("the magic of an option reply", r#"S: "NBDMAGIC" 0003_e889"#),
    ] {
        let bytes = bytes(transcript);
        assert_eq!(Greeting::decode(&mut &bytes[..]), wrong, "{name}");
    }
}

#[test]
fn client_flags() {
    let flags = Stream {
        decode: |input| Ok(ClientFlags::decode(input)),
        encode: |flags: &ClientFlags| flags.encode().to_vec(),
        magic: 0,
        message: "",
    };
    flags.check(&[
        ("none", "C: 0000_0000", ClientFlags::NONE),
        ("fixed", "C: 0000_0001", ClientFlags::FIXED_NEWSTYLE),
        ("no zeroes", "C: 0000_0002", ClientFlags::NO_ZEROES),
        ("both", "C: 0000_0003", ClientFlags::KNOWN),
        ("unknown ones", "C: 8001_0004", ClientFlags(0x8001_0004)),
    ]);
}

#[test]
fn export_name_replies() {
    let reply = Stream {
        decode: |input| Ok(ExportNameReply::decode(input)),
        encode: |reply: &ExportNameReply| reply.encode().to_vec(),
        magic: 0,
        message: "",
    };
    let value = |size, flags| ExportNameReply {
        size,
        flags: TransmissionFlags(flags),
    };
    reply.check(&[
        ("1 MiB", "S: 00000000_00100000 0001", value(1 << 20, 1)),
        ("nothing", "S: 00000000_00000000 0001", value(0, 1)),
        (
            "2^63 - 1",
            "S: 7fffffff_ffffffff 010d",
            value((1 << 63) - 1, 0x10d),
        ),
        (
            "2^64 - 1",
            "S: ffffffff_ffffffff ffff",
            value(u64::MAX, 0xffff),
        ),
    ]);
}

#[test]
fn the_zeroes_after_an_export_name_reply_are_left_in_the_input() {
    let answer = bytes("S: 00000000_00100000 0001 00*124 67446698");
    let mut input = &answer[..];
    assert!(ExportNameReply::decode(&mut input).is_some());
    assert_eq!(input.len(), RESERVED_ZEROES + 4);
    assert_eq!(input[RESERVED_ZEROES..], [0x67, 0x44, 0x66, 0x98]);
}

#[test]
fn sizes_and_magic_numbers() {
    assert_eq!(INIT_PASSWD.to_be_bytes(), *b"NBDMAGIC");
    assert_eq!(OPTION_MAGIC.to_be_bytes(), *b"IHAVEOPT");
    assert_eq!(CLISERV_MAGIC, 0x420281861253);
    assert_eq!(OldstyleGreeting::SIZE, 152);
    assert_eq!(NewstyleGreeting::SIZE, 18);
    assert_eq!(ClientFlags::SIZE, 4);
    assert_eq!(ExportNameReply::SIZE, 10);
    assert_eq!(RESERVED_ZEROES, 124);
}
