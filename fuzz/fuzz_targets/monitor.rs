//! The monitor, on any bytes of both sides, and on sessions of the client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_codec_fuzz::client::{Run, transmission};
use nbd_codec_fuzz::{format, monitor};

fuzz_target!(|bytes: &[u8]| {
    if let Run::Transmission {
        first, mut script, ..
    } = format::read(bytes)
    {
        // The monitor tolerates no fault.
        script.setup.strict = true;
        monitor::check_client(&script.setup, &transmission::run(&script, &first));
    }
    monitor::check_any(bytes);
});
