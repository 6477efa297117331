//! Servers of other projects: what they do otherwise is known, and has a reason. A new
//! failure is one of the server, or a wrong accusation of a case.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use nbd_check::{Case, Deviations, Options, Outcome, Runner, Target, cases};
use nbd_test_support::images::{MIB, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;

/// Runs the cases that `select` returns true for; nothing else than the known
/// deviations is found.
fn check(target: Target, deviations: &str, select: impl Fn(&Case) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deviations");
    let text = fs::read_to_string(folder.join(deviations)).expect("known deviations");
    let options = Options {
        destructive: true,
        deviations: Deviations::parse(&text).expect("a reason for each"),
        timeout: Duration::from_secs(10),
        ..Options::default()
    };
    let mut runner = Runner::new(target, options).expect("it can be tested");
    let mut passed = 0;
    for case in cases::all().iter().filter(|case| select(case)) {
        let result = runner.run(case);
        let found = nbd_check::report::transcript_of(&result);
        let explained = !matches!(result.outcome, Outcome::Fail | Outcome::NonStrict);
        assert!(explained, "{found}");
        passed += usize::from(result.outcome == Outcome::Pass);
    }
    assert!(passed >= 200, "only {passed} cases passed");
}

fn start(command: &[&str]) -> Target {
    let command: Vec<_> = command.iter().map(|one| (*one).to_owned()).collect();
    Target::start(&command, "").expect("the server starts")
}

#[test]
fn nbdkit() {
    needs!("nbdkit");
    let command = ["nbdkit", "-f", "-U", "{socket}", "memory", "64M"];
    check(start(&command), "nbdkit.txt", |_| true);
}

#[test]
fn qemu_nbd() {
    needs!("qemu-nbd");
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    sparse(&disk, 64 * MIB, &[(0, MIB)]);
    let disk = disk.to_str().expect("a path");
    let command = [
        "qemu-nbd", "-t", "-e", "0", "-k", "{socket}", "-f", "raw", disk,
    ];
    check(start(&command), "qemu-nbd.txt", |_| true);
}

/// The chapter on TLS, in each mode; with `--features tls`. Commands within TLS are
/// another matter: nbdkit 1.32 loses its place in the stream (docs/interop.md).
#[cfg(feature = "tls")]
#[test]
fn tls_in_three_modes() {
    needs!("nbdkit");
    let folder = nbd_test_support::certificates::folder();
    let certificates = format!("--tls-certificates={}", folder.path().display());
    for (mode, least) in [("off", 5), ("on", 7), ("require", 15)] {
        let tls = format!("--tls={mode}");
        let command = [
            "nbdkit",
            "-f",
            "-U",
            "{socket}",
            &tls,
            &certificates,
            "memory",
            "1M",
        ];
        let mut runner = Runner::new(start(&command), Options::default()).expect("TLS starts");
        let mut passed = 0;
        for case in cases::all() {
            if case.duty.section.contains("TLS") || case.matches("O39") {
                let result = runner.run(&case);
                let found = nbd_check::report::transcript_of(&result);
                assert!(result.findings.is_empty(), "{mode}: {found}");
                passed += usize::from(result.outcome == Outcome::Pass);
            }
        }
        assert!(passed >= least, "{mode}: only {passed} cases passed");
    }
}

#[test]
fn nbd_server() {
    needs!("nbd-server");
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    sparse(&disk, 64 * MIB, &[(0, MIB)]);
    let peer = Peer::nbd_server(&disk);
    let uri = peer.uri("disk").parse().expect("a URI");
    let target = Target::running(uri).expect("an address");
    // In most cases of O43 it waits for data that does not come (docs/interop.md).
    check(target, "nbd-server.txt", |case| !case.matches("O43"));
}
