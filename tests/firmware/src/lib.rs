//! Shared by the images: the board, the receive buffer, the exit statuses.
#![no_std]

pub mod board;

use nbd_codec::Limits;

/// Size of the receive buffer in bytes.
pub const BUFFER: usize = 256;

/// The longest messages that fit the receive buffer.
pub const LIMITS: Limits = Limits::for_buffer(BUFFER as u32);

pub type Inbox = nbd_codec::inbox::Inbox<&'static mut [u8]>;

/// Why an image stops; the number is its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A call was refused: an error of the image.
    Misuse = 2,
    /// The peer broke the protocol.
    Protocol = 3,
    /// The server refused the export.
    Refused = 4,
    /// A command failed, or its reply is not usable.
    Command = 5,
    /// A message is longer than the receive buffer.
    BufferTooSmall = 6,
    /// The export is too small for this image.
    Export = 7,
    /// The session ended early, or took a step that the image does not handle.
    Step = 8,
}

impl From<nbd_codec::Misuse> for Failure {
    fn from(_: nbd_codec::Misuse) -> Self {
        Self::Misuse
    }
}

impl From<nbd_codec::Error> for Failure {
    fn from(error: nbd_codec::Error) -> Self {
        match error {
            nbd_codec::Error::BufferFull { .. } => Self::BufferTooSmall,
            _ => Self::Protocol,
        }
    }
}

impl From<nbd_codec::UnexpectedStep> for Failure {
    fn from(_: nbd_codec::UnexpectedStep) -> Self {
        Self::Step
    }
}
