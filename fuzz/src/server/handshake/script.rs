//! Scripts for the server's `Handshake`: the client's messages, and the
//! caller's calls between them.

use nbd_codec::Framing;
use nbd_codec::server::{Config, Export, MetaContext, TlsMode};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;

use crate::client::handshake::script::OptionScript;
use crate::format::{List, Rest};
use crate::script::{LimitsSetup, Mutation, framing, name};
use crate::{enums, structs};

structs! {
    pub struct Script {
        config: ConfigSetup,
        exports: List<ExportSetup>,
        /// Whether `transmit` is called as soon as there is something to write.
        writes_immediately: bool,
        actions: Rest<Action>,
    }

    pub struct ConfigSetup {
        /// Serve the first export in the oldstyle, and ignore all other fields.
        oldstyle: u8,
        fixed: bool,
        no_zeroes: bool,
        tls: u8,
        framing: u8,
        limits: LimitsSetup,
        strict: bool,
    }

    pub struct ExportSetup {
        name: u8,
        description: u8,
        size: u64,
        flags: u16,
        block_sizes: u8,
        contexts: List<ExportContext>,
        requires: u8,
    }

    pub struct ExportContext {
        name: u8,
        wide: bool,
    }
}

enums! {
    pub enum Action {
        ClientFlags { flags: u64 },
        /// The client sends an option.
        Option { option: OptionScript },
        /// The client sends a mutated option.
        Mutated { option: OptionScript, mutation: Mutation },
        /// The client sends arbitrary bytes.
        Raw { bytes: Vec<u8> },
        /// The caller does what a server does: it writes what is due, grants or
        /// refuses the export, starts TLS.
        Serve {},
        /// The caller grants an export, whatever the query. Buffers have
        /// `space` bytes.
        Grant { export: u8, space: u64 },
        List { export: u8, space: u64 },
        Done { space: u64 },
        Refuse { error: u8, message: u8, space: u64 },
        Transmit { space: u64 },
        ShutDown {},
        TlsEstablished {},
        TlsFailed {},
        /// The connection ends.
        End {},
    }
}

impl ConfigSetup {
    pub fn oldstyle(&self) -> bool {
        self.oldstyle % 16 == 15
    }

    pub fn tls(&self) -> TlsMode {
        match self.tls % 3 {
            0 => TlsMode::None,
            1 => TlsMode::Selective,
            _ => TlsMode::Forced,
        }
    }

    pub fn framing(&self) -> Framing {
        framing(self.framing)
    }

    pub fn config(&self) -> Config {
        Config::new()
            .fixed_newstyle(self.fixed)
            .no_zeroes(self.no_zeroes)
            .tls(self.tls())
            .framing(self.framing())
            .limits(self.limits.limits())
            .strict(self.strict)
    }
}

impl ExportSetup {
    /// The contexts, which the export borrows.
    pub fn contexts(&self) -> Vec<MetaContext<'static>> {
        let context = |setup: &ExportContext| {
            if setup.wide {
                MetaContext::wide(name(setup.name))
            } else {
                MetaContext::narrow(name(setup.name))
            }
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
            // Also values that the specification forbids.
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
