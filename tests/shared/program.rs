//! Programs: whether they are there, and running them to their end.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No program of these tests takes as long, on a slow machine either.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Whether every one of `programs` is there. If not, says what is skipped, or
/// fails where peers are required.
pub fn have(programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = |name: &&&str| env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let missing: Vec<_> = programs.iter().filter(|name| !found(name)).collect();
    if missing.is_empty() {
        return true;
    }
    skip(&format!("{missing:?}"));
    false
}

/// Says that a test is skipped for want of something, or fails where peers are
/// required.
pub fn skip(missing: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let text = format!("{test} skipped: needs {missing}\n");
    assert!(
        env::var_os("NBD_CODEC_PEERS").is_none_or(|value| value != "required"),
        "NBD_CODEC_PEERS=required, and {text}"
    );
    // Past the capture of the test harness: nobody reads what a test that
    // passes has to say.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Leaves a test for which programs are missing.
macro_rules! needs {
    ($($program:literal),*) => {
        if !$crate::program::have(&[$($program),*]) {
            return;
        }
    };
}
pub(crate) use needs;

/// The example `nbd`.
pub fn nbd() -> Command {
    example("nbd")
}

/// An example, as `cargo test` has built it.
pub fn example(name: &str) -> Command {
    let mut folder = env::current_exe().expect("the path of this test");
    folder.pop();
    folder.pop();
    let program: PathBuf = folder.join("examples").join(name);
    assert!(
        program.is_file(),
        "{} is not there: run `cargo test` without `--test`, or `cargo build --examples` first",
        program.display()
    );
    Command::new(program)
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
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
        let names = ["nbd: ", "serve: "];
        let named = names.iter().any(|name| self.stderr.starts_with(name));
        assert!(named, "{}", self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} in {}", self.stderr);
        }
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_slice(&self.ok().stdout).expect("JSON on standard output")
    }
}

/// Runs a program to its end, which must come within [`LIMIT`].
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    wait(start(command))
}

/// Runs the example `nbd`.
#[track_caller]
pub fn run_nbd<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ended {
    run(nbd().args(args))
}

#[track_caller]
pub fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
pub fn wait(mut child: Child) -> Ended {
    // Both are read while it runs: a full pipe would hold it up.
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
