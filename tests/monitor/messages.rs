//! What is told of each message.

use nbd_codec::monitor::Order;

use super::see::{extended, lines, parse, request, see, simple, structured, wide};

#[track_caller]
fn tells(transcript: &str, expected: &str) {
    let seen = see(&parse(transcript), Order::Seen);
    assert_eq!(seen, lines(expected), "{seen:#?}");
}

/// What is told after the handshake.
#[track_caller]
fn tells_after(handshake: String, transcript: &str, expected: &str) {
    let before = see(&parse(&handshake), Order::Seen).len();
    let seen = see(&parse(&(handshake + transcript)), Order::Seen);
    assert_eq!(seen[before..], lines(expected), "{seen:#?}");
}

#[test]
fn oldstyle() {
    tells(
        &format!(
            "S: NBDMAGIC 0000_4202_8186_1253 0000_0000_0000_1000 0000 0001 00*124\n{}
             S: SIMPLE OK 0000_0000_0000_0001 aa*512",
            request("READ", 1, 0, 512)
        ),
        "S: greeting oldstyle 0x0, size 4096 [HAS_FLAGS]
         S: 124 bytes of payload
         C: request NBD_CMD_READ 0x0000000000000001 offset 0 length 512
         S: simple reply 0x0000000000000001
         S: 512 bytes of payload",
    );
}

#[test]
fn newstyle_with_export_name() {
    tells(
        "S: NBDMAGIC IHAVEOPT 0000
         C: 0000_0000
         C: IHAVEOPT EXPORT_NAME 4{ \"disk\" }
         S: 0000_0000_0000_1000 0001 00*124",
        "S: greeting newstyle 0x0
         C: client flags 0x0
         C: option NBD_OPT_EXPORT_NAME \"disk\"
         S: export size 4096 [HAS_FLAGS]
         S: 124 bytes of payload",
    );
}

#[test]
fn the_handshake() {
    tells(
        &format!(
            "{}{}",
            structured(),
            "C: REQUEST 0000 DISC 0000_0000_0000_0000 0000_0000_0000_0000 0000_0000
             C: end
             S: end"
        ),
        "S: greeting newstyle FIXED_NEWSTYLE | NO_ZEROES
         C: client flags FIXED_NEWSTYLE | NO_ZEROES
         C: option NBD_OPT_STRUCTURED_REPLY
         S: reply NBD_REP_ACK to NBD_OPT_STRUCTURED_REPLY
         C: option NBD_OPT_SET_META_CONTEXT \"disk\" [\"base:allocation\"]
         S: reply NBD_REP_META_CONTEXT to NBD_OPT_SET_META_CONTEXT: 7 \"base:allocation\"
         S: reply NBD_REP_ACK to NBD_OPT_SET_META_CONTEXT
         C: option NBD_OPT_GO \"disk\" [NBD_INFO_BLOCK_SIZE]
         S: reply NBD_REP_INFO to NBD_OPT_GO: export size 1048576 [HAS_FLAGS | SEND_FLUSH | SEND_FUA | ROTATIONAL | SEND_TRIM | SEND_WRITE_ZEROES | SEND_DF | CAN_MULTI_CONN | SEND_CACHE | SEND_FAST_ZERO]
         S: reply NBD_REP_INFO to NBD_OPT_GO: block sizes 512 4096 33554432
         S: reply NBD_REP_ACK to NBD_OPT_GO
         C: request NBD_CMD_DISC 0x0000000000000000 offset 0 length 0",
    );
}

#[test]
fn options_and_replies_that_are_too_long_are_payload() {
    tells(
        "S: NBDMAGIC IHAVEOPT 0003
         C: 0000_0003
         C: IHAVEOPT 0000_0063 4{ 00*9000 }
         S: REPLY 0000_0063 ERR_UNSUP 4{ 20*9000 }
         C: IHAVEOPT ABORT 4{ }
         S: REPLY ABORT ACK 4{ }
         C: end",
        "S: greeting newstyle FIXED_NEWSTYLE | NO_ZEROES
         C: client flags FIXED_NEWSTYLE | NO_ZEROES
         C: option OptionType(0x63) 9000 bytes
         C: 9000 bytes of payload
         S: reply NBD_REP_ERR_UNSUP to OptionType(0x63) 9000 bytes
         ! the server: NBD_REP_ERR_UNSUP of 9000 bytes is beyond the limit [C2]
         S: 9000 bytes of payload
         C: option NBD_OPT_ABORT
         S: reply NBD_REP_ACK to NBD_OPT_ABORT",
    );
}

#[test]
fn the_content_of_tls_is_opaque_unless_it_is_offered() {
    let tls = "S: NBDMAGIC IHAVEOPT 0003
         C: 0000_0003
         C: IHAVEOPT STARTTLS 4{ }
         S: REPLY STARTTLS ACK 4{ }\n";
    let seen = "S: greeting newstyle FIXED_NEWSTYLE | NO_ZEROES
         C: client flags FIXED_NEWSTYLE | NO_ZEROES
         C: option NBD_OPT_STARTTLS
         S: reply NBD_REP_ACK to NBD_OPT_STARTTLS\n";
    tells(
        &format!("{tls}C: 16 03 aa*99\nS: 16 03 bb*99\nC: end"),
        seen,
    );
    tells(
        &format!(
            "{tls}tls\nC: IHAVEOPT LIST 4{{ }}\nS: REPLY LIST REP_SERVER 4{{ 4{{ \"disk\" }} \"the disk\" }}\nS: REPLY LIST ACK 4{{ }}"
        ),
        &format!(
            "{seen}C: option NBD_OPT_LIST
         S: reply NBD_REP_SERVER to NBD_OPT_LIST: \"disk\" \"the disk\"
         S: reply NBD_REP_ACK to NBD_OPT_LIST"
        ),
    );
}

#[test]
fn writes_and_simple_replies() {
    tells_after(
        simple(),
        &format!(
            "{}C: aa*512\n{}S: SIMPLE EIO 0000_0000_0000_0002\nS: SIMPLE OK 0000_0000_0000_0001",
            request("WRITE", 1, 512, 512),
            request("READ", 2, 0, 512)
        ),
        "C: request NBD_CMD_WRITE 0x0000000000000001 offset 512 length 512
         C: 512 bytes of payload
         C: request NBD_CMD_READ 0x0000000000000002 offset 0 length 512
         S: simple reply 0x0000000000000002 NBD_EIO
         S: simple reply 0x0000000000000001",
    );
}

#[test]
fn chunks() {
    tells_after(
        structured(),
        &format!(
            "{}S: CHUNK MORE OFFSET_HOLE 0000_0000_0000_0001 4{{ 0000_0000_0000_0200 0000_0200 }}
             S: CHUNK MORE OFFSET_DATA 0000_0000_0000_0001 4{{ 0000_0000_0000_0000 aa*512 }}
             S: CHUNK DONE NONE 0000_0000_0000_0001 4{{ }}
             {}S: CHUNK DONE STATUS 0000_0000_0000_0002 4{{ 0000_0007 0000_1000 0000_0003 0000_1000 0000_0000 }}
             {}S: CHUNK DONE ERROR_OFFSET 0000_0000_0000_0003 4{{ EIO 2{{ \"no\" }} 0000_0000_0000_0201 }}",
            request("READ", 1, 0, 1024),
            request("BLOCK_STATUS", 2, 0, 8192),
            request("READ", 3, 512, 512),
        ),
        "C: request NBD_CMD_READ 0x0000000000000001 offset 0 length 1024
         S: chunk NBD_REPLY_TYPE_OFFSET_HOLE 0x0000000000000001 offset 512 length 512
         S: chunk NBD_REPLY_TYPE_OFFSET_DATA 0x0000000000000001 offset 0 length 512
         S: 512 bytes of payload
         S: chunk NBD_REPLY_TYPE_NONE 0x0000000000000001 [DONE]
         C: request NBD_CMD_BLOCK_STATUS 0x0000000000000002 offset 0 length 8192
         S: chunk NBD_REPLY_TYPE_BLOCK_STATUS 0x0000000000000002 [DONE] context 7, 2 extents
         S: extent context 7 offset 0 length 4096 status 0x3
         S: extent context 7 offset 4096 length 4096 status 0x0
         C: request NBD_CMD_READ 0x0000000000000003 offset 512 length 512
         S: chunk NBD_REPLY_TYPE_ERROR_OFFSET 0x0000000000000003 [DONE] NBD_EIO \"no\" at 513",
    );
}

#[test]
fn extended_headers() {
    tells_after(
        extended(),
        &format!(
            "{}C: 0000_0000_0010_0000 0000_0007
             S: EXTCHUNK DONE STATUS_EXT 0000_0000_0000_0001 0000_0000_0000_0000 8{{ 0000_0007 0000_0001 0000_0000_0010_0000 0000_0000_0000_0003 }}
             {}C: aa*512\nS: EXTCHUNK DONE NONE 0000_0000_0000_0001 0000_0000_0000_0000 8{{ }}",
            wide("0020", "BLOCK_STATUS", 1, 0, 12),
            wide("0020", "WRITE", 1, 0, 512),
        ),
        "C: extended request NBD_CMD_BLOCK_STATUS 0x0000000000000001 offset 0 length 12 [PAYLOAD_LEN] effect 1048576 of contexts [ContextId(7)]
         S: extended chunk NBD_REPLY_TYPE_BLOCK_STATUS_EXT 0x0000000000000001 [DONE] context 7, 1 extents
         S: wide extent context 7 offset 0 length 1048576 status 0x3
         C: extended request NBD_CMD_WRITE 0x0000000000000001 offset 0 length 512 [PAYLOAD_LEN]
         C: 512 bytes of payload
         S: extended chunk NBD_REPLY_TYPE_NONE 0x0000000000000001 [DONE]",
    );
}
