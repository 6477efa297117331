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
    /// What every offset and length is a multiple of, but for the end.
    pub alignment: u64,
    pub progress: Progress,
    pub copied: AtomicU64,
}

impl Shared {
    /// So many bytes more are copied.
    pub fn advance(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
        self.progress.add(bytes);
    }

    /// Says of an error that it is the source's.
    pub fn source<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.from.to_string())
    }

    /// Says of an error that it is the destination's.
    pub fn target<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.to.to_string())
    }

    /// All workers have ended.
    pub fn check(&self) -> Result<()> {
        let copied = self.copied.load(Ordering::Relaxed);
        if copied != self.size {
            bail!(
                "{}: only {copied} of {} bytes were read",
                self.from,
                self.size
            );
        }
        Ok(())
    }
}
