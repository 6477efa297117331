//! What differs between Unix systems. Only Linux has all of it: elsewhere these
//! functions fail with `OPNOTSUPP` or do nothing, and the server does without.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub use linux::{
    advise, advise_huge, allocate, give_back, is_in_memory, pipe, read_at_once, splice_in,
    splice_out,
};
#[cfg(not(target_os = "linux"))]
pub use other::{
    advise, advise_huge, allocate, give_back, is_in_memory, pipe, read_at_once, splice_in,
    splice_out,
};

/// What to do with the space of a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Make a hole.
    Hole,
    /// Allocate space that reads as zeroes, without writing it.
    Zeroes,
    /// Allocate space for holes, within the file.
    Inside,
    /// Allocate space for holes, also past the end of the file.
    PastTheEnd,
}
