//! Scripts of a whole session between our client and our server.

use nbd_codec::server::{Export, MetaContext};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;

use crate::delivery::Delivery;
use crate::host::script::OfferSetup;
use crate::talk::{PlanSetup, name};
use crate::tape::{List, Rest};
use crate::{choices, structures};

structures! {
    pub struct Pair {
        up: Delivery,
        down: Delivery,
        meeting: Meeting,
        steps: Rest<PairStep>,
    }

    /// What the two want of each other.
    pub struct Meeting {
        plan: PlanSetup,
        tls: u8,
        offer: OfferSetup,
        export: DiskSetup,
        /// The link is lost when so many bytes have passed it during the
        /// handshake; zero is never.
        cut: u64,
    }

    pub struct DiskSetup {
        name: u8,
        /// The size of a block, and how many there are.
        block: u8,
        blocks: u8,
        flags: u16,
        maximum: u8,
        contexts: List<u8>,
        requires: u8,
    }
}

choices! {
    pub enum PairStep {
        /// The client makes a command, of whole blocks within the export.
        Submit { command: u8, flags: u16, from: u8, blocks: u8, fill: u8 },
        /// Any command at all.
        Wild { command: u8, flags: u16, offset: u64, length: u64 },
        /// Block status for some contexts.
        StatusOf { contexts: List<u8>, flags: u16, from: u8, blocks: u8 },
        /// The server answers one of the requests it has.
        Answer { which: u8, how: u8, at: u8 },
        /// So many bytes arrive.
        Up { n: u64 },
        Down { n: u64 },
        /// All bytes arrive, and all requests are answered.
        Settle { how: u8 },
        ShutDown {},
        Disconnect {},
        /// The link is lost; so many bytes of what is under way still arrive.
        Cut { up: u64, down: u64 },
    }
}

impl DiskSetup {
    pub fn block(&self) -> u64 {
        1 << (3 * (self.block % 4))
    }

    pub fn size(&self) -> u64 {
        self.block() * (u64::from(self.blocks % 64) + 1)
    }

    /// Names that a context may have; what has a number is wide.
    pub fn contexts(&self) -> Vec<MetaContext<'static>> {
        let context = |which: &u8| match which % 3 {
            0 => MetaContext::narrow(name(2)),
            1 => MetaContext::wide(name(3)),
            _ => MetaContext::narrow(name(4)),
        };
        self.contexts.0.iter().take(32).map(context).collect()
    }

    pub fn export<'a>(&self, contexts: &'a [MetaContext<'a>]) -> Export<'a> {
        let flags = TransmissionFlags(self.flags);
        let mut export = Export::new(name(self.name), self.size(), flags);
        export.contexts = contexts;
        export.block_sizes = BlockSizes {
            minimum: self.block() as u32,
            preferred: 512,
            maximum: 512 << (self.maximum % 17),
        };
        export.requires_tls = self.requires & 1 != 0;
        export.requires_extended = self.requires & 2 != 0;
        export.requires_block_sizes = self.requires & 4 != 0;
        export
    }
}
