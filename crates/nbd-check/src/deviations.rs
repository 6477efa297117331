//! Known deviations: which cases a program is known not to pass, and why.
//!
//! A file with a line for each: a pattern of case ids, two spaces or a tab, the
//! reason. A pattern that ends with a colon and a duty explains nothing but a breach of
//! this duty. A `?` before the pattern says that the deviation depends on timing: not
//! every run has it. The first line that matches counts. `#` begins a comment.

use crate::case::matches;
use crate::duty::Level;
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
    /// The only duty that it explains.
    duty: Option<String>,
    reason: String,
    /// Not every run has it.
    sometimes: bool,
}

impl Deviations {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The number of the first line without a reason.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut rows = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (pattern, reason) = line
                .split_once([' ', '\t'])
                .map(|(pattern, reason)| (pattern, reason.trim()))
                .filter(|(_, reason)| !reason.is_empty())
                .ok_or(index + 1)?;
            let always = pattern.strip_prefix('?');
            let cases = always.unwrap_or(pattern);
            let (cases, duty) = match cases.split_once(':') {
                Some((cases, duty)) => (cases, Some(duty.to_owned())),
                None => (cases, None),
            };
            rows.push(Row {
                text: pattern.to_owned(),
                cases: cases.to_owned(),
                duty,
                reason: reason.to_owned(),
                sometimes: always.is_some(),
            });
        }
        Ok(Self(rows))
    }

    /// The first row that matches.
    fn row(&self, result: &CaseResult) -> Option<&Row> {
        self.0.iter().find(|row| {
            let explains = |duty: &String| {
                let mut findings = result.findings.iter();
                findings.all(|one| one.level == Level::Undefined || one.duty.id == duty)
            };
            matches(&result.id, &row.cases) && row.duty.as_ref().is_none_or(explains)
        })
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
        assert_eq!(Deviations::parse("E8/*").err(), Some(1));
        assert_eq!(Deviations::parse("\nE8/*   \n").err(), Some(2));
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
