//! Runs cases against a server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::case::Case;
use crate::connection::Record;
use crate::deviations::Deviations;
use crate::duty::Level;
use crate::outcome::{End, Finding, Outcome, Stop};
use crate::probe::probe;
use crate::profile::Profile;
use crate::target::Target;
use crate::tls;
use crate::transcript::Entry;
use crate::trial::{Access, Trial};

/// How long a server that may be about to end has for it.
const ENDING: Duration = Duration::from_millis(50);

/// How cases are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the server may take for a reply.
    pub timeout: Duration,
    /// Whether cases may write to a server.
    pub destructive: bool,
    /// Whether connections of clients are cut at up to 4,096 places of each phase, instead
    /// of some.
    pub thorough: bool,
    /// How many cases of a client run at a time. Those of a server run one after the other.
    pub jobs: usize,
    /// A folder with `server-cert.pem` and `server-key.pem`: clients are served within TLS
    /// only. For servers the URI says it.
    pub tls: Option<PathBuf>,
    /// Whether a broken `SHOULD` is a failure.
    pub strict: bool,
    /// Known deviations.
    pub deviations: Deviations,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(3),
            destructive: false,
            thorough: false,
            jobs: 8,
            tls: None,
            strict: false,
            deviations: Deviations::default(),
        }
    }
}

impl Options {
    /// The outcome from the findings.
    pub(crate) fn assess(&self, result: &mut CaseResult) {
        let binding = |finding: &Finding| match finding.level {
            Level::Must => Outcome::Fail,
            Level::Should if self.strict => Outcome::Fail,
            Level::Should => Outcome::NonStrict,
            Level::Undefined => Outcome::Informational,
        };
        result
            .findings
            .dedup_by(|a, b| (a.duty.id, &a.actual, a.level) == (b.duty.id, &b.actual, b.level));
        result.findings.sort_by_key(|finding| finding.level);
        let worst = [Outcome::Fail, Outcome::NonStrict, Outcome::Informational];
        let worst = worst
            .into_iter()
            .find(|outcome| result.findings.iter().any(|one| binding(one) == *outcome));
        if let Some(outcome) = worst {
            result.outcome = outcome;
        }
        if matches!(result.outcome, Outcome::Fail | Outcome::NonStrict)
            && let Some(reason) = self.deviations.reason(result).map(str::to_owned)
        {
            result.outcome = Outcome::Deviation;
            result.reason = Some(reason);
        }
    }
}

/// The result of a case.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// The case's id.
    pub id: String,
    /// The heading in the specification.
    pub section: String,
    /// How binding the duty is.
    pub level: Level,
    /// The requirement.
    pub requirement: String,
    /// What the tester sent.
    pub sends: String,
    /// What the program that is tested may answer.
    pub expects: String,
    /// The outcome.
    pub outcome: Outcome,
    /// The duties that were not met.
    pub findings: Vec<Finding>,
    /// Why it was skipped, or what explains the deviation.
    pub reason: Option<String>,
    /// How the last connection ended.
    pub end: Option<End>,
    /// How long it took.
    pub time: Duration,
    /// What was sent and received.
    pub transcript: Vec<Entry>,
}

impl CaseResult {
    pub(crate) fn new(case: &Case, outcome: Outcome) -> Self {
        Self {
            id: case.id.clone(),
            section: case.duty.section.to_owned(),
            level: case.duty.level,
            requirement: case.duty.text.to_owned(),
            sends: case.sends.clone(),
            expects: case.expects.clone(),
            outcome,
            findings: Vec::new(),
            reason: None,
            end: None,
            time: Duration::ZERO,
            transcript: Vec::new(),
        }
    }

    /// Takes what a case left, and why it ended early.
    pub(crate) fn take(&mut self, record: Record, stop: Option<Stop>) {
        self.findings = record.findings;
        self.transcript = record.entries;
        self.end = record.end;
        match stop {
            Some(Stop::Found(finding)) => self.findings.insert(0, finding),
            Some(Stop::Unimplemented(reason)) => {
                self.outcome = Outcome::Unimplemented;
                self.reason = Some(reason);
            }
            Some(Stop::Skipped(reason)) => {
                self.outcome = Outcome::Skipped;
                self.reason = Some(reason);
            }
            None => {}
        }
    }
}

/// A server that is tested: what it is and has is known.
pub struct Runner {
    target: Target,
    access: Access,
    profile: Profile,
    options: Options,
    /// Why no further case can be run.
    gone: Option<String>,
}

impl Runner {
    /// Connects to the server and finds out what it has.
    ///
    /// # Errors
    ///
    /// The server cannot be tested: it does not listen, does not speak NBD, or no
    /// way leads into transmission.
    pub fn new(target: Target, options: Options) -> Result<Self> {
        let uri = target.uri();
        let certificates = uri
            .tls_certificates()
            .map(std::str::from_utf8)
            .transpose()?;
        let access = Access {
            address: target.address().clone(),
            export: uri.export().to_owned(),
            timeout: options.timeout,
            tls: tls::config(certificates.map(Path::new))?,
        };
        let cannot = "the server cannot be tested";
        if !target.is_started() {
            access.address.connect(options.timeout).context(cannot)?;
        }
        let profile = match probe(&access, uri.tls_required()) {
            Ok(profile) => profile,
            Err(Stop::Found(finding)) => bail!(
                "{cannot} with the export {:?}: {} ({}, {})",
                access.export,
                finding.actual,
                finding.duty.id,
                finding.duty.section
            ),
            Err(Stop::Unimplemented(text) | Stop::Skipped(text)) => {
                bail!("{cannot}: {text}")
            }
        };
        let mut runner = Self {
            target,
            access,
            profile,
            options,
            gone: None,
        };
        if let Some(status) = runner.target.restart_if_ended(Duration::ZERO)? {
            bail!("the server ended while it was asked what it has: {status}");
        }
        Ok(runner)
    }

    /// What the server is and has, for reports: names and values.
    #[must_use]
    pub fn server(&self) -> Vec<(String, String)> {
        self.profile.describe()
    }

    /// Where the server listens.
    #[must_use]
    pub fn uri(&self) -> String {
        self.target.uri().to_string()
    }

    /// How often the server had to be started again.
    #[must_use]
    pub fn restarts(&self) -> usize {
        self.target.restarts()
    }

    /// Why a case would be skipped; `None` if it would be run.
    #[must_use]
    pub fn skip_reason(&self, case: &Case) -> Option<String> {
        case.skip_reason(&self.profile, self.options.destructive)
    }

    /// Runs a case. If the server is gone after it, later cases are skipped.
    pub fn run(&mut self, case: &Case) -> CaseResult {
        let skipped = self.gone.clone().or_else(|| self.skip_reason(case));
        if let Some(reason) = skipped {
            let mut result = CaseResult::new(case, Outcome::Skipped);
            result.reason = Some(reason);
            return result;
        }
        let start = Instant::now();
        let trial = Trial::new(&self.access, &self.profile);
        let stop = case.execute(&trial).err();
        let record = std::mem::take(&mut *trial.record.borrow_mut());
        drop(trial);
        let mut result = CaseResult::new(case, Outcome::Pass);
        result.take(record, stop);
        let failed = result.findings.iter().any(|one| one.level == Level::Must);
        let closed = result.end.is_some_and(End::is_by_server) && !result.findings.is_empty();
        if let Some(status) = self.ended(failed, closed) {
            let finding = Finding::crash("T38", format!("the server ended: {status}"));
            result.findings.insert(0, finding);
        }
        result.time = start.elapsed();
        self.options.assess(&mut result);
        result
    }

    /// How the server ended, if it did. `failed`: it broke a `MUST`; `closed`: it closed
    /// the last connection where that is a finding.
    fn ended(&mut self, failed: bool, closed: bool) -> Option<String> {
        if self.target.is_started() {
            // The connections of a process that ends are closed before its parent learns
            // that it ended.
            let wait = if failed || closed {
                ENDING
            } else {
                Duration::ZERO
            };
            return self.target.restart_if_ended(wait).unwrap_or_else(|error| {
                self.gone = Some(format!("the server does not start again: {error:#}"));
                self.gone.clone()
            });
        }
        if !failed {
            return None;
        }
        let error = self.access.address.connect(self.options.timeout).err()?;
        let advice = "the server is gone; one that the tester starts is started again";
        self.gone = Some(advice.to_owned());
        Some(format!("{error:#}"))
    }
}
