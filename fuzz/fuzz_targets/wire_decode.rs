//! Runs every decoder on any bytes. A value that decodes encodes to the same
//! bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::wire;

fuzz_target!(|bytes: &[u8]| wire::decode(bytes));
