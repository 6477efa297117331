//! Messages to the operator, on standard error.
//!
//! A thread writes them, so that a pipe which is not read delays only that thread.
//! A line that is repeated is written once, and then at most every second with the
//! number of its repetitions.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::mem;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The most lines that wait to be written; more are counted.
const MAX_LINES: usize = 1000;

/// The most lines that are recognized when they are repeated.
const MAX_RECENT: usize = 100;

/// How long repetitions are counted before their number is written.
const PERIOD: Duration = Duration::from_secs(1);

/// How long the process waits at its end for standard error to accept all lines.
const FINISH_TIME: Duration = Duration::from_millis(500);

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let started = Builder::new().name("log".into()).spawn(|| LOG.write());
    let log = Log::default();
    // Without the thread there are no messages.
    log.state().failed = started.is_err();
    log
});

#[derive(Default)]
struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    /// Lines of this period, and how many times each was repeated.
    recent: HashMap<String, u64>,
    /// How many lines were not written because too many waited.
    omitted: u64,
    /// The thread has taken lines and has not written all of them.
    writing: bool,
    /// The process is about to end.
    finishing: bool,
    failed: bool,
}

/// Starts the thread, which otherwise the first message starts.
pub fn start() {
    LazyLock::force(&LOG);
}

/// Writes one line: line breaks in names that a client chose become spaces. Never
/// blocks. An error of standard error is ignored, so that it does not stop the
/// server.
pub fn report(text: &str) {
    let text = text.replace(['\n', '\r'], " ");
    let mut state = LOG.state();
    if state.failed {
        return;
    }
    if let Some(count) = state.recent.get_mut(&text) {
        *count += 1;
        return;
    }
    if state.recent.len() < MAX_RECENT {
        state.recent.insert(text.clone(), 0);
    }
    state.add(text);
    LOG.changed.notify_all();
}

/// Waits until all lines are written, but not long.
pub fn finish() {
    let deadline = Instant::now() + FINISH_TIME;
    let mut state = LOG.state();
    state.finishing = true;
    LOG.changed.notify_all();
    while !state.failed && !state.is_written() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let result = LOG.changed.wait_timeout(state, left);
        state = result.unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl State {
    fn add(&mut self, line: String) {
        if self.lines.len() < MAX_LINES {
            self.lines.push_back(line);
        } else {
            self.omitted += 1;
        }
    }

    fn is_written(&self) -> bool {
        self.lines.is_empty() && self.recent.is_empty() && !self.writing
    }

    /// Ends a period.
    fn count_repetitions(&mut self) {
        for (line, count) in mem::take(&mut self.recent) {
            if count > 0 {
                self.add(format!("{line} (repeated {count} times)"));
            }
        }
        if self.omitted > 0 {
            let omitted = mem::take(&mut self.omitted);
            self.add(format!("{omitted} lines are omitted"));
        }
    }
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does.
    fn write(&self) {
        let mut period = Instant::now() + PERIOD;
        let mut state = self.state();
        loop {
            if state.finishing || Instant::now() >= period {
                state.count_repetitions();
                period = Instant::now() + PERIOD;
            }
            let lines = mem::take(&mut state.lines);
            if lines.is_empty() {
                self.changed.notify_all();
                state = if state.recent.is_empty() && state.omitted == 0 {
                    period = Instant::now() + PERIOD;
                    self.changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                } else {
                    let left = period.saturating_duration_since(Instant::now());
                    let result = self.changed.wait_timeout(state, left);
                    result.unwrap_or_else(PoisonError::into_inner).0
                };
                continue;
            }
            state.writing = true;
            drop(state);
            for line in lines {
                let _ = writeln!(io::stderr(), "nbd-serve: {line}");
            }
            state = self.state();
            state.writing = false;
        }
    }
}
