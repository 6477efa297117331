//! Every decoder on any bytes; what decodes is encoded to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::wire;

fuzz_target!(|bytes: &[u8]| wire::decode(bytes));
