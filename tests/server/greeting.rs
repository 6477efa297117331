//! Greetings of every handshake style, client flags, and `EXPORT_NAME`.

use nbd_codec::server::{Config, Export, Handshake, HandshakeEvent};
use nbd_codec::{HandshakeStyle, Step};

use crate::drive::{HandshakeDriver, play};
use crate::options::{ALL, DISK, disk, fixed, play_with};

#[test]
fn oldstyle_greeting() {
    // Flags that need structured replies are not sent.
    let export = Export::new("", 0x1234_5678, ALL);
    let start = || HandshakeDriver {
        handshake: Handshake::oldstyle(&export).unwrap(),
        ..HandshakeDriver::new(Config::new(), &[])
    };
    play(
        start,
        "S: NBDMAGIC 0000_4202_8186_1253 0000_0000_1234_5678 0000_0f7f 00*124
         E: Ready",
    );
}

/// The greeting has no field for block sizes, but the server enforces them.
#[test]
fn oldstyle_keeps_the_block_sizes_of_its_export() {
    let mut export = disk();
    export.block_sizes.minimum = 512;
    let mut handshake = Handshake::oldstyle(&export).unwrap();
    handshake.transmit(&mut Vec::new()).unwrap();
    let ready = Step::Event(HandshakeEvent::Ready { export: 0 });
    assert_eq!(handshake.receive(&mut &b""[..]), Ok(ready));
    let negotiated = handshake.into_negotiated().unwrap();
    assert_eq!(negotiated.block_sizes, Some(export.block_sizes));
    assert_eq!(negotiated.style, HandshakeStyle::Oldstyle);
}

#[test]
fn newstyle_allows_only_export_name() {
    let config = Config::new().fixed_newstyle(false).no_zeroes(false);
    play(
        || HandshakeDriver::new(config, DISK),
        "S: NBDMAGIC IHAVEOPT 0000
         C: 00000000
         C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
         E: Export NBD_OPT_EXPORT_NAME \"disk\" []
         E: Ready
         S: 0000_0000_0010_0000 0005 00*124",
    );
    play(
        || HandshakeDriver::new(config, DISK),
        "S: NBDMAGIC IHAVEOPT 0000
         C: 00000000
         C: IHAVEOPT LIST 4{ }
         X: the peer broke the protocol: NBD_OPT_LIST without fixed newstyle",
    );
    // A client that does not agree to fixed newstyle has only EXPORT_NAME too.
    play_with(
        DISK,
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000002
         C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }
         X: the peer broke the protocol: NBD_OPT_GO without fixed newstyle",
    );
}

#[test]
fn client_flags_must_be_offered() {
    let config = Config::new().no_zeroes(false);
    for (flags, over) in [
        ("00000002", "NO_ZEROES"),
        ("00000007", "FIXED_NEWSTYLE | NO_ZEROES | 0x4"),
        ("80000001", "FIXED_NEWSTYLE | 0x80000000"),
    ] {
        play(
            || HandshakeDriver::new(config, &[]),
            &format!(
                "S: NBDMAGIC IHAVEOPT 0001
                 C: {flags}
                 X: the peer broke the protocol: client flags that were not offered: {over}"
            ),
        );
    }
}

#[test]
fn export_name_without_zeroes() {
    play_with(
        DISK,
        &fixed(
            "C: IHAVEOPT EXPORT_NAME 4{ }
             E: Export NBD_OPT_EXPORT_NAME \"\" []
             E: Ready
             S: 0000_0000_0010_0000 0005",
        ),
    );
    play_with(
        DISK,
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000001
         C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
         E: Export NBD_OPT_EXPORT_NAME \"disk\" []
         E: Ready
         S: 0000_0000_0010_0000 0005 00*124",
    );
}

#[test]
fn export_name_is_refused_by_disconnecting() {
    let refused = "the export was refused, and NBD_OPT_EXPORT_NAME has no error reply";
    let broke = "the peer broke the protocol:";
    play_with(
        DISK,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"desk\" }}
             E: Export NBD_OPT_EXPORT_NAME \"desk\" []
             X: {refused}"
        )),
    );
    for (name, over) in [
        (
            "00",
            "the name of the export is invalid: contains a NUL character",
        ),
        ("ff", "the name of the export is invalid: not valid UTF-8"),
    ] {
        play_with(
            DISK,
            &fixed(&format!(
                "C: IHAVEOPT EXPORT_NAME 4{{ {name} }}\nX: {broke} {over}"
            )),
        );
    }
    play_with(
        DISK,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 00001001
             X: {broke} NBD_OPT_EXPORT_NAME with 4097 bytes of data is beyond the limit"
        )),
    );
    play_with(
        DISK,
        &fixed(&format!(
            "C: IHAVEOPT EXTENDED_HEADERS 4{{ }}
             S: REPLY EXTENDED_HEADERS ACK 4{{ }}
             C: IHAVEOPT EXPORT_NAME 4{{ \"disk\" }}
             X: {broke} NBD_OPT_EXPORT_NAME with extended headers"
        )),
    );
}
