//! The clients `nbd` and `nbd-io` pass: no failure, and nothing that the specification
//! advises against.
#![cfg(unix)]

mod passed;

use std::process::Command;
use std::time::Duration;

use nbd_check::{Options, client};
use nbd_test_support::program::{example, tool};

/// Runs `nbd`.
fn check(arguments: &[&str], least: usize) {
    check_with(&tool("nbd"), arguments, Options::default(), least);
}

/// Runs the client of `nbd-io`.
fn check_io(arguments: &[&str], least: usize) {
    check_with(
        &example("nbd_io_client"),
        arguments,
        Options::default(),
        least,
    );
}

fn check_with(program: &Command, arguments: &[&str], options: Options, least: usize) {
    let program = program.get_program().to_str().expect("a path");
    let command = [&[program], arguments].concat();
    let command: Vec<_> = command.into_iter().map(str::to_owned).collect();
    let options = Options {
        // The machine may be busy.
        timeout: Duration::from_secs(20),
        ..options
    };
    let runner = client::Runner::new(&command, options).expect("it can be tested");
    passed::all(&runner.run(&client::all(), |_| ()), least);
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

#[test]
fn nbd_io_reads_with_tokio() {
    check_io(&["tokio", "read", "{uri}"], 240);
}

#[test]
fn nbd_io_maps_with_tokio() {
    check_io(&["tokio", "map", "{uri}"], 150);
}

#[test]
fn nbd_io_writes_with_threads() {
    check_io(&["threads", "write", "{uri}", "{in}"], 150);
}

/// Runs the client of `nbd-io` within TLS.
#[cfg(feature = "tls")]
fn check_io_within_tls(arguments: &[&str], least: usize) {
    let folder = nbd_test_support::certificates::folder();
    let options = Options {
        tls: Some(folder.path().to_owned()),
        ..Options::default()
    };
    check_with(&example("nbd_io_client"), arguments, options, least);
}

#[cfg(feature = "tls")]
#[test]
fn nbd_io_reads_with_threads_within_tls() {
    check_io_within_tls(&["threads", "read", "{uri}&tls-hostname=localhost"], 240);
}

#[cfg(feature = "tls")]
#[test]
fn nbd_io_maps_with_threads_within_tls() {
    check_io_within_tls(&["threads", "map", "{uri}&tls-hostname=localhost"], 150);
}

#[cfg(feature = "tls")]
#[test]
fn nbd_io_writes_with_tokio_within_tls() {
    let uri = "{uri}&tls-hostname=localhost";
    check_io_within_tls(&["tokio", "write", uri, "{in}"], 150);
}
