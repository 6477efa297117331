#![doc = include_str!("../../docs/fuzzing.md")]

mod attack;
pub mod example;
mod expect;
pub mod format;
mod lengths;
mod link;
pub mod messages;
mod model;
mod options;
mod requests;
pub mod script;
mod serve;

use std::fmt;
use std::io::{Read, Write};

use self::attack::Attack;
use self::link::Link;
pub use self::link::Pipe;
pub use self::script::{ClientScript, ServerScript};
use self::serve::Serve;
use crate::connection::Shared;
use crate::duty::Level;
use crate::outcome::{Checked, Finding, Stop};
use crate::stream::Stream;
use crate::transcript;

/// How a server is attacked.
#[derive(Debug, Clone)]
pub struct Fuzz {
    export: String,
    level: Level,
    trace: bool,
}

impl Default for Fuzz {
    fn default() -> Self {
        Self::new()
    }
}

impl Fuzz {
    /// The default export, and the duties that are `MUST`.
    #[must_use]
    pub fn new() -> Self {
        Self {
            export: String::new(),
            level: Level::Must,
            trace: std::env::var_os("NBD_FUZZ_TRACE").is_some(),
        }
    }

    /// The name of the export that is read and written.
    #[must_use]
    pub fn export(mut self, name: impl Into<String>) -> Self {
        self.export = name.into();
        self
    }

    /// Whether a broken `SHOULD` is a failure as well.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.level = if strict { Level::Should } else { Level::Must };
        self
    }

    /// Runs a script against a server that serves one connection and returns.
    ///
    /// The content of the export may be anything. A read must return what was read or
    /// written in the same script before.
    ///
    /// # Errors
    ///
    /// The server broke a duty.
    pub fn server<T>(
        &self,
        script: &ServerScript,
        serve: impl FnOnce(&mut Pipe<'_>) -> T,
    ) -> Result<(), Failure> {
        let link = Link::default();
        let stream = Stream::Other(Box::new(link.clone()));
        let mut attack = Attack::new(script, &self.export, stream, Some(link.clone()));
        let mut result = Ok(());
        let mut traced = 0;
        let mut advance = || {
            let more = match &result {
                Err(_) => false,
                Ok(()) => attack.advance().unwrap_or_else(|stop| {
                    result = Err(stop);
                    false
                }),
            };
            self.trace(&attack.record, &mut traced);
            more
        };
        serve(&mut Pipe::new(link.clone(), &script.pieces.0, &mut advance));
        link.close();
        if result.is_ok() {
            result = attack.finish();
        }
        self.outcome(result, &attack.record, script)
    }

    /// Runs a script against a server that maps the bytes it receives to the bytes it
    /// sends; `None` closes the connection. The first call has no bytes: it is for the
    /// greeting.
    ///
    /// # Errors
    ///
    /// The server broke a duty.
    pub fn server_of_bytes(
        &self,
        script: &ServerScript,
        mut answer: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<(), Failure> {
        self.server(script, |pipe| {
            let mut buffer = vec![0; 1 << 16];
            let mut received = 0;
            while let Some(bytes) = answer(buffer.get(..received).unwrap_or_default()) {
                let sent = pipe.write_all(&bytes);
                match sent.and_then(|()| pipe.read(&mut buffer)) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => received = n,
                }
            }
        })
    }

    /// Runs a script over a connection to a server that runs elsewhere: a socket, or
    /// any other stream whose reads wait. A read that fails with `WouldBlock` or
    /// `TimedOut` is the end of the time that a reply may take.
    ///
    /// # Errors
    ///
    /// The server broke a duty.
    pub fn connection(
        &self,
        script: &ServerScript,
        stream: impl Read + Write + 'static,
    ) -> Result<(), Failure> {
        let stream = Stream::Other(Box::new(stream));
        let mut attack = Attack::new(script, &self.export, stream, None);
        let result = loop {
            match attack.advance() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(stop) => break Err(stop),
            }
        };
        self.outcome(result, &attack.record, script)
    }

    /// Runs a script against a client of the default export. `run` gets the stream and
    /// what the export holds; it connects, reads, writes and disconnects, and panics if
    /// it gets other data without an error.
    ///
    /// # Errors
    ///
    /// The client broke a rule while the server kept to all of them, or it waits for
    /// what is not due.
    pub fn client<T>(
        &self,
        script: &ClientScript,
        run: impl FnOnce(&mut Pipe<'_>, &[u8]) -> T,
    ) -> Result<(), Failure> {
        let link = Link::default();
        let mut serve = Serve::new(script, link.clone());
        let mut fault = None;
        let mut traced = 0;
        let mut advance = || {
            let more = serve.advance().unwrap_or_else(|text| {
                fault.get_or_insert(text);
                false
            });
            self.trace(&serve.record, &mut traced);
            more
        };
        let mut pipe = Pipe::new(link.clone(), &script.pieces.0, &mut advance);
        run(&mut pipe, &serve::content());
        link.close();
        // What it sent last.
        let _ = serve.advance().map_err(|text| fault.get_or_insert(text));
        match fault {
            None => Ok(()),
            Some(fault) => Err(Failure {
                findings: Vec::new(),
                fault,
                transcript: transcript::write(&serve.record.borrow().entries),
                script: format!("{script:?}"),
            }),
        }
    }

    /// Prints what was sent and received since the last call.
    fn trace(&self, record: &Shared, traced: &mut usize) {
        if self.trace {
            let entries = &record.borrow().entries;
            eprint!(
                "{}",
                transcript::write(entries.get(*traced..).unwrap_or_default())
            );
            *traced = entries.len();
        }
    }

    fn outcome(
        &self,
        result: Checked,
        record: &Shared,
        script: &dyn fmt::Debug,
    ) -> Result<(), Failure> {
        let mut findings = std::mem::take(&mut record.borrow_mut().findings);
        if let Err(Stop::Found(finding)) = result {
            findings.push(finding);
        }
        findings.retain(|finding| finding.level <= self.level);
        if findings.is_empty() {
            return Ok(());
        }
        Err(Failure {
            findings,
            fault: String::new(),
            transcript: transcript::write(&record.borrow().entries),
            script: format!("{script:?}"),
        })
    }
}

impl ServerScript {
    /// Runs the script against a server of the default export: see [`Fuzz::server`].
    ///
    /// # Panics
    ///
    /// If the server broke a duty; the message has the transcript.
    pub fn attack<T>(&self, serve: impl FnOnce(&mut Pipe<'_>) -> T) {
        if let Err(failure) = Fuzz::new().server(self, serve) {
            panic!("{failure}");
        }
    }
}

impl ClientScript {
    /// Runs the script against a client of the default export: see [`Fuzz::client`].
    ///
    /// # Panics
    ///
    /// If the client broke a rule; the message has the transcript.
    pub fn attack<T>(&self, run: impl FnOnce(&mut Pipe<'_>, &[u8]) -> T) {
        if let Err(failure) = Fuzz::new().client(self, run) {
            panic!("{failure}");
        }
    }
}

/// What a script has found, and how.
#[derive(Debug, Clone)]
pub struct Failure {
    findings: Vec<Finding>,
    /// What a client did wrong.
    fault: String,
    transcript: String,
    script: String,
}

impl Failure {
    /// The duties that a server broke.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The messages, as `nbd-check replay` takes them.
    #[must_use]
    pub fn transcript(&self) -> &str {
        &self.transcript
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { duty, actual, .. } in &self.findings {
            writeln!(
                f,
                "{} ({}, {}): {}",
                duty.id, duty.section, duty.level, duty.text
            )?;
            writeln!(f, "    {actual}")?;
        }
        if !self.fault.is_empty() {
            writeln!(f, "{}", self.fault)?;
        }
        writeln!(f, "{}", self.transcript)?;
        write!(f, "{}", self.script)
    }
}

impl std::error::Error for Failure {}
