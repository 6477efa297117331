//! The command that is tested: one process for each script.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::command::CommandLine;

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With the exit status 0.
    Success,
    /// With another exit status.
    Failure(i32),
    /// A signal ended it.
    Signal(i32),
    /// It did not end within the time limit.
    Hang,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Success => f.write_str("exit status 0"),
            Self::Failure(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Hang => f.write_str("it does not end"),
        }
    }
}

/// What a process leaves.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) ended: Ended,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// A process that runs.
pub(crate) struct Process {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Process {
    /// Starts a command, with its output in files of this folder.
    pub(crate) fn start(command: &CommandLine, folder: &Path) -> Result<Self> {
        let file = |name: &str| -> Result<File> {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true);
            Ok(options.open(folder.join(name))?)
        };
        let (stdout, stderr) = (file("stdout")?, file("stderr")?);
        let child = command.start(stdout.try_clone()?.into(), &stderr)?;
        Ok(Self {
            child,
            stdout,
            stderr,
        })
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends, or `until`.
    pub(crate) fn wait(mut self, until: Instant) -> Result<Output> {
        let mut ended = None;
        while ended.is_none() {
            if let Some(status) = self.child.try_wait()? {
                ended = Some(how(status));
            } else if Instant::now() > until {
                self.child.kill()?;
                self.child.wait()?;
                ended = Some(Ended::Hang);
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let read = |mut file: File| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        Ok(Output {
            ended: ended.unwrap_or(Ended::Hang),
            stdout: read(self.stdout)?,
            stderr: String::from_utf8_lossy(&read(self.stderr)?).into_owned(),
        })
    }
}

fn how(status: ExitStatus) -> Ended {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            return Ended::Signal(signal);
        }
    }
    match status.code() {
        Some(0) => Ended::Success,
        Some(status) => Ended::Failure(status),
        None => Ended::Signal(0),
    }
}
