//! Messages to the operator, on standard error.

use std::io::{self, Write};

/// Writes one line: line breaks in names that a client chose become spaces. An
/// error of standard error is ignored, so that it does not stop the server.
pub fn report(text: &str) {
    let text = text.replace(['\n', '\r'], " ");
    let _ = writeln!(io::stderr(), "nbd-serve: {text}");
}
