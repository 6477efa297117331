//! Results without a failure.

use nbd_check::report::transcript_of;
use nbd_check::{CaseResult, Outcome};

/// Nothing failed, also of what the specification advises, and `least` or more passed.
pub fn all(results: &[CaseResult], least: usize) {
    let with = |outcome| results.iter().filter(move |one| one.outcome == outcome);
    let failed = with(Outcome::Fail).chain(with(Outcome::NonStrict));
    let failed: Vec<_> = failed.map(transcript_of).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let passed = with(Outcome::Pass).count();
    assert!(passed >= least, "only {passed} cases passed");
}
