//! The steps of all state machines, with every way to read and every size of the
//! receive buffer, and a caller that ignores events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::{format, steps};

fuzz_target!(|bytes: &[u8]| steps::run(format::read(bytes)));
