//! The client and the server of this crate, a link that may fail, and a model
//! disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::{format, pair};

fuzz_target!(|bytes: &[u8]| {
    pair::run(&format::read(bytes));
});
