//! Requests: any header, any payload.

use nbd_codec::Framing;
use nbd_codec::wire::flags::CommandFlags;
use nbd_codec::wire::number::{Command, Cookie};

use crate::fuzz::messages::header;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) flags: CommandFlags,
    pub(crate) offset: u64,
    /// The length field.
    pub(crate) length: u64,
    pub(crate) payload: Vec<u8>,
    /// The cookie, if the case chooses it.
    pub(crate) cookie: Option<Cookie>,
}

impl Request {
    pub(crate) fn new(command: Command, offset: u64, length: u64) -> Self {
        Self {
            command,
            flags: CommandFlags::NONE,
            offset,
            length,
            payload: Vec::new(),
            cookie: None,
        }
    }

    pub(crate) fn read(offset: u64, length: u64) -> Self {
        Self::new(Command::READ, offset, length)
    }

    /// A write; with extended headers it gets `PAYLOAD_LEN` when it is sent.
    pub(crate) fn write(offset: u64, data: Vec<u8>) -> Self {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        Self::new(Command::WRITE, offset, length).payload(data)
    }

    pub(crate) fn flags(mut self, flags: CommandFlags) -> Self {
        self.flags |= flags;
        self
    }

    pub(crate) fn cookie(mut self, cookie: u64) -> Self {
        self.cookie = Some(Cookie(cookie));
        self
    }

    pub(crate) fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// The header and the payload.
    pub(crate) fn encode(&self, framing: Framing, cookie: Cookie) -> Vec<u8> {
        let (mut bytes, _) = header(
            framing,
            self.flags,
            self.command,
            cookie,
            self.offset,
            self.length,
        );
        bytes.extend(&self.payload);
        bytes
    }

    /// For transcripts and reports.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{} {} + {}", self.command, self.offset, self.length);
        if !self.flags.is_empty() {
            text.push_str(&format!(", {}", self.flags));
        }
        if let Some(cookie) = self.cookie {
            text.push_str(&format!(", cookie {cookie}"));
        }
        text
    }
}

/// The cookie of requests inside payloads. A reply to it shows that the server took
/// a payload for requests.
pub(crate) const TRAP: Cookie = Cookie(0x7472_6170_7472_6170);

/// A payload of `length` bytes made of requests that do no harm.
pub(crate) fn trap(framing: Framing, length: usize) -> Vec<u8> {
    let request = Request::read(0, 512).encode(framing, TRAP);
    let mut bytes = request.repeat(length / request.len() + 1);
    bytes.truncate(length);
    bytes
}
