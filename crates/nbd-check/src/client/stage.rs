//! Runs the command against a script: a listener, a thread for each connection, and
//! the process.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nbd_codec::uri::Uri;
use tempfile::TempDir;

use super::program::{Output, Process};
use super::script::{EXPORT, SIZE, Script, pattern};
use super::server::{Served, Server};
use crate::command::CommandLine;
use crate::stream::{Address, Listener, Stream};
use crate::tls::{Acceptor, acceptor};

/// Where the scripted server listens, and the command that connects to it.
pub(crate) struct Stage {
    /// As the user wrote it, and with the values of this stage.
    command: CommandLine,
    filled: CommandLine,
    uri: Uri,
    listener: Listener,
    pub(crate) timeout: Duration,
    pub(crate) tls: Option<Acceptor>,
    folder: TempDir,
}

/// What a run of the command leaves.
#[derive(Debug)]
pub(crate) struct Performance {
    pub(crate) output: Output,
    /// The file that the command names `{out}`.
    pub(crate) out: Option<Vec<u8>>,
    /// The content of the export at the beginning and at the end.
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
    pub(crate) connections: Vec<Served>,
}

impl Stage {
    /// `certificates` is the folder of the server's certificate, if the export is served
    /// within TLS.
    pub(crate) fn new(
        command: &[String],
        timeout: Duration,
        certificates: Option<&Path>,
    ) -> Result<Self> {
        let must = "the client must know where to connect";
        let command = CommandLine::new(command, must)?;
        let folder = tempfile::tempdir().context("cannot make a folder for a socket")?;
        let socket = folder.path().join("socket");
        let address = if command.names("{port}") || cfg!(not(unix)) {
            // The system chooses a port.
            Address::Tcp(Ipv4Addr::LOCALHOST.to_string(), 0)
        } else {
            Address::Unix(socket.clone())
        };
        let listener = Listener::bind(&address)?;
        let port = listener.port()?;
        let mut uri = match port {
            Some(port) => Uri::tcp(Ipv4Addr::LOCALHOST, port, EXPORT)?,
            None => Uri::unix(socket.as_os_str().as_encoded_bytes(), EXPORT)?,
        };
        if let Some(folder) = certificates {
            let text = uri.require_tls().to_string();
            let sign = if text.contains('?') { '&' } else { '?' };
            let folder = folder.display();
            uri = Uri::parse(format!("{text}{sign}tls-certificates={folder}"))?;
        }
        let port = port.map_or(String::new(), |port| port.to_string());
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        fs::write(folder.path().join("in"), pattern(true))?;
        let values = [
            ("{uri}", uri.to_string()),
            ("{socket}", socket.to_string_lossy().into_owned()),
            ("{port}", port),
            ("{in}", path("in")),
            ("{out}", path("out")),
        ];
        Ok(Self {
            filled: command.fill(&values),
            command,
            uri,
            listener,
            timeout,
            tls: certificates.map(acceptor).transpose()?,
            folder,
        })
    }

    /// The name of the program.
    pub(crate) fn program(&self) -> &str {
        self.command.program()
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether the command writes the content of `{in}`.
    pub(crate) fn has_input(&self) -> bool {
        self.command.names("{in}")
    }

    /// No run takes longer, whatever client and server do.
    pub(crate) fn longest(&self) -> Duration {
        self.timeout * 10
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Runs the command against the script.
    ///
    /// # Errors
    ///
    /// The command cannot be started, or its output cannot be read.
    pub(crate) fn perform(&self, script: &Script) -> Result<Performance> {
        let before = script.disk();
        let disk = Mutex::new(before.clone());
        let (output, connections) = self.run(|_, stream, deadline| {
            let tls = self.tls.as_ref();
            Server::serve(stream, script, &disk, tls, self.timeout * 4, deadline)
        })?;
        Ok(Performance {
            output,
            out: self.command.names("{out}").then(|| read_file(&self.out())),
            before,
            after: disk.into_inner().unwrap_or_default(),
            connections,
        })
    }

    /// Runs the command, and calls `serve` for each of its connections: with its number,
    /// from 0, and the time at which it has to end. Returns the answers in the order of
    /// the connections.
    ///
    /// # Errors
    ///
    /// The command cannot be started, or its output cannot be read.
    pub(crate) fn run<R: Send>(
        &self,
        serve: impl Fn(usize, Stream, Instant) -> R + Sync,
    ) -> Result<(Output, Vec<R>)> {
        let _ = fs::remove_file(self.out());
        // Clients of an earlier run that were never accepted.
        while self.listener.accept(self.timeout).is_ok() {}
        let connections = Mutex::new(Vec::new());
        let deadline = Instant::now() + self.longest();
        let mut process = Process::start(&self.filled, self.folder.path())?;
        let output = thread::scope(|scope| {
            let mut threads = Vec::new();
            // Until the command ends, or has had its time after the last connection.
            let mut quiet = Instant::now();
            let mut until = deadline;
            while !process.has_ended() && Instant::now() < until {
                if let Ok(stream) = self.listener.accept(self.timeout) {
                    let (serve, connections) = (&serve, &connections);
                    let index = threads.len();
                    threads.push(scope.spawn(move || {
                        let served = serve(index, stream.into(), deadline);
                        if let Ok(mut connections) = connections.lock() {
                            connections.push((index, served));
                        }
                    }));
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
                if threads.iter().any(|thread| !thread.is_finished()) {
                    quiet = Instant::now();
                }
                until = deadline.min(quiet + self.timeout);
            }
            process.wait(Instant::now())
        })?;
        let mut connections = connections.into_inner().unwrap_or_default();
        connections.sort_by_key(|(index, _)| *index);
        let answers = connections.into_iter().map(|(_, answer)| answer);
        Ok((output, answers.collect()))
    }
}

/// The content of a file, and no more of it than shows that it is too long; nothing if
/// there is no file.
fn read_file(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(SIZE + 1).read_to_end(&mut bytes);
    }
    bytes
}
