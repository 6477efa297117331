//! Standard error. Its reader may close it at any time: what is
//! printed is lost, and the exit code remains.

use std::fmt::Display;
use std::io::{self, Write};

/// Prints a line.
pub fn line(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a warning.
pub fn warn(text: impl Display) {
    line(format_args!("nbd: warning: {text}"));
}
