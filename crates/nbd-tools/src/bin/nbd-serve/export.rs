//! The export: the disk, and how it is described to clients.

use anyhow::{Context, Result, bail};
use nbd_codec::Framing;
use nbd_codec::server::{self, Config, Handshake, MetaContext};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_tools::size;

use crate::args::Args;
use crate::buffer;
use crate::disk::Disk;
use crate::file::FileDisk;
use crate::memory::MemoryDisk;

/// The metadata contexts. The index in this list is the number of the context.
const CONTEXTS: &[MetaContext<'_>] = &[MetaContext::narrow("base:allocation")];

pub struct Export {
    pub disk: Box<dyn Disk>,
    name: String,
    description: String,
    flags: TransmissionFlags,
    block_sizes: BlockSizes,
    framing: Framing,
    oldstyle: bool,
}

impl Export {
    pub fn new(args: &Args) -> Result<Self> {
        let export = Self {
            disk: open(args)?,
            name: args.export_name.clone(),
            description: args.description.clone(),
            flags: flags(args),
            block_sizes: args.block_size.unwrap_or_default(),
            framing: args.framing(),
            oldstyle: args.oldstyle,
        };
        let minimum = export.block_sizes.minimum.into();
        if !export.disk.size().is_multiple_of(minimum) {
            bail!(
                "the size, {} bytes, is not a multiple of the minimum block size, {}",
                export.disk.size(),
                size::exact(minimum)
            );
        }
        // Fails now rather than when the first client connects.
        Handshake::oldstyle(&export.describe()).context("the export cannot be offered")?;
        Ok(export)
    }

    /// For the state machine.
    pub fn describe(&self) -> server::Export<'_> {
        let mut export = server::Export::new(&self.name, self.disk.size(), self.flags);
        export.description = &self.description;
        export.block_sizes = self.block_sizes;
        export.contexts = CONTEXTS;
        export
    }

    /// Whether `name` is its name or empty, which means the default export.
    pub fn is_called(&self, name: &str) -> bool {
        name.is_empty() || name == self.name
    }

    /// A handshake that offers it.
    pub fn handshake(&self) -> Result<Handshake> {
        if self.oldstyle {
            return Ok(Handshake::oldstyle(&self.describe())?);
        }
        Ok(Handshake::new(Config::new().framing(self.framing))?)
    }

    /// How many bytes of payload a connection may hold at a time; at least one
    /// payload of maximum length.
    pub fn payload_budget(&self) -> usize {
        (64 << 20).max(buffer::size(self.block_sizes.maximum as usize))
    }
}

/// Opens the disk that the command line names.
fn open(args: &Args) -> Result<Box<dyn Disk>> {
    Ok(match (&args.file, args.memory) {
        (Some(path), _) => Box::new(FileDisk::open(path, args.read_only)?),
        (None, size) => Box::new(MemoryDisk::new(size.unwrap_or(0))),
    })
}

fn flags(args: &Args) -> TransmissionFlags {
    let mut flags = TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_DF
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    if !args.once {
        // All connections share the disk and its cache, so that a flush on
        // one of them is a flush for all.
        flags |= TransmissionFlags::CAN_MULTI_CONN;
    }
    flags
        | if args.read_only {
            TransmissionFlags::READ_ONLY
        } else {
            TransmissionFlags::SEND_FUA
                | TransmissionFlags::SEND_TRIM
                | TransmissionFlags::SEND_WRITE_ZEROES
                | TransmissionFlags::SEND_FAST_ZERO
        }
}
