//! Scripts of the transmission phase, client side: what the caller does, and
//! what the server says meanwhile.

use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ContextId;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Context, Contexts, Framing, Limits, Negotiated, Width};

use crate::delivery::Delivery;
use crate::talk::Talk;
use crate::tape::{List, Rest};
use crate::{choices, structures};

structures! {
    pub struct Session {
        setup: Setup,
        steps: Rest<Step>,
    }

    /// What was negotiated, and how the machine is set up.
    pub struct Setup {
        framing: u8,
        size: u64,
        flags: u16,
        block_sizes: u8,
        minimum: u64,
        maximum: u64,
        contexts: List<ContextSetup>,
        limits: LimitsSetup,
        slots: u8,
        lenient: bool,
    }

    pub struct ContextSetup {
        id: u64,
        wide: bool,
    }

    pub struct LimitsSetup {
        own: bool,
        option_data: u64,
        error_message: u16,
        payload: u64,
        extents: u64,
    }

    pub struct Extent {
        length: Measure,
        flags: u64,
    }
}

choices! {
    pub enum Step {
        /// The caller makes a command.
        Submit { command: u8, flags: u16, offset: u64, length: u64 },
        /// The server answers a command, whatever it is, without a fault.
        Finish { to: u8, pieces: u8, fail: bool },
        /// The server says something of which all lengths are right.
        Reply { to: u8, reply: Reply },
        /// The same with a fault.
        Tweaked { to: u8, reply: Reply, tweak: Tweak },
        /// The server says anything.
        Raw { bytes: Vec<u8> },
        /// The caller asks for some contexts only.
        StatusOf { contexts: List<u8>, offset: u64, length: u64, flags: u16, room: u64 },
        /// The caller reports payload that it has read elsewhere.
        Advance { n: u64 },
        /// The caller takes its leave.
        Disconnect {},
        /// The connection ends.
        End {},
    }

    /// A message of the server in reply to a command; places are counted from
    /// where the command begins.
    pub enum Reply {
        Simple { error: u8, fill: u8 },
        Data { skip: Measure, length: Measure, last: bool, fill: u8 },
        Hole { skip: Measure, length: Measure, last: bool },
        None { last: bool },
        Status { context: u8, extents: List<Extent>, last: bool },
        Error { kind: u8, error: u8, message: u64, skip: Measure, rest: Vec<u8>, last: bool },
        Other { kind: u16, payload: Vec<u8>, last: bool },
    }

    /// A number of bytes: as it is, or beside the length of the request, where
    /// faults are.
    pub enum Measure {
        Bytes { n: u64 },
        Length { less: u8 },
        Beyond { more: u8 },
    }

    /// A fault in the bytes of a message.
    pub enum Tweak {
        Set { at: u8, value: u8 },
        Flip { at: u8, bit: u8 },
        Cut { at: u8 },
        Insert { at: u8, bytes: Vec<u8> },
    }
}

impl Measure {
    /// In bytes, for a request of this length.
    pub fn of(&self, length: u64) -> u64 {
        match *self {
            Self::Bytes { n } => n,
            Self::Length { less } => length.saturating_sub(less.into()),
            Self::Beyond { more } => length.saturating_add(more.into()),
        }
    }
}

impl Tweak {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Set { at, value } => {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte = *value;
                }
            }
            Self::Flip { at, bit } => {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte ^= 1 << (bit & 7);
                }
            }
            Self::Cut { at } => bytes.truncate(usize::from(*at)),
            Self::Insert {
                at,
                bytes: inserted,
            } => {
                let at = usize::from(*at).min(bytes.len());
                bytes.splice(at..at, inserted.iter().copied());
            }
        }
    }
}

impl Setup {
    pub fn framing(&self) -> Framing {
        framing(self.framing)
    }

    pub fn slots(&self) -> usize {
        usize::from(self.slots % 6)
    }

    pub fn negotiated(&self) -> Negotiated {
        let flags = TransmissionFlags(self.flags);
        let mut negotiated = Negotiated::new(self.framing(), self.size, flags);
        let minimum = self.minimum as u32;
        negotiated.block_sizes = match self.block_sizes % 4 {
            0 => None,
            // Any numbers at all: a caller may say what it likes.
            1 => Some(BlockSizes {
                minimum,
                preferred: 4096,
                maximum: self.maximum as u32,
            }),
            // The smallest there are.
            2 => Some(BlockSizes {
                minimum: 1 << (minimum % 10),
                preferred: 512,
                maximum: 512 + self.maximum as u32 % 5000,
            }),
            _ => Some(BlockSizes {
                minimum: 1 << (minimum % 17),
                preferred: 1 << 16,
                maximum: (self.maximum as u32).max(1 << 16),
            }),
        };
        for context in &self.contexts.0 {
            let id = ContextId(context.id as u32);
            let width = match context.wide {
                true => Width::Wide,
                false => Width::Narrow,
            };
            // The list may be full, or have this one.
            let _ = Contexts::push(&mut negotiated.contexts, Context { id, width });
        }
        negotiated
    }
}

impl LimitsSetup {
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::DEFAULT;
        if self.own {
            limits.option_data = self.option_data as u32;
            limits.error_message = self.error_message;
            limits.payload = self.payload as u32;
            limits.extents = self.extents as u32;
        }
        limits
    }
}

pub fn framing(byte: u8) -> Framing {
    match byte % 3 {
        0 => Framing::Simple,
        1 => Framing::Structured,
        _ => Framing::Extended,
    }
}

choices! {
    /// What the client targets run: a machine, and two ways in which the bytes
    /// arrive.
    pub enum Run {
        Transmission { one: Delivery, other: Delivery, session: Session },
        ByHand { one: Delivery, other: Delivery, talk: Talk },
        ByPolicy { one: Delivery, other: Delivery, talk: Talk },
    }
}
