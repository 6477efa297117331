//! Lines for whoever runs the server, on standard error.

use std::io::{self, Write};

/// Writes one line, whatever a client put into its names. That nobody reads
/// it is no reason to stop.
pub fn say(text: &str) {
    let text = text.replace(['\n', '\r'], " ");
    let _ = writeln!(io::stderr(), "nbd-serve: {text}");
}
