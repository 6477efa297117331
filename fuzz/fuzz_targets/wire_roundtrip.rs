//! Encodes and decodes any value.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::wire;

fuzz_target!(|bytes: &[u8]| {
    // Bytes that do not make a value are no failure.
    let _ = wire::round_trip(&mut Unstructured::new(bytes));
});
