//! What a call of a client can fail with.

use std::io;
use std::sync::Arc;

use nbd_codec::client::ConnectError;
use nbd_codec::uri::UriError;
use nbd_codec::wire::number::ErrorValue;
use nbd_codec::{Misuse, SessionError};

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not an NBD URI.
    #[error("not an NBD URI: {0}")]
    Uri(#[from] UriError),
    /// The client does not support what the URI or the options ask for.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The operating system failed to connect, to read or to write.
    #[error("{0}")]
    Io(#[source] Arc<io::Error>),
    /// TLS cannot be configured as the options or the URI say.
    #[error("TLS: {0}")]
    Tls(Arc<str>),
    /// The server did not offer the export.
    #[error("{reason}{}", Said(message))]
    Connect {
        /// Why.
        reason: ConnectError,
        /// What the server said, for people.
        message: Option<Arc<str>>,
    },
    /// The peer broke the protocol, or closed the connection. Nothing is known of the
    /// commands that were in flight: a write may have happened, or not.
    #[error(transparent)]
    Session(#[from] nbd_codec::Error),
    /// The call is not possible with this export, or not with these arguments. Nothing was
    /// sent.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The server failed the command.
    #[error("the server failed the command: {error}{}", Said(message))]
    Command {
        /// The error of the first chunk that has one.
        error: ErrorValue,
        /// What the server said, for people.
        message: Option<Arc<str>>,
    },
    /// The reply of the server is not valid. Only this command fails; the connection stays in
    /// use. A write may have happened, or not.
    #[error("the command failed: {0}")]
    Reply(#[source] nbd_codec::Error),
    /// The server did not answer within [`Options::timeout`](super::Options::timeout) or
    /// [`Options::connect_timeout`](super::Options::connect_timeout). A write may have
    /// happened, or not.
    #[error("the server did not answer in time")]
    TimedOut,
    /// After a reconnect the export is not what it was.
    #[error("after a reconnect the export has changed: {0}")]
    ExportChanged(Change),
    /// `FLUSH` after a reconnect: whether the server still has the writes that it answered
    /// before is not known. Returned once, if
    /// [`Reconnect::strict_flush`](super::Reconnect::strict_flush) is set.
    #[error("the connection was lost before a FLUSH; the server may have lost earlier writes")]
    UnflushedWrites,
    /// The client was disconnected by a call of `disconnect`, or what drives the connection
    /// was dropped.
    #[error("the client is disconnected")]
    Disconnected,
}

/// What is different about an export after a reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Change {
    /// Its size.
    #[error("its size was {was} bytes and is {is} bytes")]
    Size {
        /// The size in bytes before.
        was: u64,
        /// The size in bytes now.
        is: u64,
    },
    /// What the server advertised is not advertised any more, or the export is read-only now.
    #[error("the server offers less than before")]
    Flags,
    /// The minimum block size is larger, or the maximum payload is smaller.
    #[error("its block sizes are stricter")]
    BlockSizes,
    /// A metadata context is missing, or block status has another width.
    #[error("its metadata contexts are different")]
    Contexts,
}

impl Error {
    /// The server is shutting down: the command was not done, and the session has to end.
    pub(crate) fn is_shutdown(&self) -> bool {
        matches!(
            self,
            Self::Command {
                error: ErrorValue::ESHUTDOWN,
                ..
            }
        )
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<SessionError>() {
            Ok(error) => error.into(),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            Err(error) => Self::Io(Arc::new(error)),
        }
    }
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Session(error) => Self::Session(error),
            SessionError::Misuse(misuse) => Self::Misuse(misuse),
            SessionError::Connect(reason) => Self::Connect {
                reason,
                message: None,
            },
            SessionError::Command(error) => Self::Command {
                error,
                message: None,
            },
            error => Self::Io(Arc::new(error.into())),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io(error) => error.kind(),
            Error::Uri(_) => io::ErrorKind::InvalidInput,
            Error::Unsupported(_) => io::ErrorKind::Unsupported,
            Error::TimedOut => io::ErrorKind::TimedOut,
            Error::Disconnected => io::ErrorKind::NotConnected,
            Error::Session(error) | Error::Reply(error) => Self::from(*error).kind(),
            Error::Misuse(misuse) => Self::from(*misuse).kind(),
            Error::Connect { reason, .. } => Self::from(*reason).kind(),
            Error::Command { error, .. } => Self::from(SessionError::from(*error)).kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The end of an error text: what the server said.
struct Said<'a>(&'a Option<Arc<str>>);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_deref() {
            Some(text) if !text.is_empty() => write!(f, " (server: {text})"),
            _ => Ok(()),
        }
    }
}
