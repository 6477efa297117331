//! Servers and clients of other projects: what they do otherwise is known, and has a
//! reason. A new failure is one of the program, or a wrong accusation of a case. A known
//! one that is not found any more is an error too: it is removed from the file.
#![cfg(unix)]

mod passed;

use std::fs;
use std::path::Path;
use std::time::Duration;

use nbd_check::client::{self, CLIENT_DUTIES};
use nbd_check::{Case, CaseResult, DUTIES, Deviations, Options, Runner, Target, cases};
use nbd_test_support::images::{MIB, sparse};
use nbd_test_support::needs;
use nbd_test_support::peer::Peer;

/// The known deviations of a program: each names the section of the specification.
fn options(deviations: &str) -> Options {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deviations");
    let text = fs::read_to_string(folder.join(deviations)).expect("known deviations");
    let deviations = Deviations::parse(&text).expect("a reason for each");
    for reason in deviations.reasons() {
        let mut sections = DUTIES.iter().chain(CLIENT_DUTIES).map(|duty| duty.section);
        let named = sections.any(|section| reason.ends_with(&format!("({section})")));
        assert!(named, "no section: {reason}");
    }
    Options {
        destructive: true,
        deviations,
        timeout: Duration::from_secs(10),
        ..Options::default()
    }
}

/// Nothing else than the known deviations was found, and all of them.
fn explained(results: &[CaseResult], deviations: &Deviations, least: usize) {
    passed::all(results, least);
    let unused = deviations.unused(results);
    assert!(unused.is_empty(), "no case has these any more: {unused:?}");
}

/// Runs the cases that `select` returns true for.
fn check(target: Target, deviations: &str, select: impl Fn(&Case) -> bool) {
    let options = options(deviations);
    let deviations = options.deviations.clone();
    let mut runner = Runner::new(target, options).expect("it can be tested");
    let cases = cases::all();
    let selected = cases.iter().filter(|case| select(case));
    let results: Vec<_> = selected.map(|case| runner.run(case)).collect();
    explained(&results, &deviations, 200);
}

/// Runs all cases for clients on a program.
fn check_client(command: &[&str], deviations: &str, least: usize) {
    check_client_with(command, options(deviations), least);
}

fn check_client_with(command: &[&str], options: Options, least: usize) {
    let command: Vec<_> = command.iter().map(|one| (*one).to_owned()).collect();
    let deviations = options.deviations.clone();
    let runner = client::Runner::new(&command, options).expect("it can be tested");
    let results = runner.run(&client::all(), |_| ());
    explained(&results, &deviations, least);
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
fn nbdkit_with_a_file() {
    needs!("nbdkit");
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    sparse(&disk, 64 * MIB, &[(0, MIB)]);
    let disk = disk.to_str().expect("a path");
    let command = ["nbdkit", "-f", "-U", "{socket}", "file", disk];
    check(start(&command), "nbdkit-file.txt", |_| true);
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
                passed += usize::from(result.outcome == nbd_check::Outcome::Pass);
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

#[test]
fn nbdinfo() {
    needs!("nbdinfo");
    check_client(&["nbdinfo", "{uri}"], "nbdinfo.txt", 100);
}

#[test]
fn nbdinfo_map() {
    needs!("nbdinfo");
    let command = ["nbdinfo", "--map", "{uri}"];
    check_client(&command, "nbdinfo-map.txt", 120);
}

#[test]
fn nbdcopy_from_an_export() {
    needs!("nbdcopy");
    let command = ["nbdcopy", "{uri}", "{out}"];
    check_client(&command, "nbdcopy-from.txt", 200);
}

#[test]
fn nbdcopy_to_an_export() {
    needs!("nbdcopy");
    let command = ["nbdcopy", "{in}", "{uri}"];
    check_client(&command, "nbdcopy-to.txt", 120);
}

#[test]
fn qemu_img() {
    needs!("qemu-img");
    let command = [
        "qemu-img", "convert", "-f", "raw", "-O", "raw", "{uri}", "{out}",
    ];
    check_client(&command, "qemu-img.txt", 300);
}

#[test]
fn qemu_io() {
    needs!("qemu-io");
    let command = ["qemu-io", "-f", "raw", "-c", "read -vq 0 1M", "{uri}"];
    check_client(&command, "qemu-io.txt", 230);
}

#[test]
fn fio() {
    needs!("fio");
    let command = [
        "fio",
        "--name=r",
        "--ioengine=nbd",
        "--uri={uri}",
        "--rw=read",
        "--bs=64k",
        "--size=1M",
        "--iodepth=4",
    ];
    check_client(&command, "fio.txt", 160);
}

/// Every case within TLS: the handshake before it, and what was agreed on before is
/// forgotten. The failures are those without TLS. `{certificates}` is their folder.
#[cfg(feature = "tls")]
fn check_client_within_tls(command: &[&str], deviations: &str, least: usize) {
    let folder = nbd_test_support::certificates::folder();
    let options = Options {
        tls: Some(folder.path().to_owned()),
        ..options(deviations)
    };
    let path = folder.path().to_str().expect("a path");
    let fill = |argument: &&str| argument.replace("{certificates}", path);
    let command: Vec<_> = command.iter().map(fill).collect();
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    check_client_with(&command, options, least);
}

#[cfg(feature = "tls")]
#[test]
fn nbdcopy_within_tls() {
    needs!("nbdcopy");
    check_client_within_tls(&["nbdcopy", "{uri}", "{out}"], "nbdcopy-from.txt", 200);
}

#[cfg(feature = "tls")]
#[test]
fn nbdinfo_within_tls() {
    needs!("nbdinfo");
    check_client_within_tls(&["nbdinfo", "{uri}"], "nbdinfo.txt", 100);
}

/// QEMU takes certificates from an object, not from the URI.
#[cfg(feature = "tls")]
#[test]
fn qemu_io_within_tls() {
    needs!("qemu-io");
    let command = [
        "qemu-io",
        "--object",
        "tls-creds-x509,id=tls0,endpoint=client,dir={certificates}",
        "-c",
        "read -vq 0 1M",
        "--image-opts",
        "driver=raw,file.driver=nbd,file.path={socket},file.export=disk,file.tls-creds=tls0,\
         file.tls-hostname=localhost",
    ];
    check_client_within_tls(&command, "qemu-io.txt", 230);
}
