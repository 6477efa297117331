//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgGroup, Parser, ValueEnum};
use nbd_codec::Framing;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_tools::{size, time};

use crate::buffer;

/// Serve a raw file, a block device or sparse memory over NBD.
///
/// The first line on standard output is the URI to connect to.
#[derive(Debug, Parser)]
#[command(name = "nbd-serve", version, after_help = SIZES)]
#[command(group(ArgGroup::new("disk").required(true).args(["file", "memory"])))]
pub struct Args {
    /// The raw file or block device to serve
    pub file: Option<PathBuf>,
    /// Serve zero-filled memory instead; only written pages take space
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub memory: Option<u64>,
    /// Listen on a Unix socket; the file of a server that no longer runs is replaced
    #[arg(long, value_name = "PATH", conflicts_with = "tcp")]
    pub unix: Option<PathBuf>,
    /// Listen on TCP; port 0 chooses a free port. A link-local address has the scope
    /// of its interface: [fe80::1%eth0]:10809
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
    pub tcp: String,
    /// The export's name; it is also the default export (the empty name)
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export_name: String,
    /// A description of the export, for users
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// Refuse all commands that write
    #[arg(long)]
    pub read_only: bool,
    /// The most capable framing to offer
    #[arg(long, value_enum, default_value = "extended")]
    framing: FramingArg,
    /// The block size constraints; 1:4096:32M by default
    #[arg(long, value_name = "MIN:PREFERRED:MAX", value_parser = block_sizes)]
    pub block_size: Option<BlockSizes>,
    /// Use the oldstyle handshake, without options; such a server should not use port 10809
    #[arg(long)]
    pub oldstyle: bool,
    /// Serve one client, then exit; those that only negotiate do not count
    #[arg(long)]
    pub once: bool,
    /// How long a client may take for the handshake
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = time::parse)]
    pub handshake_timeout: Duration,
    /// The most threads for each connection
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = threads)]
    pub threads: usize,
    /// The most clients at a time; more are disconnected at once
    #[arg(long, value_name = "COUNT", default_value = "1024", value_parser = clients)]
    pub max_clients: usize,
    /// Memory for the payloads of all requests and replies; 160M by default, or
    /// more if MAX of --block-size is above 64M. A request that gets none within a
    /// second fails with ENOMEM. In all, the server takes this much and a fifth (for
    /// block status), 2 MiB for each client with 8 threads, and what is written to
    /// --memory
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    buffers: Option<u64>,
    /// Report each connection on standard error: its start, what was negotiated, its end
    #[arg(short, long)]
    pub verbose: bool,
}

const SIZES: &str = "Sizes are in bytes, or with a suffix K, M, G or T (powers of 1024).";

impl Args {
    pub fn framing(&self) -> Framing {
        match self.framing {
            FramingArg::Simple => Framing::Simple,
            FramingArg::Structured => Framing::Structured,
            FramingArg::Extended => Framing::Extended,
        }
    }

    /// Memory for payloads, in bytes.
    pub fn buffers(&self) -> Result<usize> {
        let maximum = self.block_size.unwrap_or_default().maximum;
        // Four fifths are admitted, and one request may take half of that.
        let least = buffer::size(maximum as usize) as u64 * 5 / 2;
        let bytes = self.buffers.unwrap_or(BUFFERS.max(least));
        if bytes < least {
            bail!(
                "--buffers must be at least {}, because a payload may have {}",
                size::exact(least),
                size::exact(maximum.into())
            );
        }
        Ok(usize::try_from(bytes)?)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FramingArg {
    /// Compact requests, simple replies
    Simple,
    /// Compact requests, structured replies: block status in 32 bits
    Structured,
    /// Extended headers: block status in 64 bits
    Extended,
}

/// The default of `--buffers`.
const BUFFERS: u64 = 160 << 20;

/// The highest MAX: a connection must have memory for one payload.
const LONGEST_PAYLOAD: u32 = 256 << 20;

fn block_sizes(text: &str) -> Result<BlockSizes, String> {
    let mut parts = text.split(':').map(size::parse);
    let mut next = || match parts.next() {
        Some(size) => size.and_then(|n| u32::try_from(n).map_err(|_| "too large".to_owned())),
        None => Err("expected three sizes, such as 512:4096:32M".to_owned()),
    };
    let sizes = BlockSizes {
        minimum: next()?,
        preferred: next()?,
        maximum: next()?,
    };
    if parts.next().is_some() {
        return Err("expected three sizes, not more".into());
    }
    if !sizes.is_valid() {
        return Err(
            "MIN must be a power of two up to 64K, PREFERRED a power of two not below \
             512 and MIN, MAX not below PREFERRED"
                .into(),
        );
    }
    if sizes.maximum > LONGEST_PAYLOAD {
        return Err(format!(
            "MAX must be at most {}",
            size::exact(LONGEST_PAYLOAD.into())
        ));
    }
    Ok(sizes)
}

fn clients(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("must be from 1 to 1000000".into()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        // One thread may wait for another.
        Ok(count @ 2..=256) => Ok(count),
        _ => Err("must be from 2 to 256".into()),
    }
}
