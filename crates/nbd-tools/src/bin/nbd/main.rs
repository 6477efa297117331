//! `nbd`: a client for NBD servers, with the blocking sockets of the operating
//! system.

// Both panic when their reader has closed them.
#![deny(clippy::print_stderr, clippy::print_stdout)]
// Servers choose sizes and offsets up to 2^64 - 1.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod address;
mod align;
mod args;
#[expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times; what the server chooses is checked before"
)]
mod bench;
mod connection;
mod copy;
mod decode;
mod describe;
mod draw;
mod extents;
mod inbox;
mod info;
mod map;
mod name;
mod os;
mod output;
mod progress;
mod reader;
mod reads;
mod session;
mod socket;
mod stderr;
mod stdout;
mod tap;
#[expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "both sides are this program's own"
)]
mod tour;
mod transfer;
mod writer;

use std::process::ExitCode;

use anyhow::Result;
use args::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<stdout::Closed>() => ExitCode::FAILURE,
        Err(error) => {
            // One line: line breaks in messages of a server become spaces.
            let line = format!("{error:#}").replace(['\n', '\r'], " ");
            stderr::line(format_args!("nbd: {line}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if let Some(Command::Tap(_) | Command::Decode(_)) | None = cli.command {
        cli.common.refuse()?;
    }
    match &cli.command {
        Some(Command::Info(args)) => info::info(args, &cli.common),
        Some(Command::List(args)) => info::list(args, &cli.common),
        Some(Command::Map(args)) => map::run(args, &cli.common),
        Some(Command::Read(args)) => transfer::read(args, &cli.common),
        Some(Command::Write(args)) => transfer::write(args, &cli.common),
        Some(Command::Copy(args)) => copy::run(args, &cli.common),
        Some(Command::Bench(args)) => bench::run(args, &cli.common),
        Some(Command::Tap(args)) => tap::run(args),
        Some(Command::Decode(args)) => decode::run(args),
        None => tour::run(),
    }
}
