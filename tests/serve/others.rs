//! `fio`, `nbd-client` and the example `nbd` against `serve`.

use std::process::Command;

use crate::images::{GIB, assert_as_sparse, assert_same, scattered, sparse};
use crate::program::{needs, run, run_nbd};
use crate::serve::{DISKS, FRAMINGS, Serve};

#[test]
fn fio_verifies_what_it_has_written() {
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

#[test]
fn a_backup_of_2_gib_from_serve_to_serve() {
    for framing in FRAMINGS {
        let folder = tempfile::tempdir().expect("a folder");
        let (image, backup) = (folder.path().join("image"), folder.path().join("backup"));
        sparse(&image, 2 * GIB, &scattered(2 * GIB));
        sparse(&backup, 2 * GIB, &[]);
        let args = ["--framing", framing];
        let path = |path: &std::path::PathBuf| path.to_str().expect("UTF-8").to_owned();
        let from = Serve::start(&[&args[..], &["--read-only", &path(&image)]].concat());
        let to = Serve::start(&[&args[..], &[path(&backup).as_str()]].concat());
        run_nbd(["copy", from.uri(), to.uri()]).ok();
        assert_same(&image, &backup);
        if framing != "simple" {
            assert_as_sparse(&image, &backup);
        }
        assert!(from.stop().contains(&format!("{framing} framing")));
    }
}
