//! Commands: what a caller wants, and the header to write.

use crate::error::Misuse;
use crate::negotiated::Framing;
use crate::wire::flags::CommandFlags;
use crate::wire::number::{Command, Cookie};
use crate::wire::request::{CompactRequest, ExtendedRequest};

/// A command as a caller wants it.
///
/// ```
/// use nbd_codec::client::Request;
/// use nbd_codec::wire::flags::CommandFlags;
///
/// let request = Request::write_zeroes(0, 1 << 20).with_flags(CommandFlags::NO_HOLE);
/// # let _ = request;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    /// The command.
    pub command: Command,
    /// Its flags.
    pub flags: CommandFlags,
    /// Where, in bytes from the start of the export.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u64,
}

impl Request {
    const fn new(command: Command, offset: u64, length: u64) -> Self {
        Self {
            command,
            flags: CommandFlags::NONE,
            offset,
            length,
        }
    }

    /// `NBD_CMD_READ`. Flags: `DF`.
    #[must_use]
    pub const fn read(offset: u64, length: u64) -> Self {
        Self::new(Command::READ, offset, length)
    }

    /// `NBD_CMD_WRITE`; the data follows the [`RequestHeader`]. Flags: `FUA`.
    #[must_use]
    pub const fn write(offset: u64, length: u64) -> Self {
        Self::new(Command::WRITE, offset, length)
    }

    /// `NBD_CMD_FLUSH`.
    #[must_use]
    pub const fn flush() -> Self {
        Self::new(Command::FLUSH, 0, 0)
    }

    /// `NBD_CMD_TRIM`. Flags: `FUA`.
    #[must_use]
    pub const fn trim(offset: u64, length: u64) -> Self {
        Self::new(Command::TRIM, offset, length)
    }

    /// `NBD_CMD_CACHE`.
    #[must_use]
    pub const fn cache(offset: u64, length: u64) -> Self {
        Self::new(Command::CACHE, offset, length)
    }

    /// `NBD_CMD_WRITE_ZEROES`. Flags: `FUA`, `NO_HOLE`, `FAST_ZERO`.
    #[must_use]
    pub const fn write_zeroes(offset: u64, length: u64) -> Self {
        Self::new(Command::WRITE_ZEROES, offset, length)
    }

    /// `NBD_CMD_BLOCK_STATUS`, for every selected context. Flags: `REQ_ONE`.
    #[must_use]
    pub const fn block_status(offset: u64, length: u64) -> Self {
        Self::new(Command::BLOCK_STATUS, offset, length)
    }

    /// `NBD_CMD_RESIZE` of the resize extension; `size` in bytes.
    #[must_use]
    pub const fn resize(size: u64) -> Self {
        Self::new(Command::RESIZE, size, 0)
    }

    /// Adds flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: CommandFlags) -> Self {
        self.flags = self.flags.union(flags);
        self
    }

    /// Refuses what the framing has no field for.
    pub(super) fn check_fields(&self, framing: Framing) -> Result<(), Misuse> {
        let wide = framing.is_extended() && self.command != Command::WRITE;
        if wide || self.length <= u64::from(u32::MAX) {
            Ok(())
        } else {
            Err(Misuse::NotExpressible { framing })
        }
    }

    /// How much payload follows the command, which was checked: a write then has
    /// at most 32 bits of it.
    #[inline]
    pub(super) fn payload(&self) -> Option<u32> {
        match self.command {
            Command::WRITE => Some(u32::try_from(self.length).unwrap_or(u32::MAX)),
            _ => None,
        }
    }

    /// Encodes the command, followed by `payload` bytes. What the framing has
    /// no field for was refused before.
    #[inline]
    pub(super) fn encode(
        &self,
        framing: Framing,
        payload: Option<u32>,
        cookie: Cookie,
    ) -> RequestHeader {
        let Self {
            command,
            flags,
            offset,
            length,
        } = *self;
        let extended = framing.is_extended();
        let mut bytes = [0; ExtendedRequest::SIZE];
        if extended {
            let (flags, length) = match payload {
                Some(payload) => (flags.union(CommandFlags::PAYLOAD_LEN), u64::from(payload)),
                None => (flags, length),
            };
            bytes = ExtendedRequest {
                flags,
                command,
                cookie,
                offset,
                length,
            }
            .encode();
        } else if let Some(bytes) = bytes.first_chunk_mut() {
            *bytes = CompactRequest {
                flags,
                command,
                cookie,
                offset,
                length: u32::try_from(length).unwrap_or(u32::MAX),
            }
            .encode();
        }
        RequestHeader {
            bytes,
            extended,
            payload: payload.unwrap_or(0),
            command,
            cookie,
        }
    }
}

/// The header of a command, ready to be written. The payload, if the command
/// has one, must follow it at once: `[header, payload]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a command that is not written is never answered"]
pub struct RequestHeader {
    bytes: [u8; ExtendedRequest::SIZE],
    extended: bool,
    payload: u32,
    command: Command,
    cookie: Cookie,
}

impl RequestHeader {
    /// The bytes to write: 28, or 32 with extended headers.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        if self.extended {
            &self.bytes
        } else {
            let (compact, _) = self.bytes.split_at(CompactRequest::SIZE);
            compact
        }
    }

    /// How many bytes of payload must follow.
    #[must_use]
    #[inline]
    pub const fn payload_length(&self) -> u32 {
        self.payload
    }

    /// The command.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.command
    }

    /// The cookie that the replies will have.
    #[must_use]
    #[inline]
    pub const fn cookie(&self) -> Cookie {
        self.cookie
    }
}

impl AsRef<[u8]> for RequestHeader {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}
