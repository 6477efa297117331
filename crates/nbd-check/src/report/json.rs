//! The report as JSON, and back.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{Report, Row, RowFinding, Side};
use crate::outcome::Outcome;

impl Report {
    /// The report as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let about: Map<_, _> = self
            .about
            .iter()
            .map(|(what, value)| (what.clone(), value.clone().into()))
            .collect();
        let counts: Map<_, _> = Outcome::ALL
            .into_iter()
            .map(|outcome| (outcome.to_string(), self.count(outcome).into()))
            .collect();
        let rows: Vec<_> = self.rows.iter().map(row_json).collect();
        json!({
            "nbd-check": env!("CARGO_PKG_VERSION"),
            "side": self.side.as_str(),
            "name": self.name,
            "uri": self.uri,
            "about": about,
            "seconds": self.time.as_secs_f64(),
            "counts": counts,
            "cases": rows,
        })
    }

    /// Reads a report.
    ///
    /// # Errors
    ///
    /// The name of the first field that is missing or wrong.
    pub fn from_json(value: &Value) -> Result<Self> {
        let object = |key: &str| {
            let field = value.get(key).and_then(Value::as_object);
            field.with_context(|| format!("\"{key}\" is missing"))
        };
        let about = object("about")?.iter().map(|(what, value)| {
            let text = value.as_str().unwrap_or_default();
            (what.clone(), text.to_owned())
        });
        let cases = value.get("cases").and_then(Value::as_array);
        let cases = cases.context("\"cases\" is missing")?;
        Ok(Self {
            side: side(value)?,
            name: string(value, "name")?,
            uri: string(value, "uri")?,
            about: about.collect(),
            time: seconds(value)?,
            rows: cases.iter().map(row).collect::<Result<_>>()?,
        })
    }
}

fn row_json(row: &Row) -> Value {
    let findings: Vec<_> = row
        .findings
        .iter()
        .map(|one| {
            json!({
                "duty": one.duty,
                "section": one.section,
                "level": one.level,
                "expected": one.expected,
                "actual": one.actual,
            })
        })
        .collect();
    json!({
        "id": row.id,
        "section": row.section,
        "level": row.level,
        "requirement": row.requirement,
        "sends": row.sends,
        "expects": row.expects,
        "outcome": row.outcome.as_str(),
        "findings": findings,
        "reason": row.reason,
        "end": row.end,
        "seconds": row.time.as_secs_f64(),
        "transcript": row.transcript,
    })
}

fn row(value: &Value) -> Result<Row> {
    let outcome = string(value, "outcome")?;
    let findings = value.get("findings").and_then(Value::as_array);
    let optional = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    Ok(Row {
        id: string(value, "id")?,
        section: string(value, "section")?,
        level: string(value, "level")?,
        requirement: string(value, "requirement")?,
        sends: string(value, "sends")?,
        expects: string(value, "expects")?,
        outcome: Outcome::parse(&outcome)
            .with_context(|| format!("\"{outcome}\" is no outcome"))?,
        findings: findings
            .context("\"findings\" is missing")?
            .iter()
            .map(finding)
            .collect::<Result<_>>()?,
        reason: optional("reason"),
        end: optional("end"),
        time: seconds(value)?,
        transcript: optional("transcript"),
    })
}

fn side(value: &Value) -> Result<Side> {
    let word = string(value, "side")?;
    let sides = [Side::Server, Side::Client];
    let side = sides.into_iter().find(|side| side.as_str() == word);
    side.with_context(|| format!("\"{word}\" is neither server nor client"))
}

fn finding(value: &Value) -> Result<RowFinding> {
    Ok(RowFinding {
        duty: string(value, "duty")?,
        section: string(value, "section")?,
        level: string(value, "level")?,
        expected: string(value, "expected")?,
        actual: string(value, "actual")?,
    })
}

fn string(value: &Value, key: &str) -> Result<String> {
    let text = value.get(key).and_then(Value::as_str);
    let text = text.with_context(|| format!("\"{key}\" is missing"))?;
    Ok(text.to_owned())
}

fn seconds(value: &Value) -> Result<Duration> {
    let number = value.get("seconds").and_then(Value::as_f64);
    let number = number.context("\"seconds\" is missing")?;
    Duration::try_from_secs_f64(number).context("\"seconds\" is no duration")
}
