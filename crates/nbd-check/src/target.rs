//! The server that is tested: one that runs, or a program that is started, and
//! started again if it ends.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nbd_codec::uri::Uri;
use tempfile::TempDir;

use crate::command::CommandLine;
use crate::stream::Address;

/// The server that is tested.
pub struct Target {
    uri: Uri,
    address: Address,
    program: Option<Program>,
}

/// A server that is started.
struct Program {
    command: CommandLine,
    child: Child,
    restarts: usize,
    /// Holds the socket, and what the server writes to standard error.
    folder: TempDir,
}

impl Program {
    /// How it ended, with the line of standard error that `choose` takes.
    fn ended(&self, status: ExitStatus, choose: impl Fn(Vec<&str>) -> Option<&str>) -> String {
        let text = std::fs::read(stderr(&self.folder)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        match choose(lines.collect()) {
            Some(line) => format!("{status}: {line}"),
            None => status.to_string(),
        }
    }
}

fn stderr(folder: &TempDir) -> PathBuf {
    folder.path().join("stderr")
}

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(20);

impl Target {
    /// A server that runs already.
    ///
    /// # Errors
    ///
    /// The URI has a transport that is not supported.
    pub fn running(uri: Uri) -> Result<Self> {
        Ok(Self {
            address: Address::of(&uri)?,
            uri,
            program: None,
        })
    }

    /// Starts a server. In the arguments `{uri}` becomes the URI to listen on,
    /// `{socket}` the path of its socket, and `{port}` a free TCP port on the local
    /// machine instead. `export` is the name of the export that is tested.
    ///
    /// # Errors
    ///
    /// No argument says where to listen, or the server does not start.
    pub fn start(command: &[String], export: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for a socket")?;
        let command = CommandLine::new(command, "the server must know where to listen")?;
        let socket = folder.path().join("socket");
        let uri = if command.names("{port}") || cfg!(not(unix)) {
            Uri::tcp(std::net::Ipv4Addr::LOCALHOST, free_port()?, export)?
        } else {
            Uri::unix(socket.as_os_str().as_encoded_bytes(), export)?
        };
        let address = Address::of(&uri)?;
        let port = match &address {
            Address::Tcp(_, port) => port.to_string(),
            Address::Unix(_) => String::new(),
        };
        let command = command.fill(&[
            ("{uri}", uri.to_string()),
            ("{socket}", socket.to_string_lossy().into_owned()),
            ("{port}", port),
        ]);
        let child = start(&command, &folder)?;
        let mut target = Self {
            uri,
            address,
            program: Some(Program {
                command,
                child,
                restarts: 0,
                folder,
            }),
        };
        target.wait_until_it_listens()?;
        Ok(target)
    }

    /// Where it listens, and the export that is tested.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the tester started the server, and starts it again if it ends.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.program.is_some()
    }

    /// How often the server had to be started again.
    #[must_use]
    pub fn restarts(&self) -> usize {
        self.program.as_ref().map_or(0, |program| program.restarts)
    }

    /// How the server ended, if it does `within` this time; it is started again.
    ///
    /// # Errors
    ///
    /// It does not start again.
    pub fn restart_if_ended(&mut self, within: Duration) -> Result<Option<String>> {
        let Some(program) = &mut self.program else {
            return Ok(None);
        };
        let until = Instant::now() + within;
        let status = loop {
            match program.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() >= until => return Ok(None),
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        // An assertion that fails is the last that a server says.
        let ended = program.ended(status, |lines| lines.last().copied());
        program.restarts += 1;
        program.child = {
            // Some servers refuse to replace the socket of an earlier one.
            let _ = std::fs::remove_file(program.folder.path().join("socket"));
            start(&program.command, &program.folder)?
        };
        self.wait_until_it_listens()?;
        Ok(Some(ended))
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let until = Instant::now() + START;
        loop {
            match self.address.connect(START) {
                Ok(_) => break,
                Err(error) if Instant::now() > until => {
                    return Err(error.context("the server does not listen"));
                }
                Err(_) => {}
            }
            if let Some(program) = &mut self.program
                && let Some(status) = program.child.try_wait()?
            {
                // A usage text follows the error.
                let ended = program.ended(status, |lines| lines.first().copied());
                bail!("the server ended before it listened: {ended}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        // Some servers end with the connection that only looked.
        if let Some(program) = &mut self.program {
            thread::sleep(Duration::from_millis(20));
            if let Some(status) = program.child.try_wait()? {
                bail!(
                    "the server ended after one connection ({status}): it must serve any \
                     number of them (qemu-nbd: --persistent --shared=0)"
                );
            }
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(program) = &mut self.program {
            let _ = program.child.kill();
            let _ = program.child.wait();
        }
    }
}

fn start(command: &CommandLine, folder: &TempDir) -> Result<Child> {
    let stderr = File::create(stderr(folder)).context("cannot make a file for standard error")?;
    command.start(Stdio::null(), &stderr)
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
