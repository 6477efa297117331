//! Reports of a run: text, JSON, JUnit, HTML.

mod html;
mod json;
mod junit;
mod text;

use std::time::Duration;

pub use html::html;

use crate::duty::Level;
use crate::outcome::Outcome;
use crate::run::CaseResult;
use crate::transcript;

/// The side of a program that is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A server.
    Server,
    /// A client.
    Client,
}

impl Side {
    /// The word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A run, as it is written and read again.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The side of the program.
    pub side: Side,
    /// What the program is called in the report.
    pub name: String,
    /// Where the server listened.
    pub uri: String,
    /// What the program is and has: names and values.
    pub about: Vec<(String, String)>,
    /// How long the run took.
    pub time: Duration,
    /// The cases in order.
    pub rows: Vec<Row>,
}

/// A case in a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The case's id.
    pub id: String,
    /// The heading in the specification.
    pub section: String,
    /// `MUST`, `SHOULD` or `undefined`.
    pub level: String,
    /// The requirement.
    pub requirement: String,
    /// What the tester sent.
    pub sends: String,
    /// What the program may answer.
    pub expects: String,
    /// The outcome.
    pub outcome: Outcome,
    /// What was found.
    pub findings: Vec<RowFinding>,
    /// Why it was skipped, or what explains the deviation.
    pub reason: Option<String>,
    /// How the last connection ended.
    pub end: Option<String>,
    /// How long it took.
    pub time: Duration,
    /// The transcript, if something was found.
    pub transcript: Option<String>,
}

/// A duty that was not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFinding {
    /// The duty's id.
    pub duty: String,
    /// Its heading in the specification.
    pub section: String,
    /// How binding it is here.
    pub level: String,
    /// The requirement.
    pub expected: String,
    /// What the program did.
    pub actual: String,
}

impl Report {
    /// The report of these results.
    #[must_use]
    pub fn new(
        side: Side,
        name: &str,
        uri: &str,
        about: Vec<(String, String)>,
        results: &[CaseResult],
        time: Duration,
    ) -> Self {
        Self {
            side,
            name: name.to_owned(),
            uri: uri.to_owned(),
            about,
            time,
            rows: results.iter().map(Row::new).collect(),
        }
    }

    /// How many cases have this outcome.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.rows
            .iter()
            .filter(|row| row.outcome == outcome)
            .count()
    }

    /// The headings of the specification, in the order of the rows.
    fn sections(&self) -> Vec<&str> {
        let mut sections: Vec<&str> = Vec::new();
        for duty in crate::duty::all() {
            let used = self.rows.iter().any(|row| row.section == duty.section);
            if used && !sections.contains(&duty.section) {
                sections.push(duty.section);
            }
        }
        sections
    }

    fn rows_of(&self, section: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.section == section)
    }
}

impl Row {
    fn new(result: &CaseResult) -> Self {
        let shown = !result.findings.is_empty();
        let findings = result.findings.iter().map(|finding| RowFinding {
            duty: finding.duty.id.to_owned(),
            section: finding.duty.section.to_owned(),
            level: finding.level.to_string(),
            expected: finding.expected.clone(),
            actual: finding.actual.clone(),
        });
        Self {
            id: result.id.clone(),
            section: result.section.clone(),
            level: result.level.to_string(),
            requirement: result.requirement.clone(),
            sends: result.sends.clone(),
            expects: result.expects.clone(),
            outcome: result.outcome,
            findings: findings.collect(),
            reason: result.reason.clone(),
            end: result.end.map(|end| end.to_string()),
            time: result.time,
            transcript: shown.then(|| transcript_of(result)),
        }
    }
}

/// The transcript of a case, with its meaning in comments.
#[must_use]
pub fn transcript_of(result: &CaseResult) -> String {
    let mut text = format!(
        "# nbd-check {}\n# {} ({})\n# requirement: {}\n# sends: {}\n# expects: {}\n",
        result.id, result.section, result.level, result.requirement, result.sends, result.expects,
    );
    for finding in &result.findings {
        let (duty, level) = (finding.duty, finding.level);
        text.push_str(&format!(
            "# found: {} ({}, {level}): {}\n",
            duty.id, duty.section, finding.actual
        ));
    }
    text.push_str(&transcript::write(&result.transcript));
    text
}

/// The mark of an outcome in text and HTML.
const fn mark(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "✓",
        Outcome::Fail => "✗",
        Outcome::NonStrict => "!",
        Outcome::Deviation => "≠",
        Outcome::Informational => "i",
        Outcome::Unimplemented => "-",
        Outcome::Skipped => "·",
    }
}

/// Whether a level word is the one of a `MUST`.
fn is_must(level: &str) -> bool {
    level == Level::Must.as_str()
}
