//! The data of a write.

use bytes::{Bytes, BytesMut};

/// The data of a write, borrowed or owned.
///
/// A call keeps no borrow after it ends or is dropped: what is borrowed is copied once, into
/// the buffer of outgoing commands. Of what is owned, only payloads of up to 8 KiB are copied.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Payload<'a> {
    /// A slice of the caller's.
    Borrowed(&'a [u8]),
    /// Bytes that are shared.
    Owned(Bytes),
}

impl Payload<'_> {
    /// No data.
    pub(crate) const NONE: Payload<'static> = Payload::Borrowed(&[]);

    /// The part from `from` of `length` bytes.
    pub(crate) fn part(&self, from: usize, length: usize) -> Payload<'_> {
        let to = from.saturating_add(length);
        match self {
            Self::Borrowed(bytes) => Payload::Borrowed(bytes.get(from..to).unwrap_or_default()),
            Self::Owned(bytes) if to <= bytes.len() && from <= to => {
                Payload::Owned(bytes.slice(from..to))
            }
            Self::Owned(_) => Payload::NONE,
        }
    }

    /// Bytes of its own.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes.clone(),
        }
    }
}

impl AsRef<[u8]> for Payload<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

macro_rules! from {
    ($($owned:ty)*) => {$(
        impl From<$owned> for Payload<'_> {
            fn from(bytes: $owned) -> Self {
                Self::Owned(bytes.into())
            }
        }
    )*};
}
from! { Bytes BytesMut Vec<u8> Box<[u8]> }

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Payload<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Payload<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Borrowed(bytes)
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        Self::Owned(bytes.clone())
    }
}
