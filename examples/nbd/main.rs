//! `nbd`: a client for NBD servers on blocking terms, made of `nbd-codec` and
//! the sockets of the standard library.

mod args;
mod connection;
mod draw;
mod extents;
mod inbox;
mod map;
mod out;
mod session;
mod size;
mod socket;

use std::process::ExitCode;

use anyhow::Result;
use args::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<out::Closed>() => ExitCode::FAILURE,
        Err(error) => {
            // One line, whatever a server put into its messages.
            let line = format!("{error:#}").replace(['\n', '\r'], " ");
            eprintln!("nbd: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Some(Command::Map(args)) => map::run(args, &cli.common),
        _ => todo!(),
    }
}
