//! What differs between operating systems: sockets, positional access to files,
//! holes, and the kinds of files. Each system has all of these, or says what it lacks.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use unix::{FileExt, Stream, is_stream, next_hole};
#[cfg(windows)]
pub use windows::{FileExt, Stream, is_stream, next_hole};
