//! Requirements of the specification that no other module tests.

use nbd_codec::server::{Config, Export, HandshakeEvent, MetaContext, Request, TlsMode};
use nbd_codec::wire::extent::Extent64;
use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::{Command, ContextId, ErrorValue, OptionReplyType};
use nbd_codec::{Framing, Misuse, Step};

use crate::drive::{HandshakeDriver, play};
use crate::replies::request_of_type;
use crate::script::bytes;
use crate::tls::negotiating;

const ALL: TransmissionFlags = TransmissionFlags::KNOWN;
const DISK: &[Export<'_>] = &[Export::new("disk", 1 << 20, ALL)];

/// A client that did not agree to fixed newstyle cannot start TLS. In
/// FORCEDTLS mode it gets no export either.
#[test]
fn starttls_requires_fixed_newstyle() {
    for tls in [TlsMode::Selective, TlsMode::Forced] {
        play(
            || HandshakeDriver::new(Config::new().tls(tls), &[]),
            "S: NBDMAGIC IHAVEOPT 0003
             C: 00000002
             C: IHAVEOPT STARTTLS 4{ }
             X: the peer broke the protocol: NBD_OPT_STARTTLS without fixed newstyle",
        );
    }
    play(
        || HandshakeDriver::new(Config::new().tls(TlsMode::Forced), &[]),
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000002
         C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
         X: TLS is required, and NBD_OPT_EXPORT_NAME asked for an export without it",
    );
}

/// Under TLS, `ERR_TLS_REQD` would ask for what has happened.
#[test]
fn err_tls_reqd_is_misuse_under_tls() {
    for tls in [TlsMode::Selective, TlsMode::Forced] {
        let mut handshake = negotiating(tls);
        let start = bytes("IHAVEOPT STARTTLS 4{ }");
        assert_eq!(handshake.receive(&mut &start[..]), Ok(Step::Transmit));
        handshake.transmit(&mut Vec::new()).unwrap();
        assert_eq!(handshake.receive(&mut &[][..]), Ok(Step::StartTls));
        handshake.tls_established().unwrap();

        let go = bytes("IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }");
        let step = handshake.receive(&mut &go[..]).unwrap();
        assert!(matches!(step, Step::Event(HandshakeEvent::Export(_))));
        let mut out = Vec::new();
        let error = OptionReplyType::ERR_TLS_REQD;
        let refused = handshake.refuse(error, "", &mut out);
        assert_eq!(refused, Err(Misuse::Answer(error)));
        assert!(out.is_empty());
        let error = OptionReplyType::ERR_UNKNOWN;
        assert_eq!(handshake.refuse(error, "", &mut out), Ok(20));
    }
}

/// After an INFO with the same parameters, GO answers the same.
#[test]
fn go_repeats_the_answer_to_info() {
    let contexts = [MetaContext::narrow("x-a:one"), MetaContext::wide("x-a:two")];
    let mut export = Export::new("disk", 1 << 20, ALL);
    export.description = "a disk";
    export.contexts = &contexts;
    let answered = |option: &str| {
        format!(
            "C: IHAVEOPT {option} 4{{ 4{{ \"disk\" }} 0003 0002 0001 0003 }}
             E: Export NBD_OPT_{option} \"disk\" [NBD_INFO_DESCRIPTION, NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE]
             S: REPLY {option} REP_INFO 4{{ 0000 0000_0000_0010_0000 1fff }}
             S: REPLY {option} REP_INFO 4{{ 0001 \"disk\" }}
             S: REPLY {option} REP_INFO 4{{ 0002 \"a disk\" }}
             S: REPLY {option} REP_INFO 4{{ 0003 0000_0001 0000_1000 0200_0000 }}
             S: REPLY {option} ACK 4{{ }}\n"
        )
    };
    play(
        || HandshakeDriver::new(Config::new(), std::slice::from_ref(&export)),
        &format!(
            "S: NBDMAGIC IHAVEOPT 0003
             C: 00000003
             C: IHAVEOPT EXTENDED_HEADERS 4{{ }}
             S: REPLY EXTENDED_HEADERS ACK 4{{ }}
             C: IHAVEOPT SET_META 4{{ 4{{ \"disk\" }} 00000001 4{{ \"x-a:one\" }} }}
             E: MetaContexts NBD_OPT_SET_META_CONTEXT \"disk\" [\"x-a:one\"]
             S: REPLY SET_META REP_META 4{{ 0000_0000 \"x-a:one\" }}
             S: REPLY SET_META ACK 4{{ }}
             {}{}E: Ready",
            answered("INFO"),
            answered("GO"),
        ),
    );
}

/// Only EXPORT_NAME sends zeroes, whether the client agreed to NO_ZEROES or not.
#[test]
fn go_is_not_followed_by_zeroes() {
    for flags in ["00000001", "00000003"] {
        play(
            || HandshakeDriver::new(Config::new(), DISK),
            &format!(
                "S: NBDMAGIC IHAVEOPT 0003
                 C: {flags}
                 C: IHAVEOPT GO 4{{ 4{{ \"disk\" }} 0000 }}
                 E: Export NBD_OPT_GO \"disk\" []
                 E: Ready
                 S: REPLY GO REP_INFO 4{{ 0000 0000_0000_0010_0000 0f7f }}
                 S: REPLY GO ACK 4{{ }}"
            ),
        );
    }
}

/// A client may request an information type several times.
#[test]
fn each_info_type_is_sent_once() {
    play(
        || HandshakeDriver::new(Config::new(), DISK),
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000003
         C: IHAVEOPT INFO 4{ 4{ \"disk\" } 0004 0001 0000 0001 0000 }
         E: Export NBD_OPT_INFO \"disk\" [NBD_INFO_NAME, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_EXPORT]
         S: REPLY INFO REP_INFO 4{ 0000 0000_0000_0010_0000 0f7f }
         S: REPLY INFO REP_INFO 4{ 0001 \"disk\" }
         S: REPLY INFO ACK 4{ }",
    );
}

#[test]
fn extended_headers_option_takes_no_data() {
    play(
        || HandshakeDriver::new(Config::new(), &[]),
        "S: NBDMAGIC IHAVEOPT 0003
         C: 00000003
         C: IHAVEOPT EXTENDED_HEADERS 4{ 00 }
         S: REPLY EXTENDED_HEADERS ERR_INVALID 4{ \"the option takes no data\" }
         # The refused option changed nothing.
         C: IHAVEOPT STRUCTURED_REPLY 4{ }
         S: REPLY STRUCTURED_REPLY ACK 4{ }",
    );
}

#[test]
fn block_status_ext_is_not_empty() {
    let extent = |length| Extent64 { length, flags: 0 };
    for extents in [&[][..], &[extent(0)], &[extent(512), extent(0)]] {
        let status = request_of_type!(Framing::Extended, BlockStatus64, BLOCK_STATUS);
        let mut out = Vec::new();
        let result = status.reply(ContextId(0), extents.iter().copied(), &mut out);
        assert_eq!(result.unwrap_err().reason, Misuse::EmptyExtent);
        assert!(out.is_empty());
    }
}

/// An error reply must not report success.
#[test]
fn error_zero_with_offset_becomes_eio() {
    let read = request_of_type!(Framing::Structured, Read, READ);
    let reply = read.fail_at(ErrorValue::NONE, 0x1000, "").unwrap();
    let mut out = Vec::new();
    reply.encode(&mut out).unwrap();
    assert_eq!(out[20..24], [0, 0, 0, 5]);
}
