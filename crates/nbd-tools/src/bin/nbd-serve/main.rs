//! `nbd-serve`: an NBD server with blocking sockets and threads for each client.
//!
//! | modules | what they do |
//! |---|---|
//! | `server`, `listener`, `socket` | accept clients and disconnect them |
//! | `connection`, `handshake` | one connection until the end of negotiation |
//! | `workers`, `reader`, `immediate`, `outbox` | transmission: requests are read, executed and answered |
//! | `job`, `batch` | execution of a request; replies to be sent |
//! | `budget`, `buffer`, `inbox`, `pipe` | memory for requests and replies |
//! | `export`, `disk`, `file`, `durability`, `memory`, `pages` | the export and its storage |
//! | `log` | messages to the operator |
//! | `os` | what only Linux has |

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
mod pages;
mod pipe;
mod reader;
mod server;
mod socket;
mod workers;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use args::Args;
use clap::Parser;
use export::Export;
use listener::Listener;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::Server;
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
/// so the process ends. The program that started the server may start it again.
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
    let listener = match &args.unix {
        Some(path) => Listener::unix(path)?,
        None => Listener::tcp(&args.tcp)?,
    };
    let uri = listener.uri(&args.export_name)?;
    // Scripts wait for this line. A closed standard output is no reason not to
    // serve.
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{uri}").and_then(|()| stdout.flush());
    server.run(listener, stop)
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
