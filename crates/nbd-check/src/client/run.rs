//! Runs cases against a client.

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
    stage: Stage,
    profile: Profile,
    options: Options,
    thorough: bool,
}

impl Runner {
    /// Runs the client against correct servers. In the arguments of the command `{uri}`
    /// becomes the URI of the scripted server, `{socket}` the path of its socket, `{port}`
    /// its TCP port instead; `{out}` a file that the client writes the export to, and
    /// `{in}` one that it writes to the export. With `thorough` connections are cut at
    /// up to 4,096 places of each phase.
    ///
    /// # Errors
    ///
    /// The client cannot be tested: it does not start, or succeeds with no server.
    pub fn new(command: &[String], options: Options, thorough: bool) -> Result<Self> {
        let stage = Stage::new(command, options.timeout)?;
        let profile = Profile::probe(&stage)?;
        Ok(Self {
            stage,
            profile,
            options,
            thorough,
        })
    }

    /// What the client is and does, for reports: names and values.
    #[must_use]
    pub fn client(&self) -> Vec<(String, String)> {
        self.profile.describe()
    }

    /// Where the scripted server listens.
    #[must_use]
    pub fn uri(&self) -> String {
        self.stage.uri().to_string()
    }

    /// Known deviations that explained no result.
    #[must_use]
    pub fn unused_deviations(&self) -> Vec<String> {
        self.options.deviations.unused()
    }

    /// Runs a case.
    pub fn run(&mut self, case: &Case) -> CaseResult {
        let start = Instant::now();
        let trial = Trial::new(&self.stage, &self.profile, self.thorough);
        let stop = case.execute_client(&trial).err();
        let mut result = CaseResult::new(case, Outcome::Pass);
        result.take(trial.record.into_inner(), stop);
        result.time = start.elapsed();
        self.options.assess(&mut result);
        result
    }
}
