//! Transmission: requests, compact and extended (specification, "Request
//! message"), and the payload of a block status request.

use super::bytes::{Fields, wide};
use super::flags::CommandFlags;
use super::header::header;
use super::list::list;
use super::number::{Command, ContextId, Cookie};
use super::sink::all_or_nothing;
use super::{DecodeError, EncodeError, Sink};

/// Magic number of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic number of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

header! {
    /// A compact request (specification, "Request message").
    ///
    /// ```text
    /// C: magic:32 flags:16 type:16 cookie:64 offset:64 length:32 [payload]
    /// ```
    CompactRequest(28, REQUEST_MAGIC, "compact request") {
        /// How the server executes the command.
        flags: CommandFlags,
        /// The command.
        command: Command,
        /// Identifies the request; the reply repeats it.
        cookie: Cookie,
        /// Offset in bytes from the start of the export; for `RESIZE` the new size.
        offset: u64,
        /// Effect length in bytes; for `WRITE` also the length of the payload.
        length: u32,
    }
}

impl CompactRequest {
    /// Length of the payload after the header, in bytes: zero but for `WRITE`.
    #[must_use]
    #[inline]
    pub const fn payload_length(self) -> u32 {
        if self.command.0 == Command::WRITE.0 {
            self.length
        } else {
            0
        }
    }
}

header! {
    /// An extended request, for sessions that negotiated extended headers
    /// (specification, "Request message").
    ///
    /// ```text
    /// C: magic:32 flags:16 type:16 cookie:64 offset:64 length:64 [payload]
    /// ```
    ExtendedRequest(32, EXTENDED_REQUEST_MAGIC, "extended request") {
        /// How the server executes the command.
        flags: CommandFlags,
        /// The command.
        command: Command,
        /// Identifies the request; the reply repeats it.
        cookie: Cookie,
        /// Offset in bytes from the start of the export; for `RESIZE` the new size.
        offset: u64,
        /// The length of the payload if [`CommandFlags::PAYLOAD_LEN`] is set,
        /// otherwise the effect length; in bytes.
        length: u64,
    }
}

impl ExtendedRequest {
    /// Length of the payload after the header, in bytes: zero unless
    /// [`CommandFlags::PAYLOAD_LEN`] is set.
    #[must_use]
    #[inline]
    pub const fn payload_length(self) -> u64 {
        if self.flags.contains(CommandFlags::PAYLOAD_LEN) {
            self.length
        } else {
            0
        }
    }
}

macro_rules! plain_read {
    ($header:ident, $magic:expr) => {
        impl $header {
            /// Decodes a read without flags. For a fast path: the magic number and the
            /// fields next to it are compared as one number.
            #[inline]
            pub(crate) fn parse_plain_read(bytes: &[u8; Self::SIZE]) -> Option<Self> {
                let mut fields = Fields::new(bytes);
                let magic = u64::from($magic).wrapping_shl(32);
                fields.next_is(magic).then(|| Self {
                    flags: CommandFlags::NONE,
                    command: Command::READ,
                    cookie: fields.get(),
                    offset: fields.get(),
                    length: fields.get(),
                })
            }
        }
    };
}
plain_read!(CompactRequest, REQUEST_MAGIC);
plain_read!(ExtendedRequest, EXTENDED_REQUEST_MAGIC);

/// The payload of a block status request for some of the selected contexts
/// (extended headers; specification, `NBD_CMD_BLOCK_STATUS`).
///
/// ```text
/// C: effect_length:64 (context_id:32)*
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockStatusPayload<'a> {
    /// How much of the export to report, in bytes from the request's offset.
    pub effect_length: u64,
    /// The requested contexts.
    pub contexts: ContextIds<'a>,
}

impl<'a> BlockStatusPayload<'a> {
    /// The number of context ids `n` in a payload of `length` bytes,
    /// `length = 8 + 4n`, `n >= 0`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`] for any other length.
    pub fn count(length: u64) -> Result<u64, DecodeError> {
        match length.checked_sub(8) {
            Some(ids) if ids % 4 == 0 => Ok(ids / 4),
            _ => Err(DecodeError::Length {
                message: "block status payload",
                length,
            }),
        }
    }

    /// Decodes a payload; `payload` is the whole of it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`] unless its length is `8 + 4n`.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        Self::count(wide(payload.len()))?;
        let mut fields = Fields::new(payload);
        Ok(Self {
            effect_length: fields.get(),
            contexts: ContextIds::on_wire(fields.rest()),
        })
    }

    /// Encodes into `sink`; returns how many bytes were written.
    ///
    /// # Errors
    ///
    /// [`EncodeError::NoRoom`]; nothing was written.
    pub fn encode(&self, sink: &mut dyn Sink) -> Result<usize, EncodeError> {
        all_or_nothing(sink, &|sink| {
            sink.put(&self.effect_length.to_be_bytes());
            for id in self.contexts.iter() {
                sink.put(&id.0.to_be_bytes());
            }
        })
    }
}

list! {
    /// A list of context ids, on the wire or in memory.
    ///
    /// ```text
    /// C: (context_id:32)*
    /// ```
    ContextIds of ContextId(4)
}
