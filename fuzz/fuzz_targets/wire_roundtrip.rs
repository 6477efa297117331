//! Any value, encoded and decoded, is the same value.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::wire;

fuzz_target!(|bytes: &[u8]| {
    // Bytes that make no value are no finding.
    let _ = wire::round_trip(&mut Unstructured::new(bytes));
});
