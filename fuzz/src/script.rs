//! Parts that the scripts of several state machines share.

use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::ContextId;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_codec::{Framing, Limits, Negotiated, SelectedContext, SelectedContexts, StatusWidth};

pub use nbd_check::fuzz::messages::{Mutation, name};

use crate::format::List;
use crate::{enums, structs};

structs! {
    /// The result of the handshake, and the configuration of a `Transmission`.
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
        strict: bool,
    }

    pub struct ContextSetup {
        id: u64,
        wide: bool,
    }

    pub struct LimitsSetup {
        /// Whether the fields below replace the default limits.
        custom: bool,
        option_data: u64,
        error_message: u16,
        payload: u64,
        extents: u64,
    }

    pub struct Extent {
        length: Length,
        flags: u64,
    }
}

enums! {
    /// A number of bytes: absolute, or close to the length of the request,
    /// where off-by-one errors are.
    pub enum Length {
        Bytes { n: u64 },
        Request { less: u8 },
        PastRequest { more: u8 },
    }
}

impl Length {
    /// In bytes, for a request of `length` bytes.
    pub fn of(&self, length: u64) -> u64 {
        match *self {
            Self::Bytes { n } => n,
            Self::Request { less } => length.saturating_sub(less.into()),
            Self::PastRequest { more } => length.saturating_add(more.into()),
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
            // Also values that the specification forbids.
            1 => Some(BlockSizes {
                minimum,
                preferred: 4096,
                maximum: self.maximum as u32,
            }),
            // The smallest values that it allows.
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
            let width = if context.wide {
                StatusWidth::Wide
            } else {
                StatusWidth::Narrow
            };
            // Fails if the list is full or contains the id.
            let _ = SelectedContexts::push(&mut negotiated.contexts, SelectedContext { id, width });
        }
        negotiated
    }
}

impl LimitsSetup {
    /// The default limits.
    pub fn default_limits() -> Self {
        Self {
            custom: false,
            option_data: 0,
            error_message: 0,
            payload: 0,
            extents: 0,
        }
    }

    pub fn limits(&self) -> Limits {
        let mut limits = Limits::DEFAULT;
        if self.custom {
            limits.option_data = self.option_data as u32;
            limits.error_message = self.error_message.into();
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
