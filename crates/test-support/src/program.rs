//! Programs: whether they are installed, and running them until they end.

use std::env;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::skipped::skip;

/// The longest time a program may take, on a slow machine too.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Whether all of `programs` are installed. If not, reports that the test is
/// skipped, or fails where peers are required.
pub fn have(programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = |name: &&&str| env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let missing: Vec<_> = programs.iter().filter(|name| !found(name)).collect();
    if missing.is_empty() {
        return true;
    }
    let missing: Vec<_> = missing.into_iter().copied().collect();
    skip(&missing.join(", "));
    false
}

/// Returns from a test for which programs are missing.
#[macro_export]
macro_rules! needs {
    ($($program:literal),*) => {
        if !$crate::program::have(&[$($program),*]) {
            return;
        }
    };
}
/// An example of this package.
pub fn example(name: &str) -> Command {
    built("examples", name)
}

/// A program of another package of this workspace.
pub fn tool(name: &str) -> Command {
    built("", name)
}

/// A program in a folder of the target directory that this test was built in.
/// `cargo test` without `--test` builds it first.
fn built(folder: &str, name: &str) -> Command {
    let mut path = env::current_exe().expect("the path of this test");
    path.pop();
    path.pop();
    path.extend([folder, name]);
    assert!(
        path.is_file(),
        "{} does not exist: run `cargo test` without `--test`, or `cargo build --examples --bins` first",
        path.display()
    );
    Command::new(path)
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code, if no signal ended the program.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ended {
    /// The program succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// The program failed and said why, in one line that contains each of
    /// `texts`.
    #[track_caller]
    pub fn refused(self, texts: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        let names = ["nbd: ", "nbd-serve: "];
        let named = names.iter().any(|name| self.stderr.starts_with(name));
        assert!(named, "{}", self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} in {}", self.stderr);
        }
    }

    /// The program succeeded and wrote JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_slice(&self.ok().stdout).expect("JSON on standard output")
    }
}

/// Runs a program until it ends, for [`LIMIT`] at most.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    wait(start(command))
}

/// Starts a program, without input and with its output in pipes.
#[track_caller]
pub fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Waits until a program ends, for [`LIMIT`] at most.
#[track_caller]
pub fn wait(mut child: Child) -> Ended {
    // Both are read while it runs: a full pipe would block it.
    let mut stdout = child.stdout.take();
    let stdout = thread::spawn(move || drain(stdout.as_mut()));
    let mut stderr = child.stderr.take();
    let stderr = thread::spawn(move || drain(stderr.as_mut()));
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("a program hangs");
        }
        thread::sleep(Duration::from_millis(5));
    };
    let text = stderr.join().expect("standard error is read");
    Ended {
        code: status.code(),
        stdout: stdout.join().expect("standard output is read"),
        stderr: String::from_utf8_lossy(&text).into_owned(),
    }
}

fn drain(stream: Option<&mut impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.read_to_end(&mut bytes).expect("a pipe is read");
    }
    bytes
}
