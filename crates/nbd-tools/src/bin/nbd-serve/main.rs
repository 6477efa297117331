//! `nbd-serve`: an NBD server made of `nbd-codec`, with two drivers: one on blocking
//! terms, with the sockets and the threads of the standard library; and one on
//! `io_uring`.
//!
//! | file | what it is about |
//! |---|---|
//! | `server`, `listener`, `socket` | who comes in, and how they are let go |
//! | `connection`, `handshake` | one client, up to what is agreed on |
//! | `team`, `reader`, `prompt`, `outbox` | its requests: read, done and answered by several threads |
//! | `uring`, `ring` | the same on rings, with a few threads for all clients |
//! | `job`, `batch` | what is done, and the replies on their way out |
//! | `budget`, `buffer`, `inbox` | the memory this takes |
//! | `export`, `disk`, `file`, `memory` | what is served |

mod args;
mod batch;
mod budget;
mod buffer;
mod connection;
mod disk;
mod export;
mod file;
mod handshake;
mod inbox;
mod job;
mod listener;
mod log;
mod memory;
mod outbox;
mod prompt;
mod reader;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[expect(
    unsafe_code,
    reason = "what the kernel works on is beyond the compiler"
)]
mod ring;
mod server;
mod socket;
mod team;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod uring;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use args::{Args, DriverArg};
use clap::Parser;
use export::Export;
use listener::Listener;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::{Driver, Server};
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let (alarm, bell) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        // The second one ends it at once.
        let seen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&seen))?;
        signal_hook::flag::register(signal, seen)?;
        signal_hook::low_level::pipe::register(signal, bell.try_clone()?)?;
    }
    allow_many_files();
    let export = Export::new(args)?;
    let server = Arc::new(Server::new(export, args, bell));
    let driver = driver(args, &server)?;
    let listener = match &args.unix {
        Some(path) => Listener::unix(path)?,
        None => Listener::tcp(&args.tcp)?,
    };
    let uri = listener.uri(&args.export_name)?;
    // Scripts wait for this line. That nobody reads it is not the clients'
    // trouble.
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{uri}").and_then(|()| stdout.flush());
    server.run(listener, alarm, &driver)
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn driver(args: &Args, server: &Arc<Server>) -> Result<Driver> {
    use anyhow::Context;
    if args.driver == DriverArg::Threads {
        return Ok(Driver::Threads);
    }
    match uring::Engine::start(server) {
        Ok(engine) => Ok(Driver::Uring(engine)),
        Err(error) if args.driver == DriverArg::Auto => {
            log::say(&format!("threads serve, for there is no io_uring: {error}"));
            Ok(Driver::Threads)
        }
        Err(error) => Err(error).context("cannot serve with io_uring"),
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn driver(args: &Args, _: &Arc<Server>) -> Result<Driver> {
    match args.driver {
        DriverArg::Uring => {
            anyhow::bail!("cannot serve with io_uring: it is Linux with 64 bits that has it")
        }
        DriverArg::Threads | DriverArg::Auto => Ok(Driver::Threads),
    }
}

/// Every client takes a file descriptor: as many as there may be.
fn allow_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}
