//! `nbd-serve` passes: no failure, and nothing that the specification advises against.
#![cfg(unix)]

use std::path::Path;
use std::process::Command;

use nbd_check::{Options, Outcome, Runner, Target, cases};
use nbd_test_support::program::tool;

fn check(arguments: &[&str]) {
    let program: &Command = &tool("nbd-serve");
    let mut command = vec![Path::new(program.get_program()).display().to_string()];
    command.extend(arguments.iter().map(|one| (*one).to_owned()));
    command.extend(["--unix".to_owned(), "{socket}".to_owned()]);
    let target = Target::start(&command, "").expect("nbd-serve starts");
    let options = Options {
        destructive: true,
        strict: true,
        // The machine may be busy.
        timeout: std::time::Duration::from_secs(20),
        ..Options::default()
    };
    let mut runner = Runner::new(target, options).expect("it can be tested");
    let mut passed = 0;
    for case in cases::all() {
        let result = runner.run(&case);
        let found = nbd_check::report::transcript_of(&result);
        assert!(result.findings.is_empty(), "{found}");
        passed += usize::from(result.outcome == Outcome::Pass);
    }
    assert!(passed >= 300, "only {passed} cases were run");
    assert_eq!(runner.restarts(), 0);
}

#[test]
fn nbd_serve_with_memory() {
    check(&["--memory", "64M"]);
}

#[test]
fn nbd_serve_with_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    nbd_test_support::images::sparse(&disk, 64 << 20, &[(0, 1 << 16), (8 << 20, 1 << 20)]);
    check(&[disk.to_str().expect("a path")]);
}

#[test]
fn nbd_serve_read_only_with_large_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    nbd_test_support::images::sparse(&disk, 8 << 20, &[(0, 1 << 16)]);
    let disk = disk.to_str().expect("a path");
    check(&[disk, "--read-only"]);
    check(&[disk, "--block-size", "4096:4096:1M"]);
    check(&[disk, "--framing", "simple"]);
}
