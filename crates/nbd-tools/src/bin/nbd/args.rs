//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nbd_codec::Framing;
use nbd_tools::{size, time};

use crate::decode::transcript::Style;
use crate::socket::Settings;

/// Talk to NBD servers: describe, map, read, write and copy their exports.
///
/// Without a command it shows a short tour of the protocol, without a server.
#[derive(Debug, Parser)]
#[command(name = "nbd", version, after_help = URIS)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub common: Common,
}

const URIS: &str = "\
URIs:
  nbd://HOST[:PORT]/EXPORT              TCP, port 10809 by default
  nbd+unix:///EXPORT?socket=PATH        Unix socket; socket=%00NAME for an abstract socket
  nbd:HOST:PORT[:exportname=EXPORT]     TCP, as QEMU spells it
  nbd:unix:PATH[:exportname=EXPORT]     Unix socket, as QEMU spells it

Sizes and offsets are in bytes, or with a suffix K, M, G or T (powers of 1024).";

#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The most capable framing to request; the server may support less
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FRAMING",
        default_value = "extended"
    )]
    framing: FramingArg,
    /// Open exports with NBD_OPT_EXPORT_NAME instead of NBD_OPT_GO, for servers that do not know it.
    /// This implies --framing simple
    #[arg(long, global = true)]
    no_go: bool,
    /// Fail if the server sends nothing for this long
    #[arg(long, global = true, value_name = "SECONDS", value_parser = time::parse)]
    timeout: Option<Duration>,
    /// Append the bytes of the session to a file, a line for each system call: "C: 0102.." for
    /// sent bytes, "S: 0304.." for received bytes
    #[arg(long, global = true, value_name = "FILE")]
    record: Option<PathBuf>,
}

impl Common {
    pub fn framing(&self) -> Framing {
        match self.framing {
            _ if self.no_go => Framing::Simple,
            FramingArg::Simple => Framing::Simple,
            FramingArg::Structured => Framing::Structured,
            FramingArg::Extended => Framing::Extended,
        }
    }

    /// Fails if one of these options is given: the command does not use them.
    pub fn refuse(&self) -> anyhow::Result<()> {
        let given = [
            ("--framing", self.framing != FramingArg::Extended),
            ("--no-go", self.no_go),
            ("--timeout", self.timeout.is_some()),
            ("--record", self.record.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                anyhow::bail!("{option} cannot be used with tap, with decode, or without a command")
            }
            None => Ok(()),
        }
    }

    pub fn settings(&self) -> Settings {
        Settings {
            export_name: self.no_go,
            timeout: self.timeout,
            record: self.record.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FramingArg {
    /// Compact requests, simple replies
    Simple,
    /// Compact requests, structured replies: block status in 32 bits
    Structured,
    /// Extended headers: block status in 64 bits
    Extended,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Describe an export
    Info(Info),
    /// List and describe the exports of a server
    List(Info),
    /// Show which parts of an export hold data, holes and zeroes
    Map(Map),
    /// Read from an export
    Read(Read),
    /// Write to an export
    Write(Write),
    /// Copy between exports and files; holes stay holes
    Copy(Copy),
    /// Measure how fast an export is read or written
    Bench(Bench),
    /// Pass connections on to a server, and print what both sides say. Fails if one of them broke a
    /// rule of the protocol
    Tap(Tap),
    /// Print what both sides said in a session that --record wrote, or in a capture of packets
    /// (pcap, pcapng). Fails if one of them broke a rule of the protocol
    Decode(Decode),
}

#[derive(Debug, Args)]
pub struct Info {
    /// The URI of the export
    pub uri: String,
    /// Print JSON, as `nbdinfo --json --no-content` does, with one more key: "extended", whether
    /// extended headers are in use
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Map {
    /// The URI of the export
    pub uri: String,
    /// The metadata context; may be repeated
    #[arg(
        long = "context",
        value_name = "NAME",
        default_value = "base:allocation"
    )]
    pub contexts: Vec<String>,
    /// Print JSON, as `nbdinfo --map --json` does: adjacent extents of one type are joined. For
    /// several contexts it is an object with an array for each
    #[arg(long)]
    pub json: bool,
    /// With --json: print the extents as the server sent them, not joined (as the table does)
    #[arg(long, requires = "json")]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct Read {
    /// The URI of the export
    pub uri: String,
    /// The offset of the first byte
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    pub offset: u64,
    /// How much to read; up to the end by default
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub length: Option<u64>,
    /// Write to a file instead of standard output. If more than 4 MiB are read, what the server
    /// reports as zeroes is not transferred, and a hole in the file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Write {
    /// The URI of the export
    pub uri: String,
    /// The offset of the first byte
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    pub offset: u64,
    /// Read from a file instead of standard input
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Permit an offset and a length off the server's minimum block size: the first and the last
    /// block are read, changed and written
    #[arg(long)]
    pub pad: bool,
}

#[derive(Debug, Args)]
pub struct Copy {
    /// An NBD URI, a file, or - for standard input
    pub source: String,
    /// An NBD URI of an export that is large enough; or a file, which is replaced; or - for
    /// standard output; or null: to discard the data
    pub destination: String,
}

#[derive(Debug, Args)]
pub struct Tap {
    /// Where clients connect; the export in this URI is not used
    #[arg(long, value_name = "URI")]
    pub listen: String,
    /// The server; the export in this URI is not used
    #[arg(long, value_name = "URI")]
    pub connect: String,
    /// End after the first connection
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    pub style: Style,
}

#[derive(Debug, Args)]
pub struct Decode {
    /// A recorded session, or a capture
    pub file: PathBuf,
    #[command(flatten)]
    pub style: Style,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// The URI of the export
    pub uri: String,
    /// The kind of requests. The write modes overwrite the data of the export
    #[arg(long, value_enum, default_value = "randread")]
    pub mode: Mode,
    /// The length of each request
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "4k")]
    pub size: u64,
    /// Requests in flight on each connection
    #[arg(long, value_name = "COUNT", default_value = "32",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub depth: u16,
    /// Connections, each with a thread of its own
    #[arg(long, value_name = "COUNT", default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: u16,
    /// How long to measure
    #[arg(long, value_name = "SECONDS", value_parser = time::parse, default_value = "10")]
    pub seconds: Duration,
    /// Measure this many requests on each connection instead
    #[arg(long, value_name = "COUNT", conflicts_with = "seconds")]
    pub requests: Option<u64>,
    /// Print JSON; times are in nanoseconds
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Read at random offsets
    Randread,
    /// Write at random offsets
    Randwrite,
    /// Read sequentially, repeatedly
    Read,
    /// Write sequentially, repeatedly
    Write,
}

impl Mode {
    pub fn writes(self) -> bool {
        matches!(self, Self::Randwrite | Self::Write)
    }

    pub fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}
