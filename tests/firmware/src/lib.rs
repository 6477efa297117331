//! What the images share: the board, and a receive buffer.
#![no_std]

pub mod board;
mod inbox;

pub use inbox::Inbox;

/// Why an image gives up; the number is its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A call was refused: a fault of the image.
    Misuse = 2,
    /// The peer broke the protocol.
    Protocol = 3,
    /// The handshake did not come to transmission.
    Refused = 4,
    /// A command failed, or its reply says too little to go on.
    Command = 5,
    /// The machine wants a message that is longer than the receive buffer.
    BufferTooSmall = 6,
    /// The export is not one this image can work with.
    Export = 7,
}

impl From<nbd_codec::Misuse> for Failure {
    fn from(_: nbd_codec::Misuse) -> Self {
        Self::Misuse
    }
}

impl From<nbd_codec::Error> for Failure {
    fn from(_: nbd_codec::Error) -> Self {
        Self::Protocol
    }
}
