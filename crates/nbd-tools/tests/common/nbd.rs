//! The program `nbd`, for the tests of both programs.

use std::ffi::OsStr;
use std::process::Command;

use nbd_test_support::program::{Ended, run};

pub fn nbd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nbd"))
}

/// Runs `nbd` until it ends.
#[track_caller]
pub fn run_nbd<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ended {
    run(nbd().args(args))
}
