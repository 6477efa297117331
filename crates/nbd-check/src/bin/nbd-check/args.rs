//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Check whether NBD programs keep to the specification.
#[derive(Debug, Parser)]
#[command(name = "nbd-check", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a server: one that runs, or a command that starts one
    Server(Box<Server>),
    /// Check a client: a command that connects to servers which break rules
    Client(Box<Client>),
    /// Make one HTML page of several reports
    Report(Report),
    /// Send again what the tester sent in a transcript, and compare the answers
    Replay(Replay),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = SERVER_USAGE)]
pub struct Server {
    /// The server that runs, and its export: nbd://HOST/EXPORT or
    /// nbd+unix:///EXPORT?socket=PATH
    #[arg(required_unless_present_any = ["command", "list"], conflicts_with = "command")]
    pub uri: Option<String>,
    /// A command that starts the server, which is started again if it ends. {uri} is
    /// replaced by the URI to listen on, {socket} by the path of its socket, {port} by a
    /// TCP port on the local machine
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    /// The export to check, if a command starts the server
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
    /// Also run the cases that write; the export is overwritten
    #[arg(long)]
    pub destructive: bool,
    /// Connect, and tell which cases would run and which not, and why
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = CLIENT_EXAMPLES)]
pub struct Client {
    /// A command that runs the client; it is run once for each case, or more often. {uri} is
    /// replaced by the URI of the server, {socket} by the path of its socket, {port} by its
    /// TCP port on the local machine; {out} by a file that the client writes the export to,
    /// {in} by one of 1 MiB that it writes to the export
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "list")]
    pub command: Vec<String>,
    /// Cut connections at up to 4,096 places of each phase instead of some
    #[arg(long)]
    pub thorough: bool,
    /// Serve the export within TLS only, with server-cert.pem and server-key.pem of this
    /// folder; {uri} names it as the folder of the client's certificates
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// How many cases run at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..))]
    pub jobs: u8,
    #[command(flatten)]
    pub common: Common,
}

/// What both sides have.
#[derive(Debug, Args)]
pub struct Common {
    /// What the specification advises (SHOULD) is a failure too
    #[arg(long)]
    pub strict: bool,
    /// Only cases of the section with this heading, or this part of it; can be repeated
    #[arg(long, value_name = "HEADING")]
    pub section: Vec<String>,
    /// Only these cases: an id, a duty, or a pattern with *; can be repeated
    #[arg(long, value_name = "PATTERN")]
    pub case: Vec<String>,
    /// List the cases and end
    #[arg(long)]
    pub list: bool,
    /// Known deviations: a file with a pattern of cases and a reason in each line; `?` before
    /// the pattern if not every run has it; `:DUTY` after it if only this duty is broken, or
    /// `:crash` if the program crashes, which no other line explains
    #[arg(long, value_name = "FILE")]
    pub deviations: Option<PathBuf>,
    /// How long a server may take for a reply, or a client to end after the server has closed
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub timeout: Duration,
    /// What the program is called in reports
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Print every case, not only what was found
    #[arg(short, long)]
    pub verbose: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the transcript of each case with a finding into this folder
    #[arg(long, value_name = "DIR")]
    pub transcripts: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Report {
    /// Reports that --json wrote
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE")]
    pub html: PathBuf,
}

#[derive(Debug, Args)]
#[command(override_usage = REPLAY_USAGE)]
pub struct Replay {
    /// A file that --transcripts wrote
    pub transcript: PathBuf,
    /// The server, if the transcript is of one
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    pub uri: Option<String>,
    /// The command of the client, if the transcript is of one; as for `nbd-check client`
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    /// The folder of certificates that --tls named
    #[arg(long, value_name = "DIR", requires = "command")]
    pub tls: Option<PathBuf>,
    /// How long the program may take for each answer
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub timeout: Duration,
}

const SERVER_USAGE: &str = "\
nbd-check server [OPTIONS] URI
       nbd-check server [OPTIONS] -- COMMAND {uri}
       nbd-check server --list";

const REPLAY_USAGE: &str = "\
nbd-check replay [OPTIONS] TRANSCRIPT URI
       nbd-check replay [OPTIONS] TRANSCRIPT -- COMMAND {uri}";

const EXAMPLES: &str = "\
Exit status: 0 if nothing failed, 1 if something failed, 2 if the server cannot be checked

Examples:
  nbd-check server nbd://localhost/disk
  nbd-check server --destructive -- nbd-serve --memory 64M --unix {socket}
  nbd-check server --destructive -- nbdkit -f -U {socket} memory 64M
  nbd-check server -- qemu-nbd -t -e 0 -k {socket} -f raw disk.img";

const CLIENT_EXAMPLES: &str = "\
Exit status: 0 if nothing failed, 1 if something failed, 2 if the client cannot be checked

Examples:
  nbd-check client -- nbd read {uri}
  nbd-check client -- nbdcopy {uri} {out}
  nbd-check client -- nbdcopy {in} {uri}
  nbd-check client -- qemu-img convert -f raw -O raw {uri} {out}";

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(0.001..=3600.0).contains(&seconds) {
        return Err("must be from 0.001 to 3600".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
