//! Scripts of a whole session between the client and the server of this crate.

use nbd_codec::server::{Export, MetaContext};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;

use crate::client::handshake::script::ConfigSetup;
use crate::delivery::Delivery;
use crate::format::{List, Rest};
use crate::script::name;
use crate::server::handshake::script::ConfigSetup as ServerSetup;
use crate::{enums, structs};

structs! {
    pub struct Script {
        up: Delivery,
        down: Delivery,
        handshake: HandshakeSetup,
        actions: Rest<Action>,
    }

    /// The configuration of both sides.
    pub struct HandshakeSetup {
        config: ConfigSetup,
        tls: u8,
        server: ServerSetup,
        export: DiskSetup,
        /// The link fails after this many bytes of the handshake; zero for
        /// never.
        cut: u64,
    }

    pub struct DiskSetup {
        name: u8,
        /// The size of a block, and the number of blocks.
        block: u8,
        blocks: u8,
        flags: u16,
        maximum: u8,
        contexts: List<u8>,
        requires: u8,
    }
}

enums! {
    pub enum Action {
        /// The client submits a command for whole blocks inside the export.
        Submit { command: u8, flags: u16, from: u8, blocks: u8, fill: u8 },
        /// The client submits an arbitrary command.
        SubmitAny { command: u8, flags: u16, offset: u64, length: u64 },
        /// The client asks for the block status of some contexts.
        BlockStatusOf { contexts: List<u8>, flags: u16, from: u8, blocks: u8 },
        /// The server replies to one of its pending requests.
        Answer { which: u8, how: u8, at: u8 },
        /// The next `n` bytes arrive.
        Up { n: u64 },
        Down { n: u64 },
        /// All bytes arrive, and all requests are replied to.
        Settle { how: u8 },
        ShutDown {},
        Disconnect {},
        /// The link fails after these numbers of bytes.
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

    /// Number 1 is wide.
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
        export.id = 7;
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
