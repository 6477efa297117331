//! Scripts of the handshake phase, server side: what the client says, and what
//! the caller does about it.

use nbd_codec::server::{Export, MetaContext, Offer, TlsMode};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;

use crate::script::{LimitsSetup, Tweak, framing};
use crate::talk::{OptionScript, name};
use crate::tape::{List, Rest};
use crate::{choices, structures};

structures! {
    pub struct Reception {
        offer: OfferSetup,
        exports: List<ExportSetup>,
        /// What the machine says by itself is written at once.
        prompt: bool,
        steps: Rest<ReceptionStep>,
    }

    pub struct OfferSetup {
        /// In place of all else, for the first export.
        oldstyle: u8,
        fixed: bool,
        no_zeroes: bool,
        tls: u8,
        framing: u8,
        limits: LimitsSetup,
    }

    pub struct ExportSetup {
        name: u8,
        description: u8,
        size: u64,
        flags: u16,
        block_sizes: u8,
        /// Names, and whether they are wide.
        contexts: List<ContextSetup>,
        requires: u8,
    }

    pub struct ContextSetup {
        name: u8,
        wide: bool,
    }
}

choices! {
    pub enum ReceptionStep {
        ClientFlags { flags: u64 },
        /// The client sends an option.
        Option { option: OptionScript },
        /// The same with a fault.
        Tweaked { option: OptionScript, tweak: Tweak },
        /// The client says anything.
        Raw { bytes: Vec<u8> },
        /// The caller answers as a server does: the export that is asked for,
        /// or that there is none; it writes what is due, and starts TLS.
        Serve {},
        /// The caller answers with an export, whatever was asked.
        Grant { export: u8, room: u64 },
        List { export: u8, room: u64 },
        Done { room: u64 },
        Refuse { error: u8, message: u8, room: u64 },
        Transmit { room: u64 },
        ShutDown {},
        TlsEstablished {},
        TlsFailed {},
        /// The connection ends.
        End {},
    }
}

impl OfferSetup {
    pub fn oldstyle(&self) -> bool {
        self.oldstyle % 16 == 15
    }

    pub fn offer(&self) -> Offer {
        let mut offer = Offer::default();
        offer.fixed = self.fixed;
        offer.no_zeroes = self.no_zeroes;
        offer.tls = match self.tls % 3 {
            0 => TlsMode::None,
            1 => TlsMode::Selective,
            _ => TlsMode::Forced,
        };
        offer.framing = framing(self.framing);
        offer.limits = self.limits.limits();
        offer
    }
}

impl ExportSetup {
    /// Its contexts, of which it is described.
    pub fn contexts(&self) -> Vec<MetaContext<'static>> {
        let context = |setup: &ContextSetup| match setup.wide {
            true => MetaContext::wide(name(setup.name)),
            false => MetaContext::narrow(name(setup.name)),
        };
        self.contexts.0.iter().map(context).collect()
    }

    pub fn export<'a>(&self, contexts: &'a [MetaContext<'a>]) -> Export<'a> {
        let flags = TransmissionFlags(self.flags);
        let mut export = Export::new(name(self.name), self.size, flags);
        export.description = name(self.description);
        export.contexts = contexts;
        export.block_sizes = match self.block_sizes % 4 {
            0 | 1 => BlockSizes::DEFAULT,
            2 => BlockSizes {
                minimum: 512,
                preferred: 4096,
                maximum: 1 << (12 + self.block_sizes % 19),
            },
            // Any numbers at all, and mostly refused.
            _ => BlockSizes {
                minimum: 1 << (self.block_sizes % 18),
                preferred: 1 << (self.block_sizes % 29),
                maximum: u32::from(self.block_sizes) << 20,
            },
        };
        export.requires_tls = self.requires & 1 != 0;
        export.requires_extended = self.requires & 2 != 0;
        export.requires_block_sizes = self.requires & 4 != 0;
        export
    }
}
