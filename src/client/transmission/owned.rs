//! Events that own what they carry.

use ::bytes::Bytes;

use super::{Slot, Transmission, TransmissionEvent};
use crate::error::Error;
use crate::inbox::ReceiveOwned;
use crate::wire::number::{ContextId, Cookie, ErrorValue};

/// A [`TransmissionEvent`] with `Bytes` in the place of slices.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnedTransmissionEvent {
    /// Narrow block status; read it with
    /// [`Extents32::split`](crate::wire::extent::Extents32::split).
    Extents32 {
        /// The command.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where the first extent begins, in bytes from the start of the export.
        offset: u64,
        /// Whole descriptors of 8 bytes.
        extents: Bytes,
    },
    /// Wide block status; read it with
    /// [`Extents64::split`](crate::wire::extent::Extents64::split).
    Extents64 {
        /// The command.
        cookie: Cookie,
        /// The metadata context.
        context: ContextId,
        /// Where the first extent begins, in bytes from the start of the export.
        offset: u64,
        /// Whole descriptors of 16 bytes.
        extents: Bytes,
    },
    /// The server reports an error.
    Error {
        /// The command.
        cookie: Cookie,
        /// What happened.
        error: ErrorValue,
        /// Where, in bytes from the start of the export, if the server said.
        offset: Option<u64>,
        /// For people; read it with [`Text::new`](crate::wire::text::Text::new).
        message: Option<Bytes>,
    },
    /// The reply breaks the protocol, and only its command is lost.
    Fault {
        /// The command.
        cookie: Cookie,
        /// What is wrong.
        error: Error,
    },
    /// The command is complete.
    Done {
        /// The command.
        cookie: Cookie,
        /// Whether it succeeded; else the first error that was reported, or
        /// `EIO` after a [`Fault`](Self::Fault).
        result: Result<(), ErrorValue>,
    },
}

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> ReceiveOwned for Transmission<S> {
    type Owned = OwnedTransmissionEvent;

    fn detach<'i>(event: TransmissionEvent<'i>, bytes: &mut &'i [u8]) -> OwnedTransmissionEvent {
        use OwnedTransmissionEvent as Owned;
        match event {
            TransmissionEvent::Extents32 {
                cookie,
                context,
                offset,
                extents,
            } => {
                *bytes = extents.as_bytes();
                Owned::Extents32 {
                    cookie,
                    context,
                    offset,
                    extents: Bytes::new(),
                }
            }
            TransmissionEvent::Extents64 {
                cookie,
                context,
                offset,
                extents,
            } => {
                *bytes = extents.as_bytes();
                Owned::Extents64 {
                    cookie,
                    context,
                    offset,
                    extents: Bytes::new(),
                }
            }
            TransmissionEvent::Error {
                cookie,
                error,
                offset,
                message,
            } => {
                *bytes = message.unwrap_or_default().as_bytes();
                Owned::Error {
                    cookie,
                    error,
                    offset,
                    message: message.map(|_| Bytes::new()),
                }
            }
            TransmissionEvent::Fault { cookie, error } => Owned::Fault { cookie, error },
            TransmissionEvent::Done { cookie, result } => Owned::Done { cookie, result },
        }
    }

    fn attach(event: &mut OwnedTransmissionEvent, bytes: Bytes) {
        use OwnedTransmissionEvent as Owned;
        match event {
            Owned::Extents32 { extents, .. } | Owned::Extents64 { extents, .. } => *extents = bytes,
            Owned::Error { message, .. } => *message = Some(bytes),
            Owned::Fault { .. } | Owned::Done { .. } => {}
        }
    }
}
