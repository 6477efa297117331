//! Strings: names, descriptions, messages.
//!
//! On the wire a string is bytes of a length given elsewhere, without a `NUL`
//! at the end. It is meant to be UTF-8 without `NUL` characters and at most
//! 4096 bytes long. A peer may send anything, and a tester may want to, so
//! [`Text`] holds any bytes and says whether they keep the rules.

use core::fmt::{self, Write};

/// The longest a string may be, in bytes (specification, "Conventions").
pub const MAX_TEXT: usize = 4096;

/// A string as it is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text<'a>(&'a [u8]);

/// Which rule for strings one breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Longer than [`MAX_TEXT`].
    #[error("longer than the 4096 bytes that the protocol allows")]
    TooLong,
    /// Holds a `NUL` character.
    #[error("contains a NUL character")]
    Nul,
    /// Not UTF-8.
    #[error("not valid UTF-8")]
    Utf8,
}

impl<'a> Text<'a> {
    /// The empty string: as an export name, the default export.
    pub const EMPTY: Self = Self(&[]);

    /// Takes bytes as they are.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// Whether it is the empty string.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The text, if it keeps every rule of the specification.
    ///
    /// # Errors
    ///
    /// The rule it breaks.
    pub fn to_str(self) -> Result<&'a str, TextError> {
        if self.0.len() > MAX_TEXT {
            return Err(TextError::TooLong);
        }
        if self.0.contains(&0) {
            return Err(TextError::Nul);
        }
        core::str::from_utf8(self.0).map_err(|_| TextError::Utf8)
    }
}

/// The rules for strings, of which a `str` keeps one by itself.
pub(crate) fn check_str(text: &str) -> Result<(), TextError> {
    if text.len() > MAX_TEXT {
        return Err(TextError::TooLong);
    }
    match text.bytes().any(|byte| byte == 0) {
        true => Err(TextError::Nul),
        false => Ok(()),
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Text<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

/// The text with what is not UTF-8 replaced, and what could move a cursor or
/// reorder a line escaped: a peer's text is safe to show on a terminal.
impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.escape(f, |_| false)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        self.escape(f, |c| c == '"' || c == '\\')?;
        f.write_char('"')
    }
}

impl Text<'_> {
    fn escape(self, f: &mut fmt::Formatter<'_>, also: impl Fn(char) -> bool) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || is_invisible(c) || also(c) {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    f.write_char(c)?;
                }
            }
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

/// Characters of no width, line separators, and those that change the
/// direction of what follows.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{061c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
    )
}
