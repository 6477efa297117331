//! The report on a terminal.

use std::fmt::Write;

use super::{Report, Row, mark};
use crate::outcome::Outcome;

impl Report {
    /// The report as text: for each section of the specification what passed, and
    /// requirement, expectation and behaviour of what did not. With `all`, a line for
    /// every case.
    #[must_use]
    pub fn text(&self, all: bool) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "NBD {}: {}", self.side.as_str(), self.name);
        for (what, value) in &self.about {
            let _ = writeln!(text, "  {what}: {value}");
        }
        for section in self.sections() {
            let rows: Vec<_> = self.rows_of(section).collect();
            let passed = rows
                .iter()
                .filter(|row| row.outcome == Outcome::Pass)
                .count();
            let run = rows
                .iter()
                .filter(|row| !matches!(row.outcome, Outcome::Skipped | Outcome::Unimplemented))
                .count();
            if run == 0 && !all {
                continue;
            }
            let _ = writeln!(text, "\n{section}: {passed} of {run} passed");
            for row in rows {
                let quiet = matches!(
                    row.outcome,
                    Outcome::Pass | Outcome::Skipped | Outcome::Unimplemented
                );
                if all || !quiet {
                    put_row(&mut text, row);
                }
            }
        }
        let counts = Outcome::ALL.map(|outcome| format!("{} {outcome}", self.count(outcome)));
        let seconds = self.time.as_secs_f64();
        let _ = writeln!(
            text,
            "\n{} cases in {seconds:.1} s: {}",
            self.rows.len(),
            counts.join(", ")
        );
        text
    }
}

fn put_row(text: &mut String, row: &Row) {
    let mark = mark(row.outcome);
    let _ = writeln!(
        text,
        "  {mark} {} ({}): {}",
        row.id, row.level, row.requirement
    );
    if let Some(reason) = &row.reason {
        let _ = writeln!(text, "      {}: {reason}", row.outcome);
    }
    if !row.findings.is_empty() {
        let _ = writeln!(text, "      Sent:     {}", row.sends);
        let _ = writeln!(text, "      Expected: {}", row.expects);
    }
    for finding in &row.findings {
        let _ = writeln!(text, "      Actual:   {}", finding.actual);
        if !row.id.starts_with(&format!("{}/", finding.duty)) || finding.level != row.level {
            let _ = writeln!(
                text,
                "                {} ({}, {}): {}",
                finding.duty, finding.section, finding.level, finding.expected
            );
        }
    }
    if let (Some(end), false) = (&row.end, row.findings.is_empty()) {
        let _ = writeln!(text, "      The last connection: {end}");
    }
}
