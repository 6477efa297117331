//! Options and the replies to them.

use nbd_codec::server::{Config, Export};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Framing, Limits};

use crate::drive::{HandshakeDriver, play};

pub(crate) const ALL: TransmissionFlags = TransmissionFlags::KNOWN;

pub(crate) const DISK: &[Export<'_>] = &[disk()];

pub(crate) const fn disk() -> Export<'static> {
    let mut export = Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH);
    export.description = "a disk";
    export
}

/// Plays a transcript against a server of these exports, with the default config.
#[track_caller]
pub(crate) fn play_with(exports: &[Export<'_>], transcript: &str) {
    play(|| HandshakeDriver::new(Config::new(), exports), transcript);
}

/// The lines of a handshake after the greeting of fixed newstyle.
pub(crate) fn fixed(rest: &str) -> String {
    format!("S: NBDMAGIC IHAVEOPT 0003\nC: 00000003\n{rest}")
}

#[test]
fn abort_is_acknowledged_with_any_data() {
    play_with(
        &[],
        &fixed(
            "C: IHAVEOPT ABORT 4{ }
             S: REPLY ABORT ACK 4{ }
             E: Aborted",
        ),
    );
    play_with(
        &[],
        &fixed(
            "C: IHAVEOPT ABORT 4{ ff*300 }
             S: REPLY ABORT ACK 4{ }
             E: Aborted",
        ),
    );
}

#[test]
fn list_names_the_exports() {
    play_with(
        &[disk(), Export::new("empty", 0, ALL)],
        &fixed(
            "C: IHAVEOPT LIST 4{ }
             E: List
             S: REPLY LIST REP_SERVER 4{ 4{ \"disk\" } \"a disk\" }
             S: REPLY LIST REP_SERVER 4{ 4{ \"empty\" } }
             S: REPLY LIST ACK 4{ }
             C: IHAVEOPT LIST 4{ 00 }
             S: REPLY LIST ERR_INVALID 4{ \"the option takes no data\" }",
        ),
    );
}

#[test]
fn unknown_options_are_discarded() {
    play_with(
        DISK,
        &fixed(
            "C: IHAVEOPT PEEK_EXPORT 4{ \"disk\" }
             S: REPLY PEEK_EXPORT ERR_UNSUP 4{ \"unsupported option\" }
             C: IHAVEOPT 0000_0000 4{ }
             S: REPLY 0000_0000 ERR_UNSUP 4{ \"unsupported option\" }
             C: IHAVEOPT ffff_ffff 4{ 00*9000 }
             S: REPLY ffff_ffff ERR_UNSUP 4{ \"unsupported option\" }
             C: IHAVEOPT ABORT 4{ }
             S: REPLY ABORT ACK 4{ }
             E: Aborted",
        ),
    );
}

#[test]
fn options_beyond_the_limit_are_discarded() {
    let mut limits = Limits::DEFAULT;
    limits.option_data = 16;
    play(
        || HandshakeDriver::with_limits(limits, DISK),
        &fixed(
            "C: IHAVEOPT GO 4{ 4{ \"disk\" } 2{ 0000*2 00*7 } }
             S: REPLY GO ERR_TOO_BIG 4{ \"the option is too long\" }
             C: IHAVEOPT SET_META 4{ 4{ \"disk\" } 00*20 }
             S: REPLY SET_META ERR_TOO_BIG 4{ \"the option is too long\" }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }
             E: Export NBD_OPT_GO \"disk\" []
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
}

#[test]
fn go_and_info_answer_what_is_requested() {
    let mut export = disk();
    export.block_sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 1 << 20,
    };
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT INFO 4{ 4{ } 0000 }
             E: Export NBD_OPT_INFO \"\" []
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY INFO ACK 4{ }
             # Unknown information is ignored.
             C: IHAVEOPT INFO 4{ 4{ } 0005 0003 0001 0002 0000 fff0 }
             E: Export NBD_OPT_INFO \"\" [NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, InfoType(0xfff0)]
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY INFO REP_INFO 4{ 0001 \"disk\" }
             S: REPLY INFO REP_INFO 4{ 0002 \"a disk\" }
             S: REPLY INFO REP_INFO 4{ 0003 0000_0200 0000_1000 0010_0000 }
             S: REPLY INFO ACK 4{ }
             C: IHAVEOPT INFO 4{ 4{ \"desk\" } 0000 }
             E: Export NBD_OPT_INFO \"desk\" []
             S: REPLY INFO ERR_UNKNOWN 4{ \"no such export\" }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0001 0003 }
             E: Export NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY GO REP_INFO 4{ 0003 0000_0200 0000_1000 0010_0000 }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
}

#[test]
fn empty_description_is_not_sent() {
    play_with(
        &[Export::new("disk", 1 << 20, TransmissionFlags::SEND_FLUSH)],
        &fixed(
            "C: IHAVEOPT INFO 4{ 4{ } 0001 0002 }
             E: Export NBD_OPT_INFO \"\" [NBD_INFO_DESCRIPTION]
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY INFO ACK 4{ }",
        ),
    );
}

#[test]
fn malformed_options_get_err_invalid() {
    let malformed = |option: &str, data: &str| {
        play_with(
            DISK,
            &fixed(&format!(
                "C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
                 S: REPLY STRUCTURED_REPLY ACK 4{{ }}
                 C: IHAVEOPT {option} 4{{ {data} }}
                 S: REPLY {option} ERR_INVALID 4{{ \"malformed option\" }}
                 C: IHAVEOPT LIST 4{{ }}
                 E: List
                 S: REPLY LIST REP_SERVER 4{{ 4{{ \"disk\" }} \"a disk\" }}
                 S: REPLY LIST ACK 4{{ }}"
            )),
        );
    };
    for option in ["INFO", "GO"] {
        malformed(option, "");
        malformed(option, "4{ \"disk\" }");
        malformed(option, "00000005 \"disk\" 0000");
        malformed(option, "ffffffff \"disk\" 0000");
        malformed(option, "4{ \"disk\" } 0001");
        malformed(option, "4{ \"disk\" } 0000 00");
    }
    for option in ["LIST_META", "SET_META"] {
        malformed(option, "");
        malformed(option, "4{ \"disk\" }");
        malformed(option, "4{ \"disk\" } 0000_0001");
        malformed(option, "4{ \"disk\" } 0000_0001 ffff_ffff \"x:y\"");
        malformed(option, "4{ \"disk\" } ffff_ffff 4{ \"x:y\" }");
        malformed(option, "4{ \"disk\" } 0000_0000 00");
    }
    for option in ["INFO", "GO"] {
        play_with(
            DISK,
            &fixed(&format!(
                "C: IHAVEOPT {option} 4{{ 4{{ \"a\" 00 }} 0000 }}
                 S: REPLY {option} ERR_INVALID 4{{ \"the export's name is no string\" }}"
            )),
        );
    }
}

#[test]
fn framing_is_negotiated_in_any_order() {
    play_with(
        &[Export::new("disk", 1 << 20, ALL)],
        &fixed(
            "C: IHAVEOPT STRUCTURED_REPLY 4{ 00 }
             S: REPLY STRUCTURED_REPLY ERR_INVALID 4{ \"the option takes no data\" }
             # DF needs structured replies.
             C: IHAVEOPT INFO 4{ 4{ } 0000 }
             E: Export NBD_OPT_INFO \"\" []
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0f7f }
             S: REPLY INFO ACK 4{ }
             C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ACK 4{ }
             C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ACK 4{ }
             C: IHAVEOPT INFO 4{ 4{ } 0000 }
             E: Export NBD_OPT_INFO \"\" []
             S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0fff }
             S: REPLY INFO ACK 4{ }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT STRUCTURED_REPLY 4{ }
             S: REPLY STRUCTURED_REPLY ERR_EXT_HEADER_REQD 4{ \"extended headers were agreed on already\" }
             C: IHAVEOPT GO 4{ 4{ } 0000 }
             E: Export NBD_OPT_GO \"\" []
             # BLOCK_STATUS_PAYLOAD needs a selected context.
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0fff }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
}

#[test]
fn options_not_offered_get_err_unsup() {
    let unsupported = |framing, options: &[&str]| {
        let config = Config::new().framing(framing);
        let options: String = options
            .iter()
            .map(|option| {
                format!(
                    "C: IHAVEOPT {option} 4{{ }}
                     S: REPLY {option} ERR_UNSUP 4{{ \"unsupported option\" }}\n"
                )
            })
            .collect();
        play(|| HandshakeDriver::new(config, DISK), &fixed(&options));
    };
    let none = [
        "EXTENDED_HEADERS",
        "STRUCTURED_REPLY",
        "LIST_META",
        "SET_META",
    ];
    unsupported(Framing::Simple, &none);
    unsupported(Framing::Structured, &none[..1]);
}

#[test]
fn export_requirements_are_reported() {
    let mut export = disk();
    export.requires_extended = true;
    export.requires_block_sizes = true;
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT GO 4{ 4{ \"disk\" } 0001 0003 }
             E: Export NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
             S: REPLY GO ERR_EXT_HEADER_REQD 4{ \"agree on extended headers first\" }
             C: IHAVEOPT EXTENDED_HEADERS 4{ }
             S: REPLY EXTENDED_HEADERS ACK 4{ }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }
             E: Export NBD_OPT_GO \"disk\" []
             S: REPLY GO REP_INFO 4{ 0003 0000_0001 0000_1000 0200_0000 }
             S: REPLY GO ERR_BLOCK_SIZE_REQD 4{ \"ask for the block sizes\" }
             C: IHAVEOPT GO 4{ 4{ \"disk\" } 0001 0003 }
             E: Export NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
             S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0005 }
             S: REPLY GO REP_INFO 4{ 0003 0000_0001 0000_1000 0200_0000 }
             S: REPLY GO ACK 4{ }
             E: Ready",
        ),
    );
    play_with(
        &[export],
        &fixed(
            "C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
             E: Export NBD_OPT_EXPORT_NAME \"disk\" []
             X: the export was refused, and NBD_OPT_EXPORT_NAME has no error reply",
        ),
    );
}

/// Advertised flags depend on the framing and on other flags.
#[test]
fn advertised_flags_follow_from_the_framing() {
    let info = |flags: TransmissionFlags, maximum, expected: &str| {
        let mut export = Export::new("disk", 1 << 20, flags);
        export.block_sizes.maximum = maximum;
        play_with(
            &[export],
            &fixed(&format!(
                "C: IHAVEOPT STRUCTURED_REPLY 4{{ }}
                 S: REPLY STRUCTURED_REPLY ACK 4{{ }}
                 C: IHAVEOPT INFO 4{{ 4{{ }} 0000 }}
                 E: Export NBD_OPT_INFO \"\" []
                 S: REPLY INFO REP_INFO 4{{ 0000 0000_0000_0010_0000 {expected} }}
                 S: REPLY INFO ACK 4{{ }}"
            )),
        );
    };
    info(TransmissionFlags::NONE, 1 << 25, "0001");
    info(TransmissionFlags(0xffff), 1 << 25, "0fff");
    // FAST_ZERO needs WRITE_ZEROES.
    info(TransmissionFlags::SEND_FAST_ZERO, 1 << 25, "0001");
    // DF promises reads of 64 KiB in one chunk.
    info(TransmissionFlags::SEND_DF, 1 << 16, "0081");
    info(TransmissionFlags::SEND_DF, (1 << 16) - 1, "0001");
}

#[test]
fn shutdown_refuses_every_option_but_abort() {
    let start = || {
        let mut driver = HandshakeDriver::new(Config::new(), &[]);
        driver.handshake.shut_down();
        driver
    };
    let refused = |option: &str| {
        format!(
            "C: IHAVEOPT {option} 4{{ 00*5 }}
             S: REPLY {option} ERR_SHUTDOWN 4{{ \"the server is shutting down\" }}\n"
        )
    };
    let options = [
        "LIST",
        "STARTTLS",
        "INFO",
        "GO",
        "SET_META",
        "STRUCTURED_REPLY",
        "0000_1234",
    ];
    let options: String = options.into_iter().map(refused).collect();
    play(
        start,
        &fixed(&format!(
            "{options}
             C: IHAVEOPT ABORT 4{{ }}
             S: REPLY ABORT ACK 4{{ }}
             E: Aborted"
        )),
    );
    play(
        start,
        &fixed(
            "C: IHAVEOPT EXPORT_NAME 4{ }
             X: the export was refused, and NBD_OPT_EXPORT_NAME has no error reply",
        ),
    );
}

/// The default limit admits the longest name.
#[test]
fn export_names_of_4096_bytes() {
    let name = "n".repeat(4096);
    let mut export = disk();
    export.name = &name;
    assert_eq!(Limits::DEFAULT.option_data, 8196);
    play_with(
        &[export],
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"{name}\" }}
             E: Export NBD_OPT_EXPORT_NAME \"{name}\" []
             E: Ready
             S: 0000_0000_0010_0000 0005"
        )),
    );
}

/// Data of exactly the limit is accepted. A byte more is answered with
/// `ERR_TOO_BIG` and discarded; for `EXPORT_NAME`, it ends the session.
#[test]
fn option_data_up_to_the_limit() {
    let name = "n".repeat(122);
    let mut export = disk();
    export.name = &name;
    let exports = &[export];
    let mut limits = Limits::DEFAULT;
    limits.option_data = 128;
    let start = || HandshakeDriver::with_limits(limits, exports);
    play(
        start,
        &fixed(&format!(
            "C: IHAVEOPT GO 4{{ 4{{ \"{name}\" }} 0001 0003 0000 }}
             S: REPLY GO ERR_TOO_BIG 4{{ \"the option is too long\" }}
             C: IHAVEOPT INFO 4{{ 4{{ \"{name}\" }} 0000 }}
             E: Export NBD_OPT_INFO \"{name}\" []
             S: REPLY INFO REP_INFO 4{{ 0000 0000_0000_0010_0000 0005 }}
             S: REPLY INFO ACK 4{{ }}",
        )),
    );
    let long = "n".repeat(128);
    play(
        start,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"{long}\" }}
             E: Export NBD_OPT_EXPORT_NAME \"{long}\" []
             X: the export was refused, and NBD_OPT_EXPORT_NAME has no error reply",
        )),
    );
    play(
        start,
        &fixed(&format!(
            "C: IHAVEOPT EXPORT_NAME 4{{ \"{long}n\" }}
             X: the peer broke the protocol: NBD_OPT_EXPORT_NAME with 129 bytes of data is beyond the limit",
        )),
    );
}
