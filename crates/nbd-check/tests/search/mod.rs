//! Looking for each of many faults.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use nbd_check::{CaseResult, Finding, Level};

/// The duties that a run found broken.
pub fn broken(results: &[CaseResult]) -> Vec<&Finding> {
    let findings = results.iter().flat_map(|result| &result.findings);
    findings
        .filter(|one| one.level != Level::Undefined)
        .collect()
}

/// Each of the faults is found under its duty. `run` runs the cases for one of them, on
/// any of `threads` threads, and returns its name, the duty and the results.
pub fn every<'f, T: Sync>(
    threads: usize,
    faults: &'f [T],
    run: impl Fn(&'f T) -> (String, &'f str, Vec<CaseResult>) + Sync,
) {
    let missed = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(fault) = faults.get(next.fetch_add(1, Relaxed)) {
            let (name, duty, results) = run(fault);
            let findings = broken(&results);
            if !findings.iter().any(|finding| finding.duty.id == duty) {
                let text = format!("{name} ({duty}): {findings:#?}");
                missed.lock().expect("no thread panics with it").push(text);
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let missed = missed.into_inner().expect("no thread panics with it");
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
