//! The client `nbd` passes: no failure, and nothing that the specification advises
//! against.
#![cfg(unix)]

use std::time::Duration;

use nbd_check::{Options, Outcome, client};
use nbd_test_support::program::tool;

fn check(arguments: &[&str], least: usize) {
    let program = tool("nbd");
    let program = program.get_program().to_str().expect("a path");
    let command = [&[program], arguments].concat();
    let command: Vec<_> = command.into_iter().map(str::to_owned).collect();
    let options = Options {
        // The machine may be busy.
        timeout: Duration::from_secs(20),
        ..Options::default()
    };
    let runner = client::Runner::new(&command, options).expect("it can be tested");
    let mut passed = 0;
    for result in runner.run(&client::all(), |_| ()) {
        let failed = matches!(result.outcome, Outcome::Fail | Outcome::NonStrict);
        assert!(!failed, "{}", nbd_check::report::transcript_of(&result));
        passed += usize::from(result.outcome == Outcome::Pass);
    }
    assert!(passed >= least, "only {passed} cases passed");
}

#[test]
fn nbd_info() {
    check(&["info", "{uri}"], 80);
}

#[test]
fn nbd_map() {
    check(&["map", "{uri}"], 150);
}

#[test]
fn nbd_read() {
    check(&["read", "{uri}"], 240);
}

#[test]
fn nbd_copy_from_an_export() {
    check(&["copy", "{uri}", "{out}"], 300);
}

#[test]
fn nbd_copy_to_an_export() {
    check(&["copy", "{in}", "{uri}"], 150);
}
