//! Known deviations: which cases a program is known not to pass, and why.
//!
//! A file with a line for each: a pattern of case ids, two spaces or a tab, the
//! reason. A `?` before the pattern says that the deviation depends on timing: not every
//! run has it. `#` begins a comment.

use crate::case::matches;
use crate::outcome::Outcome;
use crate::run::CaseResult;

/// Known deviations of a program.
#[derive(Debug, Clone, Default)]
pub struct Deviations(Vec<Row>);

#[derive(Debug, Clone)]
struct Row {
    pattern: String,
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
            let always = pattern.trim_start_matches('?');
            rows.push(Row {
                pattern: always.to_owned(),
                reason: reason.to_owned(),
                sometimes: always != pattern,
            });
        }
        Ok(Self(rows))
    }

    /// The first row with a pattern that matches.
    fn row(&self, id: &str) -> Option<&Row> {
        self.0.iter().find(|row| matches(id, &row.pattern))
    }

    /// Why a case is known to fail.
    #[must_use]
    pub fn reason(&self, id: &str) -> Option<&str> {
        self.row(id).map(|row| row.reason.as_str())
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
        let ids: Vec<_> = deviate.map(|result| result.id.as_str()).collect();
        let explains = |row: &Row| {
            let mut rows = ids.iter().filter_map(|id| self.row(id));
            rows.any(|one| std::ptr::eq(one, row))
        };
        let unused = self.0.iter().filter(|row| !row.sometimes && !explains(row));
        unused.map(|row| row.pattern.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Deviations;
    use crate::outcome::Outcome;
    use crate::run::CaseResult;

    #[test]
    fn a_deviation_needs_a_reason() {
        let text = "# known\n\nE8/*  answers ENOTSUP, as of 1.32\n?T13\treads it all\n";
        let deviations = Deviations::parse(text).expect("valid");
        assert_eq!(
            deviations.reason("E8/x"),
            Some("answers ENOTSUP, as of 1.32")
        );
        assert_eq!(deviations.reason("T13/y"), Some("reads it all"));
        assert_eq!(deviations.reason("E9/x"), None);
        assert_eq!(Deviations::parse("E8/*").err(), Some(1));
        assert_eq!(Deviations::parse("\nE8/*   \n").err(), Some(2));
    }

    #[test]
    fn a_pattern_that_explains_nothing_is_reported() {
        let text = "E8/a  one\nE8  any other\n?E9  a race\nE10  another\n";
        let deviations = Deviations::parse(text).expect("valid");
        let cases = crate::cases::all();
        let result = |id: &str, outcome| {
            let mut result = CaseResult::new(&cases[0], outcome);
            result.id = id.to_owned();
            result
        };
        let results = [
            result("E8/a", Outcome::Deviation),
            result("E10/x", Outcome::Pass),
        ];
        assert_eq!(deviations.unused(&results), ["E8", "E10"]);
    }
}
