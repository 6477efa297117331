//! `nbd-serve`: an NBD server with two drivers: blocking sockets and threads of
//! the standard library, or `io_uring`.
//!
//! | modules | what they do |
//! |---|---|
//! | `server`, `listener`, `socket` | accept clients and disconnect them |
//! | `connection`, `handshake` | one connection until the end of negotiation |
//! | `workers`, `reader`, `immediate`, `outbox` | transmission on threads: requests are read, executed and answered |
//! | `uring`, `ring` | the same on `io_uring`: a few threads for all clients |
//! | `job`, `batch` | execution of a request; replies to be sent |
//! | `budget`, `buffer`, `inbox` | memory for requests and replies |
//! | `export`, `disk`, `file`, `durability`, `memory` | the export and its storage |
//! | `log` | messages to the operator |
//! | `os` | what only Linux has |

// The driver on `io_uring` uses it.
#![cfg_attr(
    not(all(target_os = "linux", target_pointer_width = "64")),
    allow(dead_code)
)]

#[cfg(not(unix))]
compile_error!("nbd-serve needs Unix; install the client alone: cargo install nbd-tools --bin nbd");

mod args;
mod batch;
mod budget;
mod buffer;
mod connection;
mod disk;
mod durability;
mod export;
mod file;
mod handshake;
mod immediate;
mod inbox;
mod job;
mod listener;
mod log;
mod memory;
mod os;
mod outbox;
mod reader;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[expect(
    unsafe_code,
    reason = "the kernel's accesses are unknown to the compiler"
)]
mod ring;
mod server;
mod socket;
#[cfg_attr(
    not(all(target_os = "linux", target_pointer_width = "64")),
    path = "no_uring.rs"
)]
mod uring;
mod workers;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use args::{Args, DriverArg};
use clap::Parser;
use export::Export;
use listener::Listener;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::{Driver, Server};
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    end_process_on_panic();
    log::start();
    let code = match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::report(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    };
    log::finish();
    code
}

/// A thread that panics leaves clients without an answer, and others waiting for it,
/// so the process ends. Whatever started it may start it again.
fn end_process_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        log::report(&format!("internal error: {panic}"));
        log::finish();
        std::process::exit(101);
    }));
}

fn run(args: &Args) -> Result<()> {
    let (stop, stop_sender) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        // A second signal ends the process at once.
        let seen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&seen))?;
        signal_hook::flag::register(signal, seen)?;
        signal_hook::low_level::pipe::register(signal, stop_sender.try_clone()?)?;
    }
    allow_many_files();
    let export = Export::new(args)?;
    let server = Arc::new(Server::new(export, args, stop_sender)?);
    let driver = driver(args, &server)?;
    let listener = match &args.unix {
        Some(path) => Listener::unix(path)?,
        None => Listener::tcp(&args.tcp)?,
    };
    let uri = listener.uri(&args.export_name)?;
    // Scripts wait for this line. A closed standard output is no reason not to
    // serve.
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{uri}").and_then(|()| stdout.flush());
    server.run(listener, stop, &driver)
}

fn driver(args: &Args, server: &Arc<Server>) -> Result<Driver> {
    if args.driver == DriverArg::Threads {
        return Ok(Driver::Threads);
    }
    match uring::Engine::start(server) {
        Ok(engine) => Ok(Driver::Uring(engine)),
        Err(error) if args.driver == DriverArg::Auto => {
            log::report(&format!(
                "using threads, because io_uring is not available: {error}"
            ));
            Ok(Driver::Threads)
        }
        Err(error) => Err(error).context("cannot serve with io_uring"),
    }
}

/// Raises the limit of file descriptors to its maximum: every client takes one.
fn allow_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// The test starts itself again, and that process panics.
    #[test]
    fn a_panic_in_any_thread_ends_the_process() {
        const PANICS: &str = "NBD_SERVE_TEST_PANICS";
        if std::env::var_os(PANICS).is_some() {
            super::end_process_on_panic();
            let _ = std::thread::spawn(|| panic!("in a thread")).join();
            return;
        }
        let program = std::env::current_exe().expect("this program");
        let name = "tests::a_panic_in_any_thread_ends_the_process";
        let output = Command::new(program)
            .args(["--exact", name, "--nocapture"])
            .env(PANICS, "")
            .output()
            .expect("it ends");
        assert_eq!(output.status.code(), Some(101), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("nbd-serve: internal error"), "{stderr}");
        assert!(stderr.contains("in a thread"), "{stderr}");
    }
}
