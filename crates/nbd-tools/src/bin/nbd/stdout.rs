//! Standard output, which the reader may close at any time.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use anyhow::Result;

/// The reader of standard output has closed it. This is not reported.
#[derive(Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Writes all of it to standard output.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    check(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Standard output with a buffer, which is to be flushed.
pub fn buffered() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// The result of writing to standard output.
pub fn check(result: io::Result<()>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}
