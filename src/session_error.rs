//! One error type for the signature of a driver.

use crate::client::{self, ConnectError};
use crate::error::{Error, Misuse};
use crate::server;
use crate::step::UnexpectedStep;
use crate::wire::EncodeError;
use crate::wire::number::ErrorValue;

/// Whatever ends the work of a driver. Everything that this crate returns as an
/// error converts into it with `?`, and with the feature `std` it converts
/// into `std::io::Error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The session is over.
    #[error(transparent)]
    Session(#[from] Error),
    /// A call that was refused.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// Connecting failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server failed a command.
    #[error("the server failed the command: {0}")]
    Command(ErrorValue),
    /// A step that the driver does not handle.
    #[error(transparent)]
    Unexpected(#[from] UnexpectedStep),
    /// The handshake has not come to its end.
    #[error("the handshake is not finished")]
    NotReady,
}

impl From<ErrorValue> for SessionError {
    fn from(error: ErrorValue) -> Self {
        Self::Command(error)
    }
}

/// A handshake that was asked too early for what it negotiated.
macro_rules! not_ready {
    ($($handshake:ty)*) => {$(
        impl From<$handshake> for SessionError {
            fn from(_: $handshake) -> Self {
                Self::NotReady
            }
        }
    )*};
}
not_ready! { client::Connector<'_> client::Handshake server::Handshake }

impl From<EncodeError> for SessionError {
    fn from(error: EncodeError) -> Self {
        Self::Misuse(error.into())
    }
}

#[cfg(feature = "std")]
mod io {
    use std::io;

    use super::{
        ConnectError, EncodeError, Error, ErrorValue, Misuse, SessionError, UnexpectedStep,
    };

    impl From<SessionError> for io::Error {
        fn from(error: SessionError) -> Self {
            let kind = match error {
                SessionError::Session(Error::Closed | Error::ClosedDuring(_)) => {
                    io::ErrorKind::UnexpectedEof
                }
                SessionError::Session(Error::Decode(_) | Error::Violation(_)) => {
                    io::ErrorKind::InvalidData
                }
                SessionError::Misuse(_) => io::ErrorKind::InvalidInput,
                SessionError::Connect(ConnectError::UnknownExport) => io::ErrorKind::NotFound,
                SessionError::Connect(_) => io::ErrorKind::ConnectionRefused,
                SessionError::Command(error) => match error {
                    ErrorValue::EPERM => io::ErrorKind::PermissionDenied,
                    ErrorValue::ENOMEM => io::ErrorKind::OutOfMemory,
                    ErrorValue::EINVAL => io::ErrorKind::InvalidInput,
                    ErrorValue::ENOSPC => io::ErrorKind::StorageFull,
                    ErrorValue::ENOTSUP => io::ErrorKind::Unsupported,
                    _ => io::ErrorKind::Other,
                },
                _ => io::ErrorKind::Other,
            };
            Self::new(kind, error)
        }
    }

    macro_rules! from {
        ($($error:ident)*) => {$(
            impl From<$error> for io::Error {
                fn from(error: $error) -> Self {
                    SessionError::from(error).into()
                }
            }
        )*};
    }
    from! { Error Misuse ConnectError EncodeError UnexpectedStep }
}
