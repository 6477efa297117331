//! What a machine needs to read next.

use crate::wire::number::Cookie;

/// What to read next, so that nothing is read too much and payloads go
/// straight to where they belong.
///
/// Read **up to** this much and offer what arrived; do not wait for all of it,
/// because a peer that breaks the protocol may never send it, and a machine
/// judges what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Need {
    /// Bytes for `receive`, counted from the first one it has not consumed:
    /// read until the buffer holds this many, or is full.
    Header(usize),
    /// Payload. Read it into its final place and say so with `advance`, or
    /// offer it to `receive` and get it as events.
    Payload {
        /// The command it belongs to.
        cookie: Cookie,
        /// Where its next byte belongs, in bytes from the start of the export.
        offset: u64,
        /// How many bytes are left.
        length: u64,
    },
    /// Nothing: it is the caller's turn, or the session is over.
    Nothing,
}
