//! One page for any number of reports: a matrix, and what was found.

use std::fmt::Write;

use super::{Report, Row, is_must, mark};
use crate::outcome::Outcome;

const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { border: 1px solid #8884; padding: .25rem .5rem; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: Canvas; }
td.v { text-align: center; white-space: nowrap; font-weight: 600; }
.section th { background: #8882; }
.pass { background: #2a92; } .fail { background: #e335; } .non-strict { background: #fa04; }
.deviation { background: #a6f3; } .informational { background: #39f3; }
.unimplemented, .skipped { opacity: .55; }
pre { overflow: auto; max-height: 24rem; background: #8881; padding: .75rem; font-size: 13px; }
code { font-size: 13px; } details { margin: .5rem 0; }
";

/// Escapes text for HTML and XML. Characters that XML cannot have are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A page with a matrix of these reports. It loads nothing.
#[must_use]
pub fn html(reports: &[Report]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>NBD conformance</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>NBD conformance</h1>\n"
    );
    summary(&mut page, reports);
    matrix(&mut page, reports);
    for (index, report) in reports.iter().enumerate() {
        details(&mut page, report, index);
    }
    page.push_str("</body></html>\n");
    page
}

fn summary(page: &mut String, reports: &[Report]) {
    page.push_str("<table><thead><tr><th>program</th>");
    for outcome in Outcome::ALL {
        let _ = write!(page, "<th>{} {outcome}</th>", mark(outcome));
    }
    page.push_str("<th>seconds</th></tr></thead><tbody>\n");
    for report in reports {
        let _ = write!(page, "<tr><th>{}</th>", escape(&report.name));
        for outcome in Outcome::ALL {
            let count = report.count(outcome);
            let class = if count > 0 {
                outcome.as_str()
            } else {
                "skipped"
            };
            let _ = write!(page, "<td class=\"v {class}\">{count}</td>");
        }
        let _ = writeln!(page, "<td>{:.1}</td></tr>", report.time.as_secs_f64());
    }
    page.push_str("</tbody></table>\n");
}

fn matrix(page: &mut String, reports: &[Report]) {
    page.push_str("<table><thead><tr><th>case</th><th>requirement</th>");
    for report in reports {
        let _ = write!(page, "<th>{}</th>", escape(&report.name));
    }
    page.push_str("</tr></thead><tbody>\n");
    let columns = reports.len() + 2;
    // The reports may be of different selections of cases.
    let mut seen: Vec<&str> = Vec::new();
    for section in reports.iter().flat_map(Report::sections) {
        if seen.contains(&section) {
            continue;
        }
        seen.push(section);
        let _ = writeln!(
            page,
            "<tr class=\"section\"><th colspan=\"{columns}\">{}</th></tr>",
            escape(section)
        );
        let mut ids: Vec<&str> = Vec::new();
        for row in reports.iter().flat_map(|report| report.rows_of(section)) {
            if ids.contains(&row.id.as_str()) {
                continue;
            }
            ids.push(&row.id);
            let level = if is_must(&row.level) {
                "MUST"
            } else {
                &row.level
            };
            let _ = write!(
                page,
                "<tr><td><code>{}</code></td><td title=\"{}\">{} <small>{level}</small></td>",
                escape(&row.id),
                escape(&format!("{} → {}", row.sends, row.expects)),
                escape(&row.requirement)
            );
            for (index, report) in reports.iter().enumerate() {
                cell(page, report.rows.iter().find(|one| one.id == row.id), index);
            }
            page.push_str("</tr>\n");
        }
    }
    page.push_str("</tbody></table>\n");
}

fn cell(page: &mut String, row: Option<&Row>, index: usize) {
    let Some(row) = row else {
        page.push_str("<td></td>");
        return;
    };
    let actual: Vec<_> = row.findings.iter().map(|one| one.actual.as_str()).collect();
    let mut title = format!("{}: {}", row.outcome, actual.join("; "));
    if let Some(reason) = &row.reason {
        title.push_str(reason);
    }
    let _ = write!(
        page,
        "<td class=\"v {}\" title=\"{}\">",
        row.outcome,
        escape(&title)
    );
    if row.findings.is_empty() {
        page.push_str(mark(row.outcome));
    } else {
        let id = escape(&row.id);
        let _ = write!(page, "<a href=\"#r{index}-{id}\">{}</a>", mark(row.outcome));
    }
    page.push_str("</td>");
}

fn details(page: &mut String, report: &Report, index: usize) {
    let _ = writeln!(page, "<h2>{}</h2>\n<ul>", escape(&report.name));
    for (what, value) in &report.about {
        let _ = writeln!(page, "<li>{}: {}</li>", escape(what), escape(value));
    }
    page.push_str("</ul>\n");
    for row in report.rows.iter().filter(|row| !row.findings.is_empty()) {
        let _ = writeln!(
            page,
            "<details id=\"r{index}-{id}\"><summary class=\"{outcome}\">{mark} <code>{id}</code> {outcome}: {}</summary>",
            escape(&row.requirement),
            id = escape(&row.id),
            outcome = row.outcome,
            mark = mark(row.outcome)
        );
        let _ = writeln!(
            page,
            "<p>Section: {}<br>Sent: {}<br>Expected: {}</p><ul>",
            escape(&row.section),
            escape(&row.sends),
            escape(&row.expects)
        );
        for finding in &row.findings {
            let _ = writeln!(
                page,
                "<li>{} ({}, {}): {}<br>Actual: {}</li>",
                escape(&finding.duty),
                escape(&finding.section),
                escape(&finding.level),
                escape(&finding.expected),
                escape(&finding.actual)
            );
        }
        page.push_str("</ul>");
        if let Some(reason) = &row.reason {
            let _ = writeln!(page, "<p>{}</p>", escape(reason));
        }
        if let Some(transcript) = &row.transcript {
            let _ = writeln!(page, "<pre>{}</pre>", escape(transcript));
        }
        page.push_str("</details>\n");
    }
}
