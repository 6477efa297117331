//! The fuzz kit of `nbd-check` attacks a server of this crate, as it does any other.
#![no_main]

use nbd_check::fuzz::{ServerScript, example};

libfuzzer_sys::fuzz_target!(|script: ServerScript| {
    let mut disk = vec![7; 1 << 16];
    script.attack(|stream| example::serve(stream, &mut disk));
});
