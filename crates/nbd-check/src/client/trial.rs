//! What a case of a client does: it runs the command against scripts, and checks what
//! the command does next.

use std::cell::RefCell;

use nbd_codec::Framing;
use nbd_codec::wire::number::Command;

use super::profile::Profile;
use super::program::Ended;
use super::script::{Script, pattern};
use super::server::{Left, Served};
use super::stage::{Performance, Stage};
use crate::connection::Record;
use crate::duty::Level;
use crate::outcome::{Checked, Finding, Stop};

/// What a case does.
pub(crate) type Run = dyn Fn(&Trial<'_>) -> Checked + Send + Sync;

/// What the client has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The server is correct: success.
    Success,
    /// The server is correct, and need not be supported.
    Optional,
    /// What the command is for is not possible: no success.
    Failure,
    /// The specification has the client close the connection: no success.
    Disconnect,
    /// The server closed, maybe when the client had everything: success with the right
    /// data, or failure.
    Cut,
    /// The server contradicts itself: there is no right data. No crash, no hang.
    Survival,
    /// The server broke a rule, which the client may notice: success, with the right
    /// data, or failure.
    Either,
}

/// What a script spoils.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoils {
    /// The session.
    Session,
    /// The answers to this command.
    Command(Command),
}

/// A case that runs.
pub(crate) struct Trial<'a> {
    pub(super) stage: &'a Stage,
    pub(super) profile: &'a Profile,
    /// All cuts, not some.
    pub(super) thorough: bool,
    pub(super) record: RefCell<Record>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(stage: &'a Stage, profile: &'a Profile, thorough: bool) -> Self {
        Self {
            stage,
            profile,
            thorough,
            record: RefCell::default(),
        }
    }

    /// Runs the command. What it sends that it must not send, and did not send to
    /// correct servers, is found in every case.
    pub(crate) fn perform(&self, script: &Script) -> Checked<Performance> {
        let performance = self.stage.perform(script);
        let mut performance = performance.map_err(|error| Stop::Skipped(format!("{error:#}")))?;
        let mut record = self.record.borrow_mut();
        record.entries.clear();
        for (index, served) in performance.connections.iter_mut().enumerate() {
            for mut entry in std::mem::take(&mut served.record.entries) {
                entry.connection = index + 1;
                record.entries.push(entry);
            }
            record.end = served.record.end;
            let known = |finding: &Finding| self.profile.breaks(finding.duty.id);
            let findings = served.record.findings.iter();
            let findings: Vec<_> = findings.filter(|one| !known(one)).cloned().collect();
            record.findings.extend(findings);
        }
        Ok(performance)
    }

    fn note(&self, finding: Finding) {
        self.record.borrow_mut().findings.push(finding);
    }

    /// Runs the command, and compares what it does with what it has to do. `duty` is
    /// what a client breaks that does not do it.
    pub(crate) fn expect(
        &self,
        duty: &str,
        script: &Script,
        spoils: Spoils,
        expect: Expect,
    ) -> Checked<Performance> {
        let without = script.dialect.framing == Framing::Simple
            || !script.dialect.contexts
            || !script.dialect.go;
        let expect = match expect {
            // There is nothing that it could do.
            Expect::Success if self.profile.maps && without => Expect::Optional,
            other => other,
        };
        let performance = self.perform(script)?;
        let twisted = performance.connections.iter().any(|served| served.twisted);
        if script.twist.is_some() && !twisted {
            let what = match spoils {
                Spoils::Session => "the client does not get that far".to_owned(),
                Spoils::Command(command) => {
                    format!("the client has no {command} that this can be the answer to")
                }
            };
            return Err(Stop::Unimplemented(what));
        }
        self.validate(duty, script, &performance, spoils, expect)?;
        Ok(performance)
    }

    fn validate(
        &self,
        duty: &str,
        script: &Script,
        performance: &Performance,
        spoils: Spoils,
        expect: Expect,
    ) -> Checked {
        let ended = performance.output.ended;
        let said = said(performance);
        match ended {
            Ended::Signal(_) => {
                return Err(Finding::crash("X3", format!("{ended}{said}")).into());
            }
            Ended::Hang => {
                let actual = format!(
                    "it does not end: {} s after the server has closed, or {} s in all",
                    self.stage.timeout.as_secs_f64(),
                    self.stage.longest().as_secs_f64()
                );
                return Err(Finding::new("X3", actual).into());
            }
            // Programs that test other programs mean this by it.
            Ended::Failure(status @ (89 | 127)) if expect != Expect::Success => {
                let reason = format!("exit status {status}{said}");
                return Err(Stop::Unimplemented(reason));
            }
            Ended::Failure(_) => match expect {
                Expect::Success => {
                    return Err(Finding::new(duty, format!("{ended}{said}")).into());
                }
                Expect::Optional => {
                    return Err(Stop::Unimplemented(format!("{ended}{said}")));
                }
                Expect::Disconnect if left_by_disc(&performance.connections) => {
                    let actual = "it disconnects by DISC instead of closing the connection";
                    self.note(Finding::new(duty, actual).for_information());
                }
                _ => {}
            },
            Ended::Success => self.validate_success(duty, script, performance, spoils, expect),
        }
        Ok(())
    }

    fn validate_success(
        &self,
        duty: &str,
        script: &Script,
        performance: &Performance,
        spoils: Spoils,
        expect: Expect,
    ) {
        let impossible = matches!(expect, Expect::Failure | Expect::Disconnect);
        let depends = self.profile.depends_on(spoils);
        if impossible && depends {
            // A client may leave the fault unnoticed, but there is no data to succeed with.
            let permitted = crate::duty::duty(duty).level == Level::Undefined;
            let duty = if permitted { "X7" } else { duty };
            self.note(Finding::new(duty, "exit status 0"));
        } else if impossible {
            let actual = "exit status 0; what the client reports does not depend on it";
            self.note(Finding::new(duty, actual).for_information());
        } else if expect == Expect::Either {
            let actual = "exit status 0: the client accepts it, or does without";
            self.note(Finding::new(duty, actual).for_information());
        }
        if expect != Expect::Survival
            && let Some(actual) = self.wrong_data(script, performance)
        {
            self.note(Finding::new("X7", actual));
        }
    }

    /// What is wrong with the data that the command has written with success.
    fn wrong_data(&self, script: &Script, performance: &Performance) -> Option<String> {
        if let Some(out) = &performance.out
            && let Some(at) = difference(out, &performance.before)
        {
            return Some(format!("exit status 0, but {{out}} differs at byte {at}"));
        }
        if let (Some(reference), false) = (&self.profile.reference, script.inverted)
            && let Some(at) = difference(&performance.output.stdout, reference)
        {
            return Some(format!(
                "exit status 0, but standard output differs at byte {at} from that with a \
                 correct server"
            ));
        }
        if self.stage.has_input()
            && let Some(at) = difference(&performance.after, pattern(true))
        {
            return Some(format!(
                "exit status 0, but the export differs at byte {at} from {{in}}"
            ));
        }
        None
    }
}

/// Where they differ first.
fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let differs = a.iter().zip(b).position(|(a, b)| a != b);
    differs.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}

/// The first line of standard error, if any.
pub(super) fn said(performance: &Performance) -> String {
    let lines = performance.output.stderr.lines();
    let mut lines = lines.filter(|line| !line.trim().is_empty());
    lines
        .next()
        .map_or(String::new(), |line| format!(": {}", line.trim()))
}

fn left_by_disc(connections: &[Served]) -> bool {
    let mut twisted = connections.iter().filter(|served| served.twisted);
    twisted.any(|served| served.left == Left::Disc)
}
