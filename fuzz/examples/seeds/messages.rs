//! Seeds of the wire layer's targets.

use nbd_codec::wire::number::OptionType;
use nbd_codec::wire::reply::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};
use nbd_codec::wire::request::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use nbd_codec_fuzz::client::handshake::script::{self, Reply};

/// One message of each type, and payloads without headers.
pub fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |parts: &[&[u8]]| parts.concat();
    vec![
        ("oldstyle", script::greeting(0, 1, 4096)),
        ("newstyle", script::greeting(2, 3, 0)),
        ("client-flags", vec![0, 0, 0, 3]),
        ("option", bytes(&[b"IHAVEOPT", &[0, 0, 0, 3, 0, 0, 0, 0]])),
        ("option-reply", Reply::Ack {}.bytes(OptionType::GO)),
        (
            "compact-request",
            bytes(&[&REQUEST_MAGIC.to_be_bytes(), &[0; 24]]),
        ),
        (
            "extended-request",
            bytes(&[&EXTENDED_REQUEST_MAGIC.to_be_bytes(), &[0; 28]]),
        ),
        (
            "simple-reply",
            bytes(&[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 12]]),
        ),
        (
            "structured-chunk",
            bytes(&[&STRUCTURED_REPLY_MAGIC.to_be_bytes(), &[0; 16]]),
        ),
        (
            "extended-chunk",
            bytes(&[&EXTENDED_REPLY_MAGIC.to_be_bytes(), &[0; 28]]),
        ),
        ("export-name", script::export_name(4096, 1, 124)),
        ("name", b"base:allocation".to_vec()),
        ("info-request", b"\0\0\0\x04disk\0\x01\0\x03".to_vec()),
        (
            "meta-context-request",
            b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x03a:b\0\0\0\x02c:".to_vec(),
        ),
        ("info-export", b"\0\0\0\0\0\0\0\0\x10\0\0\x01".to_vec()),
        (
            "info-block-size",
            b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec(),
        ),
        ("hole", b"\0\0\0\0\0\0\0\0\0\0\x10\0".to_vec()),
        ("narrow-status", b"\0\0\0\x01\0\0\x10\0\0\0\0\x03".to_vec()),
        ("wide-status", bytes(&[&[0, 0, 0, 1, 0, 0, 0, 1], &[1; 16]])),
        ("error", b"\0\0\0\x05\0\x02no".to_vec()),
        (
            "error-offset",
            b"\0\0\0\x05\0\x02no\0\0\0\0\0\0\x10\0".to_vec(),
        ),
    ]
}
