//! A client made of the crate `nbd-io`, to be checked:
//!
//! ```sh
//! nbd-check client -- target/debug/examples/nbd_io_client tokio read {uri}
//! nbd-check client -- target/debug/examples/nbd_io_client threads map {uri}
//! nbd-check client -- target/debug/examples/nbd_io_client threads write {uri} {in}
//! nbd-check client --tls DIR -- target/debug/examples/nbd_io_client tokio read '{uri}&tls-hostname=localhost'
//! ```

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_io::client::Options;

/// Commands have this length in bytes, which every server accepts.
const PIECE: usize = 1 << 16;

const USAGE: &str = "usage: nbd_io_client tokio|threads read|map|write URI [FILE]";

/// Does what the arguments demand, and disconnects; with `.await` after each call under tokio.
macro_rules! run {
    ($client:ty, $arguments:expr $(, $await:ident)?) => {{
        let (mode, uri, data) = match $arguments {
            [mode, uri] => (mode.as_str(), uri, Vec::new()),
            [mode, uri, file] => (mode.as_str(), uri, std::fs::read(file)?),
            _ => bail!(USAGE),
        };
        let options = Options::new().allow_local_files(true);
        let options = match mode {
            "map" => options.context("base:allocation"),
            _ => options,
        };
        let client = <$client>::connect_with(uri, options)$(.$await)?;
        let client = client?;
        let has_flush = client.negotiated().flags.contains(TransmissionFlags::SEND_FLUSH);
        let mut out = Vec::new();
        let mut ended = Ok(());
        let mut pieces = (0..client.size()).step_by(PIECE);
        while let (Ok(()), Some(offset)) = (&ended, pieces.next()) {
            let length = (client.size() - offset).min(PIECE as u64);
            let start = usize::try_from(offset)?;
            let count = usize::try_from(length)?;
            ended = match mode {
                "read" => {
                    let read = client.read_at(offset, count)$(.$await)?;
                    read.map(|data| out.extend(data))
                }
                "map" => {
                    let status = client.block_status(offset, length)$(.$await)?;
                    status.map(|status| out.extend(format!("{offset}: {status:?}\n").bytes()))
                }
                "write" => {
                    let data = data.get(start..start + count).context("the file is short")?;
                    client.write_at(offset, data)$(.$await)?
                }
                _ => bail!(USAGE),
            };
        }
        if ended.is_ok() && mode == "write" && has_flush {
            ended = client.flush()$(.$await)?;
        }
        client.disconnect()$(.$await)?;
        ended?;
        std::io::stdout().write_all(&out)?;
        Ok(())
    }};
}

fn start() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((runtime, rest)) if runtime == "tokio" => {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build()?;
            runtime.block_on(async { run!(nbd_io::tokio::Client, rest, await) })
        }
        Some((runtime, rest)) if runtime == "threads" => run!(nbd_io::blocking::Client, rest),
        _ => bail!(USAGE),
    }
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd_io_client: {error:#}");
            ExitCode::FAILURE
        }
    }
}
