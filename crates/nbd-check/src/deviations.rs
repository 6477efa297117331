//! Known deviations: which cases a program is known not to pass, and why.
//!
//! A file with a line for each: a pattern of case ids, two spaces or a tab, the
//! reason. After the pattern, `:DUTY` explains nothing but a breach of this duty, and
//! `:crash` explains that the program crashed, which no other line does. A `?` before the
//! pattern says that the deviation depends on timing: not every run has it. The first line
//! that matches counts. `#` begins a comment.

use anyhow::{Context, Result, ensure};

use crate::case::matches;
use crate::duty::{self, Level};
use crate::outcome::Outcome;
use crate::run::CaseResult;

/// Known deviations of a program.
#[derive(Debug, Clone, Default)]
pub struct Deviations(Vec<Row>);

#[derive(Debug, Clone)]
struct Row {
    /// As it is in the file, and the pattern of cases in it.
    text: String,
    cases: String,
    explains: Explains,
    reason: String,
    /// Not every run has it.
    sometimes: bool,
}

/// What a row explains.
#[derive(Debug, Clone)]
enum Explains {
    /// All but a crash.
    Findings,
    /// A breach of this duty alone.
    Duty(String),
    /// That the program crashed.
    Crash,
}

impl Explains {
    fn parse(text: &str) -> Result<Self> {
        if text == "crash" {
            return Ok(Self::Crash);
        }
        let known = duty::all().any(|duty| duty.id == text);
        ensure!(known, "there is no duty {text}");
        Ok(Self::Duty(text.to_owned()))
    }

    fn matches(&self, result: &CaseResult) -> bool {
        let mut findings = result.findings.iter();
        if findings.clone().any(|one| one.crash) {
            return matches!(self, Self::Crash);
        }
        match self {
            Self::Findings => true,
            Self::Duty(duty) => {
                findings.all(|one| one.level == Level::Undefined || one.duty.id == duty)
            }
            Self::Crash => false,
        }
    }
}

impl Row {
    fn parse(line: &str) -> Result<Self> {
        let (text, reason) = line
            .split_once([' ', '\t'])
            .context("a reason is missing after the pattern")?;
        let always = text.strip_prefix('?');
        let cases = always.unwrap_or(text);
        let (cases, explains) = match cases.split_once(':') {
            Some((cases, explains)) => (cases, Explains::parse(explains)?),
            None => (cases, Explains::Findings),
        };
        Ok(Self {
            text: text.to_owned(),
            cases: cases.to_owned(),
            explains,
            reason: reason.trim().to_owned(),
            sometimes: always.is_some(),
        })
    }
}

impl Deviations {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The number of the first line that has no reason, or names an unknown duty.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rows = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let row = Row::parse(line).with_context(|| format!("line {}", index + 1))?;
            rows.push(row);
        }
        Ok(Self(rows))
    }

    /// The first row that matches.
    fn row(&self, result: &CaseResult) -> Option<&Row> {
        let mut rows = self.0.iter();
        rows.find(|row| matches(&result.id, &row.cases) && row.explains.matches(result))
    }

    /// Why a case is known to fail so.
    #[must_use]
    pub fn reason(&self, result: &CaseResult) -> Option<&str> {
        self.row(result).map(|row| row.reason.as_str())
    }

    /// The reasons, in the order of the file.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|row| row.reason.as_str())
    }

    /// The patterns that explained none of these results, and should have: the program
    /// is better than they say.
    #[must_use]
    pub fn unused(&self, results: &[CaseResult]) -> Vec<&str> {
        let deviate = results
            .iter()
            .filter(|result| result.outcome == Outcome::Deviation);
        let used: Vec<_> = deviate.filter_map(|result| self.row(result)).collect();
        let explains = |row: &Row| used.iter().any(|one| std::ptr::eq(*one, row));
        let unused = self.0.iter().filter(|row| !row.sometimes && !explains(row));
        unused.map(|row| row.text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Deviations;
    use crate::outcome::{Finding, Outcome};
    use crate::run::CaseResult;

    fn result(id: &str, outcome: Outcome, duty: &str) -> CaseResult {
        let mut result = CaseResult::new(&crate::cases::all()[0], outcome);
        result.id = id.to_owned();
        result.findings.push(Finding::new(duty, "otherwise"));
        result
    }

    #[test]
    fn a_deviation_needs_a_reason() {
        let text = "# known\n\nE8/*  answers ENOTSUP, as of 1.32\n?T13\treads it all\n*:B4  closes";
        let deviations = Deviations::parse(text).expect("valid");
        for (id, duty, reason) in [
            ("E8/x", "E8", Some("answers ENOTSUP, as of 1.32")),
            ("T13/y", "E8", Some("reads it all")),
            ("E9/x", "E8", None),
            ("E9/x", "B4", Some("closes")),
        ] {
            let result = result(id, Outcome::Fail, duty);
            assert_eq!(deviations.reason(&result), reason, "{id}");
        }
        for (text, error) in [
            ("E8/*", "line 1: a reason is missing after the pattern"),
            (
                "\nE8/*   \n",
                "line 2: a reason is missing after the pattern",
            ),
            ("*:X99  hangs", "line 1: there is no duty X99"),
        ] {
            let found = Deviations::parse(text).map_err(|error| format!("{error:#}"));
            assert_eq!(found.err().as_deref(), Some(error));
        }
    }

    /// A line about anything else, a hang as well, does not explain a crash.
    #[test]
    fn a_crash_is_explained_by_a_line_about_it() {
        let text = "?*:X3  hangs\nR94  ignores gaps\nM3/*:crash  an assertion\n";
        let deviations = Deviations::parse(text).expect("valid");
        for (id, duty, reason, reason_of_a_crash) in [
            ("E8/x", "X3", Some("hangs"), None),
            ("R94/x", "X7", Some("ignores gaps"), None),
            ("M3/x", "X3", Some("hangs"), Some("an assertion")),
            ("M3/x", "M3", None, Some("an assertion")),
        ] {
            let mut result = result(id, Outcome::Fail, duty);
            assert_eq!(deviations.reason(&result), reason, "{id}");
            result
                .findings
                .push(Finding::crash(duty, "ended by signal 6"));
            assert_eq!(deviations.reason(&result), reason_of_a_crash, "{id}");
        }
    }

    #[test]
    fn a_pattern_that_explains_nothing_is_reported() {
        let text = "E8/a  one\nE8  any other\n?E9  a race\nE10:B4  another\n";
        let deviations = Deviations::parse(text).expect("valid");
        let results = [
            result("E8/a", Outcome::Deviation, "E8"),
            result("E10/x", Outcome::Pass, "B4"),
        ];
        assert_eq!(deviations.unused(&results), ["E8", "E10:B4"]);
    }
}
