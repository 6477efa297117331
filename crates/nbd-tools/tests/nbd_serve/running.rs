//! A running `nbd-serve`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nbd_test_support::images::{MIB, sparse};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::driver;

/// Every framing a server may be limited to.
pub const FRAMINGS: [&str; 3] = ["simple", "structured", "extended"];

/// A server does nothing that takes as long.
const LIMIT: Duration = Duration::from_secs(20);

/// A server on a socket of its own, and a folder for it. Ends with the value.
pub struct Serve {
    child: Child,
    uri: String,
    folder: TempDir,
    log: Arc<Mutex<String>>,
    /// Ends when the server has, and everything is in the log.
    collector: Option<thread::JoinHandle<()>>,
}

impl Serve {
    /// On a Unix socket, telling who comes and leaves.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), args)
    }

    /// The same, with a folder that may have a disk in it already.
    pub fn start_in(folder: TempDir, args: &[&str]) -> Self {
        let socket = folder.path().join("socket");
        let socket = socket.to_str().expect("a path in UTF-8");
        let verbose = ["--verbose", "--unix", socket];
        Self::run(folder, &[&verbose, args].concat())
    }

    /// With these arguments and no others.
    pub fn run(folder: TempDir, args: &[&str]) -> Self {
        Self::spawn(folder, server().args(args))
    }

    /// As a command that comes to that.
    pub fn spawn(folder: TempDir, command: &mut Command) -> Self {
        let mut child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("serve starts");
        let stdout = child.stdout.take().expect("standard output");
        let stderr = child.stderr.take().expect("standard error");
        let (log, collector) = collect(stderr);
        let uri = first_line(stdout).unwrap_or_else(|| {
            let _ = child.kill();
            panic!("no URI from {command:?}: {}", text(&log));
        });
        Self {
            child,
            uri,
            folder,
            log,
            collector: Some(collector),
        }
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far on standard error.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until it has said so.
    #[track_caller]
    pub fn has_said(&self, part: &str) {
        until(&format!("the server says {part:?}"), || {
            self.log().contains(part)
        });
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("a process id");
        let id = Pid::from_raw(id).expect("a process id");
        kill_process(id, signal).expect("a signal is sent");
    }

    /// Waits until it ends.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for serve") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "serve does not end: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end, which it does in good order; returns what it said.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.ended();
        if let Some(collector) = self.collector.take() {
            collector.join().expect("the log");
        }
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.log()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("serve ({ended:?}) said:\n{}", self.log());
        }
    }
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nbd-serve"))
}

/// The program, with the driver that the test is about.
pub fn server() -> Command {
    let mut command = program();
    command.arg(driver::argument());
    command
}

/// What a server can have behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Memory,
    File,
}

pub const DISKS: [Disk; 2] = [Disk::Memory, Disk::File];

impl Disk {
    /// A server for an empty disk of so many MiB. A file is called "disk".
    pub fn serve(self, mib: u64, args: &[&str]) -> Serve {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("{mib}M");
        let disk = match self {
            Self::Memory => ["--memory", &size].to_vec(),
            Self::File => {
                sparse(&folder.path().join("disk"), mib * MIB, &[]);
                ["disk"].to_vec()
            }
        };
        Serve::start_in(folder, &[args, &disk].concat())
    }
}

/// Looks again and again until it is so.
#[track_caller]
pub fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn first_line(stdout: impl Read + Send + 'static) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(line);
    });
    let line = receiver.recv_timeout(LIMIT).ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}

fn collect(stderr: impl Read + Send + 'static) -> (Arc<Mutex<String>>, thread::JoinHandle<()>) {
    let log = Arc::new(Mutex::new(String::new()));
    let writer = Arc::clone(&log);
    let collector = thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = writer.lock().expect("the log");
            log.push_str(&line);
            log.push('\n');
        }
    });
    (log, collector)
}

fn text(log: &Mutex<String>) -> String {
    log.lock().expect("the log").clone()
}
