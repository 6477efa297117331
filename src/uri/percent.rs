//! Parts of a URI, and percent-encoding in both directions (RFC 3986,
//! section 2).

use core::fmt::{self, Write};
use std::{string::String, vec::Vec};

use super::UriError;

/// A part of the URI, percent-encoded, and its offset.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) text: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Part<'a> {
    pub(super) const fn whole(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    pub(super) const fn is_empty(self) -> bool {
        self.text.is_empty()
    }

    /// The first `len` bytes and the remaining ones; all and none if the part is
    /// shorter.
    pub(super) fn split_at(self, len: usize) -> (Self, Self) {
        let (first, text) = self.text.split_at_checked(len).unwrap_or((self.text, &[]));
        let at = self.at.saturating_add(first.len());
        (
            Self {
                text: first,
                ..self
            },
            Self { text, at },
        )
    }

    pub(super) fn skip(self, len: usize) -> Self {
        self.split_at(len).1
    }

    /// The parts before and after the first `mark`; all and `None` if there is
    /// no `mark`.
    pub(super) fn cut(self, mark: u8) -> (Self, Option<Self>) {
        match self.text.iter().position(|&byte| byte == mark) {
            Some(len) => {
                let (before, after) = self.split_at(len);
                (before, Some(after.skip(1)))
            }
            None => (self, None),
        }
    }

    /// Decodes the part; `plain` says which bytes need no encoding.
    pub(super) fn decode(self, plain: fn(u8) -> bool) -> Result<Decoded<'a>, UriError> {
        let source = Bytes { rest: self, plain };
        let bytes = source
            .clone()
            .map(|item| item.map(|(_, byte)| byte))
            .collect::<Result<_, _>>()?;
        Ok(Decoded { bytes, source })
    }
}

/// Decoded bytes, and the part that they were decoded from.
pub(super) struct Decoded<'a> {
    pub(super) bytes: Vec<u8>,
    source: Bytes<'a>,
}

impl Decoded<'_> {
    /// The offset in the URI of the decoded byte `index`. Decodes again, which
    /// happens at most once, for an error.
    pub(super) fn locate(&self, index: usize) -> usize {
        match self.source.clone().nth(index) {
            Some(Ok((at, _))) => at,
            _ => self.source.rest.at,
        }
    }

    /// The bytes, if they have no `NUL`.
    pub(super) fn into_path(self) -> Result<Vec<u8>, UriError> {
        match self.bytes.iter().position(|&byte| byte == 0) {
            Some(index) => Err(UriError::Nul {
                at: self.locate(index),
            }),
            None => Ok(self.bytes),
        }
    }

    /// The bytes as a string, if they are UTF-8 without `NUL`.
    pub(super) fn into_text(self) -> Result<String, UriError> {
        if let Err(error) = core::str::from_utf8(&self.bytes) {
            let at = self.locate(error.valid_up_to());
            return Err(UriError::Utf8 { at });
        }
        let at = self.source.rest.at;
        String::from_utf8(self.into_path()?).map_err(|_| UriError::Utf8 { at })
    }
}

/// The decoded bytes, each with its offset in the URI.
#[derive(Clone)]
struct Bytes<'a> {
    rest: Part<'a>,
    plain: fn(u8) -> bool,
}

impl Iterator for Bytes<'_> {
    type Item = Result<(usize, u8), UriError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.rest.at;
        let (&first, tail) = self.rest.text.split_first()?;
        if first == b'%' {
            self.rest = self.rest.skip(3);
            let byte = tail
                .first_chunk()
                .and_then(|&[high, low]| Some((hex(high)? << 4) | hex(low)?));
            Some(byte.map(|byte| (at, byte)).ok_or(UriError::Escape { at }))
        } else {
            self.rest = self.rest.skip(1);
            if (self.plain)(first) {
                Some(Ok((at, first)))
            } else {
                Some(Err(UriError::Character { at }))
            }
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Letters, digits and `-._~`, which need no encoding anywhere.
pub(super) const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The bytes that need no encoding in a host name.
pub(super) const fn in_name(byte: u8) -> bool {
    unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
        )
}

/// The bytes that need no encoding in the user name.
pub(super) const fn in_user(byte: u8) -> bool {
    in_name(byte) || byte == b':'
}

/// The bytes that need no encoding in the path.
pub(super) const fn in_path(byte: u8) -> bool {
    in_name(byte) || matches!(byte, b'/' | b':' | b'@')
}

/// The bytes that need no encoding in the query.
pub(super) const fn in_query(byte: u8) -> bool {
    in_path(byte) || byte == b'?'
}

/// Writes bytes percent-encoded for any part of a URI.
pub(super) struct Encoded<'a>(pub(super) &'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        encode(f, self.0, unreserved)
    }
}

/// Writes bytes percent-encoded for the path or the query: slashes, colons and
/// at signs are not encoded.
pub(super) struct EncodedPath<'a>(pub(super) &'a [u8]);

impl fmt::Display for EncodedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        encode(f, self.0, |byte| {
            unreserved(byte) || matches!(byte, b'/' | b':' | b'@')
        })
    }
}

fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8], keep: fn(u8) -> bool) -> fmt::Result {
    for &byte in bytes {
        if keep(byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}
