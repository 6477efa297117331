//! The report as JUnit XML, for systems that show test results.

use std::fmt::Write;

use super::Report;
use super::html::escape;
use crate::outcome::Outcome;

impl Report {
    /// The report as JUnit XML: a suite for each section of the specification.
    #[must_use]
    pub fn junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            xml,
            "<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
            escape(&self.name),
            self.rows.len(),
            self.count(Outcome::Fail),
            self.count(Outcome::Skipped) + self.count(Outcome::Unimplemented),
            self.time.as_secs_f64()
        );
        for section in self.sections() {
            let rows: Vec<_> = self.rows_of(section).collect();
            let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
            let _ = writeln!(
                xml,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
                escape(section),
                rows.len(),
                count(Outcome::Fail),
                count(Outcome::Skipped) + count(Outcome::Unimplemented),
            );
            for row in &rows {
                let _ = write!(
                    xml,
                    "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
                    escape(section),
                    escape(&row.id),
                    row.time.as_secs_f64()
                );
                let actual: Vec<_> = row.findings.iter().map(|one| one.actual.as_str()).collect();
                let actual = escape(&actual.join("; "));
                let reason = escape(row.reason.as_deref().unwrap_or_default());
                let _ = match row.outcome {
                    Outcome::Pass => writeln!(xml, "/>"),
                    Outcome::Fail => writeln!(
                        xml,
                        "><failure message=\"{actual}\">{}</failure></testcase>",
                        escape(row.transcript.as_deref().unwrap_or_default())
                    ),
                    Outcome::Skipped | Outcome::Unimplemented => writeln!(
                        xml,
                        "><skipped message=\"{}: {reason}\"/></testcase>",
                        row.outcome
                    ),
                    Outcome::NonStrict | Outcome::Deviation | Outcome::Informational => writeln!(
                        xml,
                        "><system-out>{}: {actual} {reason}</system-out></testcase>",
                        row.outcome
                    ),
                };
            }
            xml.push_str("  </testsuite>\n");
        }
        xml.push_str("</testsuites>\n");
        xml
    }
}
