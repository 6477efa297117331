//! The fuzz kit of `nbd-check` attacks a client of this crate, as it does any other.
#![no_main]

use nbd_check::fuzz::{ClientScript, example};

libfuzzer_sys::fuzz_target!(|script: ClientScript| {
    script.attack(|stream, disk| example::write_and_read(stream, disk));
});
