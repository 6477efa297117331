//! Strings: names, descriptions, messages (specification, "Conventions").
//!
//! On the wire a string has no terminating `NUL`; its length is in a field of
//! the message, or follows from the length of the message. It must be UTF-8
//! without `NUL` characters and at most 4096 bytes long. A malicious peer sends
//! other bytes, and a test tool must be able to: [`Text`] holds any bytes, and
//! [`Text::to_str`] checks the rules.

use core::fmt::{self, Write};

/// The maximum length of a string in bytes (specification, "Conventions").
pub const MAX_TEXT: usize = 4096;

/// A string as it is on the wire (specification, "Conventions"): any bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text<'a>(&'a [u8]);

/// The rule for strings that a [`Text`] breaks (specification, "Conventions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Longer than [`MAX_TEXT`].
    #[error("longer than 4096 bytes, the maximum for a string")]
    TooLong,
    /// Contains a `NUL` character.
    #[error("contains a NUL character")]
    Nul,
    /// Not UTF-8.
    #[error("not valid UTF-8")]
    Utf8,
}

impl<'a> Text<'a> {
    /// The empty string; as an export name it means the default export.
    pub const EMPTY: Self = Self(&[]);

    /// A string of any bytes; nothing is checked.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// Whether it is the empty string.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The string, if it keeps every rule of the specification.
    ///
    /// # Errors
    ///
    /// [`TextError`] with the first rule that it breaks: length, `NUL`, UTF-8.
    pub fn to_str(self) -> Result<&'a str, TextError> {
        check_bytes(self.0)?;
        core::str::from_utf8(self.0).map_err(|_| TextError::Utf8)
    }
}

/// Checks the rules of [`Text::to_str`] but UTF-8.
fn check_bytes(bytes: &[u8]) -> Result<(), TextError> {
    if bytes.len() > MAX_TEXT {
        return Err(TextError::TooLong);
    }
    // Not `contains`, whose search by words is 100 bytes of code.
    if bytes.iter().copied().any(|byte| byte == 0) {
        return Err(TextError::Nul);
    }
    Ok(())
}

/// Checks the rules of [`Text::to_str`].
pub(crate) fn check_str(text: &str) -> Result<(), TextError> {
    check_bytes(text.as_bytes())
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

/// Safe to print on a terminal: control characters and characters that hide or
/// reorder text are escaped, invalid UTF-8 is replaced by `U+FFFD`.
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
    /// Writes the text with unsafe characters escaped, and those of `also`.
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

/// Whether `c` has no width, separates lines, or changes the direction of the
/// text after it.
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
