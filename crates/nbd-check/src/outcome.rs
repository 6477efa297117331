//! What a case finds.

use std::fmt;

use crate::duty::{Duty, Level, duty};

/// The outcome of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Everything was as the specification demands.
    Pass,
    /// The server broke a `MUST`; with `--strict` also a `SHOULD`.
    Fail,
    /// The server broke a `SHOULD`.
    NonStrict,
    /// A failure that the file of known deviations explains.
    Deviation,
    /// The specification does not say what the server does.
    Informational,
    /// The server does not have what the case is about.
    Unimplemented,
    /// The case was not run, for a reason that is reported.
    Skipped,
}

impl Outcome {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Pass,
        Self::Fail,
        Self::NonStrict,
        Self::Deviation,
        Self::Informational,
        Self::Unimplemented,
        Self::Skipped,
    ];

    /// The word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NonStrict => "non-strict",
            Self::Deviation => "deviation",
            Self::Informational => "informational",
            Self::Unimplemented => "unimplemented",
            Self::Skipped => "skipped",
        }
    }

    /// The outcome of this word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A duty that the server did not meet.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The duty.
    pub duty: &'static Duty,
    /// How binding it is here.
    pub level: Level,
    /// What the specification demands.
    pub expected: String,
    /// What the server did.
    pub actual: String,
    /// Whether the program crashed: a signal ended the client, or the server ended.
    pub crash: bool,
}

impl Finding {
    /// The server broke the duty of this id.
    #[must_use]
    pub fn new(id: &str, actual: impl Into<String>) -> Self {
        let duty = duty(id);
        Self {
            duty,
            level: duty.level,
            expected: duty.text.to_owned(),
            actual: actual.into(),
            crash: false,
        }
    }

    /// The program crashed, which breaks the duty of this id.
    #[must_use]
    pub fn crash(id: &str, actual: impl Into<String>) -> Self {
        let finding = Self::new(id, actual);
        Self {
            crash: true,
            ..finding
        }
    }

    /// The same finding, as binding as `level` at most.
    #[must_use]
    pub fn at(mut self, level: Level) -> Self {
        self.level = self.level.max(level);
        self
    }

    /// The same finding, for information only: the text permits it.
    #[must_use]
    pub fn for_information(self) -> Self {
        self.at(Level::Undefined)
    }

    /// The same finding, of a `SHOULD`.
    #[must_use]
    pub fn advised(self) -> Self {
        self.at(Level::Should)
    }
}

/// Why a case ends early.
#[derive(Debug)]
pub enum Stop {
    /// The server broke a duty.
    Found(Finding),
    /// The server does not have what the case is about.
    Unimplemented(String),
    /// The case cannot be run.
    Skipped(String),
}

impl From<Finding> for Stop {
    fn from(finding: Finding) -> Self {
        Self::Found(finding)
    }
}

/// The result of a step of a case.
pub type Checked<T = ()> = Result<T, Stop>;

/// Ends the case: the server broke the duty of this id.
pub fn found<T>(id: &str, actual: impl Into<String>) -> Checked<T> {
    Err(Stop::Found(Finding::new(id, actual)))
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// It is open.
    Open,
    /// The client closed it.
    Client,
    /// The server closed it.
    Closed,
    /// The server reset it: it closed the connection before it had read everything.
    Reset,
    /// The server sent nothing within the time limit.
    Silent,
}

impl End {
    /// The words in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Client => "closed by the client",
            Self::Closed => "closed by the server",
            Self::Reset => "reset by the server",
            Self::Silent => "silent: no reply within the time limit",
        }
    }

    /// Whether the server ended the connection.
    #[must_use]
    pub const fn is_by_server(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
