//! What all workers of a copy share.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

use super::plan::Plan;
use super::side::Side;
use crate::progress::Progress;

pub struct Shared {
    pub plan: Plan,
    pub from: Side,
    pub to: Side,
    pub size: u64,
    /// Offsets and lengths are multiples of this, except at the end.
    pub alignment: u64,
    pub progress: Progress,
    pub copied: AtomicU64,
}

impl Shared {
    /// `bytes` more bytes are copied.
    pub fn advance(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
        self.progress.add(bytes);
    }

    /// Adds to an error that the source caused it.
    pub fn source<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.from.to_string())
    }

    /// Adds to an error that the destination caused it.
    pub fn target<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.to.to_string())
    }

    /// Called when all workers have ended: fails if something was not copied.
    pub fn check(&self) -> Result<()> {
        let copied = self.copied.load(Ordering::Relaxed);
        if copied != self.size {
            bail!(
                "{}: only {copied} of {} bytes were copied",
                self.from,
                self.size
            );
        }
        Ok(())
    }
}
