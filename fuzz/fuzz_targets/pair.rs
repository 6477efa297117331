//! Our client and our server, a link that may be lost, and a model disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::{pair, tape};

fuzz_target!(|bytes: &[u8]| {
    pair::run(&tape::read(bytes));
});
