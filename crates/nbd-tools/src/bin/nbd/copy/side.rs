//! The two sides of a copy, as given on the command line.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use nbd_codec::uri::Uri;

use crate::output::STDIO;
use crate::{address, os};

/// One side of a copy.
#[derive(Debug, Clone)]
pub enum Side {
    Export(Box<Uri>),
    File(PathBuf),
    /// Standard input or output.
    Stdio,
    /// Discards the data, to measure the other side.
    Null,
}

impl Side {
    /// Parses an argument: an address of an export, or a file.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "null:" {
            return Ok(Self::Null);
        }
        if text == STDIO {
            return Ok(Self::Stdio);
        }
        if address::is_address(text) {
            Ok(Self::Export(Box::new(address::parse(text)?)))
        } else {
            Ok(Self::File(text.into()))
        }
    }

    /// Whether it has no offsets: bytes can only be read or written in order.
    pub fn is_stream(&self) -> bool {
        match self {
            Self::Export(_) | Self::Null => false,
            Self::Stdio => true,
            Self::File(path) => path
                .metadata()
                .is_ok_and(|metadata| os::is_stream(metadata.file_type())),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Export(uri) => uri.fmt(f),
            Self::File(path) => path.display().fmt(f),
            Self::Stdio => f.write_str(STDIO),
            Self::Null => f.write_str("null:"),
        }
    }
}
