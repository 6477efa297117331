//! Export names, remembered without keeping them.

use crate::wire::bytes::wide;
use crate::wire::text::Text;

/// An export name as length and hash, to tell whether two options name the
/// same export. Names with equal hashes can be made on purpose: who compares
/// names that a peer chose must not depend on their being different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    length: u64,
    hash: u64,
}

impl Name {
    pub(crate) fn of(name: Text<'_>) -> Self {
        let hash = name
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        Self {
            length: wide(name.len()),
            hash,
        }
    }
}
