//! A command of the user's, with placeholders in its arguments.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The command; the first argument is the program.
pub(crate) struct CommandLine(Vec<String>);

impl CommandLine {
    /// `must` is what the program must know.
    ///
    /// # Errors
    ///
    /// No argument says where the server listens.
    pub(crate) fn new(command: &[String], must: &str) -> Result<Self> {
        let command = Self(command.to_vec());
        let places = ["{uri}", "{socket}", "{port}"];
        ensure!(
            places.into_iter().any(|name| command.names(name)),
            "the command has none of {{uri}}, {{socket}} and {{port}}: {must}"
        );
        Ok(command)
    }

    /// The name of the program.
    pub(crate) fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// Whether an argument has this placeholder.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument.contains(name))
    }

    /// The command with the values of these placeholders.
    pub(crate) fn fill(&self, values: &[(&str, String)]) -> Self {
        let fill = |argument: &String| {
            let start = argument.clone();
            values
                .iter()
                .fold(start, |text, (name, value)| text.replace(name, value))
        };
        Self(self.0.iter().map(fill).collect())
    }

    /// Starts it. Its output goes into files, so that it never waits for a reader.
    ///
    /// # Errors
    ///
    /// The program cannot be started.
    pub(crate) fn start(&self, stdout: Stdio, stderr: &File) -> Result<Child> {
        let (program, arguments) = self.0.split_first().context("no command")?;
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {program}"))
    }
}
