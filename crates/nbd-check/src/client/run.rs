//! Runs cases against a client.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::profile::Profile;
use super::stage::Stage;
use super::trial::Trial;
use crate::case::Case;
use crate::outcome::Outcome;
use crate::run::{CaseResult, Options};

/// A client that is tested: what it does with correct servers is known.
pub struct Runner {
    stages: Stages,
    profile: Profile,
    options: Options,
}

/// Where cases run, one at a time on each.
pub(super) struct Stages(Vec<Stage>);

impl Runner {
    /// Runs the client against correct servers. In the arguments of the command `{uri}`
    /// becomes the URI of the scripted server, `{socket}` the path of its socket, `{port}`
    /// its TCP port instead; `{out}` a file that the client writes the export to, and
    /// `{in}` one that it writes to the export.
    ///
    /// # Errors
    ///
    /// The client cannot be tested: it does not start, or succeeds with no server.
    pub fn new(command: &[String], options: Options) -> Result<Self> {
        let jobs = 0..options.jobs.max(1);
        let stages: Result<_> = jobs
            .map(|_| Stage::new(command, options.timeout, options.tls.as_deref()))
            .collect();
        let stages = Stages(stages?);
        let profile = Profile::probe(&stages)?;
        Ok(Self {
            stages,
            profile,
            options,
        })
    }

    /// What the client is and does, for reports: names and values.
    #[must_use]
    pub fn client(&self) -> Vec<(String, String)> {
        self.profile.describe()
    }

    /// Where the first of the scripted servers listens.
    #[must_use]
    pub fn uri(&self) -> String {
        self.stages.first().uri().to_string()
    }

    /// Runs cases, [`Options::jobs`] at a time; calls `done` after each. The results are
    /// in the order of the cases.
    pub fn run(&self, cases: &[Case], done: impl Fn(&CaseResult) + Sync) -> Vec<CaseResult> {
        self.stages.each(cases, |stage, case| {
            let start = Instant::now();
            let trial = Trial::new(stage, &self.profile, self.options.thorough);
            let stop = case.execute_client(&trial).err();
            let mut result = CaseResult::new(case, Outcome::Pass);
            result.take(trial.record.into_inner(), stop);
            result.time = start.elapsed();
            self.options.assess(&mut result);
            done(&result);
            result
        })
    }
}

impl Stages {
    pub(super) fn first(&self) -> &Stage {
        // There is one at least.
        &self.0[0]
    }

    pub(super) fn last(&self) -> &Stage {
        &self.0[self.0.len() - 1]
    }

    /// Calls `work` for each item, on a thread for each stage. The answers are in the
    /// order of the items.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&Stage, &T) -> R + Sync,
    ) -> Vec<R> {
        let next = AtomicUsize::new(0);
        let answers = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for stage in &self.0 {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else {
                            return;
                        };
                        let answer = work(stage, item);
                        if let Ok(mut answers) = answers.lock() {
                            answers.push((index, answer));
                        }
                    }
                });
            }
        });
        let mut answers = answers.into_inner().unwrap_or_default();
        answers.sort_by_key(|(index, _)| *index);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}
