//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use nbd_codec::Framing;
use nbd_codec::wire::option_reply::BlockSizes;
use nbd_tools::size;

/// Serve a raw file, a block device or sparse memory over NBD.
///
/// The first line on standard output is the URI to connect to.
#[derive(Debug, Parser)]
#[command(name = "nbd-serve", version, after_help = SIZES)]
#[command(group(ArgGroup::new("disk").required(true).args(["file", "memory"])))]
pub struct Args {
    /// The raw file or block device to serve
    pub file: Option<PathBuf>,
    /// Serve memory instead: zero-filled, and only written pages take any
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub memory: Option<u64>,
    /// Listen on a Unix socket; a file left behind by a server that is gone is replaced
    #[arg(long, value_name = "PATH", conflicts_with = "tcp")]
    pub unix: Option<PathBuf>,
    /// Listen on TCP; port 0 takes one that is free
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
    pub tcp: String,
    /// The export's name. Clients that ask for no name get it, too
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export_name: String,
    /// A description of the export for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// Refuse everything that writes
    #[arg(long)]
    pub read_only: bool,
    /// The most able framing to offer
    #[arg(long, value_enum, default_value = "extended")]
    framing: FramingArg,
    /// The size constraints: 1:4096:32M unless given
    #[arg(long, value_name = "MIN:PREFERRED:MAX", value_parser = block_sizes)]
    pub block_size: Option<BlockSizes>,
    /// Greet as servers did before there were options; such a server should not use port 10809
    #[arg(long)]
    pub oldstyle: bool,
    /// Serve one connection, then exit
    #[arg(long)]
    pub once: bool,
    /// How long a client may take for the handshake
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub handshake_timeout: Duration,
    /// Who serves the clients. Threads are the default because under most loads
    /// they were faster, at much the same cost (docs/performance.md); rings cost
    /// less where many clients have one request each
    #[arg(long, value_enum, default_value = "threads")]
    pub driver: DriverArg,
    /// How many threads may work for one connection; with rings, beside them for all
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = threads)]
    pub threads: usize,
    /// Say on standard error who comes, what is agreed on, and who leaves
    #[arg(short, long)]
    pub verbose: bool,
}

const SIZES: &str = "Sizes are in bytes, or with K, M, G, T in powers of 1024.";

impl Args {
    pub fn framing(&self) -> Framing {
        match self.framing {
            FramingArg::Simple => Framing::Simple,
            FramingArg::Structured => Framing::Structured,
            FramingArg::Extended => Framing::Extended,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverArg {
    /// Blocking sockets, and threads for each connection
    Threads,
    /// An io_uring for each processor, and many connections on each
    Uring,
    /// uring where it is permitted, or else threads
    Auto,
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

/// The longest payload that may be allowed: a connection must hold one.
const LONGEST_PAYLOAD: u32 = 256 << 20;

fn block_sizes(text: &str) -> Result<BlockSizes, String> {
    let mut parts = text.split(':').map(size::parse);
    let mut next = || match parts.next() {
        Some(size) => size.and_then(|n| u32::try_from(n).map_err(|_| "too large".to_owned())),
        None => Err("three sizes are needed, as 512:4096:32M".to_owned()),
    };
    let sizes = BlockSizes {
        minimum: next()?,
        preferred: next()?,
        maximum: next()?,
    };
    if parts.next().is_some() {
        return Err("three sizes are enough".into());
    }
    if !sizes.is_valid() {
        return Err("MIN is a power of two up to 64K, PREFERRED a power of two \
             from 512 and MIN up, MAX at least PREFERRED"
            .into());
    }
    if sizes.maximum > LONGEST_PAYLOAD {
        return Err(format!(
            "MAX is at most {}",
            size::exact(LONGEST_PAYLOAD.into())
        ));
    }
    Ok(sizes)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if seconds <= 0.0 {
        return Err("must be more than nothing".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        // One must be able to do what another waits for.
        Ok(count @ 2..=256) => Ok(count),
        _ => Err("from 2 to 256".into()),
    }
}
