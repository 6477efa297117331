//! `fio` and `nbd-client` with `nbd-serve`.

use std::process::Command;

use nbd_test_support::needs;
use nbd_test_support::program::run;

use crate::running::{DISKS, Serve};

#[test]
fn fio_verifies_its_writes() {
    needs!("fio");
    for disk in DISKS {
        for framing in ["simple", "structured"] {
            let serve = disk.serve(64, &["--framing", framing]);
            let mut command = Command::new("fio");
            command.current_dir(serve.folder());
            command.args(["--name=verify", "--ioengine=nbd", "--size=64M", "--minimal"]);
            command.args(["--rw=randwrite", "--bsrange=512-128k", "--iodepth=32"]);
            command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
            command.arg(format!("--uri={}", serve.uri()));
            run(&mut command).ok();
        }
    }
}

#[test]
fn nbd_client_lists_the_export() {
    needs!("nbd-client");
    let serve = Serve::start(&["--memory", "1M", "--export-name", "the disk"]);
    let ended = run(Command::new("nbd-client")
        .arg("-l")
        .arg("-unix")
        .arg(serve.socket()))
    .ok();
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(text.contains("the disk"), "{text}");
}
