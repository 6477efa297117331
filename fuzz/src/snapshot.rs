//! Checks that a failed call has no effect.

use std::fmt::Debug;

/// Snapshots of the whole state of a state machine. They are slow, so there are
/// only some for each run.
pub struct Snapshots {
    left: usize,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { left: 16 }
    }
}

impl Snapshots {
    pub fn take(&mut self, machine: &impl Debug) -> Option<String> {
        self.left = self.left.checked_sub(1)?;
        Some(format!("{machine:?}"))
    }
}

/// Checks that a call that failed with `error` has changed nothing.
pub fn check_unchanged(before: Option<String>, machine: &impl Debug, error: impl Debug) {
    if let Some(before) = before {
        let after = format!("{machine:?}");
        assert_eq!(after, before, "changed by a failed call: {error:?}");
    }
}
