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

/// Every framing a server may be limited to.
pub const FRAMINGS: [&str; 3] = ["simple", "structured", "extended"];

/// The longest time the server may take for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// A server on a socket of its own, and a folder for it. Dropping the value ends
/// the server.
pub struct Serve {
    child: Child,
    uri: String,
    folder: TempDir,
    log: Arc<Mutex<String>>,
    /// Ends when the server has ended and the log is complete.
    collector: Option<thread::JoinHandle<()>>,
}

impl Serve {
    /// Starts a server on a Unix socket, with `--verbose`.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), args)
    }

    /// The same, in a folder that may have a disk.
    pub fn start_in(folder: TempDir, args: &[&str]) -> Self {
        let socket = folder.path().join("socket");
        let socket = socket.to_str().expect("a path in UTF-8");
        let verbose = ["--verbose", "--unix", socket];
        Self::run(folder, &[&verbose, args].concat())
    }

    /// Starts a server with these arguments only.
    pub fn run(folder: TempDir, args: &[&str]) -> Self {
        Self::spawn(folder, program().args(args))
    }

    /// Starts a server by a command.
    pub fn spawn(folder: TempDir, command: &mut Command) -> Self {
        let mut child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nbd-serve starts");
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

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until it has written `part` to standard error.
    #[track_caller]
    pub fn has_reported(&self, part: &str) {
        until(&format!("the server reports {part:?}"), || {
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
            if let Some(status) = self.child.try_wait().expect("wait for nbd-serve") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "nbd-serve does not end: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Shuts it down, which must succeed; returns what it wrote to standard error.
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
            eprintln!("nbd-serve ({ended:?}) reported:\n{}", self.log());
        }
    }
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nbd-serve"))
}

/// The storage of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Memory,
    File,
}

pub const DISKS: [Disk; 2] = [Disk::Memory, Disk::File];

impl Disk {
    /// Starts a server for an empty disk of `mib` MiB. A file is called "disk".
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

/// Waits until a condition is true.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
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
