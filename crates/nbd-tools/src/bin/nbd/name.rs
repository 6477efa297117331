//! Names and descriptions that a server sent. They are bytes; only when they are
//! printed for users, characters that a terminal would obey are escaped.

use std::borrow::Cow;
use std::fmt;

use nbd_codec::wire::text::Text;

#[derive(Clone, PartialEq, Eq, Default)]
pub struct Name(Vec<u8>);

impl Name {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_text(&self) -> Text<'_> {
        Text::new(&self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For JSON, which has its own escapes. Only invalid UTF-8 is replaced.
    pub fn for_json(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<Text<'_>> for Name {
    fn from(text: Text<'_>) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_text(), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_text(), f)
    }
}
